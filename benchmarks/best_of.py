"""Best of n as a yardstick: the reward it has and the KL it needs, from one sample of the base. Pure functions.

Keeping the best of n completions by the reward moves the base by at most ln n − (n − 1)/n nats a completion (Beirami et al.
2024, arXiv 2401.01879), close to the least that its reward can cost. So a model's *efficiency* is the KL that best of n needs
for the model's reward, by the base's own curve, divided by the KL that the model spent.

These functions stand here and not in `nlf.evaluation.metrics`, since only benchmarks sample the base beside the model.
"""

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 1000  # resamplings of an interval
LEAST_KL = 1e-3  # nats a completion; rounding alone spends less


def kl_of_best(n: float) -> float:
    """The KL of best of n to the base, nats a completion, if no two rewards are equal; an upper bound otherwise."""
    return math.log(n) - (n - 1) / n


def kls_of_best(most: int) -> np.ndarray:
    """`(most,)` the KL of best of 1, 2, … `most`."""
    return np.array([kl_of_best(n) for n in range(1, most + 1)])


def best_of_rewards(rewards: np.ndarray) -> np.ndarray:
    """The expected best reward of n completions of a prompt, for every n that its m completions can tell of.

    It is the mean over all subsets of n of the m completions, without bias: with x_1 ≤ … ≤ x_m,
    Σ_i x_i C(i − 1, n − 1) / C(m, n).

    Args:
        rewards: `(P, m)` rewards of the base's completions at temperature 1; NaN = not scored, and left out.

    Returns:
        `(P, m)`: in column n − 1 the expected best of n. A prompt with fewer scored completions than n has its best one
        there, and a prompt without any NaN.
    """
    found = np.full(rewards.shape, np.nan)
    for row, into in zip(rewards, found, strict=True):
        known = np.sort(row[~np.isnan(row)])
        m = len(known)
        for n in range(1, m + 1):
            into[n - 1] = known @ _shares(m, n)
        if m:
            into[m:] = known[-1]
    return found


def _shares(m: int, n: int) -> np.ndarray:
    """`(m,)` the probability that each of m values, from the least to the greatest, is the greatest of n drawn ones."""
    below = np.arange(m)  # values below each
    steps = np.maximum(below[1:] - n + 1, 0) / below[1:]  # C(i − 1, n − 1) / C(i, n − 1)
    return np.append(np.cumprod(steps[::-1])[::-1], 1.0) * n / m


def curve(best: np.ndarray) -> np.ndarray:
    """`(m,)` the mean over prompts of `best_of_rewards`, which never falls with n.

    Raises:
        ValueError: No completion is scored.
    """
    known = best[~np.isnan(best).any(axis=1)]
    if not len(known):
        raise ValueError("no completion of the base is scored")
    return np.maximum.accumulate(known.mean(axis=0))


def reward_of_best(rewards: np.ndarray, n: float) -> float:
    """The expected reward of best of n for real n from 1 to m; between whole numbers, it is linear in the KL."""
    values = curve(best_of_rewards(rewards))
    if not 1 <= n <= len(values):
        raise ValueError(f"n is {n}, expected 1 to {len(values)}, the completions of a prompt")
    return float(np.interp(kl_of_best(n), kls_of_best(len(values)), values))


def kl_for_reward(values: np.ndarray, reward: float) -> float:
    """The least KL at which best of n has a reward.

    Args:
        values: `(m,)` the expected reward of best of 1, 2, … m, as `curve` returns it.

    Returns:
        Nats a completion: 0 for a reward that the base has; NaN for one above that of best of m.
    """
    at = int(np.searchsorted(values, reward, side="left"))
    if at == 0:
        return 0.0
    if at == len(values) or math.isnan(reward):
        return math.nan
    kls = kls_of_best(len(values))
    share = (reward - values[at - 1]) / (values[at] - values[at - 1])
    return float(kls[at - 1] + share * (kls[at] - kls[at - 1]))


def efficiency(values: np.ndarray, reward: float, kl: float) -> float:
    """The KL that best of n needs for a reward, divided by the KL that a model spent on it; NaN if it spent less than `LEAST_KL`.

    Args:
        values: See `kl_for_reward`.
        reward: The model's mean reward at temperature 1.
        kl: KL(model‖base) in nats a completion, along the model's completions at temperature 1.
    """
    return kl_for_reward(values, reward) / kl if kl >= LEAST_KL else math.nan


def with_interval(
    best: np.ndarray, reward: Sequence[np.ndarray], kl: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float, float]:
    """The efficiency, its standard error and its 95 % interval, by a percentile bootstrap over prompts.

    Args:
        best: `(P, m)`, see `best_of_rewards`.
        reward: Two arrays `(P,)`: the sum of a prompt's rewards, and the number of its scored completions.
        kl: Two arrays `(P,)`: the sum of the KL of its completions, and their number.

    Returns:
        The four numbers; of the last three, resamplings beyond best of m are left out.
    """
    known = ~np.isnan(best).any(axis=1)
    columns = np.stack([*reward, *kl], axis=1)
    weights = np.random.default_rng(seed).multinomial(len(best), np.full(len(best), 1 / len(best)), size=draws)
    weights = np.concatenate([np.ones((1, len(best)), dtype=np.int64), weights])  # the sample itself comes first
    weights = weights[weights[:, known].sum(axis=1) > 0]
    curves = weights[:, known] @ best[known] / weights[:, known].sum(axis=1, keepdims=True)
    sums = weights @ columns
    with np.errstate(divide="ignore", invalid="ignore"):
        rewards, kls = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    found = np.array([efficiency(*each) for each in zip(np.maximum.accumulate(curves, 1), rewards, kls, strict=True)])
    drawn = found[1:][~np.isnan(found[1:])]
    if not len(drawn):
        return float(found[0]), math.nan, math.nan, math.nan
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(found[0]), float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan, float(low), float(high)
