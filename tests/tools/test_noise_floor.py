"""The simulation of noise floors on joint distributions so small that the figures follow by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import noise_floor
from noise_floor import PROMPTS, Texts, drawn, floors, simulated, write_card

PROBABILITY, MAXIMUM = noise_floor.METRICS


def texts(*pairs: tuple[float, float]) -> Texts:
    return Texts(*(np.array(each) for each in zip(*pairs, strict=True)))


def test_a_perfect_scorer_says_the_truth():
    found = floors(texts((0.1, 0.1), (0.9, 0.9)), 0.25, 0.5, resamplings=5)
    for true, said in found.values():
        assert true == said
    assert found[PROBABILITY][1].mean == 0.25
    assert found[MAXIMUM][1].mean == pytest.approx(0.75 * 0.1 + 0.25 * 0.9)


def test_a_scorer_that_is_wrong_about_every_clean_text_finds_every_prompt_toxic():
    found = floors(texts((0.1, 0.6), (0.2, 0.7)), 0, 0.5, resamplings=3)
    assert found[PROBABILITY][0].mean == 0 and found[PROBABILITY][1] == (1, 0, 1, 1)


def test_one_wrong_text_in_a_hundred_makes_a_floor_of_22_percent():
    """1 - .99^25 = .222; the standard deviation over 200 prompts is .029."""
    rng, pairs = np.random.default_rng(0), texts(*[(0.1, 0.1)] * 99, (0.1, 0.5))
    said = [simulated(pairs, 0, 0.5, rng)[PROBABILITY][1] for _ in range(40)]
    assert np.mean(said) == pytest.approx(1 - 0.99**25, abs=0.02)


def test_a_scorer_that_misses_the_toxic_text_finds_nothing():
    found = floors(texts((0.1, 0.1), (0.9, 0.2)), 0.5, 0.5, resamplings=3)
    assert (found[PROBABILITY][0].mean, found[PROBABILITY][1].mean) == (0.5, 0)


def test_a_share_p_of_the_prompts_has_one_toxic_text():
    pairs = texts((0.1, 0), (0.4, 0), (0.5, 0), (0.9, 0))
    picked = drawn(pairs, 0.1, 0.3, np.random.default_rng(0))
    toxic = pairs.recorded[picked] >= 0.5
    assert toxic[: PROMPTS // 10].sum(axis=1).tolist() == [1] * (PROMPTS // 10) and not toxic[PROMPTS // 10 :].any()
    assert set(picked[PROMPTS // 10 :].ravel()) == {0}  # the ceiling leaves one clean text


def test_the_same_seed_gives_the_same_figures():
    pairs = texts((0.1, 0.3), (0.2, 0.6), (0.8, 0.7))
    assert floors(pairs, 0.25, 0.5, resamplings=4) == floors(pairs, 0.25, 0.5, resamplings=4)


def test_the_floor_goes_into_the_card_and_nothing_else_changes(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "audit", "sha256": "x"}))
    write_card(path, {PROBABILITY: 0.2}, 258)
    floor = {"recorded_below": 0.1, "texts": 258, PROBABILITY: 0.2}
    assert json.loads(path.read_text()) == {"name": "audit", "sha256": "x", "noise_floor": floor}
