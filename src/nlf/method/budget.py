"""A budget of KL in place of a weight: β moves after each optimizer step, so that the KL per token approaches the budget.

The distance from the reference is what people can choose without knowing the scale of a reward: with the same β, one reward
may end at four times the KL of another. The KL follows β with a lag of several steps, and at the start, where nothing holds
the policy back, it passes a small budget within a few steps. So the controller looks ahead:

    d_t = √KL_t, which grows evenly with the steps while the push is strong    level and trend of d: Holt's double smoothing
    e_t = ln(KL that level and trend predict LEAD steps ahead / budget)        clipped
    ln β = b_t + PROPORTIONAL · e_t,   b_t = b_{t−1} + INTEGRAL · e_t

It is a proportional-integral controller in logarithms, in which the KL's answer to β is about the same everywhere (the KL is
about proportional to 1/β). `published.controller_step` is the published one, in nats per completion.
"""

import math
from typing import NamedTuple

LEAD = 5.0  # steps
LEVEL, TREND = 0.7, 0.7  # how far a new measurement moves the level and the trend
PROPORTIONAL = 1.6
INTEGRAL = 0.22
LEAST_ERROR, MOST_ERROR = -1.0, 2.5  # the KL is near 0 at the start, which says nothing about β
MOST = math.log(1000)  # of |ln(β / the β that the run starts with)|
START = 0.1  # of β · budget


class Budget(NamedTuple):
    """The state of the controller.

    Attributes:
        settled: b, the logarithm of β over its start that the errors so far add up to.
        level, trend: Of √KL, and of its change in a step.
    """

    settled: float = 0.0
    level: float = 0.0
    trend: float = 0.0

    def step(self, kl: float, budget: float) -> tuple["Budget", float]:
        """The state and β after an optimizer step.

        Args:
            kl: Measured in this step, in nats per token.
            budget: In nats per token, above 0.
        """
        ahead = self.level + self.trend
        level = ahead + LEVEL * (math.sqrt(max(kl, 0.0)) - ahead)
        trend = self.trend + TREND * (level - self.level - self.trend)
        expected = max(level + LEAD * trend, 1e-9) ** 2
        error = min(max(math.log(expected / budget), LEAST_ERROR), MOST_ERROR)
        settled = min(max(self.settled + INTEGRAL * error, -MOST), MOST)
        moved = min(max(settled + PROPORTIONAL * error, -MOST), MOST)
        return Budget(settled, level, trend), start_beta(budget) * math.exp(moved)


def start_beta(budget: float) -> float:
    """β before the first step. It is rather high: a policy that has gone too far is slow to return."""
    return START / budget
