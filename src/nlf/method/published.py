"""The rules of the published code (ALT at commit 3059558, after Quark) that differ from ours. They are separate
functions, so the core needs no mode flags.
"""

from collections.abc import Sequence

import numpy as np

from nlf.errors import UserError


def quantize(rewards: np.ndarray, num_quantiles: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Cut the sorted pool into K equal slices. Ties keep pool order. The remainder goes to the worst quantile; a pool
    smaller than K goes there as a whole.

    Shape:
        - rewards: `(N,)`, NaN = unscored (the published code sorts NaN anywhere and gives it a tag)
        - returns: `(N,)` int8, -1 where unscored

    Raises:
        UserError: `groups` are given; the published rule has one pool only.
    """
    if groups is not None:
        raise UserError(
            "quantile_rule published cuts the whole pool; set quantile_scope to pool, or quantile_rule to even"
        )
    quantiles = np.full(len(rewards), -1, dtype=np.int8)
    order = ranking(rewards)
    size = len(order) // num_quantiles
    quantiles[order] = np.minimum(np.arange(len(order)) // size, num_quantiles - 1) if size else num_quantiles - 1
    return quantiles


def ranking(rewards: np.ndarray) -> np.ndarray:
    """Numbers of the scored rows, best first; ties keep pool order."""
    rewards = np.asarray(rewards, dtype=np.float64)
    scored = np.flatnonzero(~np.isnan(rewards))
    return scored[np.argsort(-rewards[scored], kind="stable")]


def controller_step(
    value: float, current: float, target: float, horizon: int, num_completions: int, rising: bool
) -> float:
    """One step of the proportional controller (Ziegler et al., arXiv 1909.08593). The relative error is clipped to ±20 %.

    Args:
        value: The coefficient before the step. As published, it changes sign if `num_completions` exceeds five horizons.
        current: The measured quantity, e.g. KL in nats per completion.
        rising: Whether the coefficient rises when the quantity is above its target (KL); otherwise it falls (entropy
            bonus).

    Returns:
        The coefficient after the step.
    """
    error = float(np.clip(current / target - 1, -0.2, 0.2))
    return value * (1 + (error if rising else -error) * num_completions / horizon)


def perplexity(values: np.ndarray, prompt_lengths: np.ndarray) -> float:
    """Mean of the completions' perplexities, without values of 1e4 or more and without prompts of one token."""
    values = np.asarray(values, dtype=np.float64)
    return float(values[(values < 1e4) & (np.asarray(prompt_lengths) > 1)].mean())


def toxicity(highest: Sequence[float]) -> tuple[float, float]:
    """Quark's average maximum toxicity, and its toxicity probability: the share of prompts above .5.

    Args:
        highest: The highest toxicity among the scored completions of each prompt that has any.
    """
    values = np.asarray(highest, dtype=np.float64)
    return float(values.mean()), float((values > 0.5).mean())


def distinct(completions: Sequence[str]) -> tuple[float, float, float]:
    """Quark's and DExperts' dist-1, dist-2 and dist-3 of a prompt's completions: distinct n-grams over words.

    Words are split at single spaces, so an empty completion is one word; n-grams are joined with `_`.
    """
    words = [text.split(" ") for text in completions]
    counts = [len({"_".join(each[i : i + n]) for each in words for i in range(len(each) - n + 1)}) for n in (1, 2, 3)]
    first, second, third = (count / sum(map(len, words)) for count in counts)
    return first, second, third
