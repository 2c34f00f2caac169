"""The objective of a run, and the defaults that follow it.

`DEFAULTS` is the table of these defaults: one column for runs that train tokens by their credit, one for all others.
`fill_in` chooses the objective and fills in every knob that the person left open. The learning rate of a run by credit
follows the size of the model, so ALTTrainer fills it in (`learning_rate`); so do the parts in which a step is computed
(`at_once`), and the device decides about bf16. The length of completions follows the prompts (`LENGTHS`), so whoever has
read them fills it in (`fill_in_length`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from nlf.config.knobs import Following


class Default(NamedTuple):
    """The default of a knob with credit, and without; `logged` differs for runs on logged feedback."""

    credit: Any
    other: Any
    logged: Any = ...  # ... = as without credit


DEFAULTS: dict[str, Default] = {
    #                                  with credit          otherwise    with logged feedback
    "kl_budget":             Default(         0.1,               None),
    "beta":                  Default(        None,                2.0),
    "prompts_per_iteration": Default(          64,                512),
    "steps_per_iteration":   Default(           4,                 40),
    "num_train_epochs":      Default(          15,                  3,  0),
    "feedback_epochs":       Default(           0,                  0,  2),
    "learning_rate":         Default(        None,               5e-4),
    "lr_scheduler_type":     Default(    "linear",           "cosine"),
    "warmup_steps":          Default(           3,                  5),
    "logging_steps":         Default(           4,                  5),
    "eval_strategy":         Default(     "steps",            "epoch"),
    "eval_steps":            Default(       1 / 3,               None),  # of all steps
    "save_total_limit":      Default(           2,               None),
}  # fmt: skip
LENGTH = "max_completion_length"
LENGTHS = {"conversations": 256, "text": 64, "the embedded prompts": 20}  # its default, by the kind of prompts
LENGTHS_SHOWN = ", ".join(f"{length} for {prompts}" for prompts, length in LENGTHS.items())
RATE, RATE_PARAMETERS = 2e-4, 3e6  # the learning rate with credit, of a model of this number of parameters
RATE_OF_LORA = 10  # times that of all weights
SHOWN = {
    "nll_coef": "0",
    "contrast_coef": "1 if no other is given and there is no credit, else 0",
    "credit_coef": "1 if no other is given and there is credit, else 0",
}
COEFFICIENTS = tuple(SHOWN)
OF_THE_MACHINE = {  # known once there are a device and a model
    "bf16": "true on a GPU that computes in bf16, else false",
    "per_device_train_batch_size": "64, or as many as a larger model leaves memory for",
    "gradient_accumulation_steps": "what makes up 64",
}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
STEP = 64  # completions of a step on each device, where both knobs of BATCH are open
NULL_MEANS = (
    "prompts_per_iteration",
    "save_total_limit",
)  # null is a value of these knobs: all prompts, all checkpoints


def following(name: str) -> Following:
    """What stands in the place of the value of a knob that the person left open, with the words that the help shows."""
    if words := (SHOWN | OF_THE_MACHINE | {LENGTH: LENGTHS_SHOWN}).get(name):
        return Following(words)
    credit, other, logged = ("null" if value is None else value for value in DEFAULTS[name])
    if name == "learning_rate":
        credit = "by the model's size"
    also = "" if logged is ... else f", {logged} with feedback"
    return Following(f"{credit} with credit{also}, else {other}")


def is_open(name: str, value: Any) -> bool:
    """Whether the person left a knob open."""
    return isinstance(value, Following) or (value is None and name not in NULL_MEANS)


def fill_in(options: Any, judged: bool | None = None) -> None:
    """Choose the objective, and fill in the knobs that the person left open. Calling it again, with other rewards, fills the
    same knobs in anew.

    Args:
        options: Knobs of a run; those of TrainingArguments may be missing.
        judged: A reward is a judge, whatever its name; None = as in the last call.
    """
    for name, value in getattr(options, "filled_in", {}).items():
        if getattr(options, name) == value:
            setattr(options, name, following(name))
    if judged is not None:
        options.judged = judged
    found = _coefficients(options)
    found |= followed(options, bool(found["credit_coef"]))
    options.filled_in = {name: found[name] for name in found if is_open(name, getattr(options, name, 0))}
    for name, value in options.filled_in.items():
        setattr(options, name, value)


def _coefficients(options: Any) -> dict[str, float]:
    """The coefficients of the objective: those that are given; if none is, 1 for the credit or for the contrast.

    A judge's words and levels, several attributes, and logged feedback name whole completions, so their objective is the
    contrast.
    """
    given = {name: getattr(options, name) for name in COEFFICIENTS}
    found = {name: 0.0 if is_open(name, value) else value for name, value in given.items()}
    if options.plain == "only":
        chosen = ["credit_coef"]
    elif any(found.values()):
        chosen = []
    elif options.attributes or options.quantile_rule == "levels" or _is_judged(options) or _is_logged(options):
        chosen = ["contrast_coef"]
    else:
        chosen = ["credit_coef", "contrast_coef"]
    still_open = [name for name in chosen if is_open(name, given[name])]
    return found | dict.fromkeys(still_open[:1], 1.0)


def _is_judged(options: Any) -> bool:
    return getattr(options, "judged", False) or any(str(spec).startswith("judge:") for spec in options.reward_funcs)


def _is_logged(options: Any) -> bool:
    return bool(getattr(options, "feedback", None))


def followed(options: Any, by_credit: bool) -> dict[str, Any]:
    """The default of each knob of `DEFAULTS`. Where beta is given, or adaptive_kl moves it, there is no budget of KL; where a
    budget is given, it needs no beta.
    """
    found = {name: default.credit if by_credit else default.other for name, default in DEFAULTS.items()}
    if _is_logged(options):
        alone = is_open("num_train_epochs", epochs := getattr(options, "num_train_epochs", None)) or not epochs
        found |= {"steps_per_iteration": None} if alone else {}  # one pass over the rows, once they are counted
        found |= {name: default.logged for name, default in DEFAULTS.items() if default.logged is not ...}
    if getattr(options, "load_best_model_at_end", False):  # a checkpoint is compared with others once it is measured
        found |= {"eval_strategy": "epoch", "eval_steps": None}
    if options.adaptive_kl:
        found |= {"beta": DEFAULTS["beta"].other, "kl_budget": None}
    elif not is_open("beta", options.beta):
        found["kl_budget"] = None
    elif not is_open("kl_budget", options.kl_budget):
        found["beta"] = None
    return found


def fill_in_length(options: Any, prompts: str) -> bool:
    """Fill in `max_completion_length` if the person left it open.

    Args:
        prompts: Their kind, a key of `LENGTHS`.

    Returns:
        Whether it was open.
    """
    if not is_open(LENGTH, options.max_completion_length):
        return False
    options.max_completion_length = LENGTHS[prompts]
    options.filled_in = {**getattr(options, "filled_in", {}), LENGTH: LENGTHS[prompts]}
    return True


def steps_of(rows: int, samples: bool, batch: int) -> int:
    """The steps of an iteration that the person left open, in a run on logged feedback: one pass over its rows if the run
    does not sample.
    """
    return DEFAULTS["steps_per_iteration"].other if samples else math.ceil(rows / batch)


def take_recorded(options: Any, recorded: Mapping[str, Any]) -> None:
    """Take the knobs that the person left open from an earlier start of the same run.

    Args:
        recorded: The settings of that start. Coefficients, or the weight and the budget of the KL, that the person gave are
            not mixed with those of that start.
    """
    for names in (
        COEFFICIENTS,
        ("beta", "kl_budget"),
        BATCH,
        ("bf16",),
        *((name,) for name in (*DEFAULTS, LENGTH) if name not in ("beta", "kl_budget")),
    ):
        if all(is_open(name, getattr(options, name, 0)) for name in names):
            for name in names:
                setattr(options, name, recorded.get(name, getattr(options, name)))


def learning_rate(parameters: int, lora: bool = False) -> float:
    """The learning rate of a run by credit, in two digits: it falls with the square root of the model's size.

    Args:
        parameters: Of the model, the embedding included, which counts once where the output layer shares it.
        lora: Only an adapter is trained.
    """
    rate = RATE * math.sqrt(RATE_PARAMETERS / parameters) * (RATE_OF_LORA if lora else 1)
    return float(f"{rate:.1e}")


def batch(values: Mapping[str, Any]) -> dict[str, int]:
    """The knobs of BATCH, where an open one is filled in for a small model."""
    at_once, parts = (values[name] for name in BATCH)
    return {
        BATCH[0]: STEP if is_open(BATCH[0], at_once) else at_once,
        BATCH[1]: 1 if is_open(BATCH[1], parts) else parts,
    }


def at_once(parameters: int, whole: float) -> int:
    """Completions of a step of STEP that a device computes at once: a power of two, by memory. The activations of a token
    grow with layers times width, and so with about the square root of the model's size.

    Args:
        parameters: Of the model.
        whole: The largest model whose whole step is computed at once.
    """
    return 2 ** max(0, math.floor(math.log2(STEP * min(1, math.sqrt(whole / parameters)))))


class Step(NamedTuple):
    """A step, for `choices`.

    Attributes:
        batch: Completions, over all processes.
        at_once: Completions that a device computes at once; None = that is not known yet.
        computed_in: What `precision` says.
    """

    batch: int
    at_once: int | None
    computed_in: str

    def __str__(self) -> str:
        parts = f"{self.at_once} at once, " if self.at_once and self.at_once != self.batch else ""
        return f"{self.batch} ({parts}in {self.computed_in})"


def precision(bf16: Any, fp16: Any) -> str:
    """The type in which a run computes, from its two knobs; it keeps float32 weights in any case."""
    if is_open("bf16", bf16):
        return "fp16" if fp16 else "bf16 on a GPU that computes in it, else float32"
    return "bf16" if bf16 else "fp16" if fp16 else "float32"


def choices(options: Any, rate: float, iterations: float, step: Step, parameters: int | None = None) -> str:
    """The line that says how a run by credit trains.

    Args:
        rate: The learning rate.
        iterations: The number of iterations; part of an iteration is a fraction.
        parameters: The size of the model from which the rate follows; None = the rate was given.
    """
    size = f" for {parameters / 1e6:.1f} M parameters" if parameters else ""
    prompts = options.prompts_per_iteration or "all prompts"
    leash = f"KL budget {options.kl_budget:g} nats a token" if options.kl_budget else f"beta {options.beta:g}"
    return (
        f"credit: learning rate {rate:g}{size}, {iterations:g} iterations of {prompts} × {options.num_generations} "
        f"completions and {options.steps_per_iteration} steps of {step}, {leash} (docs/method.md)"
    )
