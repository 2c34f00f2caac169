"""Figures of scored texts with 95 % intervals, for the tables on the scorers' cards.

An interval is a percentile bootstrap over documents, because the texts of one document resemble each other: a prompt and
its continuation lie in one document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from nlf.evaluation.intervals import DRAWS, LEVEL

Figure = Callable[..., float]  # of arrays with an entry for each text


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive text scores more than another one, ties counting half; NaN if one side is empty."""
    n = int(positive.sum())
    if not 0 < n < len(positive):
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; NaN if one side has one value only."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, without scipy's tests of significance, which cost more than the figure."""
    return pearson(rankdata(x), rankdata(y))


def intervals(
    figures: Mapping[str, Figure], arrays: Sequence[np.ndarray], documents: np.ndarray, n: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The interval of each figure, with equal draws for all; resamplings in which a figure has no value are left out.

    Args:
        arrays: `(N, …)` each, what a figure is computed from.
        documents: `(N,)` the number or name of each text's document.
        n: Number of resamplings.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(documents, kind="stable")
    _, begins, sizes = np.unique(documents[order], return_index=True, return_counts=True)
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(n):
        picked = rng.integers(len(sizes), size=len(sizes))
        size = sizes[picked]
        places = np.arange(size.sum()) + np.repeat(begins[picked] - np.cumsum(size) + size, size)
        drawn = order[places]
        for name, figure in figures.items():
            found[name].append(figure(*(array[drawn] for array in arrays)))
    sides = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = {name: np.nanquantile(values, sides) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def cells(
    figures: Mapping[str, Figure], arrays: Sequence[np.ndarray], documents: np.ndarray, n: int = DRAWS
) -> dict[str, str]:
    """Each figure with its interval, as a cell of a table; a dash if it has no value."""
    values = {name: figure(*arrays) for name, figure in figures.items()}
    known = {name: figure for name, figure in figures.items() if not np.isnan(values[name])}
    bounds = intervals(known, arrays, documents, n) if known else {}
    return {
        name: f"{short(value)} ({'–'.join(map(short, bounds[name]))})" if name in bounds else "–"
        for name, value in values.items()
    }


def short(value: float) -> str:
    """A share or a correlation in three digits, without the zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")
