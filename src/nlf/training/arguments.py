"""What transformers, accelerate and torch would refuse once the model is loaded or the first iteration is over, refused
when the settings are made.

Bounds, and arguments that training does not use, stand in `nlf.config.inherited`; here are the checks that need torch, an
installed package, or the machine.
"""

import contextlib
import copy
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from importlib.util import find_spec
from typing import Any, cast, get_args

import torch
from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from nlf.config.objective import RATE
from nlf.config.values import annotations_of
from nlf.errors import UserError, did_you_mean, line_of
from nlf.evaluation.metrics import METRICS, family, higher_is_better, parsed
from nlf.rewards import Reward

logger = logging.getLogger(__name__)

BY_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)  # schedules that follow an evaluation's metric
UNLISTED = ("flyte", "azure_ml")  # trackers whose packages transformers does not look for, or not alone
BEST = "eval_reward"  # the metric of the best model, unless metric_for_best_model names another


@contextlib.contextmanager
def refusing(what: str = "") -> Iterator[None]:
    """Inside the `with` block, an error by which transformers or torch refuses a setting becomes a UserError.

    Args:
        what: The settings at fault, where the library's own error does not name them.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, OSError, NotImplementedError, ZeroDivisionError) as error:
        raise UserError(f"{what}{': ' if what else ''}{line_of(error)}") from error


# ---- before TrainingArguments is made -----------------------------------------------------------------------------


def check_names(args: TrainingArguments) -> None:
    """Check the arguments that take one of several names: those whose type is an enumeration, and a few of plain text.

    Raises:
        UserError: the name is unknown; the error lists the known ones.
    """
    annotations = annotations_of(type(args))
    for f in fields(args):
        check_choice(f.name, getattr(args, f.name), f.metadata.get("choices") or [])
        for kind in get_args(annotations[f.name]):
            if isinstance(kind, type) and issubclass(kind, Enum):
                check_choice(f.name, getattr(args, f.name), [member.value for member in kind])
    check_choice("torch_compile_backend", args.torch_compile_backend, [b.value.lower() for b in DynamoBackend])
    check_choice("torch_compile_mode", args.torch_compile_mode, [*torch._inductor.list_mode_options()])


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """Raise UserError if the value is not one of the choices. None, and no choices at all, allow everything."""
    if value is not None and choices and value not in choices:
        raise UserError(f"{name} {value!r}:{did_you_mean(str(value), choices)} expected one of {', '.join(choices)}")


def choose_metric(args: TrainingArguments) -> None:
    """Set the metric that decides about the best model or the learning rate, where it is not given, and its direction.

    Raises:
        UserError: nothing is evaluated, the metric has no better direction, or `greater_is_better` is the wrong one.
    """
    by_metric = args.lr_scheduler_type in BY_METRIC
    needed = [
        *(["load_best_model_at_end"] if args.load_best_model_at_end else []),
        *(["save_strategy best"] if args.save_strategy == SaveStrategy.BEST else []),
        *([f"lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value}"] if by_metric else []),
    ]
    if needed and args.eval_strategy == "no":
        raise UserError(f"{needed[0]} needs evaluations: give eval_dataset and eval_strategy epoch, or leave it out")
    if needed and args.metric_for_best_model is None:
        args.metric_for_best_model = BEST
    if args.metric_for_best_model is None:
        return
    name = metric_name(args.metric_for_best_model)
    better = higher_is_better(name)
    if args.greater_is_better is None:
        if better is None:
            raise UserError(f"metric_for_best_model {name}: give greater_is_better, true or false")
        args.greater_is_better = better
    elif better is not None and args.greater_is_better != better and not family(name).startswith("positive"):
        raise UserError(
            f"greater_is_better {args.greater_is_better}: {name} is better if {'higher' if better else 'lower'}"
        )
    if by_metric and args.greater_is_better:
        given = args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {}
        args.lr_scheduler_kwargs = {"mode": "max", **given}


def metric_name(name: str) -> str:
    """A metric of evaluation without Trainer's prefix: `eval_reward` is `reward`."""
    return name.removeprefix("eval_")


def check_metric(args: TrainingArguments, rewards: Sequence[Reward], auditors: Sequence[Reward] = ()) -> None:
    """Check that evaluations can give `metric_for_best_model`.

    Raises:
        UserError: there is no such metric, or it is an auditor's. Names that only a scorer's attributes can have are not
            checked.
    """
    if args.metric_for_best_model is None:
        return
    name, open_names = metric_name(args.metric_for_best_model), any(map(_gives_attributes, rewards))
    if parsed(name).label in [auditor.label for auditor in auditors]:
        raise UserError(
            f"metric_for_best_model {name!r} is an auditor's: what is chosen by an auditor is no longer audited by it; "
            "name a metric of the rewards"
        )
    known = [
        each for each in METRICS if not each.startswith(("corpus_", "self_bleu", "tox", "expected_max", "positive"))
    ]
    if family(name) not in known and (not open_names or name.startswith(("corpus_", "self_bleu"))):
        raise UserError(
            f"metric_for_best_model {name!r}:{did_you_mean(name, known)} training measures {', '.join(known)}"
        )


def check_measured(args: TrainingArguments, measured: Mapping[str, float], prefix: str) -> None:
    """Check that an evaluation gave `metric_for_best_model`, which can be the name of a scorer's attribute.

    Args:
        measured: The metrics of the evaluation, with the prefix before each name.

    Raises:
        UserError: it did not.
    """
    if args.metric_for_best_model is None:
        return
    name, found = metric_name(args.metric_for_best_model), [each.removeprefix(f"{prefix}_") for each in measured]
    if name not in found:
        raise UserError(
            f"metric_for_best_model {name!r}:{did_you_mean(name, found)} the evaluation gave {', '.join(found)}"
        )


def _gives_attributes(reward: Reward) -> bool:
    return reward.returns_judgements or hasattr(reward.function, "attributes")


def check_start(args: TrainingArguments) -> None:
    """Check what TrainingArguments needs to start: the packages and the processes of sharded training.

    Raises:
        UserError: DeepSpeed is not installed or lacks the learning rate, or there is one process where several are needed.
    """
    if args.deepspeed and find_spec("deepspeed") is None:
        raise UserError("deepspeed is not installed: `pip install deepspeed`, or use --accelerate_config fsdp2")
    if args.deepspeed and args.learning_rate is None:
        raise UserError(
            "deepspeed: its settings may need the learning rate before the size of the model is known; give learning_rate"
        )
    if args.fsdp and args.deepspeed:
        raise UserError("fsdp and deepspeed exclude each other; leave one of them out")
    if args.ddp_backend and "WORLD_SIZE" not in os.environ:
        raise UserError("ddp_backend needs several processes; start with torchrun or --accelerate_config")


# ---- after TrainingArguments is made ------------------------------------------------------------------------------


def check_arguments(args: TrainingArguments, steps: int) -> None:
    """Check the arguments that need an installed package, the device, or an optimizer.

    Args:
        steps: Optimizer steps of the run.

    Raises:
        UserError: an argument cannot be used here, or has no effect beside another.
    """
    _check_trackers(args)
    _check_device(args)
    _check_activations(args)
    _check_workers(args)
    _check_optimizer(args, steps)


def _check_trackers(args: TrainingArguments) -> None:
    names = args.report_to if isinstance(args.report_to, list) else []
    with refusing("report_to"):
        get_reporting_integration_callbacks(names)
    installed = [*get_available_reporting_integrations(), *UNLISTED]
    for name in names:
        if name not in installed:
            raise UserError(f"report_to {name}: its package is not installed; install it, or leave {name} out")


def _check_device(args: TrainingArguments) -> None:
    if args.fp16 and args.device.type == "cpu":
        raise UserError("fp16 needs a GPU; on a CPU use bf16, or neither")


def _check_activations(args: TrainingArguments) -> None:
    name, given = "activation_checkpointing_kwargs", args.activation_checkpointing_kwargs
    if given and not args.activation_checkpointing:
        raise UserError(f"{name} have no effect without activation_checkpointing; add that, or leave them out")
    if given:
        with refusing(f"{name} {given}"):
            checkpoint(torch.square, torch.ones(1), **cast("dict[str, Any]", given))


def _check_workers(args: TrainingArguments) -> None:
    if args.dataloader_multiprocessing_context is not None and args.dataloader_num_workers == 0:
        raise UserError("dataloader_multiprocessing_context needs dataloader_num_workers of 1 or more")


def _check_optimizer(args: TrainingArguments, steps: int) -> None:
    """Make the optimizer and the schedule of a model with one weight, as Trainer makes them of the real one."""
    model = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)
    tried = copy.copy(args)
    if tried.learning_rate is None:  # it follows the size of the model
        tried.learning_rate = RATE
    if args.optim_target_modules is not None:
        tried.optim_target_modules = "all-linear"  # the names of the real model are not known yet
    name = OptimizerNames(args.optim).value
    with refusing(f"optim {name}" + (f", optim_args {args.optim_args!r}" if args.optim_args else "")):
        kind, values = _optimizer_of(tried, model)
        _check_used(tried, model, (kind, values))
        if not {"params", "model", "optimizer_dict"} & values.keys() and _is_optimizer(kind):
            optimizer = kind(model.parameters(), **values)
        else:  # it needs the real model
            optimizer = torch.optim.SGD(model.parameters(), lr=tried.learning_rate)
    _check_schedule(args, optimizer, steps)


def _optimizer_of(args: TrainingArguments, model: torch.nn.Module) -> tuple[Any, dict[str, Any]]:
    """The class of the optimizer, or what makes it, and its keyword arguments."""
    return Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]  # any module will do


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)


def _check_used(args: TrainingArguments, model: torch.nn.Module, made: tuple[Any, Mapping[str, Any]]) -> None:
    """Raise UserError if the optimizer would be the same without `optim_args` or without `optim_target_modules`."""
    for name in ("optim_args", "optim_target_modules"):
        without = copy.copy(args)
        setattr(without, name, None)
        with contextlib.suppress(ValueError):  # it cannot be made without, so it is used
            if getattr(args, name) and _optimizer_of(without, model) == made:
                raise UserError(f"{name} has no effect on optim {OptimizerNames(args.optim).value}; leave {name} out")


def _check_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> None:
    kind, given = SchedulerType(args.lr_scheduler_type), cast("dict | None", args.lr_scheduler_kwargs)
    if given and kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise UserError(
            f"lr_scheduler_kwargs {given} have no effect on lr_scheduler_type {kind.value}; leave them out"
        )
    with refusing(f"lr_scheduler_type {kind.value}, lr_scheduler_kwargs {given}"):
        warmup = args.get_warmup_steps(steps)
        schedule = get_scheduler(kind, optimizer, warmup, steps, given)
        for factor in getattr(schedule, "lr_lambdas", ()):
            for step in (0, warmup, steps - 1):
                factor(step)


# ---- what a step trains on ----------------------------------------------------------------------------------------


def check_batches(args: TrainingArguments) -> None:
    """Refuse arguments with which Trainer would train on other rollouts than those drawn for a step, or would not resume
    exactly, and switch off workers that keep an earlier iteration's rollouts.

    Raises:
        UserError: there is such an argument.
    """
    for name, (is_set, why) in _other_batches(args).items():
        if is_set:
            raise UserError(f"{name}: not supported in training, {why}")
    if args.dataloader_persistent_workers:
        args.dataloader_persistent_workers = False
        logger.warning("dataloader_persistent_workers: switched off, because every iteration trains on a new pool")
    if args.save_only_model:
        logger.warning("save_only_model: the run cannot be resumed from its checkpoints; once stopped, it starts over")


def _other_batches(args: TrainingArguments) -> dict[str, tuple[Any, str]]:
    """Argument → whether it is set, and why it cannot be."""
    loading: Any = args.accelerator_config  # TrainingArguments has made a record of it
    optimizer = OptimizerNames(args.optim).value
    return {
        "accelerator_config split_batches": (loading.split_batches, "the ranks' shares of a step are fixed"),
        "accelerator_config dispatch_batches": (loading.dispatch_batches, "each rank makes its own batches"),
        "accelerator_config num_steps": (
            "num_steps" in (loading.gradient_accumulation_kwargs or {}),
            "set gradient_accumulation_steps",
        ),
        f"optim {optimizer}": (
            any(word in optimizer for word in ("layerwise", "lomo")),
            "checkpoints do not hold its state",
        ),
    }
