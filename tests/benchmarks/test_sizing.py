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


def test_one_card_by_hand():
    """Qwen2.5-7B: a layer has 233,057,792 weights besides its norms, 1.512 × 12 · 3584²; 40,370,176 of adapters."""
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944
    adapters = 16 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944)) * 28
    assert sizing.QWEN.parameters == pytest.approx(28 * layer + 2 * 152_064 * 3584, rel=1e-4)
    assert adapters == pytest.approx(sizing.ADAPTERS, rel=1e-3)
    base = 2 * 7.616e9 + 18 * 40.4e6
    tokens = 8 * 2 * 48
    kept, one = tokens * 28 * 3584 * 2, tokens * 3584 * 34 * layer / (12 * 3584**2)
    need = sizing.card_memory(sizing.CARDS[0])
    assert need["states"] == base
    assert need["training"] == pytest.approx(base + kept + one + 8 * 3 * 20 * 152_064 * 14, rel=1e-3)
    assert need["sampling"] == base + 256 * (48 * 4 * 28 * 512 + 4 * 152_064)


def test_the_minutes_of_one_card_by_hand():
    sampled, trained = sizing.card_minutes(sizing.CARDS[0])
    assert sampled == pytest.approx(5 * 20 * 2 * 7.616e9 * 256 / (165e12 * 0.2) / 60)
    assert trained == pytest.approx(20 * 64 * 18 * 7.616e9 * 48 / (165e12 * 0.3) / 60)


@pytest.mark.parametrize("card", sizing.CARDS, ids=lambda card: card.name)
def test_the_recipe_fits_its_cards(card):
    assert max(sizing.card_memory(card).values()) <= sizing.USABLE * card.memory


def test_the_page_shows_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert sizing.table() in page and sizing.card_table() in page
