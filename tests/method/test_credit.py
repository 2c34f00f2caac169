"""Values of prefixes and credit of tokens, by hand and as properties. Traps: the last place, completions alone, NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.method import credit
from nlf.method.credit import (
    LEAST_SCALE,
    Prefixes,
    advantages,
    carried_on,
    completion_credit,
    cross_fitted,
    features,
    first_tokens,
    of_tokens,
    others_mean,
    places,
    prefix_values,
    r_squared,
    ridge,
    scale_of,
)

NAN = float("nan")


def array(*values):
    return np.array(values, dtype=float)


# ---- the pieces of the fit ------------------------------------------------------------------------------------------


def test_others_mean_by_hand():
    """Three completions are together, two are; the last is alone and gets the mean of all rewards, 4."""
    found = others_mean(array(1, 2, 6, 4, 8, 3), np.array([7, 7, 7, 2, 2, 5]))
    assert found.tolist() == [4.0, 3.5, 1.5, 8.0, 4.0, 4.0]


def test_completion_credit_by_hand():
    assert completion_credit(array(1, 2, 6), np.array([0, 0, 0])).tolist() == [-3.0, -1.5, 4.5]


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=20))
def test_completion_credit_of_those_together_sums_to_0(rows):
    rewards, together = (np.array(column) for column in zip(*rows, strict=True))
    found = completion_credit(rewards, together)
    for group in set(together.tolist()):
        if (together == group).sum() > 1:
            assert found[together == group].sum() == pytest.approx(0, abs=1e-9)


def test_a_prefix_without_a_score_takes_the_score_before_it():
    scores = array(NAN, 0.2, NAN, NAN, NAN, 0.5)
    found = carried_on(scores, np.array([3, 1, 2]), start=0.9)
    assert found.tolist() == [0.9, 0.2, 0.2, 0.9, 0.9, 0.5]  # never a score of another completion


def test_features_by_hand():
    found = features(array(0.5, 7.0), array(0.2, 0.0), array(0.4, 0.4), np.array([False, True]))
    assert found[0].tolist() == pytest.approx([1, 0.5, 0.2, 0.1, 0.04, 0.02, 0.25, 0.4, 0.08, 0])
    assert found[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0.4, 0, 1]  # the score of no text does not count


def test_ridge_by_hand():
    """x = -1, 0, 1 and y = 1, 2, 6: slope Σxy / (Σx² + strength) = 5/2 or 5/4; the mean, 3, is not shrunk."""
    x, y = np.stack([np.ones(3), array(-1, 0, 1)], 1), array(1, 2, 6)
    assert ridge(x, y, 0).tolist() == pytest.approx([3, 2.5])
    assert ridge(x, y, 2).tolist() == pytest.approx([3, 1.25])


def test_ridge_takes_features_that_never_vary():
    x = np.stack([np.ones(4), np.zeros(4), np.full(4, 0.5)], 1)
    assert x @ ridge(x, array(1, 2, 3, 4)) == pytest.approx([2.5] * 4)


def test_each_half_is_predicted_by_the_other_half():
    """With a constant only, a prediction is the mean of the other half: prompts 10 and 30 here, 20 there."""
    x, y = np.ones((5, 1)), array(1, 3, 10, 20, 5)
    found = cross_fitted(x, y, np.array([10, 10, 20, 20, 30]))
    assert found.tolist() == pytest.approx([15, 15, 3, 3, 15])


def test_a_single_prompt_predicts_itself():
    assert cross_fitted(np.ones((2, 1)), array(1, 3), np.array([4, 4])).tolist() == pytest.approx([2, 2])


@given(st.integers(0, 10**6))
def test_no_reward_reaches_its_own_prediction(seed):
    r = np.random.default_rng(seed)
    x, y, groups = np.c_[np.ones(30), r.normal(size=(30, 2))], r.normal(size=30), r.integers(0, 6, 30)
    one = np.unique(groups)[0]
    changed = np.where(groups == one, 100 * y, y)
    before, after = cross_fitted(x, y, groups), cross_fitted(x, changed, groups)
    same = groups == one if len(np.unique(groups)) > 1 else np.zeros(30, bool)
    assert (before[same] == after[same]).all()


def test_r_squared_by_hand():
    assert r_squared(array(1, 2, 3), array(1, 2, 3)) == 1
    assert r_squared(array(2, 2, 2), array(1, 2, 3)) == 0
    assert r_squared(array(1, 2, 4), array(1, 2, 3)) == pytest.approx(0.5)
    assert np.isnan(r_squared(array(1, 1), array(1, 1)))


# ---- values ---------------------------------------------------------------------------------------------------------


def drawn(seed, size=24, most=6):
    """Prefixes whose scores say something of the reward at the end."""
    r = np.random.default_rng(seed)
    counts = r.integers(1, most + 1, size)
    rewards = r.random(size)
    owners = np.repeat(np.arange(size), counts)
    lengths = np.concatenate([np.arange(1, n + 1) for n in counts]).astype(float)
    scores = rewards[owners] * lengths / most + 0.1 * r.normal(size=len(owners))
    scores[r.random(len(scores)) < 0.1] = NAN
    prompts = np.arange(size) // 4
    return Prefixes(counts, lengths, scores, rewards, prompts, prompts)


def test_values_by_hand():
    """The fit returns the score, so that values are scores, rewards at the ends, and 0 at the bare prompts.

    R² is over the values before the ends: 0, 0, .3 for rewards 1, 0, 1 with mean 2/3: 1 − (1 + 0 + .49) / (2/3).
    """
    seen = {}

    def fit(x, y, groups):
        seen.update(x=x, y=y, groups=groups)
        return x[:, 1]

    prefixes = Prefixes(
        np.array([2, 1]), array(3, 6, 4), array(0.3, 0.7, 0.2), array(1, 0), np.array([5, 8]), np.array([0, 1])
    )
    start, values, r2 = prefix_values(prefixes, most_tokens=12, fit=fit)
    assert start.tolist() == [0, 0] and values.tolist() == [0.3, 1, 0]
    assert seen["y"].tolist() == [1, 0, 1] and seen["groups"].tolist() == [5, 8, 5]
    assert seen["x"][:, 2].tolist() == [0, 0, 0.25] and seen["x"][:, 9].tolist() == [1, 1, 0]
    assert r2 == pytest.approx(1 - 1.49 / (2 / 3))


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_the_value_at_the_end_is_the_reward(seed):
    prefixes = drawn(seed)
    start, values, _ = prefix_values(prefixes, 6)
    assert start.shape == prefixes.rewards.shape and values.shape == prefixes.lengths.shape
    ends = prefixes.begins + prefixes.counts - 1
    assert (values[ends] == prefixes.rewards).all()
    assert np.isfinite(values).all() and np.isfinite(start).all()


def test_values_say_more_than_scores():
    """A prefix's score is a poor guide to the reward; what a regression makes of it explains most of the rewards."""
    prefixes = drawn(1, size=400)
    _, _, r2 = prefix_values(prefixes, 6)
    assert r2 > 0.2
    inner = np.setdiff1d(np.arange(len(prefixes.lengths)), prefixes.begins + prefixes.counts - 1)
    raw = carried_on(prefixes.scores, prefixes.counts, 0.5)[inner]
    assert r_squared(raw, prefixes.rewards[prefixes.owners[inner]]) < r2


def test_a_reward_that_never_varies_gives_no_credit():
    prefixes = drawn(2)
    flat = Prefixes(
        prefixes.counts, prefixes.lengths, np.full(len(prefixes.lengths), 0.3), np.full(len(prefixes.counts), 0.3),
        prefixes.prompts, prefixes.together,
    )  # fmt: skip
    start, values, r2 = prefix_values(flat, 6)
    found = advantages(start, values, flat.counts, 0.5)
    assert np.abs(found).max() < 1e-6 and np.isnan(r2)
    assert scale_of([found]) == LEAST_SCALE or scale_of([found]) < 1e-6


# ---- credit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0.0, [0.2, -0.1, 0.5, -0.4]),  # differences of values .2, .4, .3, .8 (the reward); .6, .2
        (1.0, [0.6, 0.4, 0.5, -0.4]),  # reward less the value before
        (0.5, [0.275, 0.15, 0.5, -0.4]),  # -.1 + .5 · .5 and .2 + .5 · .15
    ],
)
def test_advantages_by_hand(decay, expected):
    found = advantages(array(0.2, 0.6), array(0.4, 0.3, 0.8, 0.2), np.array([3, 1]), decay)
    assert found.tolist() == pytest.approx(expected)


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(deadline=None)
def test_advantages_are_the_sum_of_the_docstring(seed, decay):
    prefixes = drawn(seed, size=8)
    start, values, _ = prefix_values(prefixes, 6)
    found = np.split(advantages(start, values, prefixes.counts, decay), np.cumsum(prefixes.counts)[:-1])
    for first, own, got in zip(start, np.split(values, np.cumsum(prefixes.counts)[:-1]), found, strict=True):
        v = [first, *own]
        steps = np.diff(v).tolist()
        expected = [sum(decay**k * d for k, d in enumerate(steps[j:])) for j in range(len(steps))]
        assert got.tolist() == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_credit_without_look_ahead_adds_up_to_what_the_completion_earned(seed):
    prefixes = drawn(seed)
    start, values, _ = prefix_values(prefixes, 6)
    sums = np.add.reduceat(advantages(start, values, prefixes.counts, 0.0), prefixes.begins)
    assert sums.tolist() == pytest.approx((prefixes.rewards - start).tolist(), abs=1e-9)


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_credit_with_full_look_ahead_is_the_reward_less_the_value_before(seed):
    prefixes = drawn(seed)
    start, values, _ = prefix_values(prefixes, 6)
    before = np.concatenate([[0], values[:-1]])
    before[prefixes.begins] = start
    found = advantages(start, values, prefixes.counts, 1.0)
    assert found.tolist() == pytest.approx((prefixes.rewards[prefixes.owners] - before).tolist(), abs=1e-9)


def test_scale_by_hand_and_its_floor():
    assert scale_of([array(3), array(-4, 0)]) == pytest.approx(np.sqrt(25 / 3))
    assert scale_of([]) == LEAST_SCALE
    assert scale_of([np.zeros(5)]) == LEAST_SCALE


# ---- places ---------------------------------------------------------------------------------------------------------


def test_every_place_of_a_short_completion_is_scored():
    assert places([True, False, True]) == [1, 2, 3]
    assert places([]) == []


def test_places_of_a_long_completion_are_ends_of_words():
    """Ten tokens in words of two: words end at 2, 4, 6, 8 and 10; three of them are kept, the last always."""
    begins = [True, False] * 5
    assert places(begins, most=5) == [2, 4, 6, 8, 10]
    found = places(begins, most=3)
    assert len(found) == 3 and found[-1] == 10 and set(found) <= {2, 4, 6, 8, 10}


def test_places_without_words_are_tokens():
    found = places([False] * 40, most=8)
    assert len(found) == 8 and found[-1] == 40


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 40))
def test_places_rise_and_are_few(begins, most):
    found = places(begins, most)
    assert found == sorted(set(found)) and len(found) <= most
    assert found == [] if not begins else found[-1] == len(begins) and found[0] >= 1


def test_a_token_gets_the_credit_of_its_span():
    """Places after 2 and 3 tokens of 4, of which the last is EOS and gets none; EOS alone; a completion without places;
    a place after 1 token of 1."""
    found = of_tokens(array(0.5, -1, 7), np.array([2, 3, 1]), np.array([2, 0, 0, 1]), np.array([4, 1, 2, 1]))
    assert found.tolist() == [0.5, 0.5, -1, 0, 0, 0, 0, 7]
    nothing = np.zeros(0, int)
    assert of_tokens(array(), nothing, np.array([0]), np.array([1])).tolist() == [0]
    assert of_tokens(array(), nothing, nothing, nothing).tolist() == []


def test_first_tokens_by_hand():
    found = first_tokens(np.array([3, 1, 2]), np.array([2, 0, 2]))
    assert found.tolist() == [True, True, False, False, True, True]


@given(st.lists(st.lists(st.booleans(), max_size=80), min_size=1, max_size=4), st.integers(0, 1000))
def test_every_token_but_the_end_has_the_credit_of_the_next_place(completions, seed):
    ends = [places(begins, 7) for begins in completions]
    counts, lengths = np.array([*map(len, ends)]), np.array([len(begins) + 1 for begins in completions])
    own = np.random.default_rng(seed).normal(size=counts.sum())
    flat = of_tokens(own, np.array([end for each in ends for end in each], int), counts, lengths)
    found = np.split(flat, np.cumsum(lengths)[:-1])
    for values, credits, stops in zip(found, np.split(own, np.cumsum(counts)[:-1]), ends, strict=True):
        for t in range(len(values) - 1):
            assert values[t] == credits[next(j for j, end in enumerate(stops) if t < end)]
        assert values[-1] == 0


def test_prefixes_know_their_completions():
    prefixes = Prefixes(np.array([2, 1, 3]), *[np.zeros(6)] * 2, *[np.zeros(3)] * 3)
    assert prefixes.owners.tolist() == [0, 0, 1, 2, 2, 2] and prefixes.begins.tolist() == [0, 2, 3]


def test_a_long_completion_has_at_most_32_places():
    assert len(places([True] * 500)) == credit.MOST_PLACES == 32
