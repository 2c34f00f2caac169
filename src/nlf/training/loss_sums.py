"""Sums between two log lines: of the loss's parts, with the controllers that move its coefficients by them, and of what
reward functions log.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nlf.method.budget import Budget, start_beta
from nlf.method.published import controller_step
from nlf.training.config import ALTConfig

PREFIX = "budget/"  # of the state of a budget's controller
PER_TOKEN = ("nll", "kl", "entropy")
# part → its name in logs
PER_COMPLETION = {"contrast": "contrast", "margin": "tag_margin", "accuracy": "tag_accuracy"}


class LossSums:
    """The loss's parts, summed over this rank's micro-batches since the sums were last taken."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, parts: Mapping[str, float]) -> None:
        """Add the parts of one micro-batch: the parts of the loss in nats, `tokens` and `completions`."""
        for name, value in parts.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return the sums by name, in alphabetical order, and start again at 0."""
        taken, self.values = dict(sorted(self.values.items())), {}
        return taken


class LoggedMetrics:
    """The numbers that this rank's reward functions logged since they were last taken."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """What a reward function calls to log a number: TRL's `log_metric`."""
        self.values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the mean of each number, and start again with none."""
        taken, self.values = self.values, {}
        return {name: sum(values) / len(values) for name, values in taken.items()}


def averages(sums: Mapping[str, float], contrast: bool) -> dict[str, float]:
    """Averages for the log: per token, and with `contrast` also the parts of the contrast per completion."""
    found = {name: sums[name] / sums["tokens"] for name in PER_TOKEN}
    if "credit" in sums:
        found["credit"] = sums["credit"] / sums["tokens"]
    if contrast:
        found |= {logged: sums[name] / sums["completions"] for name, logged in PER_COMPLETION.items()}
    return found


def contrasts(args: ALTConfig) -> bool:
    """Whether the loss has the contrast of whole completions; a plain run has no tags that could be contrasted."""
    return bool(args.contrast_coef) and args.plain != "only"


def fixed_coefficients(args: ALTConfig) -> dict[str, float]:
    """The coefficients that no controller moves. NLL and contrast train tags, so a plain run has neither."""
    tagged = args.plain != "only"
    return {
        "nll_coef": args.nll_coef if tagged else 0.0,
        "contrast_coef": args.contrast_coef if tagged else 0.0,
        "credit_coef": args.credit_coef,
    }


@dataclass(frozen=True)
class Controller:
    """Keeps a quantity near its target by moving one coefficient of the loss (`published.controller_step`).

    Attributes:
        quantity: "kl" or "entropy".
        target: In nats per completion.
        horizon: In completions.
        rising: Whether the coefficient rises when the quantity is above its target; otherwise it falls.
    """

    coefficient: str
    quantity: str
    target: float
    horizon: int
    rising: bool


@dataclass(frozen=True)
class BudgetController:
    """Keeps the KL per token near a budget by moving beta (`budget.Budget`). Its state is kept beside the coefficients, so
    that a checkpoint has it.

    Attributes:
        budget: In nats per token.
    """

    budget: float

    def moved(self, coefficients: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
        """The coefficients after one optimizer step with these sums."""
        state = Budget(
            **{name: coefficients[PREFIX + name] for name in Budget._fields if PREFIX + name in coefficients}
        )
        state, beta = state.step(sums["kl"] / sums["tokens"], self.budget)
        return {**coefficients, "beta": beta, **{PREFIX + name: value for name, value in state._asdict().items()}}


def first_coefficients(args: ALTConfig) -> dict[str, float]:
    """The coefficients before the first step; a budget of KL chooses its own beta."""
    if args.kl_budget is not None:
        beta = start_beta(args.kl_budget)
    else:
        assert args.beta is not None  # the settings have one of the two
        beta = args.beta
    return {"beta": beta, "entropy_coef": args.entropy_coef}


def weights(coefficients: Mapping[str, float]) -> dict[str, float]:
    """The coefficients of the loss, without the state of a controller."""
    return {name: value for name, value in coefficients.items() if not name.startswith(PREFIX)}


def controllers_of(args: ALTConfig) -> list[Controller | BudgetController]:
    """The controllers that the settings switch on."""
    found: list[Controller | BudgetController] = []
    if args.kl_budget is not None:
        found.append(BudgetController(args.kl_budget))
    if args.adaptive_kl:
        found.append(Controller("beta", "kl", args.target_kl, args.horizon, rising=True))
    if args.target_entropy is not None:
        found.append(Controller("entropy_coef", "entropy", args.target_entropy, args.horizon, rising=False))
    return found


def moved_coefficients(
    coefficients: Mapping[str, float],
    controllers: Iterable[Controller | BudgetController],
    sums: Mapping[str, float],
    num_completions: int,
) -> dict[str, float]:
    """The coefficients after one optimizer step; `sums` are the sums over its `num_completions` completions."""
    moved = dict(coefficients)
    for each in controllers:
        if isinstance(each, BudgetController):
            moved = each.moved(moved, sums)
            continue
        current = sums[each.quantity] / num_completions  # nats per completion
        value = moved[each.coefficient]
        moved[each.coefficient] = controller_step(
            value, current, each.target, each.horizon, num_completions, each.rising
        )
    return moved
