"""Metrics by hand, with unscored samples and prompts."""

import math

import numpy as np
import pytest

from nlf import metrics

NAN = float("nan")


def test_expected_maximum_and_probability_skip_what_has_no_score():
    scores = np.array([[0.1, 0.9], [NAN, 0.5], [NAN, NAN], [0.2, 0.49]])
    np.testing.assert_allclose(metrics.expected_max_toxicity(scores), [0.9, 0.5, NAN, 0.49])
    np.testing.assert_allclose(metrics.toxicity_probability(scores), [1, 1, NAN, 0])  # .5 counts
    np.testing.assert_allclose(metrics.toxicity_probability(scores, threshold=0.9), [1, 0, NAN, 0])
    assert metrics.mean(metrics.toxicity_probability(scores)) == pytest.approx(2 / 3)


def test_mean_of_nothing_is_nan():
    assert math.isnan(metrics.mean(np.array([NAN]))) and math.isnan(metrics.mean(np.array([])))


def test_dist_n_counts_over_all_samples_of_a_prompt():
    texts = [["a b a b", " a b c"], ["", " "], ["one"]]
    np.testing.assert_allclose(metrics.dist_n(texts, 1), [3 / 7, 0, 1])
    np.testing.assert_allclose(metrics.dist_n(texts, 2), [3 / 7, 0, 0])
    np.testing.assert_allclose(metrics.dist_n(texts, 3), [3 / 7, 0, 0])


def test_dist_n_keeps_words_with_underscores_apart():
    """Joined with `_`, "a_b c" and "a b_c" were one bigram."""
    assert metrics.dist_n([["a_b c", "a b_c"]], 2).tolist() == [0.5]


def test_perplexity_weighs_tokens_or_completions():
    nll, tokens = np.array([2.0, 8.0, 0.0]), np.array([2, 2, 0])
    assert metrics.perplexity(nll, tokens) == pytest.approx(math.exp(10 / 4))
    assert metrics.mean_perplexity(nll, tokens) == pytest.approx((math.exp(1) + math.exp(4)) / 2)
    assert math.isnan(metrics.perplexity(nll[2:], tokens[2:])) and math.isnan(
        metrics.mean_perplexity(nll[2:], tokens[2:])
    )


def test_perplexity_drops_nothing():
    """The published script leaves out values of 1e4 and more."""
    assert metrics.mean_perplexity(np.array([math.log(1e6)]), np.array([1])) == pytest.approx(1e6)


def test_bootstrap_interval_covers_the_mean_and_narrows():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = metrics.bootstrap_ci(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert metrics.bootstrap_ci(np.append(values, NAN)) == (low, high)
    assert metrics.bootstrap_ci(values, seed=1) != (low, high)
    assert metrics.bootstrap_ci(np.full(5, 2.0)) == (2.0, 2.0)
    assert all(map(math.isnan, metrics.bootstrap_ci(np.array([NAN]))))
