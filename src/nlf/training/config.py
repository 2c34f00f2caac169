"""ALTConfig: every knob of a run, and the checks that need torch or the machine."""

import contextlib
import os
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from nlf import config
from nlf.config.values import annotations_of
from nlf.data.run_folder import plain_folder, run_settings
from nlf.errors import UserError
from nlf.models.policy import best_device
from nlf.models.sharding import load_whole
from nlf.rewards import Reward
from nlf.training.arguments import check_arguments, check_batches, check_names, check_start, choose_metric, refusing
from nlf.training.hub import check_hub


def _with_defaults(base: type, defaults: dict) -> type:
    """A subclass of the dataclass with new defaults, and unchanged types and help texts."""
    known, annotations = {f.name: f for f in fields(base)}, annotations_of(base)
    changed: list[tuple[str, Any, Any]] = []
    for name, value in defaults.items():
        old = known[name]
        default: dict[str, Any] = {"default": value}
        if isinstance(value, list):
            default = {"default_factory": partial(copy, value)}
        changed.append((name, annotations[name], field(**default, metadata=old.metadata)))
    return make_dataclass(f"{base.__name__}Defaults", changed, bases=(base,))


def _without_retired(options: type) -> type:
    """Let the constructor take retired knobs, as `config.current` does, so that old settings still work."""
    made = options.__init__  # type: ignore[misc]  # of the class, not of an object

    @wraps(made)
    def __init__(self, *args, **values):
        made(self, *args, **config.current(values))

    options.__init__ = __init__  # type: ignore[misc]  # as above
    return options


@_without_retired
@dataclass
class ALTConfig(
    config.RunOptions,
    _with_defaults(TrainingArguments, config.TRAINING_DEFAULTS),  # type: ignore[misc]  # made at run time
):
    """Every knob of a run: the fields of transformers' TrainingArguments and of `nlf.config`, which holds the help texts.

    `num_train_epochs` is the number of iterations; one epoch is `steps_per_iteration` optimizer steps.

    Raises:
        UserError: a value is out of its bounds, or two values contradict each other.
    """

    rewards_follow: ClassVar[bool] = True  # ALTTrainer may get other rewards, and then checks their weights

    def __post_init__(self):
        if isinstance(self.fsdp, bool):
            self.fsdp = str(self.fsdp).lower()  # as the text of a flag
        if self.sampler == "server":
            raise UserError(
                "sampler server cannot be used in training: the server does not get the new weights; use hf or vllm"
            )
        take_recorded(self)
        self.open_batch = choose_batch(self)
        config.check(self)
        choose_folder(self)
        check_names(self)
        config.check_epochs(self, self.num_train_epochs)
        choose_metric(self)
        self.fsdp = {"true": True, "false": None}.get(str(self.fsdp).lower(), self.fsdp)
        choose_precision(self)
        check_start(self)
        with refusing():
            TrainingArguments.__post_init__(self)
        check_hub(self)
        load_whole()
        check_batches(self)
        self.train_sampling_strategy = "sequential"  # the data set fixes the order
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"  # no warning on a CPU
        check_arguments(
            self,
            self.last_step or 1,  # the number of logged rows is not known yet
        )

    @property
    def evaluates(self) -> bool:
        """Whether training evaluates."""
        return self.eval_strategy != "no" or self.eval_on_start

    @property
    def logged_iterations(self) -> int:
        """Iterations on logged feedback alone, which come first; all of them if the run samples nothing."""
        return self.feedback_epochs if self.num_train_epochs else sys.maxsize

    @property
    def last_step(self) -> int:
        """The step at which training ends."""
        if self.max_steps > 0:
            return self.max_steps
        return int(self.num_train_epochs + self.feedback_epochs) * (self.steps_per_iteration or 0)

    __repr__ = TrainingArguments.__repr__  # a dataclass's own would show hub_token

    @property
    def total_batch_size(self) -> int:
        """Rollouts in one optimizer step, over all ranks and micro-batches."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


def take_recorded(args: ALTConfig) -> None:
    """Take what follows the objective from the run in the folder, where the person left it open: a resumed run goes on as it
    was started, whatever today's defaults are.

    Raises:
        UserError: a file of settings cannot be read; or the run computes in bf16, and this machine has no GPU that does.
    """
    folder = plain_folder(args.output_dir) if args.plain == "only" else Path(str(args.output_dir))
    was_open = config.is_open("bf16", args.bf16)
    config.take_recorded(args, run_settings(folder))
    if was_open and args.bf16 is True and not (args.use_cpu or is_torch_bf16_gpu_available()):
        raise UserError(
            f"{folder} was started in bf16, and no GPU was found that computes in it: resume the run on such a GPU, or "
            "choose another --output_dir"
        )


def choose_batch(args: ALTConfig) -> bool:
    """Fill in the batch where the person left it open.

    Returns:
        Whether the model decides how many completions of a step are computed at once. DeepSpeed must know it before.
    """
    given = dict(vars(args))
    for name, value in config.batch(given).items():
        setattr(args, name, value)
    return not args.deepspeed and all(config.is_open(name, given[name]) for name in config.BATCH)


def choose_precision(args: ALTConfig) -> None:
    """Compute in bf16 on a GPU that can, where the person, accelerate's launcher and DeepSpeed's settings leave it open.

    A resumed run keeps the precision of its start (`take_recorded`).
    """
    chosen_elsewhere = args.fp16 or args.deepspeed or "ACCELERATE_MIXED_PRECISION" in os.environ
    if config.is_open("bf16", args.bf16):
        args.bf16 = computes_in_bf16() and not args.use_cpu and not chosen_elsewhere


def computes_in_bf16() -> bool:
    """Whether there is a CUDA GPU whose hardware computes in bf16 (since Ampere)."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_folder(args: ALTConfig) -> None:
    """Give a plain run the folder `plain`.

    Raises:
        UserError: the model with tags would get the folder of the plain model that follows.
    """
    given = Path(str(args.output_dir))
    folder = plain_folder(given)
    if args.plain == "only":
        args.output_dir = str(folder)
    elif args.plain == "true" and folder == given:
        raise UserError(
            f"output_dir {given}: with plain true, a folder of the name plain is that of the plain model; choose another "
            "output_dir, or set plain only"
        )


def check_world(args: ALTConfig) -> None:
    """Check that all started processes train together, and that there are several if weights are sharded.

    Raises:
        UserError: there is no GPU, so that each process would train alone in the same folder; or `fsdp` has one process.
    """
    if args.fsdp and args.world_size == 1:
        raise UserError("fsdp needs several processes; start with torchrun or --accelerate_config, or leave fsdp out")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise UserError(
            f"{started} processes were started, but each finds {args.world_size}: no GPU was found; add --use_cpu true"
        )


def known_device(name: str | None) -> torch.device | None:
    """The device with this name; None for None.

    Raises:
        UserError: this machine has no such device.
    """
    if name is None:
        return None
    device = None
    with contextlib.suppress(RuntimeError, AssertionError):  # torch asserts that it was built for the device
        device = torch.empty(0, device=name).device
    if device is None or device.type not in ("cpu", best_device().type):
        raise UserError(f"reference_device {name!r}: expected cpu, or a device of this machine, such as cuda:1")
    return device


def compile_for_all_shapes(accelerator: Accelerator) -> None:
    """Let `torch_compile` make one graph for groups of any size.

    Torch would otherwise make one graph for the first group and another graph for later groups. A resumed run starts
    with a different group, so its results would differ by rounding.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.dynamic is None:
        plugin.dynamic = True


def check_judges(rewards: Sequence[Reward], args: ALTConfig) -> None:
    """Check that the tags fit the judges: one tag for each level of a judge, and a judge's categories as tags.

    Raises:
        UserError: the numbers of levels and tags differ, a judge's categories are not the tags, or a judge answers with
            categories and quantile_rule is not levels.
    """
    for i, reward in enumerate(rewards):
        own, levels = (getattr(reward.function, name, None) for name in ("tags", "levels"))
        given = args.attributes[i] if args.attributes else {"tags": args.tags}
        tags, by_level = list(given["tags"] or ()), given.get("quantile_rule", args.quantile_rule) == "levels"
        if levels and by_level and len(tags) != levels:
            raise UserError(
                f"reward {reward.name!r} has {levels} levels, there are {len(tags)} tags: {tags}; "
                "give one tag for each level, best first"
            )
        if own is None:
            continue
        if list(own) != tags:
            raise UserError(
                f"reward {reward.name!r} answers with {list(own)}, the tags are {tags}; "
                "expected the same words, best first"
            )
        if not by_level:
            raise UserError(f"reward {reward.name!r} answers with the tags themselves: set quantile_rule levels")
