"""Quantiles have even sizes and keep ties together. Draws take exact counts, and repeat a rollout only after all were drawn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.method.quantize import (
    Draws,
    levels,
    normalize,
    quantile_edges,
    quantize,
    scarce_quantiles,
    step_counts,
    total,
)

NAN = float("nan")
REWARDS = st.lists(st.floats(-1e6, 1e6) | st.just(NAN) | st.sampled_from([0.0, 0.5, 1.0]), max_size=60)


def test_by_hand():
    assert quantize(np.array([0.1, 0.9, NAN, 0.5, 0.7]), 2).tolist() == [1, 0, -1, 1, 0]
    assert quantize(np.array([3.0, 2.0, 1.0]), 5).tolist() == [
        0,
        2,
        4,
    ]  # fewer than K rewards spread over the whole range
    assert quantize(np.array([7.0]), 5).tolist() == [2]
    assert quantize(np.full(9, 0.3), 5).tolist() == [2] * 9  # equal rewards take the middle quantile
    assert quantize(np.array([]), 5).tolist() == []
    assert quantize(np.array([NAN, NAN]), 5).tolist() == [-1, -1]


def test_ties_take_the_quantile_of_their_middle_rank():
    rewards = np.array([9, 9, 9, 9, 5, 5, 2, 1.0])  # middle ranks 1.5, 4.5, 6, 7 of 8
    assert quantize(rewards, 4).tolist() == [1, 1, 1, 1, 2, 2, 3, 3]


def test_remainder_is_spread_not_given_to_the_worst():
    sizes = np.bincount(quantize(np.arange(14.0), 5))
    assert sizes.tolist() == [3, 3, 2, 3, 3]


def test_per_prompt_groups_are_cut_apart():
    rewards = np.array([1, 2, 10, 20, 3, NAN, 30.0])
    groups = np.array([7, 7, -1, -1, 7, 7, -1])
    assert quantize(rewards, 3, groups).tolist() == [2, 1, 2, 1, 0, -1, 0]


@given(REWARDS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_order_of_the_pool_does_not_matter(rewards, k, random):
    order = list(range(len(rewards)))
    random.shuffle(order)
    rewards = np.array(rewards)
    assert (quantize(rewards[order], k) == quantize(rewards, k)[order]).all()


@given(REWARDS, st.integers(1, 9))
def test_one_group_is_the_whole_pool(rewards, k):
    rewards = np.array(rewards)
    assert quantize(rewards, k, np.zeros(len(rewards), int)).tolist() == quantize(rewards, k).tolist()


@given(st.integers(0, 200), st.integers(1, 12))
def test_without_ties_sizes_differ_by_at_most_one(n, k):
    quantiles = quantize(np.random.default_rng(n).permutation(n).astype(float), k)
    sizes = np.bincount(quantiles, minlength=k)
    assert sizes.sum() == n and sizes.max() - sizes.min() <= 1


@given(REWARDS, st.integers(1, 9))
def test_better_rewards_never_fall_lower_and_ties_stay_together(rewards, k):
    rewards = np.array(rewards)
    quantiles = quantize(rewards, k)
    assert ((quantiles == -1) == np.isnan(rewards)).all()
    scored = ~np.isnan(rewards)
    for reward, quantile in zip(rewards[scored], quantiles[scored], strict=True):
        assert 0 <= quantile < k
        assert (quantiles[rewards > reward] <= quantile).all()
        assert (quantiles[rewards == reward] == quantile).all()


@given(REWARDS, st.lists(st.integers(-2, 2), min_size=60, max_size=60))
def test_a_group_is_cut_as_if_it_were_alone(rewards, groups):
    rewards, groups = np.array(rewards, dtype=float), np.array(groups[: len(rewards)], dtype=np.int64)
    together = quantize(rewards, 3, groups)
    for group in set(groups.tolist()):
        assert (together[groups == group] == quantize(rewards[groups == group], 3)).all()


def test_edges():
    rewards = np.array([0.1, 0.9, NAN, 0.5, 0.7])
    assert quantile_edges(rewards, quantize(rewards, 2), 3) == [(0.7, 0.9), (0.1, 0.5), None]


def test_levels_name_their_quantile():
    assert levels(np.array([3.0, 0.0, NAN, 1.0]), 4).tolist() == [0, 3, -1, 2]
    assert levels(np.array([NAN]), 2).tolist() == [-1] and levels(np.array([]), 2).dtype == np.int8
    for wrong in (4.0, -1.0, 1.5):
        with pytest.raises(UserError, match=f"reward 'judge' is {wrong:g} where .* from 0 .* to 3"):
            levels(np.array([0.0, wrong]), 4, "judge")


def test_the_total_of_several():
    one, other = np.array([1.0, NAN, NAN, 2.0]), np.array([10.0, 20.0, NAN, 30.0])
    np.testing.assert_equal(total([one, other]), [11, 20, NAN, 32])
    np.testing.assert_equal(total([one, other], [2, -0.5]), [-3, -10, NAN, -11])


def test_scales_that_rewards_share():
    rewards = np.array([2.0, 4.0, NAN, 6.0, 4.0])  # mean 4, deviation sqrt 2
    np.testing.assert_allclose(normalize(rewards, "zscore"), [-(2**0.5), 0, NAN, 2**0.5, 0])
    np.testing.assert_allclose(normalize(rewards, "rank"), [-3 / 8, 0, NAN, 3 / 8, 0])  # ties share their middle rank
    np.testing.assert_equal(normalize(rewards, "none"), rewards)
    for how in ("zscore", "rank"):
        assert normalize(np.full(3, 0.1), how).tolist() == [0, 0, 0]
        np.testing.assert_equal(normalize(np.array([NAN, NAN]), how), [NAN, NAN])


@given(REWARDS, st.sampled_from(["zscore", "rank"]))
def test_one_reward_has_the_same_ranks_on_any_scale(rewards, how):
    rewards = np.array([float(np.round(each, 3)) for each in rewards])  # rounding keeps different rewards apart
    assert (quantize(normalize(rewards, how), 5) == quantize(rewards, 5)).all()


def test_step_counts_by_largest_remainder():
    assert step_counts(64, 5, [2.5, 1, 1, 1, 2.5]).tolist() == [20, 8, 8, 8, 20]
    assert step_counts(32, 5).tolist() == [7, 7, 6, 6, 6]
    assert step_counts(10, 3, [0, 2, 1]).tolist() == [0, 7, 3]
    assert step_counts(30, 3, [0.1, 0.1, 0.1]).tolist() == [10, 10, 10]


@given(st.integers(0, 300), st.lists(st.floats(0, 50), min_size=1, max_size=9).filter(lambda w: sum(w) > 0.01))
def test_step_counts_add_up_and_stay_within_one_of_the_share(batch_size, weights):
    counts, shares = step_counts(batch_size, len(weights), weights), batch_size * np.array(weights) / sum(weights)
    assert counts.sum() == batch_size and (np.abs(counts - shares) < 1 + 1e-6).all()


@pytest.mark.parametrize("weights", [[1, 1], [1, -1, 1], [0, 0, 0], [1, NAN, 1], [1, float("inf"), 1]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(UserError, match="expected 3 numbers"):
        step_counts(8, 3, weights)


POOLS = st.lists(st.integers(-1, 2), min_size=1, max_size=40).filter(lambda q: max(q) >= 0)
WEIGHTS = st.sampled_from([None, (2.5, 1.0, 2.5), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0)])


def draws_of(quantiles, batch_size=8, weights=(2.5, 1, 2.5), seed=3, iteration=2):
    return Draws(np.array(quantiles, np.int8), batch_size=batch_size, weights=weights, seed=seed, iteration=iteration)


@given(POOLS, st.integers(1, 12), WEIGHTS)
def test_every_step_takes_exact_counts_and_passes_repeat_nothing(quantiles, batch_size, weights):
    draws = draws_of(quantiles, batch_size, weights)
    rows = [draws[i] for i in range(6 * batch_size)]
    group = [0 if weights is None else quantiles[row] for row in rows]
    assert all(quantiles[row] >= 0 for row in rows)
    for step in range(6):
        taken = Counter(group[step * batch_size : (step + 1) * batch_size])
        assert taken == Counter({q: int(c) for q, c in enumerate(draws.counts) if c})
    for q in set(group):
        members = {row for row, each in enumerate(quantiles) if each >= 0 and (weights is None or each == q)}
        walked = [row for row, each in zip(rows, group, strict=True) if each == q]
        for start in range(0, len(walked), len(members)):
            one_pass = walked[start : start + len(members)]
            assert len(set(one_pass)) == len(one_pass) and set(one_pass) <= members


@given(POOLS, st.randoms(use_true_random=False))
def test_an_item_does_not_depend_on_the_order_of_asking(quantiles, random):
    first, second, order = draws_of(quantiles), draws_of(quantiles), list(range(40))
    random.shuffle(order)
    asked = {i: first[i] for i in order}
    assert [asked[i] for i in range(40)] == [second[i] for i in range(40)]


def test_seed_and_iteration_change_the_draws():
    def rows(**changes):
        draws = draws_of([0, 1, 2] * 30, **changes)
        return [draws[i] for i in range(16)]

    assert rows() == rows()
    assert len({tuple(rows(**changes)) for changes in ({}, {"seed": 4}, {"iteration": 3})}) == 3


def test_every_part_of_a_step_is_mixed():
    draws = draws_of(np.repeat(np.arange(5), 50), 64, (2.5, 1, 1, 1, 2.5))
    for start in range(0, 64, 16):
        counts = np.bincount([draws[i] // 50 for i in range(start, start + 16)], minlength=5)
        assert counts.tolist() == [5, 2, 2, 2, 5]


def test_share_of_an_empty_quantile_goes_to_its_neighbours():
    weights = (2.5, 1, 1, 1, 2.5)
    assert draws_of([0, 1, 3, 4], 64, weights).counts.tolist() == [20, 12, 0, 12, 20]
    assert draws_of([1, 2, 3], 64, weights).counts.tolist() == [0, 28, 8, 28, 0]
    assert draws_of([4, -1], 64, weights).counts.tolist() == [0, 0, 0, 0, 64]
    assert draws_of([0, 4], 9, weights).counts.sum() == 9


def test_a_pool_without_rewards_is_refused():
    with pytest.raises(UserError, match="no completion has a reward"):
        draws_of([-1, -1])
    with pytest.raises(UserError, match="one weight for each of the"):
        draws_of([0, 3])


def test_the_zscore_of_tiny_and_of_huge_rewards_is_finite():
    """The squares of denormal differences are 0, and a division by their standard deviation is infinite."""
    expected = normalize(np.array([1.0, 2.0, 3.0]), "zscore")
    np.testing.assert_allclose(normalize(np.array([1e-310, 2e-310, 3e-310]), "zscore"), expected, rtol=1e-6)
    np.testing.assert_allclose(normalize(np.array([1e100, 2e100, 3e100]), "zscore"), expected)
    assert np.isfinite(normalize(np.array([5e-324, 1.0, -1e100, 1e100]), "zscore")).all()


def test_scarce_quantiles():
    quantiles = np.array([2] * 95 + [0] * 5 + [-1] * 50)  # a binary reward: ties fill the middle
    assert scarce_quantiles(quantiles, 5, 0.25) == [(1, 0), (3, 0), (4, 0)]
    assert scarce_quantiles(quantiles, 5, 0.26) == [(0, 5), (1, 0), (3, 0), (4, 0)]
    assert scarce_quantiles(quantiles, 5, 0.0) == [(1, 0), (3, 0), (4, 0)]  # only empty ones
    assert scarce_quantiles(np.repeat(np.arange(5), 4), 5, 0.25) == []
