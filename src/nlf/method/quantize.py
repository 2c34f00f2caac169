"""Rewards → quantiles, and the rollouts that a training step draws from them.

Quantile 0 is the best, K-1 the worst, -1 means unscored. Departures from the published rule
(`nlf.method.published.quantize`): ties share one quantile, the remainder is spread evenly instead of going to the worst
quantile, and pools smaller than K spread over the whole range. Draws take exact counts of each quantile; the published code
draws from a shuffled pool without regard to quantiles.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from nlf.errors import UserError


def quantize(rewards: np.ndarray, num_quantiles: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Cut rewards into quantiles of equal size, over all rollouts or within each group.

    A rollout of rank r (0 = best) among n falls into quantile `floor(K · (r + 1/2) / n)`, so sizes differ by at most one.
    Equal rewards all take the quantile of their middle rank.

    Args:
        rewards: `(N,)`, higher is better, NaN = unscored.
        num_quantiles: K.
        groups: `(N,)`, a group number for each rollout; None = one group.

    Returns:
        `(N,)` int8, -1 where unscored.
    """
    if not 1 <= num_quantiles <= 127:
        raise UserError(f"{num_quantiles} quantiles: expected 1 to 127")
    rewards = np.asarray(rewards, dtype=np.float64)
    return _over_all(rewards, num_quantiles) if groups is None else _per_group(rewards, num_quantiles, groups)


def _over_all(rewards: np.ndarray, num_quantiles: int) -> np.ndarray:
    """Compare all rewards with the best reward of each quantile. This sorts the rewards, but not the rows."""
    unscored = np.isnan(rewards)
    ordered = np.sort(-rewards)[: len(rewards) - np.count_nonzero(unscored)]  # best first; NaN sorts last
    n, quantiles = len(ordered), -unscored.astype(np.int8)
    for quantile in range(1, num_quantiles if n else 1):
        value = ordered[quantile * n // num_quantiles]
        first, last = np.searchsorted(ordered, value), np.searchsorted(ordered, value, "right")  # of equal rewards
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
    """Quantiles of rewards that are levels, such as a judge's categories.

    Reward r means quantile K-1-r; quantile 0 is the best.

    Args:
        name: The reward's name, for errors.

    Shape:
        - rewards: `(N,)`, whole numbers 0 … K-1, NaN = unscored
        - returns: `(N,)` int8, -1 where unscored

    Raises:
        UserError: a reward is not a whole number from 0 to K-1.
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
    """The weighted sum of F rewards. An unscored reward (NaN) counts as 0; if all F are unscored, so is the sum (TRL's
    rule).

    Shape:
        - rewards: F arrays `(N,)`; weights: F numbers, default 1 each
        - returns: `(N,)`
    """
    stacked = np.stack(list(rewards))  # (F, N)
    weighted = stacked * np.asarray(weights if weights is not None else [1.0] * len(stacked))[:, None]
    return np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, 0))


def worst_for_none(rewards: np.ndarray, weight: float = 1.0) -> np.ndarray:
    """The rewards with the worst of them in the place of each unscored one. So a text that a scorer cannot read does not
    escape the reward.

    Args:
        weight: The reward's weight in the sum: below 0, the worst reward is the highest.

    Shape:
        - rewards: `(N,)`, NaN = unscored; returns `(N,)`, unchanged if nothing is scored
    """
    unscored = np.isnan(rewards)
    known = rewards[~unscored]
    return np.where(unscored, known.max() if weight < 0 else known.min(), rewards) if len(known) else rewards


def normalize(rewards: np.ndarray, how: str) -> np.ndarray:
    """Scale one reward over all rollouts, so that several rewards can be added. The middle of the scale is 0, so that
    an unscored reward, which counts as 0 in `total`, moves the sum neither up nor down.

    Args:
        how: "zscore" = (reward - mean) / standard deviation, 0 if all are equal. "rank" = the share of lower rewards, plus
            half the share of equal rewards, minus 1/2: from -1/2 to 1/2. "none" = no change.

    Shape:
        - rewards: `(N,)`, NaN = unscored; returns `(N,)`, NaN where unscored
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    known = rewards[~np.isnan(rewards)]
    if how == "none" or not len(known):
        return rewards
    if how == "zscore":
        if known.min() == known.max():  # rounding may make their standard deviation differ from 0
            return rewards * 0
        spread = known.std()  # 0 if the squares of tiny differences are too small for a float
        return (rewards - known.mean()) / spread if spread else normalize(rewards / np.abs(known).max(), how)
    order = np.sort(known)
    twice_middle = np.searchsorted(order, rewards, "left") + np.searchsorted(order, rewards, "right")
    return np.where(np.isnan(rewards), np.nan, twice_middle / (2 * len(order)) - 0.5)


def _changes(values: np.ndarray) -> np.ndarray:
    """`(N,)` bool, True where a sorted array takes a new value; the first is False."""
    return np.concatenate([[False], values[1:] != values[:-1]])


def _runs(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each position, the first position of its run and the position after the run's last."""
    edges = np.concatenate([[0], np.flatnonzero(starts), [len(starts)]])
    lengths = np.diff(edges)
    return np.repeat(edges[:-1], lengths), np.repeat(edges[1:], lengths)


def quantile_edges(rewards: np.ndarray, quantiles: np.ndarray, num_quantiles: int) -> list[tuple[float, float] | None]:
    """(lowest, highest) reward of each quantile; None for an empty quantile."""
    members = (rewards[quantiles == q] for q in range(num_quantiles))
    return [(float(m.min()), float(m.max())) if len(m) else None for m in members]


def scarce_quantiles(quantiles: np.ndarray, num_quantiles: int, least: float) -> list[tuple[int, int]]:
    """(quantile, number of its rollouts) of each quantile that is empty, or has less than `least` times an equal share.

    Args:
        quantiles: `(N,)`, -1 = unscored.
    """
    counts = np.bincount(quantiles[quantiles >= 0], minlength=num_quantiles)
    few = counts.sum() * least / num_quantiles
    return [(q, int(count)) for q, count in enumerate(counts) if not count or count < few]


def step_counts(batch_size: int, num_quantiles: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """Number of rollouts of each quantile in a step: the batch shared by `weights` (None = equally), by largest remainder.

    Raises:
        UserError: not one weight per quantile, a negative or infinite weight, or no weight above 0.
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
    """`draws[i]` is the pool row of training item i. It depends on (seed, iteration, i) and the pool only.

    Every `batch_size` items are one step with exactly `step_counts` rollouts of each quantile, for any number of ranks and
    micro-batches. Quantiles are interleaved within the step, so that every slice of it is mixed. Draws from a quantile walk
    through seeded permutations of its rollouts: each rollout comes once before any comes twice.

    Args:
        quantiles: `(N,)`; rollouts of quantile -1 are never drawn.
        weights: One per quantile; None = one permutation over all scored rollouts, without regard to quantiles (as
            published).

        together: All quantiles walk through the same permutations, so that row n of one comes with row n of another.

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
        together: bool = False,
    ):
        groups = np.minimum(quantiles, 0) if weights is None else quantiles
        count = 1 if weights is None else len(weights)
        if groups.max(initial=-1) >= count:
            raise UserError(
                f"quantile_weights {weights}: expected one weight for each of the {groups.max() + 1} quantiles"
            )
        self.batch_size, self._key, self._together = batch_size, (seed, iteration), together
        self._members = _split(groups, count)
        sizes = np.array([len(rows) for rows in self._members])
        if not sizes.any():
            raise UserError(
                "no completion has a reward, so none can be trained on; look at what the reward functions return"
            )
        self.counts = _fill_empty(step_counts(batch_size, count, weights), sizes)
        quantile_of_slot, turn_of_slot = _interleave(self.counts)
        self._slots = list(zip(quantile_of_slot.tolist(), turn_of_slot.tolist(), strict=True))
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, i: int) -> int:
        step, slot = divmod(i, self.batch_size)
        quantile, first = self._slots[slot]
        rows = self._members[quantile]
        turn, position = divmod(step * int(self.counts[quantile]) + first, len(rows))
        return int(rows[self._permutation(quantile, turn, len(rows))[position]])

    def _permutation(self, quantile: int, turn: int, size: int) -> np.ndarray:
        """Permutation number `turn` of a quantile's rollouts. All permutations are kept: together they hold at most as
        many numbers as were drawn, plus one pool.
        """
        if (quantile, turn) not in self._permutations:
            # the final 1 separates these streams from those of shorter keys, which numpy pads with zeros
            generator = np.random.default_rng([*self._key, 0 if self._together else quantile, turn, 1])
            self._permutations[quantile, turn] = generator.permutation(size)
        return self._permutations[quantile, turn]


class SharedDraws:
    """Draws from two sources: every step has `first.batch_size` items of the first, spread evenly, and the others of the second."""

    def __init__(self, first: Draws, second: Draws):
        self.draws = first, second
        self.batch_size = first.batch_size + second.batch_size
        source, turn = _interleave(np.array([first.batch_size, second.batch_size]))
        self._slots = list(zip(source.tolist(), turn.tolist(), strict=True))

    def __getitem__(self, i: int) -> int:
        step, slot = divmod(i, self.batch_size)
        source, turn = self._slots[slot]
        draws = self.draws[source]
        return draws[step * draws.batch_size + turn]


def _split(quantiles: np.ndarray, num_quantiles: int) -> list[np.ndarray]:
    """The rows of each quantile, ascending."""
    order = np.argsort(quantiles, kind="stable")
    edges = np.searchsorted(quantiles[order], np.arange(num_quantiles + 1))
    return [order[a:b] for a, b in itertools.pairwise(edges)]


def _fill_empty(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Give the count of each empty quantile to the nearest quantiles with rollouts, half to either side."""
    counts, filled = counts.copy(), np.flatnonzero(sizes)
    for empty in np.flatnonzero(sizes == 0):
        better, worse = filled[filled < empty][-1:], filled[filled > empty][:1]
        share, counts[empty] = counts[empty], 0
        near = [*better, *worse]
        counts[near[0]] += share - share // len(near) * (len(near) - 1)
        counts[near[1:]] += share // len(near)
    return counts


def _interleave(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The quantile of each slot of a step, and the slot's turn within the quantile. Quantiles spread evenly over the step."""
    quantile = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(c) for c in counts])
    order = np.argsort((turn + 0.5) / counts[quantile], kind="stable")
    return quantile[order], turn[order]
