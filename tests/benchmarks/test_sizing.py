"""benchmarks/sizing.py gives hand-computed sizes, and docs/scaling.md has its table."""

from pathlib import Path

import pytest
from benchmarks import sizing

SMALL = sizing.Model("small", hidden=1000, layers=10, vocabulary=10_000, parameters=140e6)


def test_states_by_hand():
    assert sizing.states(SMALL, 1, False, False) == 22 * 140e6
    assert sizing.states(SMALL, 2, False, False) == 26 * 140e6
    assert sizing.states(SMALL, 4, True, False) == 5 * 140e6
    assert sizing.states(SMALL, 4, True, True) == 140e6


def test_phases_by_hand():
    activations, logits = 32 * 2 * 48 * 10 * 1000 * 34, 32 * 3 * 20 * 10_000 * 14
    assert sizing.training(SMALL, False, branches=2) == activations + logits
    assert sizing.training(SMALL, True, branches=2) == activations + logits + 4 * (20e6 + 2 * 12e6)
    rows = 65_536 // 48
    assert sizing.sampling(SMALL, False) == rows * (48 * 40_000 + 40_000)
    assert sizing.sampling(SMALL, True, copies=2) == rows * (48 * 40_000 + 40_000) + 4 * 140e6


def test_hours_by_hand():
    sampled, trained = sizing.hours(SMALL, 1)
    assert sampled == pytest.approx(16 * 85_000 / 1365 * 20 * 5e-3 / 3600)  # bound by starting kernels
    assert trained == pytest.approx(32_000 * 20e-3 / 3600)


def test_the_page_shows_the_table():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert sizing.table() in page
