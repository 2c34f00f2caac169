"""`nlf train --dry_run`: estimate the cost of a run from its settings, its prompts and the shapes of its weights.

It loads the prompts and, if the model is a folder, the headers of its safetensors files.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nlf import config
from nlf.cli.arguments import Knob
from nlf.cli.feedback_plan import feedback_rows
from nlf.config import TrainOptions
from nlf.config.knobs import Following
from nlf.data.logged import understand
from nlf.data.prompts import CONVERSATIONS, TEXT, PromptRow, kind_of, load_prompts
from nlf.errors import UserError
from nlf.method.credit import MOST_PLACES
from nlf.models.names import MODEL_SOURCES
from nlf.models.sources import model_path
from nlf.rewards.auditors import auditors_of
from nlf.rewards.registry import resolve_reward

Shapes = list[tuple[int, ...]]
BYTES = {"float32": 4, "auto": 2, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Schedule:
    """The arguments of transformers' TrainingArguments that the cost depends on."""

    num_train_epochs: float
    max_steps: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    logging_steps: float
    eval_strategy: str
    eval_steps: float | None
    eval_on_start: bool
    save_strategy: str
    save_steps: float
    save_total_limit: int | None
    learning_rate: float | None  # None: it follows the size of the model
    bf16: bool | Following  # Following: it follows the GPU
    fp16: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], knobs: Mapping[str, Knob], options: TrainOptions) -> "Schedule":
        """The schedule of a run: given values, and otherwise defaults, of which some follow the objective."""
        defaults = {name: knob.default for name, knob in knobs.items()} | config.followed(
            options, bool(options.credit_coef)
        )
        given = {name: value for name, value in values.items() if not config.is_open(name, value)}
        found = defaults | given
        return cls(**{f.name: (found | config.batch(found))[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Counts:
    """The sizes of a run."""

    prompts: int  # training prompts
    iterations: int  # of each stage
    steps: int  # optimizer steps of each stage
    batch: int  # completions in a step, over all processes
    per_iteration: int  # completions sampled in an iteration
    evaluations: int
    eval_prompts: int
    evaluated: int  # completions of all evaluations
    stages: int = 1  # models that are trained: with tags, plain, or one after the other
    logged: int = 0  # iterations on logged feedback alone

    @property
    def sampled(self) -> int:
        """Completions to train on, in all iterations of all stages."""
        return self.stages * (self.iterations - self.logged) * self.per_iteration


def plan(options: TrainOptions, schedule: Schedule) -> dict[str, str]:
    """Names and figures, in the order in which they are shown.

    Raises:
        UserError: the prompts, the rewards or the model cannot be found.
    """
    config.check_epochs(options, schedule.num_train_epochs)
    samples, prompts = bool(schedule.num_train_epochs), []
    if samples:
        prompts = prompts_of(options, options.dataset_name, options.dataset_train_split, options.max_prompts)
    logged = understand(options.feedback, options.feedback_columns) if options.feedback else None
    kind = (CONVERSATIONS if logged.conversational else TEXT) if logged else kind_of(prompts)
    config.fill_in_length(options, kind)
    of_feedback = feedback_rows(options, logged, samples) if logged else {}
    n, shapes = counts(options, schedule, len(prompts), len(logged or ())), weight_shapes(options)
    tokens = (n.sampled + n.evaluated) * options.max_completion_length
    return {
        **of_feedback,
        "training prompts": f"{n.prompts:,}",
        "iterations": f"{n.iterations:,}"
        + (", and as many for the plain model" if n.stages > 1 else "")
        + (f", {n.logged:,} of them on logged feedback alone" if n.logged else ""),
        "completions": f"{n.per_iteration:,} an iteration, {n.sampled:,} in all" if n.sampled else "none is sampled",
        "evaluation completions": f"{n.evaluated:,} ({n.evaluations:,} evaluations of {n.eval_prompts:,} prompts)",
        "tokens sampled": f"at most {tokens:,}, {options.max_completion_length:,} a completion",
        "scorer calls": scorer_calls(options, n),
        **prefix_calls(options, n),
        "optimizer steps": "; ".join(f"{n.steps:,} of {n.batch:,} completions, {each}" for each in passes(options)),
        **by_credit(options, schedule, n, shapes),
        **disk(options, schedule, n, shapes),
    }


def by_credit(options: TrainOptions, schedule: Schedule, n: Counts, shapes: Shapes) -> dict[str, str]:
    """How a run by credit trains; nothing of any other run."""
    if not options.credit_coef:
        return {}
    rate, parameters = schedule.learning_rate, None
    if rate is None:
        parameters = sum(math.prod(shape) for shape in shapes)
        rate = config.learning_rate(parameters, options.use_peft)
    iterations, computed_in = n.steps / options.steps_per_iteration, config.precision(schedule.bf16, schedule.fp16)
    told = config.choices(options, rate, iterations, config.Step(n.batch, None, computed_in), parameters)
    return {"credit": told.removeprefix("credit: ")}


def counts(options: TrainOptions, schedule: Schedule, prompts: int, logged: int = 0) -> Counts:
    """Count iterations, steps and completions of a run on so many prompts.

    Args:
        logged: Rows of logged feedback.
    """
    samples = bool(schedule.num_train_epochs)
    on_each_device = schedule.per_device_train_batch_size * schedule.gradient_accumulation_steps
    batch = on_each_device * int(os.environ.get("WORLD_SIZE", "1"))
    epochs, per_iteration = math.ceil(schedule.num_train_epochs) + options.feedback_epochs, options.steps_per_iteration
    if per_iteration is None:
        per_iteration = config.steps_of(logged, samples, batch)
    steps = schedule.max_steps if schedule.max_steps > 0 else epochs * per_iteration
    iterations = math.ceil(steps / per_iteration)
    stages = 2 if options.plain == "true" else 1
    evaluations = stages * num_evaluations(schedule, iterations, steps)
    eval_prompts = 0
    if evaluations:
        split, limit = options.dataset_test_split, options.max_eval_prompts
        eval_prompts = len(prompts_of(options, options.eval_dataset, split, limit))
    return Counts(
        prompts=prompts,
        iterations=iterations,
        steps=steps,
        batch=batch,
        per_iteration=(options.prompts_per_iteration or prompts) * options.num_generations,
        evaluations=evaluations,
        eval_prompts=eval_prompts,
        evaluated=evaluations * eval_prompts * options.eval_num_generations,
        stages=stages,
        logged=min(iterations, options.feedback_epochs) if samples else iterations,
    )


def prompts_of(options: TrainOptions, source: str, split: str, limit: int | None) -> list[PromptRow]:
    """The prompts of a source."""
    return load_prompts(
        source, column=options.dataset_prompt_column, split=split, limit=limit,
        config=options.configuration_of(source), streaming=options.dataset_streaming,
    )  # fmt: skip


def num_evaluations(schedule: Schedule, iterations: int, steps: int) -> int:
    """Count how often the evaluation prompts are sampled."""
    interval = interval_of(schedule.eval_steps or schedule.logging_steps, steps)
    by_strategy = {"no": 0, "epoch": iterations}.get(schedule.eval_strategy, int(steps // interval))
    return by_strategy + int(schedule.eval_on_start)


def num_checkpoints(schedule: Schedule, n: Counts) -> int:
    """Count the checkpoints of a stage: of each iteration, or of each `save_steps` and of the last step."""
    by_steps = math.ceil(n.steps / interval_of(schedule.save_steps, n.steps))
    return by_steps if schedule.save_strategy == "steps" else n.iterations


def interval_of(every: float, steps: int) -> float:
    """The number of steps that a number, or a share of all steps below 1, stands for."""
    return math.ceil(every * steps) if every < 1 else every


def scorer_calls(options: TrainOptions, n: Counts) -> str:
    """The calls of rewards, and of auditors in evaluations, and the hours of the remote ones at `rate_limit`, or one a second."""
    rewards = [resolve_reward(spec) for spec in options.reward_funcs]
    calls = [(reward, n.sampled + n.evaluated) for reward in rewards]
    calls += [(auditor, n.evaluated) for auditor in auditors_of(options.audit_funcs, rewards)]
    remote, rate = sum(count for scorer, count in calls if scorer.remote), options.rate_limit or 1
    hours = f"; {remote:,} of them remote, {remote / rate / 3600:,.1f} hours at {rate:g} a second" if remote else ""
    return f"{sum(count for _, count in calls):,}{hours}"


def most_prefixes(options: TrainOptions) -> int:
    """Most prefixes of a completion that are scored for its credit; 0 without credit, or if no reward scores prefixes."""
    by_prefix = options.credit_coef and options.credit != "completion"
    able = by_prefix and any(resolve_reward(spec).prefixes for spec in options.reward_funcs)
    return min(MOST_PLACES, options.max_completion_length) if able else 0


def prefix_calls(options: TrainOptions, n: Counts) -> dict[str, str]:
    """The prefixes that are scored for credit, beside the completions; nothing if there are none."""
    most = most_prefixes(options)
    return {"prefixes scored": f"at most {most} a completion, {n.sampled * most:,} in all"} if most else {}


def passes(options: TrainOptions) -> list[str]:
    """The forward passes for each drawn completion, of each stage.

    With tags these are one under its tag, one under the other tag with contrast or credit, and the reference's. A plain
    model has one of its own.
    """
    tagged = f"each run {2 + int(bool(options.contrast_coef or options.credit_coef))} times"
    plain = "each run 2 times"
    return {"false": [tagged], "true": [tagged, f"{plain} (plain)"], "only": [plain]}[options.plain]


def disk(options: TrainOptions, schedule: Schedule, n: Counts, shapes: Shapes) -> dict[str, str]:
    """Sizes of the model, the rollouts and the checkpoints, and of the whole model that vLLM reads."""
    size = sum(math.prod(shape) for shape in shapes)
    trained = adapter_size(shapes, options.lora_r) if options.use_peft else size
    checkpoints = n.stages * min(num_checkpoints(schedule, n), schedule.save_total_limit or math.inf)
    tokens, prefixes = options.max_completion_length, most_prefixes(options)
    # 150 bytes a row, 8 for a token's id and text, 16 for the place and the score of a prefix
    rollouts = n.sampled * (150 + 8 * tokens + 16 * prefixes)
    width = BYTES.get(options.dtype, 4)
    checkpoint = trained * width * 3  # weights and the two moments of Adam
    handed = {"disk, weights for vLLM": f"about {human(size * width)} while it samples"}
    return {
        "parameters": f"{size:,}" + (f", {trained:,} trained (adapters)" if options.use_peft else ""),
        "disk, rollouts": f"about {human(rollouts)}",
        "disk, checkpoints": f"about {human(checkpoints * checkpoint)} ({checkpoints} of {human(checkpoint)})",
        **(handed if options.sampler == "vllm" else {}),
    }


def weight_shapes(options: TrainOptions) -> Shapes:
    """Shapes of the model's weights: from its files where it is a folder, else from its configuration."""
    path = options.model_name_or_path
    if Path(path).is_file():  # a GGUF file, which is not converted for an estimate
        from nlf.models.gguf import shapes_in

        return shapes_in(Path(path))
    path = model_path(path)
    files = sorted(Path(path).glob("*.safetensors"))
    if files:
        return [shape for file in files for shape in safetensors_shapes(file)]
    return meta_shapes(path, options.model_revision, options.trust_remote_code)


def safetensors_shapes(path: Path) -> Shapes:
    """Read the shapes in a file's header: 8 bytes of length, then JSON.

    Raises:
        UserError: the header is damaged.
    """
    try:
        with open(path, "rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = json.loads(file.read(length))
        return [tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a damaged or cut-off safetensors file; copy it again") from error


def meta_shapes(name: str, revision: str, trust_remote_code: bool) -> Shapes:
    """Build the architecture without memory for its weights, and return the shapes."""
    import torch
    from transformers import AutoModelForCausalLM

    from nlf.models.loading import check_language_model, load_config, loading

    with loading(f"cannot read the configuration of model {name!r}", MODEL_SOURCES), torch.device("meta"):
        config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        check_language_model(config)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return [tuple(parameter.shape) for parameter in model.parameters()]


def adapter_size(shapes: Shapes, rank: int) -> int:
    """Parameters of LoRA on all linear layers; the embeddings, the matrices of the largest side, get no adapter."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    vocabulary = max((max(shape) for shape in matrices), default=0)
    return rank * sum(sum(shape) for shape in matrices if max(shape) != vocabulary)


def human(size: float) -> str:
    """Write a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
