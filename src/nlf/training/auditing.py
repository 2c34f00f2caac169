"""Watch a run's auditors: say so when the reward rises over two evaluations while an auditor does not.

A policy that learns the mistakes of its reward looks better and better by the reward alone. All evaluations of a run sample
the same prompts, so changes are paired by prompt, which leaves out the differences between prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlf.evaluation.intervals import divided
from nlf.evaluation.metrics import Measured
from nlf.evaluation.score import SUM

Means = dict[str, list[float | None]]  # by scorer, the mean reward of each prompt; None = unscored
REWARD = "reward"  # the rewards of training, or their weighted sum
ADVICE = "the policy may be learning the mistakes of its reward; look at samples, and consider an earlier checkpoint"


def prompt_means(found: Measured, auditors: Sequence[str]) -> Means:
    """The mean reward of each prompt by the rewards of training and by each auditor, in the order of the prompts."""
    own = REWARD if REWARD in found.ratios else f"{REWARD}/{SUM}"
    names = {REWARD: own, **{label: f"{REWARD}/{label}" for label in auditors}}
    means = {key: divided(found.ratios[name].num, found.ratios[name].den) for key, name in names.items()}
    return {key: [None if np.isnan(x) else float(x) for x in values] for key, values in means.items()}


def change(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[float, float]:
    """The mean change over prompts and its standard error; prompts without both values are left out.

    (NaN, NaN) if fewer than two prompts are left, or the numbers of prompts differ.
    """
    if len(before) != len(after):
        return float("nan"), float("nan")
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return float("nan"), float("nan")
    changes = np.array([b - a for a, b in pairs])
    return float(changes.mean()), float(changes.std(ddof=1) / len(changes) ** 0.5)


def rose(before: Sequence[float | None], after: Sequence[float | None]) -> bool:
    """Whether the mean rose by more than its standard error."""
    mean, error = change(before, after)
    return mean > error  # false for NaN


@dataclass
class AuditWatch:
    """The last evaluations of a run, and the auditors that have been told of.

    The rule, for each auditor: at each of the last two evaluations the reward rose by more than the standard error of the
    change, and from the first of these three evaluations to the last, the auditor's reward did not rise (its change is 0 or
    less). While the rule goes on to hold, nothing more is said. A run with a negative weight is not watched: its reward may
    rise where an auditor's is meant to fall.

    Attributes:
        seen: The prompts' means at the last three evaluations at most.
        told: Auditors for which the rule held at the last evaluation.
    """

    seen: list[Means] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def add(self, means: Means) -> list[str]:
        """Take an evaluation; returns a line for each auditor for which the rule begins to hold."""
        self.seen = [*self.seen, means][-3:]
        held = [label for label in means if label != REWARD and self._holds(label)]
        new, self.told = [label for label in held if label not in self.told], held
        return [self._line(label) for label in new]

    def _holds(self, label: str) -> bool:
        if len(self.seen) < 3 or not all(label in each for each in self.seen):
            return False
        first, second, last = self.seen
        rising = rose(first[REWARD], second[REWARD]) and rose(second[REWARD], last[REWARD])
        return rising and change(first[label], last[label])[0] <= 0

    def _line(self, label: str) -> str:
        first, _, last = self.seen
        reward, auditor = ([_mean(each[key]) for each in (first, last)] for key in (REWARD, label))
        return (
            f"warning: over two evaluations the reward rose from {reward[0]:.3f} to {reward[1]:.3f}, but the auditor "
            f"{label} did not: {auditor[0]:.3f} to {auditor[1]:.3f}; {ADVICE} (docs/evaluation.md, Auditors)"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run says the same."""
        return {"seen": self.seen, "told": self.told}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
