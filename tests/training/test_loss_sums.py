"""The loss's parts in the log, and the coefficients that controllers move."""

import pytest

from nlf.training.loss_sums import Controller, LossSums, averages, moved_coefficients


def test_sums_are_taken_once():
    sums = LossSums()
    sums.add({"nll": 1.0, "tokens": 2.0})
    sums.add({"nll": 0.5, "tokens": 3.0})
    assert sums.take() == {"nll": 1.5, "tokens": 5.0} and sums.take() == {}


def test_averages_are_per_token_and_for_the_contrast_per_completion():
    sums = {"nll": 8.0, "kl": 2.0, "entropy": 4.0, "contrast": 3.0, "margin": 6.0, "accuracy": 1.0}
    sums |= {"tokens": 4.0, "completions": 2.0}
    per_token = {"nll": 2.0, "kl": 0.5, "entropy": 1.0}
    assert averages(sums, contrast=False) == per_token
    assert averages(sums, contrast=True) == {**per_token, "contrast": 1.5, "tag_margin": 3.0, "tag_accuracy": 0.5}


def test_a_controller_moves_its_coefficient_towards_the_target():
    """33 nats of KL in 10 completions are 10 % above a target of 3; a horizon of 100 takes a tenth of that."""
    start, sums = {"beta": 2.0, "entropy_coef": 0.5}, {"kl": 33.0, "entropy": 500.0}
    kl = Controller("beta", "kl", target=3.0, horizon=100, rising=True)
    entropy = Controller("entropy_coef", "entropy", target=40.0, horizon=100, rising=False)
    moved = moved_coefficients(start, [kl, entropy], sums, 10)
    assert moved["beta"] == pytest.approx(2.0 * 1.01)
    assert moved["entropy_coef"] == pytest.approx(0.5 * 0.98)  # 25 % above, cut to 20 %
    assert start == {"beta": 2.0, "entropy_coef": 0.5}
