"""The loss's parts in the log, and the coefficients that controllers move."""

import pytest

from nlf.errors import UserError
from nlf.method.budget import Budget
from nlf.training.config import ALTConfig
from nlf.training.loss_sums import (
    BudgetController,
    Controller,
    LossSums,
    averages,
    controllers_of,
    first_coefficients,
    moved_coefficients,
    weights,
)


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


def test_a_budget_moves_beta_and_keeps_its_state_beside_it():
    """KL of 40 tokens: 4 nats, so .1 a token. The state goes from step to step, and is no part of the loss."""
    start, sums = {"beta": 1.0, "entropy_coef": 0.5}, {"kl": 4.0, "tokens": 40.0}
    once = moved_coefficients(start, [BudgetController(0.05)], sums, 10)
    twice = moved_coefficients(once, [BudgetController(0.05)], sums, 10)
    state, first = Budget().step(0.1, 0.05)
    _, second = state.step(0.1, 0.05)
    assert weights(once) == {"beta": first, "entropy_coef": 0.5} and weights(twice)["beta"] == second
    assert weights(start) == start


def test_the_budget_chooses_its_own_beta(tmp_path):
    given = ALTConfig(output_dir=str(tmp_path), kl_budget=0.05)
    assert first_coefficients(given)["beta"] == pytest.approx(2.0)
    assert controllers_of(given) == [BudgetController(0.05)]
    without = ALTConfig(output_dir=str(tmp_path), beta=0.7)
    assert first_coefficients(without)["beta"] == 0.7 and controllers_of(without) == []


def test_entropy_may_cost_but_no_controller_moves_a_cost(tmp_path):
    costly = ALTConfig(output_dir=str(tmp_path), entropy_coef=-0.01)
    assert first_coefficients(costly)["entropy_coef"] == -0.01
    with pytest.raises(
        UserError, match="target_entropy changes an entropy bonus: set entropy_coef above 0, or target_"
    ):
        ALTConfig(output_dir=str(tmp_path), entropy_coef=-0.01, target_entropy=40.0)
    with pytest.raises(UserError, match="entropy_coef: -2.0 where -1 or more"):
        ALTConfig(output_dir=str(tmp_path), entropy_coef=-2.0)


def test_two_controllers_of_beta_are_refused(tmp_path):
    with pytest.raises(UserError, match="kl_budget and adaptive_kl both change beta: set adaptive_kl false, or kl_"):
        ALTConfig(output_dir=str(tmp_path), kl_budget=0.1, adaptive_kl=True)
    with pytest.raises(UserError, match=r"kl_budget: 0.0 where a number above 0"):
        ALTConfig(output_dir=str(tmp_path), kl_budget=0.0)
