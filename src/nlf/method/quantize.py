"""Rewards → quantiles, and which rollouts a training step draws from them.

Quantile 0 is the best, K-1 the worst, -1 unscored. Departures from the published rule (`nlf.method.published.quantize`):
ties share one quantile, the remainder is spread evenly instead of falling to the worst, and pools smaller than K
spread over the whole range. Draws take exact counts per quantile; the published code draws from a shuffled pool
whatever the quantile.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from nlf.errors import UserError


def quantize(rewards: np.ndarray, num_quantiles: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Cut rewards into quantiles of equal size, over all rollouts or within each group.

    A rollout of rank r (0 = best) among n falls into quantile `floor(K · (r + 1/2) / n)`: sizes differ by at most
    one. A run of ties takes the quantile of its middle rank.

    Args:
        rewards: `(N,)`, higher is better, NaN = unscored.
        num_quantiles: K.
        groups: `(N,)`, any integers; default: one group.

    Returns:
        `(N,)` int8, -1 where unscored.
    """
    if not 1 <= num_quantiles <= 127:
        raise UserError(f"{num_quantiles} quantiles: expected 1 to 127")
    rewards = np.asarray(rewards, dtype=np.float64)
    return _over_all(rewards, num_quantiles) if groups is None else _per_group(rewards, num_quantiles, groups)


def _over_all(rewards: np.ndarray, num_quantiles: int) -> np.ndarray:
    """By the best reward of each quantile: numbers are sorted, not rows."""
    unscored = np.isnan(rewards)
    ordered = np.sort(-rewards)[: len(rewards) - np.count_nonzero(unscored)]  # best first; NaN sorts last
    n, quantiles = len(ordered), -unscored.astype(np.int8)
    for quantile in range(1, num_quantiles if n else 1):
        value = ordered[quantile * n // num_quantiles]
        first, last = np.searchsorted(ordered, value), np.searchsorted(ordered, value, "right")  # a run of ties
        edge = first if num_quantiles * (first + last) >= 2 * quantile * n else last
        if edge < n:
            quantiles += rewards <= -ordered[edge]
    return quantiles


def _per_group(rewards: np.ndarray, num_quantiles: int, groups: np.ndarray) -> np.ndarray:
    quantiles = np.full(rewards.shape, -1, dtype=np.int8)
    rows = np.flatnonzero(~np.isnan(rewards))
    if not len(rows):
        return quantiles
    keys = (-rewards[rows], np.asarray(groups)[rows])
    order = np.lexsort(keys)  # the last key sorts first
    new_group = _changes(keys[1][order])
    start, end = _runs(new_group)
    first, last = _runs(new_group | _changes(keys[0][order]))
    twice_middle = (first - start) + (last - 1 - start)
    quantiles[rows[order]] = num_quantiles * (twice_middle + 1) // (2 * (end - start))
    return quantiles


def levels(rewards: np.ndarray, num_quantiles: int, name: str = "reward") -> np.ndarray:
    """Rewards that name their quantile themselves, as a judge's categories do: K-1 is the best, quantile 0.

    Shape:
        - rewards: `(N,)`, each one of 0 … K-1, NaN = unscored
        - returns: `(N,)` int8, -1 where unscored

    Raises:
        UserError: a reward that is no level; `name` says whose it is.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    scored = ~np.isnan(rewards)
    wrong = rewards[scored & ~np.isin(rewards, np.arange(num_quantiles))]
    if len(wrong):
        raise UserError(
            f"reward {name!r} is {wrong[0]:g} where quantile_rule levels expects a whole number from 0 (the worst) "
            f"to {num_quantiles - 1}, one for each tag; give as many tags as it has levels, or set quantile_rule even"
        )
    return np.where(scored, num_quantiles - 1 - np.nan_to_num(rewards), -1).astype(np.int8)


def total(rewards: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted sum of several rewards: NaN counts as nothing, and is what is left where none is known (TRL's rule).

    Shape:
        - rewards: F of `(N,)`; weights: F, default 1 each
        - returns: `(N,)`
    """
    stacked = np.stack(list(rewards))  # (F, N)
    weighted = stacked * np.asarray(weights if weights is not None else [1.0] * len(stacked))[:, None]
    return np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, 0))


def normalize(rewards: np.ndarray, how: str) -> np.ndarray:
    """One reward on a scale that others share, over all rollouts; 0 is its middle, so that one that is not known (it
    counts as nothing in `total`) pulls neither way.

    `zscore`: less the mean, by the standard deviation (all equal: 0). `rank`: the share of rewards below it, and half
    of its equals, less 1/2: from -1/2 to 1/2. `none`: as it is.

    Shape:
        - rewards: `(N,)`, NaN = unscored, and stays so
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    known = rewards[~np.isnan(rewards)]
    if how == "none" or not len(known):
        return rewards
    if how == "zscore":
        equal = known.min() == known.max()  # whose deviation need not come out as 0
        return rewards * 0 if equal else (rewards - known.mean()) / known.std()
    order = np.sort(known)
    twice_middle = np.searchsorted(order, rewards, "left") + np.searchsorted(order, rewards, "right")
    return np.where(np.isnan(rewards), np.nan, twice_middle / (2 * len(order)) - 0.5)


def _changes(values: np.ndarray) -> np.ndarray:
    """True where a sorted array takes a new value; `(N,)`, the first is False."""
    return np.concatenate([[False], values[1:] != values[:-1]])


def _runs(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each position the first position of its run and the one after its last."""
    edges = np.concatenate([[0], np.flatnonzero(starts), [len(starts)]])
    lengths = np.diff(edges)
    return np.repeat(edges[:-1], lengths), np.repeat(edges[1:], lengths)


def quantile_edges(rewards: np.ndarray, quantiles: np.ndarray, num_quantiles: int) -> list[tuple[float, float] | None]:
    """(lowest, highest) reward of each quantile; None where it is empty."""
    members = (rewards[quantiles == q] for q in range(num_quantiles))
    return [(float(m.min()), float(m.max())) if len(m) else None for m in members]


def step_counts(batch_size: int, num_quantiles: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """How many rollouts of each quantile a step takes: shares of `weights` (default: equal), by largest remainder.

    Raises:
        UserError: not one weight per quantile, a negative or infinite one, or none above 0.
    """
    shares = np.ones(num_quantiles) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (num_quantiles,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum():
        raise UserError(f"quantile_weights {weights}: expected {num_quantiles} numbers of at least 0, not all 0")
    exact = batch_size * shares / shares.sum()
    counts = np.floor(exact + 1e-9).astype(np.int64)  # 20 must not become 19 by rounding
    rest = batch_size - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts


class Draws:
    """`draws[i]` is the pool row of training item i: a function of (seed, iteration, i) and the pool only.

    Every `batch_size` items are one step and take exactly `step_counts` rollouts of each quantile, whatever the
    number of ranks and micro-batches; inside the step quantiles are interleaved, so that every slice of it is mixed.
    The n-th draw of a quantile walks seeded permutations of its rollouts: none comes twice before all have come once.

    Args:
        quantiles: `(N,)`, -1 = never drawn.
        weights: One per quantile; None = one permutation over all scored rollouts, whatever their quantile (as
        published).

    Raises:
        UserError: no rollout has a reward, or a quantile has no weight.
    """

    def __init__(
        self,
        quantiles: np.ndarray,
        *,
        batch_size: int,
        weights: Sequence[float] | None,
        seed: int,
        iteration: int,
    ):
        groups = np.minimum(quantiles, 0) if weights is None else quantiles
        count = 1 if weights is None else len(weights)
        if groups.max(initial=-1) >= count:
            raise UserError(
                f"quantile_weights {weights}: expected one per quantile, of which there are {groups.max() + 1}"
            )
        self.batch_size, self._key = batch_size, (seed, iteration)
        self._members = _split(groups, count)
        sizes = np.array([len(rows) for rows in self._members])
        if not sizes.any():
            raise UserError(
                "no completion has a reward, so none can be trained on; look at what the reward functions return"
            )
        self.counts = _fill_empty(step_counts(batch_size, count, weights), sizes)
        self._slots = list(zip(*(each.tolist() for each in _interleave(self.counts)), strict=True))
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, i: int) -> int:
        step, slot = divmod(i, self.batch_size)
        quantile, first = self._slots[slot]
        rows = self._members[quantile]
        turn, position = divmod(step * int(self.counts[quantile]) + first, len(rows))
        return int(rows[self._permutation(quantile, turn, len(rows))[position]])

    def _permutation(self, quantile: int, turn: int, size: int) -> np.ndarray:
        """Kept once made: together they hold no more numbers than were drawn, and one pool."""
        if (quantile, turn) not in self._permutations:
            # the closing 1 keeps these streams apart from shorter keys, which numpy pads with zeros
            generator = np.random.default_rng([*self._key, quantile, turn, 1])
            self._permutations[quantile, turn] = generator.permutation(size)
        return self._permutations[quantile, turn]


def _split(quantiles: np.ndarray, num_quantiles: int) -> list[np.ndarray]:
    """Rows of each quantile, ascending."""
    order = np.argsort(quantiles, kind="stable")
    edges = np.searchsorted(quantiles[order], np.arange(num_quantiles + 1))
    return [order[a:b] for a, b in itertools.pairwise(edges)]


def _fill_empty(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Give the share of each empty quantile to the nearest ones that have rollouts, half to either side."""
    counts, filled = counts.copy(), np.flatnonzero(sizes)
    for empty in np.flatnonzero(sizes == 0):
        better, worse = filled[filled < empty][-1:], filled[filled > empty][:1]
        share, counts[empty] = counts[empty], 0
        near = [*better, *worse]
        counts[near[0]] += share - share // len(near) * (len(near) - 1)
        counts[near[1:]] += share // len(near)
    return counts


def _interleave(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each slot of a step its quantile and its turn within it; each quantile is spread evenly over the step."""
    quantile = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(c) for c in counts])
    order = np.argsort((turn + 0.5) / counts[quantile], kind="stable")
    return quantile[order], turn[order]
