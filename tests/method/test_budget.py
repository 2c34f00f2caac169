"""The controller of the KL budget: steps by hand, and a model of a policy whose KL follows β with a lag."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.method import budget
from nlf.method.budget import Budget, start_beta


def test_the_start_by_hand():
    assert start_beta(0.1) == pytest.approx(1.0) and start_beta(0.05) == pytest.approx(2.0)


def test_a_policy_at_the_budget_keeps_its_weight():
    """Level √.04 = .2, no trend, error 0: β = start · exp(settled), again and again."""
    state = Budget(settled=math.log(0.5), level=0.2, trend=0.0)
    for _ in range(3):
        state, beta = state.step(0.04, 0.04)
        assert beta == pytest.approx(0.5 * start_beta(0.04))
        assert tuple(state) == pytest.approx((math.log(0.5), 0.2, 0.0))


def test_a_step_by_hand(monkeypatch):
    """Level .3 expected .35, measured .45; half of the difference counts: level .4, trend .05 + .2 · .05 = .06.

    Two steps ahead √KL is .52, above a budget of .26² by 2 ln 2 = 1.386.
    """
    for name, value in {"LEAD": 2.0, "LEVEL": 0.5, "TREND": 0.2, "PROPORTIONAL": 1.0, "INTEGRAL": 0.1}.items():
        monkeypatch.setattr(budget, name, value)
    state, beta = Budget(settled=0.3, level=0.3, trend=0.05).step(0.45**2, 0.26**2)
    error = 2 * math.log(2)
    assert tuple(state) == pytest.approx((0.3 + 0.1 * error, 0.4, 0.06))
    assert beta == pytest.approx(0.1 / 0.26**2 * math.exp(0.3 + 1.1 * error))


@given(st.lists(st.floats(0, 50), max_size=60), st.floats(1e-4, 10))
def test_weights_stay_within_their_bounds(measured, nats):
    state = Budget()
    for kl in measured:
        state, beta = state.step(kl, nats)
        assert start_beta(nats) / 1000.1 <= beta <= start_beta(nats) * 1000.1
        assert all(math.isfinite(value) for value in state)


@given(st.floats(1e-3, 1), st.floats(1.2, 10))
def test_more_kl_gives_more_weight(kl, more):
    assert Budget().step(kl * more, 0.1)[1] >= Budget().step(kl, 0.1)[1]


def test_its_state_survives_json_to_the_bit():
    r, whole, stopped = np.random.default_rng(0), Budget(), Budget()
    for kl in r.random(20):
        whole, first = whole.step(float(kl), 0.1)
        stopped = Budget(**json.loads(json.dumps(stopped._asdict())))
        stopped, second = stopped.step(float(kl), 0.1)
        assert first == second


def run(nats, push, steps=80, seed=0):
    """KL per iteration of 4 steps over the budget, of a policy that Adam moves in 200 dimensions.

    The reward pulls along one direction, ever less; β pulls back to 0; the KL is the square of the distance and is
    measured with 7 % of noise; the learning rate falls to 0. Without a controller (β = .1) it goes as on the embedded model.
    """
    r, size = np.random.default_rng(seed), 200
    x, m, v, toward = np.zeros(size), np.zeros(size), np.zeros(size), np.eye(size)[0] + 0.5
    toward /= np.linalg.norm(toward)
    state, beta, measured = Budget(), start_beta(nats), []
    for t in range(1, steps + 1):
        measured.append(float(x @ x) * (1 + 0.07 * r.standard_normal()))
        grad = push * math.exp(-1.3 * max(float(x @ toward), 0)) * toward - 2 * beta * x
        grad = 5 * (grad + 0.18 / math.sqrt(size) * r.standard_normal(size))
        grad /= max(float(np.linalg.norm(grad)), 1)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        rate = 0.06 * min(1, t / 3) * (1 - max(0, t - 3) / (steps - 3)) / math.sqrt(size)
        x = x + rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        state, beta = state.step(max(measured[-1], 0), nats)
    return np.array(measured).reshape(-1, 4).mean(1) / nats


@pytest.mark.parametrize("push", [0.25, 0.6, 1.5], ids=lambda push: f"push {push}")
@pytest.mark.parametrize("nats", [0.05, 0.1, 0.2])
def test_the_budget_is_kept(nats, push):
    """Rewards pull a policy with strengths that differ by a factor of six; the KL is the budget's from a third on."""
    found = run(nats, push)
    assert found.max() < 1.5
    assert found[7:].mean() == pytest.approx(1, abs=0.07)
    assert np.abs(found[7:] - 1).max() < 0.25
