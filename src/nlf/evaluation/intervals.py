"""Ratios of sums over prompts, their 95 % intervals and paired differences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlf.errors import UserError

DRAWS = 1000  # resamplings of an interval
LEVEL = 0.95  # share of the resamplings within an interval
ROUNDING = 1e-12  # values that differ by less than this share of their size are equal


@dataclass(frozen=True)
class Ratio:
    """A metric as sums: `sum(num) / sum(den)` over prompts, or exp of it.

    In a mean over prompts, den is 1, or 0 for an unknown value. In a mean over completions, den is the number of known
    completions. Perplexity is exp of nats over tokens.

    Shape:
        - num, den: `(P,)` float64
    """

    num: np.ndarray
    den: np.ndarray
    exp: bool = False

    @property
    def value(self) -> float:
        """The metric; NaN if all values are unknown."""
        sums, exp = _stacked([self])
        return float(_values(sums.sum(axis=0), exp)[0])


def over_prompts(values: np.ndarray) -> Ratio:
    """The mean over prompts of `(P,)`; NaN does not count."""
    return over_completions(values[:, None])


def over_completions(values: np.ndarray) -> Ratio:
    """The mean over completions of `(P, n)`; NaN does not count."""
    return Ratio(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1).astype(np.float64))


def over_tokens(sums: np.ndarray, tokens: np.ndarray, exp: bool = False) -> Ratio:
    """The mean over tokens of `(P, n)` sums over completions; completions whose sum is NaN do not count."""
    return Ratio(np.nansum(sums, axis=1), np.where(np.isnan(sums), 0, tokens).sum(axis=1), exp)


def intervals(ratios: Mapping[str, Ratio], n: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """(standard error, low, high) of each metric, by a percentile bootstrap over prompts with equal draws for all metrics.

    A metric that is equal for every prompt has an interval of width 0, although other prompts may differ. Resamplings
    without a known value are left out; if none is left, the result is NaN.

    Args:
        n: Number of resamplings.

    Raises:
        ValueError: the metrics have different numbers of prompts.
    """
    if not ratios:
        return {}
    values = _bootstrapped(list(ratios.values()), n, seed)  # (n, M)
    return {name: (_deviation(v), *_middle(v)) for name, v in zip(ratios, values.T, strict=True)}


def paired(
    a: Mapping[str, Ratio], b: Mapping[str, Ratio], n: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | list[float]]]:
    """The difference of b from a on the same prompts in the same order, for every metric that both have.

    The interval resamples prompts, with equal draws for both systems. The p-value comes from a two-sided randomisation
    test: if the systems were equal, swapping their numbers on random prompts would not matter. They are swapped `n`
    times; p is (1 + the number of times that the difference was at least as large) / (1 + n).

    Returns:
        By metric: `difference` (b - a), `ci95` [low, high], `p_value`; NaN if a system has no value.

    Raises:
        UserError: the systems do not have the same number of prompts.
    """
    names = [name for name in a if name in b]
    if not names:
        return {}
    if len({len(each[name].num) for each in (a, b) for name in names}) > 1:
        raise UserError("two systems with different numbers of prompts; expected both on the same prompts, in order")
    old, new = ([each[name] for name in names] for each in (a, b))
    values = _bootstrapped(old + new, n, seed)
    differences = values[:, len(names) :] - values[:, : len(names)]  # (n, M)
    return {
        name: {
            "difference": b[name].value - a[name].value,
            "ci95": list(_middle(differences[:, i])),
            "p_value": p,
        }
        for i, (name, p) in enumerate(zip(names, _swap_tests(old, new, n, seed), strict=True))
    }


def _swap_tests(old: Sequence[Ratio], new: Sequence[Ratio], n: int, seed: int) -> list[float]:
    """The p-value of each pair; the toss of a coin for each prompt decides whether the systems swap its numbers."""
    (before, exp), (after, _) = _stacked(old), _stacked(new)  # (P, 2M)
    sum_before, sum_after = before.sum(axis=0), after.sum(axis=0)
    coins = np.random.default_rng([seed, 1])  # independent of the resampling
    moved = _weighted(after - before, lambda times, prompts: coins.integers(2, size=(times, prompts)), n)  # (n, 2M)
    found = _values(sum_after, exp) - _values(sum_before, exp)  # (M,)
    swapped = _values(sum_after - moved, exp) - _values(sum_before + moved, exp)  # (n, M)
    size = np.abs(_values(sum_after, exp)) + np.abs(_values(sum_before, exp))
    smaller = np.abs(swapped) < np.abs(found) - ROUNDING * size
    return np.where(np.isnan(found), np.nan, (1 + (~smaller).sum(axis=0)) / (1 + n)).tolist()


def _bootstrapped(ratios: Sequence[Ratio], n: int, seed: int) -> np.ndarray:
    """The metrics over P prompts drawn with replacement, `n` times, with equal draws for all metrics: `(n, M)`."""
    random = np.random.default_rng(seed)

    def counts(times: int, prompts: int) -> np.ndarray:
        drawn = random.integers(prompts, size=(times, prompts)) + prompts * np.arange(times)[:, None]
        return np.bincount(drawn.ravel(), minlength=times * prompts).reshape(times, prompts)

    sums, exp = _stacked(ratios)
    found, drawn = _values(sums.sum(axis=0), exp), _values(_weighted(sums, counts, n), exp)
    return np.where(np.abs(drawn - found) <= ROUNDING * np.abs(found), found, drawn)


def _stacked(ratios: Iterable[Ratio]) -> tuple[np.ndarray, np.ndarray]:
    """`(P, 2M)`: the M numerators, then the M denominators; and `(M,)`: whether a metric is exp of its ratio."""
    ratios = list(ratios)
    columns = [ratio.num for ratio in ratios] + [ratio.den for ratio in ratios]
    return np.stack(columns, axis=1).astype(np.float64), np.array([ratio.exp for ratio in ratios])


def _values(sums: np.ndarray, exp: np.ndarray) -> np.ndarray:
    """`(…, 2M)` sums → `(…, M)` metrics, NaN where a denominator is 0."""
    values = divided(*np.split(sums, 2, axis=-1))
    with np.errstate(over="ignore"):
        return np.where(exp, np.exp(np.where(exp, values, 0)), values)


def _weighted(columns: np.ndarray, weights: Callable[[int, int], np.ndarray], n: int) -> np.ndarray:
    """`weights(n, P)` times `(P, C)` columns: `(n, C)`, with a few megabytes of weights at a time."""
    prompts = len(columns)
    step = max(1, 2**19 // max(prompts, 1))
    parts = (weights(min(step, n - start), prompts) for start in range(0, n, step))
    return np.concatenate([part.astype(np.float64) @ columns for part in parts])


def _deviation(values: np.ndarray) -> float:
    """The standard deviation of the known values."""
    known = values[~np.isnan(values)]
    # one value is subtracted, so that equal values have a deviation of exactly 0
    return float((known - known[0]).std()) if len(known) else float("nan")


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The interval around the middle that holds a share LEVEL of the known values."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def divided(num: np.ndarray, den: np.ndarray) -> np.ndarray:
    """`num / den`, NaN where den is 0."""
    num, den = np.asarray(num, dtype=np.float64), np.asarray(den, dtype=np.float64)
    some = den > 0
    return np.where(some, num / np.where(some, den, 1), np.nan)
