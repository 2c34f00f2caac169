"""Metrics of a list of prompts or completions, made of the package's parts, for tests of those parts."""

from collections.abc import Sequence

import numpy as np

from nlf.evaluation.diversity import WordCodes, distinct_ngrams
from nlf.evaluation.metrics import completion_perplexity


def dist_n(completions: Sequence[Sequence[str]], n: int) -> np.ndarray:
    """Distinct n-grams over the words of each prompt's completions (Li et al., arXiv 1510.03055).

    Returns:
        `(P,)`, whose mean is the metric; 0 where there are no words.
    """
    codes = WordCodes()
    counted = (distinct_ngrams(texts, codes) for texts in completions)
    return np.array([len(ngrams[n - 1]) / max(words, 1) for words, ngrams in counted], dtype=np.float64)


def mean(values: np.ndarray) -> float:
    """The mean of the known values; NaN where all are NaN."""
    values = np.asarray(values, dtype=np.float64)
    some = values[~np.isnan(values)]
    return float(some.mean()) if len(some) else float("nan")


def mean_perplexity(nll: np.ndarray, tokens: np.ndarray) -> float:
    """Mean over completions of perplexities; empty completions do not count."""
    return mean(completion_perplexity(nll, tokens))
