"""Best of n by order statistics, its KL, and efficiency, on values computed by hand."""

import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import best_of

UNIFORM = (np.arange(1, 100) / 100)[None]  # a prompt with 99 evenly spaced rewards: the best of n has n/(n + 1)


def test_kl_of_best_of_n():
    assert best_of.kl_of_best(1) == 0
    assert best_of.kl_of_best(4) == pytest.approx(math.log(4) - 3 / 4)
    assert best_of.kls_of_best(3).tolist() == [best_of.kl_of_best(n) for n in (1, 2, 3)]


def test_the_best_of_n_of_uniform_rewards_is_n_over_n_plus_1():
    found = best_of.best_of_rewards(UNIFORM)[0]
    for n in (1, 2, 3, 8, 50, 99):
        assert found[n - 1] == pytest.approx(n / (n + 1))


def test_it_is_the_mean_over_all_subsets():
    rewards = [0.9, 0.1, 0.5, 0.2]
    expected = [np.mean([max(each) for each in combinations(rewards, n)]) for n in (1, 2, 3, 4)]
    assert best_of.best_of_rewards(np.array([rewards]))[0] == pytest.approx(expected)
    assert expected[1] == pytest.approx((0.9 * 3 + 0.5 * 2 + 0.2) / 6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_it_never_falls_with_n_and_ends_at_the_greatest(rewards):
    found = best_of.best_of_rewards(np.array([rewards]))[0]
    assert (np.diff(found) >= -1e-12).all()
    assert found[0] == pytest.approx(np.mean(rewards)) and found[-1] == pytest.approx(max(rewards))


def test_unscored_completions_are_left_out_and_so_are_prompts_without_any_score():
    nan = math.nan
    found = best_of.best_of_rewards(np.array([[0.2, nan, 0.6], [nan, nan, nan], [0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(found, [[0.4, 0.6, 0.6], [nan] * 3, [0.5] * 3])
    assert best_of.curve(found) == pytest.approx([0.45, 0.55, 0.55])
    with pytest.raises(ValueError, match="no completion of the base is scored"):
        best_of.curve(found[1:2])


def test_real_n_is_interpolated_in_the_kl():
    assert best_of.reward_of_best(UNIFORM, 1) == pytest.approx(1 / 2)
    assert best_of.reward_of_best(UNIFORM, 4) == pytest.approx(4 / 5)
    share = best_of.kl_of_best(1.5) / best_of.kl_of_best(2)
    assert best_of.reward_of_best(UNIFORM, 1.5) == pytest.approx(1 / 2 + share / 6)
    for n in (0.5, 100):
        with pytest.raises(ValueError, match="expected 1 to 99"):
            best_of.reward_of_best(UNIFORM, n)


def test_the_kl_for_a_reward_is_the_inverse():
    values = best_of.curve(best_of.best_of_rewards(UNIFORM))
    for n in (1, 2, 4, 7.5, 90):
        assert best_of.kl_for_reward(values, best_of.reward_of_best(UNIFORM, n)) == pytest.approx(
            best_of.kl_of_best(n)
        )
    assert best_of.kl_for_reward(values, 0.3) == 0  # the base has it
    assert math.isnan(best_of.kl_for_reward(values, 0.9901)) and math.isnan(best_of.kl_for_reward(values, math.nan))


def test_on_a_flat_part_of_the_curve_the_least_kl_counts():
    values = np.array([0.2, 0.5, 0.5, 0.5, 0.6])
    assert best_of.kl_for_reward(values, 0.5) == best_of.kl_of_best(2)
    assert best_of.kl_for_reward(np.array([0.5, 0.5]), 0.5) == 0


def test_efficiency_is_the_kl_of_best_of_n_over_the_kl_spent():
    values = best_of.curve(best_of.best_of_rewards(UNIFORM))
    assert best_of.efficiency(values, 4 / 5, best_of.kl_of_best(4)) == pytest.approx(1)
    assert best_of.efficiency(values, 4 / 5, 3.0) == pytest.approx((math.log(4) - 3 / 4) / 3)
    assert best_of.efficiency(values, 0.4, 1.0) == 0
    for kl in (0.0, -1e-7, 1e-4):
        assert math.isnan(best_of.efficiency(values, 4 / 5, kl))


def test_the_interval_of_equal_prompts_is_a_point_and_that_of_different_ones_is_around_the_value():
    best = best_of.best_of_rewards(np.repeat(UNIFORM, 4, axis=0))
    ones = np.ones(4)
    value, error, low, high = best_of.with_interval(best, (0.8 * ones, ones), (2 * ones, ones))
    expected = best_of.kl_of_best(4) / 2
    assert (value, error, low, high) == (pytest.approx(expected), pytest.approx(0), *[pytest.approx(expected)] * 2)
    value, error, low, high = best_of.with_interval(best, (0.8 * ones, ones), (np.array([1.0, 2, 2, 3]), ones))
    assert value == pytest.approx(expected) and low < value < high and error > 0


def test_the_interval_counts_completions_and_leaves_out_prompts_without_scores():
    rewards = np.concatenate([np.repeat(UNIFORM, 3, axis=0), np.full((1, 99), np.nan)])
    sums, counts = np.array([1.6, 0.8, 0.8, 0.0]), np.array([2.0, 1, 1, 0])
    value, *_ = best_of.with_interval(
        best_of.best_of_rewards(rewards), (sums, counts), (4 * np.ones(4), 2 * np.ones(4))
    )
    assert value == pytest.approx(best_of.kl_of_best(4) / 2)


def test_beyond_the_curve_there_is_no_efficiency():
    ones = np.ones(2)
    best = best_of.best_of_rewards(np.repeat(UNIFORM, 2, axis=0))
    assert all(map(math.isnan, best_of.with_interval(best, (0.999 * ones, ones), (ones, ones))))
