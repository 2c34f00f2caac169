"""Every knob, as plain dataclasses: the command line, the recipes and `ALTConfig` are all made from them.

The default, the help, the type, the choices and the bounds of a knob stand in its field (`knobs`). Nothing heavy is
imported, so `nlf train --help` is quick. `nlf.training.config.ALTConfig` joins `RunOptions` with transformers'
`TrainingArguments`; `inherited` holds its defaults and bounds, and the arguments that do nothing here. Names are TRL's
wherever TRL has the thing. One rule reads every value: `values`.

Departures from the published code: K tags make K quantiles, top-k and top-p are off by default, and the coefficients
alone choose the objective.
"""

from nlf.config.commands import (
    COMMAND_GROUPS,
    COMMAND_OPTIONS,
    ComparisonOptions,
    ConditionOptions,
    DistillOptions,
    DrawingOptions,
    EvaluateOptions,
    FetchOptions,
    ImportOptions,
    LoadOptions,
    OutputOptions,
    PerplexityOptions,
    PromptOptions,
    ReportOptions,
    SampleOptions,
    ScoreFileOptions,
    ScoreOptions,
    ServerOptions,
    StudentOptions,
)
from nlf.config.inherited import (
    FIXED,
    TRAINING_DEFAULTS,
    TRAINING_RULES,
    TRAINING_SHORT,
    TRAINING_TYPES,
    check_inherited,
)
from nlf.config.knobs import Options, Rule, bounds, check, check_value, knob
from nlf.config.objective import choices, fill_in, followed, is_open, learning_rate, take_recorded
from nlf.config.retired import RETIRED, current
from nlf.config.rewards import MeasureOptions, RemoteOptions, RewardOptions, TrainRemoteOptions, remote_options
from nlf.config.sampling import (
    EvalSamplingOptions,
    EvaluateRuleOptions,
    RolloutSamplerOptions,
    SamplerOptions,
    SampleRuleOptions,
    SamplingOptions,
    TrainSamplingOptions,
    eval_sampling_options,
    refuse_guidance,
    sampler_options,
    sampling_options,
)
from nlf.config.tags import Attribute, TagOptions, attributes_of, join_attributes
from nlf.config.training import (
    OPTION_GROUPS,
    DataOptions,
    LogOptions,
    LoopOptions,
    ModelOptions,
    ObjectiveOptions,
    RunOptions,
    TrainOptions,
)

__all__ = [
    "COMMAND_GROUPS",
    "COMMAND_OPTIONS",
    "FIXED",
    "OPTION_GROUPS",
    "RETIRED",
    "TRAINING_DEFAULTS",
    "TRAINING_RULES",
    "TRAINING_SHORT",
    "TRAINING_TYPES",
    "Attribute",
    "ComparisonOptions",
    "ConditionOptions",
    "DataOptions",
    "DistillOptions",
    "DrawingOptions",
    "EvalSamplingOptions",
    "EvaluateOptions",
    "EvaluateRuleOptions",
    "FetchOptions",
    "ImportOptions",
    "LoadOptions",
    "LogOptions",
    "LoopOptions",
    "MeasureOptions",
    "ModelOptions",
    "ObjectiveOptions",
    "Options",
    "OutputOptions",
    "PerplexityOptions",
    "PromptOptions",
    "RemoteOptions",
    "ReportOptions",
    "RewardOptions",
    "RolloutSamplerOptions",
    "Rule",
    "RunOptions",
    "SampleOptions",
    "SampleRuleOptions",
    "SamplerOptions",
    "SamplingOptions",
    "ScoreFileOptions",
    "ScoreOptions",
    "ServerOptions",
    "StudentOptions",
    "TagOptions",
    "TrainOptions",
    "TrainRemoteOptions",
    "TrainSamplingOptions",
    "attributes_of",
    "bounds",
    "check",
    "check_inherited",
    "check_value",
    "choices",
    "current",
    "eval_sampling_options",
    "fill_in",
    "followed",
    "is_open",
    "join_attributes",
    "knob",
    "learning_rate",
    "refuse_guidance",
    "remote_options",
    "sampler_options",
    "sampling_options",
    "take_recorded",
]
