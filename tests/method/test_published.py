"""The published rules by hand. `test_parity.py` compares them with the published numbers."""

import metric_rules
import numpy as np
import published_rules
import pytest

from nlf.errors import UserError
from nlf.evaluation import metrics
from nlf.method import published, quantize

NAN = float("nan")


def test_remainder_and_small_pools_go_to_the_worst():
    assert published.quantize(np.arange(7.0), 3).tolist() == [2, 2, 2, 1, 1, 0, 0]
    assert published.quantize(np.array([0.5, 0.4]), 3).tolist() == [2, 2]
    assert quantize.quantize(np.array([0.5, 0.4]), 3).tolist() == [0, 2]


def test_ties_are_cut_by_pool_order():
    assert published.quantize(np.array([0.5, NAN, 0.5, 0.5, 0.5]), 2).tolist() == [0, -1, 0, 1, 1]
    assert quantize.quantize(np.array([0.5, NAN, 0.5, 0.5, 0.5]), 2).tolist() == [1, -1, 1, 1, 1]


def test_quarks_toxicity_counts_above_the_half():
    assert published.toxicity([0.5, 0.75, 0.25]) == (0.5, 1 / 3)


def test_quarks_words_are_split_at_single_spaces_and_joined_with_an_underscore():
    """Empty words count, and n-grams collide: "a_b c" and "a b_c" are one pair."""
    assert published.distinct([" a a b", ""]) == (3 / 5, 3 / 5, 2 / 5)
    assert published.distinct(["a_b c", "a b_c"]) == (1.0, 1 / 4, 0.0)


def test_nothing_scored_is_an_empty_answer_not_a_crash():
    assert published.quantize(np.array([NAN, NAN]), 5).tolist() == [-1, -1]
    assert published.quantize(np.array([]), 5).tolist() == []


def test_groups_are_refused():
    with pytest.raises(UserError, match="quantile_scope"):
        published.quantize(np.zeros(2), 2, np.zeros(2))


def test_controller_rises_with_kl_and_falls_with_entropy():
    assert published.controller_step(0.05, 3.3, 3, 2500, 32, rising=True) == pytest.approx(
        0.05 * (1 + 0.1 * 32 / 2500)
    )
    assert published.controller_step(0.06, 44, 40, 2500, 32, rising=False) == pytest.approx(
        0.06 * (1 - 0.1 * 32 / 2500)
    )
    assert published.controller_step(1.0, 1e9, 3, 100, 100, rising=True) == pytest.approx(1.2)


def test_sampled_ids_are_top_k_then_the_nucleus_of_what_is_left():
    logits = np.log([[0.4, 0.1, 0.3, 0.2]])
    assert published_rules.sampled_ids(logits, 1.0, top_k=3).tolist() == [[True, False, True, True]]
    assert published_rules.sampled_ids(logits, 0.6, top_k=3).tolist() == [[True, False, True, False]]  # .44 + .33 of 1
    assert published_rules.sampled_ids(logits, 0.1).tolist() == [[True, False, False, False]]
    assert published_rules.sampled_ids(np.zeros((1, 60)), 1.0).all()  # ids that tie with the 50th stay


def test_toxic_is_strictly_above_half():
    scores = np.array([[0.5, 0.1], [0.51, NAN], [NAN, NAN]])
    assert published_rules.toxicity_probability(scores) == 0.5
    assert metric_rules.mean(metrics.toxicity_probability(scores)) == 1.0
    assert published_rules.expected_max_toxicity(scores) == pytest.approx(0.505)


def test_dist_n_joins_words_and_counts_empty_ones():
    assert published_rules.dist_n(["a_b c", "a b_c"], 2) == 0.25
    assert published_rules.dist_n([" a", ""], 1) == pytest.approx(2 / 3)  # "", "a", ""


def test_perplexity_drops_large_values_and_one_token_prompts():
    values = np.array([10.0, 20.0, 1e4, NAN, 50.0])
    assert published.perplexity(values, np.array([5, 5, 5, 5, 1])) == 15.0
