"""Credit: how much of a completion's reward each of its tokens earned, from what the scorer says of its beginnings.

A scorer of text can score every prefix, and a regression says what a prefix's score is worth at the end. With M places in a
completion, V_0 is the value of the bare prompt, V_j that of the first j places, and V_M the reward itself:

    A_j = Σ_k λ^k (V_{j+k} − V_{j+k−1}),   k = 0 … M − j

This is generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438) with a critic that is a ridge regression
in closed form. Giving tokens shares of a reward model's score is due to RED (arXiv 2411.08302) and ABC (2402.00782);
docs/method.md compares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_PLACES = 32  # where a long completion's prefixes are scored
RIDGE = 0.01
LEAST_SCALE = 1e-6  # of the credit's standard deviation: a reward that never varies gives no credit
HALVES = 2  # each is predicted by the weights of the other


@dataclass(frozen=True)
class Prefixes:
    """The scored prefixes of N completions, as flat arrays of M rows, completion by completion and from short to long.

    Attributes:
        counts: `(N,)` the number of scored places of each completion, at least 1; the last one is the whole completion.
        lengths: `(M,)` tokens in the prefix.
        scores: `(M,)` the reward of the prefix; NaN = it cannot be scored.
        rewards: `(N,)` the reward of the whole completion, without NaN.
        prompts: `(N,)` the number of each completion's prompt.
        together: `(N,)` the same number for completions of one prompt under the same feedback in one iteration.
    """

    counts: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    rewards: np.ndarray
    prompts: np.ndarray
    together: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """`(M,)` the completion of each prefix."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def begins(self) -> np.ndarray:
        """`(N,)` the row of each completion's first prefix."""
        return np.cumsum(self.counts) - self.counts


def others_mean(rewards: np.ndarray, together: np.ndarray) -> np.ndarray:
    """`(N,)` the mean reward of the other completions sampled together; the mean of all rewards where there is no other."""
    _, group = np.unique(together, return_inverse=True)
    sums, counts = np.bincount(group, rewards)[group], np.bincount(group)[group]
    return np.where(counts > 1, (sums - rewards) / np.maximum(counts - 1, 1), rewards.mean())


def carried_on(scores: np.ndarray, counts: np.ndarray, start: float) -> np.ndarray:
    """The scores `(M,)` with each NaN replaced by the score of the next shorter prefix, and by `start` before the first."""
    begins = np.cumsum(counts) - counts
    known = np.where(np.isnan(scores), -1, np.arange(len(scores)))
    latest = np.maximum.accumulate(known)
    first = np.repeat(begins, counts)
    return np.where(latest >= first, scores[np.maximum(latest, 0)], start)


def features(scores: np.ndarray, shares: np.ndarray, others: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """What the value of a prefix is a linear function of.

    Args:
        scores: `(M,)` v, the reward of the prefix; 0 where nothing is written yet.
        shares: `(M,)` u, its tokens divided by `max_completion_length`.
        others: `(M,)` the mean reward of the prompt's other completions.
        empty: `(M,)` whether nothing is written yet.

    Returns:
        `(M, 10)`.
    """
    v, u = np.where(empty, 0, scores), shares
    return np.stack([np.ones_like(u), v, u, v * u, u**2, v * u**2, v**2, others, others * u, empty.astype(float)], 1)


def ridge(x: np.ndarray, y: np.ndarray, strength: float = RIDGE) -> np.ndarray:
    """The weights `(D,)` that minimise |xw − y|² + strength · |w|², without shrinking the first weight, the constant's."""
    penalty = np.full(x.shape[1], strength)
    penalty[0] = 1e-9
    return np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ y)


def cross_fitted(x: np.ndarray, y: np.ndarray, groups: np.ndarray, strength: float = RIDGE) -> np.ndarray:
    """Predictions `(M,)` of y, each half of the groups by the weights of the other half, so that no reward predicts itself.

    With a single group, its own weights predict it.

    Args:
        groups: `(M,)` the number of each row's prompt.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    half = numbers % HALVES
    found = np.empty(len(y))
    for own in range(HALVES):
        rows = half == own
        taught = ~rows if (~rows).any() else rows
        found[rows] = x[rows] @ ridge(x[taught], y[taught], strength)
    return found


def r_squared(predicted: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of y that predictions explain; NaN where y does not vary."""
    spread = ((y - y.mean()) ** 2).sum()
    return float(1 - ((predicted - y) ** 2).sum() / spread) if spread > 0 else float("nan")


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def prefix_values(
    prefixes: Prefixes, most_tokens: int, fit: Fit = cross_fitted
) -> tuple[np.ndarray, np.ndarray, float]:
    """The value of every prefix.

    Args:
        most_tokens: `max_completion_length`.
        fit: x `(R, D)`, y `(R,)`, groups `(R,)` → predictions `(R,)`.

    Returns:
        `(N,)` the values of the bare prompts; `(M,)` the values of the prefixes, at the end of a completion its reward; and
        the share of the variance of rewards that the values before the end explain.
    """
    owners, count = prefixes.owners, len(prefixes.counts)
    others = others_mean(prefixes.rewards, prefixes.together)
    scores = carried_on(prefixes.scores, prefixes.counts, float(prefixes.rewards.mean()))
    last = prefixes.begins + prefixes.counts - 1
    inner = np.ones(len(owners), bool)
    inner[last] = False
    x = features(
        np.concatenate([np.zeros(count), scores[inner]]),
        np.concatenate([np.zeros(count), prefixes.lengths[inner]]) / most_tokens,
        np.concatenate([others, others[owners[inner]]]),
        np.arange(count + inner.sum()) < count,
    )
    whose = np.concatenate([np.arange(count), owners[inner]])
    y = prefixes.rewards[whose]
    predicted = fit(x, y, prefixes.prompts[whose])
    values = prefixes.rewards[owners].copy()
    values[inner] = predicted[count:]
    return predicted[:count], values, r_squared(predicted, y)


def advantages(start: np.ndarray, values: np.ndarray, counts: np.ndarray, decay: float) -> np.ndarray:
    """`(M,)` the credit of each place: A_j above.

    Args:
        start: `(N,)` the values of the bare prompts; values: `(M,)` those of the prefixes.
        decay: λ; 0 = the difference that the place makes, 1 = the reward less the value before it.
    """
    begins = np.cumsum(counts) - counts
    before = np.concatenate([[0.0], values[:-1]])
    before[begins] = start
    found = values - before
    ends = begins + counts
    longest = int(counts.max(initial=0))
    for back in range(2, longest + 1):  # from the last place but one of each completion to the first
        rows = (ends - back)[counts >= back]
        found[rows] += decay * found[rows + 1]
    return found


def completion_credit(rewards: np.ndarray, together: np.ndarray) -> np.ndarray:
    """`(N,)` the credit of every token of a completion whose prefixes have no score: its reward less those sampled with it."""
    return rewards - others_mean(rewards, together)


def scale_of(credits: Sequence[np.ndarray] | np.ndarray) -> float:
    """The standard deviation of an iteration's credit around 0, which the whole run divides by.

    The first iteration's holds for all: by each batch's own deviation, the push would never fade as the model gets good.
    """
    flat = np.concatenate([np.asarray(each).ravel() for each in credits]) if len(credits) else np.zeros(0)
    return float(max(np.sqrt((flat**2).mean()) if len(flat) else 0.0, LEAST_SCALE))


def places(begins_word: Sequence[bool], most: int = MOST_PLACES) -> list[int]:
    """The numbers of tokens at which a completion's prefixes are scored: every one, or the ends of up to `most` words.

    A text of few words, because its script has no spaces, is cut evenly.

    Args:
        begins_word: For each token of the completion, EOS left out, whether it begins a word.
    """
    length = len(begins_word)
    if length <= most:
        return list(range(1, length + 1))
    ends = [t for t in range(1, length) if begins_word[t]]
    if len(ends) < most // 2:
        ends = [*range(1, length)]
    kept = np.linspace(0, len(ends), min(most, len(ends) + 1), endpoint=False)[1:]
    return [*dict.fromkeys(ends[int(i)] for i in kept), length]


def of_tokens(credits: np.ndarray, ends: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`(sum of lengths,)` the credit of each token: that of the first scored place that it is part of; 0 after the last place.

    Args:
        credits: `(M,)` the credit of each place, completion by completion.
        ends: `(M,)` the number of tokens at each place, rising within a completion.
        counts: `(N,)` the number of places of each completion.
        lengths: `(N,)` the tokens of each completion, EOS included.
    """
    begins, some = np.cumsum(counts) - counts, counts > 0
    before = np.zeros_like(ends)
    before[1:] = ends[:-1]
    before[begins[some]] = 0
    covered = np.zeros_like(lengths)
    covered[some] = ends[(begins + counts - 1)[some]]
    found = np.zeros(int(lengths.sum()))
    found[first_tokens(lengths, covered)] = np.repeat(credits, ends - before)
    return found


def first_tokens(lengths: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """bool `(sum of lengths,)`, True at the first `firsts[i]` of the `lengths[i]` tokens of each completion."""
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(begins, lengths) < np.repeat(firsts, lengths)
