"""ALTConfig: every knob of a run, and the checks that need torch or the machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments

from nlf import config
from nlf.errors import UserError
from nlf.models.policy import best_device
from nlf.models.sharding import load_whole
from nlf.rewards import Reward


def _with_defaults(base: type, defaults: dict) -> type:
    """The dataclass with other defaults; types and help stay."""
    known = {f.name: f for f in fields(base)}
    changed = []
    for name, value in defaults.items():
        old = known[name]
        default = {"default_factory": partial(list, value)} if isinstance(value, list) else {"default": value}
        changed.append((name, old.type, field(**default, metadata=old.metadata)))
    return make_dataclass(f"{base.__name__}Defaults", changed, bases=(base,))


@dataclass
class ALTConfig(
    config.RewardOptions,
    config.RemoteOptions,
    config.TagOptions,
    config.SamplingOptions,
    config.RolloutSamplerOptions,
    config.EvalSamplingOptions,
    config.LoopOptions,
    config.ObjectiveOptions,
    config.LogOptions,
    _with_defaults(TrainingArguments, config.TRAINING_DEFAULTS),
):
    """Every knob of a run: transformers' TrainingArguments and ours (see `nlf.config` for the help of each).

    `num_train_epochs` is the number of iterations; one epoch is `steps_per_iteration` optimizer steps.
    """

    def __post_init__(self):
        config.join_attributes(self)
        if self.sampler == "server":
            raise UserError("sampler server: it would keep the weights it was started with; training takes hf or vllm")
        config.check(self)
        check_compile(self)
        self.fsdp = {"true": True, "false": None}.get(str(self.fsdp).lower(), self.fsdp)  # a flag's text
        TrainingArguments.__post_init__(self)
        load_whole()
        self.train_sampling_strategy = "sequential"  # the dataset itself fixes the order
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"  # it would only warn
        if self.num_train_epochs != int(self.num_train_epochs):
            raise UserError(f"num_train_epochs {self.num_train_epochs}: expected a whole number of iterations")
        if self.guidance_scale:
            raise UserError("guidance_scale: guided rollouts lose the contrast to train on; set eval_guidance_scale")
        for name in ("eval_tag", "eval_negative_tag"):
            if getattr(self, name) not in (None, *self.tags):
                raise UserError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(map(repr, self.tags))}")

    @property
    def total_batch_size(self) -> int:
        """Rollouts in one optimizer step, over all ranks and micro-batches."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


def check_world(args: ALTConfig) -> None:
    """Every process that was started takes part.

    Raises:
        UserError: there is no accelerator for them, so that each would train alone, in one folder.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise UserError(
            f"{started} processes were started, each sees {args.world_size}: no GPU was found; add --use_cpu true"
        )


def known_device(name: str | None) -> torch.device | None:
    """The device of this name.

    Raises:
        UserError: there is none.
    """
    if name is None:
        return None
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # torch asserts that it was built for it
        device = None
    if device is None or device.type not in ("cpu", best_device().type):
        raise UserError(f"reference_device {name!r}: expected cpu, or a device of this machine, cuda:1 say")
    return device


def check_compile(args: ALTConfig) -> None:
    """Before anything is loaded or sampled.

    Raises:
        UserError: accelerate knows no such backend, or torch no such mode.
    """
    known = {
        "torch_compile_backend": lambda: [backend.value.lower() for backend in DynamoBackend],
        "torch_compile_mode": torch._inductor.list_mode_options,
    }
    for name, choices in known.items():
        value = getattr(args, name)
        if value is not None and value not in choices():
            raise UserError(f"{name} {value!r}: expected one of {', '.join(choices())}")


def compile_for_all_shapes(accelerator: Accelerator) -> None:
    """With `torch_compile`, one graph for groups of any size from the first on. Left to itself torch makes one for the
    first group alone and another for those that follow, and a resumed run has another first group.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.dynamic is None:
        plugin.dynamic = True


def check_judges(rewards: Sequence[Reward], args: ALTConfig) -> None:
    """Check the tags of a run with judges: one tag for each level, and the categories of a judge as the tags.

    Raises:
        UserError: the numbers differ, the categories are not the tags, or `quantile_rule` is not "levels".
    """
    for i, reward in enumerate(rewards):
        own, levels = (getattr(reward.function, name, None) for name in ("tags", "levels"))
        given = args.attributes[i] if args.attributes else {"tags": args.tags}
        by_level = given.get("quantile_rule", args.quantile_rule) == "levels"
        if levels and by_level and len(given["tags"]) != levels:
            raise UserError(
                f"reward {reward.name!r} has {levels} levels, there are {len(given['tags'])} tags: {list(given['tags'])}; "
                "give one for each, best first"
            )
        if own is None:
            continue
        if list(own) != list(given["tags"]):
            raise UserError(
                f"reward {reward.name!r} answers with {list(own)}, the tags are {list(given['tags'])}; "
                "they must be the same, best first"
            )
        if not by_level:
            raise UserError(f"reward {reward.name!r} answers with the tags themselves: set quantile_rule levels")
