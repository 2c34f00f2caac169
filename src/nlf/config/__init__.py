"""Every knob, as plain dataclasses: the command line, the recipes and `ALTConfig` are all made from them.

The default, the help, the type, the choices and the bounds of a knob stand in its field (`knobs`). Nothing heavy is
imported, so `nlf train --help` is quick. `nlf.training.config.ALTConfig` joins `RunOptions` with transformers'
`TrainingArguments`; `inherited` holds its defaults and bounds, and the arguments that do nothing here. Names are TRL's
wherever TRL has the thing. One rule reads every value: `values`.

Departures from the published code: K tags make K quantiles, top-k and top-p are off by default, and the coefficients
alone choose the objective.
"""

from nlf.config import commands
from nlf.config.aliases import full_name
from nlf.config.commands import (
    ComparisonOptions,
    ConditionOptions,
    DistillOptions,
    DrawingOptions,
    EvaluateOptions,
    ExportOptions,
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
from nlf.config.feedback import FeedbackOptions, check_epochs, columns_of
from nlf.config.inherited import (
    FIXED,
    TRAINING_DEFAULTS,
    TRAINING_RULES,
    TRAINING_SHORT,
    TRAINING_TYPES,
    check_inherited,
)
from nlf.config.knobs import Options, Rule, bounds, check, check_value, knob
from nlf.config.objective import (
    BATCH,
    STEP,
    Step,
    at_once,
    batch,
    choices,
    fill_in,
    fill_in_length,
    followed,
    is_open,
    learning_rate,
    precision,
    steps_of,
    take_recorded,
)
from nlf.config.retired import RETIRED, current, renamed
from nlf.config.rewards import MeasureOptions, RemoteOptions, RewardOptions, TrainRemoteOptions, remote_options
from nlf.config.sampling import (
    EvalSamplingOptions,
    EvaluateRuleOptions,
    RolloutSamplerOptions,
    SamplerOptions,
    SampleRuleOptions,
    SamplingOptions,
    TrainSamplingOptions,
    check_length,
    eval_sampling_options,
    refuse_guidance,
    sampler_options,
    sampling_options,
)
from nlf.config.serving import SERVING_GROUPS, SERVING_OPTIONS, ServeOptions, TerminalOptions
from nlf.config.tags import Attribute, ChatOptions, TagOptions, attributes_of, join_attributes
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

COMMAND_OPTIONS: dict[str, type[Options]] = {**commands.COMMAND_OPTIONS, **SERVING_OPTIONS}
COMMAND_GROUPS: dict[str, dict[str, type[Options]]] = {**commands.COMMAND_GROUPS, **SERVING_GROUPS}

__all__ = [
    "BATCH",
    "COMMAND_GROUPS",
    "COMMAND_OPTIONS",
    "FIXED",
    "OPTION_GROUPS",
    "RETIRED",
    "STEP",
    "TRAINING_DEFAULTS",
    "TRAINING_RULES",
    "TRAINING_SHORT",
    "TRAINING_TYPES",
    "Attribute",
    "ChatOptions",
    "ComparisonOptions",
    "ConditionOptions",
    "DataOptions",
    "DistillOptions",
    "DrawingOptions",
    "EvalSamplingOptions",
    "EvaluateOptions",
    "EvaluateRuleOptions",
    "ExportOptions",
    "FeedbackOptions",
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
    "ServeOptions",
    "ServerOptions",
    "Step",
    "StudentOptions",
    "TagOptions",
    "TerminalOptions",
    "TrainOptions",
    "TrainRemoteOptions",
    "TrainSamplingOptions",
    "at_once",
    "attributes_of",
    "batch",
    "bounds",
    "check",
    "check_epochs",
    "check_inherited",
    "check_length",
    "check_value",
    "choices",
    "columns_of",
    "current",
    "eval_sampling_options",
    "fill_in",
    "fill_in_length",
    "followed",
    "full_name",
    "is_open",
    "join_attributes",
    "knob",
    "learning_rate",
    "precision",
    "refuse_guidance",
    "remote_options",
    "renamed",
    "sampler_options",
    "sampling_options",
    "steps_of",
    "take_recorded",
]
