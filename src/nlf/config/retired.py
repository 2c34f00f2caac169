"""Removed and renamed knobs of `nlf train`.

The `config.yaml` of an old run holds them. A value that means what training does today is accepted and dropped. Any
other value is refused in one line that says what to use instead.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS

logger = logging.getLogger(__name__)

Values = Mapping[str, Any]


class Retired(NamedTuple):
    """A removed knob: its type, a test whether a value means what training does today, and what to use instead."""

    type: str
    accepts: Callable[[Any, Values], bool]
    instead: str


def only(*accepted: Any) -> Callable[[Any, Values], bool]:
    return lambda value, values: value in accepted


def _tags(values: Values) -> Sequence[str]:
    return values.get("tags") or DEFAULT_TAGS


def _is_eval_length(value: Any, values: Values) -> bool:
    return value in (20, values.get("max_completion_length", 20))  # 20 was the default of both


@cache
def _tell_eval_length(length: int) -> None:
    """Warn once in a process that evaluation samples as many tokens as training."""
    logger.warning("%s is retired: evaluation now samples max_completion_length tokens, %d", EVAL_LENGTH, length)


def _entropy_is_steered(value: Any, values: Values) -> bool:
    return not value or values.get("target_entropy") is not None


def _is_horizon(value: Any, values: Values) -> bool:
    steered = values.get("adaptive_entropy", values.get("target_entropy") is not None)
    return not steered or value == values.get("horizon", 2500)


EVAL_LENGTH = "eval_max_completion_length"
EVALUATE = "training evaluates {} and `nlf evaluate` takes --{}"

RETIRED: dict[str, Retired] = {
    "guidance_scale": Retired(
        "float", only(0), "guided rollouts lose the contrast to train on; `nlf evaluate` takes --guidance_scales"
    ),
    "negative_tag": Retired("str | None", only(None), "rollouts are not guided; `nlf sample` takes --negative_tag"),
    "eval_negative_tag": Retired(
        "str | None",
        lambda value, values: value in (None, _tags(values)[-1]),
        EVALUATE.format("without guidance,", "negative_tag"),
    ),
    "eval_tag": Retired(
        "str | None",
        lambda value, values: value in (None, _tags(values)[0]),
        EVALUATE.format("under the best tag,", "tag"),
    ),
    "eval_min_completion_length": Retired(
        "int", only(0), EVALUATE.format("without a minimum length,", "min_completion_length")
    ),
    EVAL_LENGTH: Retired(
        "int", _is_eval_length, EVALUATE.format("at max_completion_length,", "max_completion_length")
    ),
    "eval_top_k": Retired("int", only(0), EVALUATE.format("with eval_top_p,", "top_k")),
    "eval_temperature": Retired("float", only(1), EVALUATE.format("at temperature 1,", "temperature")),
    "eval_guidance_scale": Retired("float", only(0), EVALUATE.format("without guidance,", "guidance_scales")),
    "adaptive_entropy": Retired("bool", _entropy_is_steered, "set target_entropy (its default was 40)"),
    "entropy_horizon": Retired("int", _is_horizon, "horizon serves beta and entropy_coef; set that"),
    "data_parallel_size": Retired("int", only(1), "start one process for each GPU (docs/scaling.md)"),
    "cache_dir": Retired("str | None", only(None), "set $NLF_CACHE to the folder"),
    "max_tries": Retired("int", only(8), "training tries a request 8 times; `nlf score` takes --max_tries"),
    "max_failures_in_a_row": Retired(
        "int", only(5), "training stops after 5 failures in a row; `nlf score` takes --max_failures_in_a_row"
    ),
    "lora_dropout": Retired(
        "float",
        lambda value, values: value == 0 or values.get("disable_dropout", True),
        "give a peft_config with it to ALTTrainer",
    ),
    "sampling_batch_tokens": Retired(
        "int | None", only(None), "the device sets the size of a batch, and running out of memory halves it; leave it out"
    ),
}  # fmt: skip


RENAMED = {"dataset": "dataset_name"}  # a recorded name → today's, which is TRL's


def renamed(values: Values) -> dict[str, Any]:
    """The settings of a run, by the names of today's knobs."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def current(values: Values) -> dict[str, Any]:
    """The settings of a run without removed knobs, by the names of today's knobs.

    Args:
        values: All known settings of a run, by name.

    Raises:
        UserError: a removed knob has a value that training no longer supports.
    """
    values = renamed(values)
    for name, value in values.items():
        if name in RETIRED and not RETIRED[name].accepts(value, values):
            raise UserError(f"{name} {value!r} is no longer a setting of training: {RETIRED[name].instead}")
    length = values.get("max_completion_length", 20)
    if values.get(EVAL_LENGTH, length) != length:
        _tell_eval_length(length)
    kept = {name: value for name, value in values.items() if name not in RETIRED}
    if "target_entropy" in kept and values.get("adaptive_entropy") is False:
        kept["target_entropy"] = None  # an old config.yaml holds a target even if it had no effect
    return kept
