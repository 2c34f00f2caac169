"""Attacked words by hand, and what holds of every attack on any text."""

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import attacks

BY_HAND = {
    "leet": "50c14bl3",
    "letters spaced": "s o c i a b l e",
    "Cyrillic look-alikes": "ѕосіаblе",
    "fullwidth": "ｓｏｃｉａｂｌｅ",
    "mathematical bold": "𝐬𝐨𝐜𝐢𝐚𝐛𝐥𝐞",
    "zero-width space": "s\u200bo\u200bc\u200bi\u200ba\u200bb\u200bl\u200be",
    "soft hyphen": "s\u00ado\u00adc\u00adi\u00ada\u00adb\u00adl\u00ade",
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", BY_HAND)
def test_spellings_without_chance_by_hand(name):
    assert attacks.ATTACKS[name]("sociable", rng()) == BY_HAND[name]


def test_spellings_by_chance_by_hand():
    assert {attacks.masked("cat", np.random.default_rng(i)) for i in range(9)} == {"c*t"}
    assert {attacks.masked("cart", np.random.default_rng(i)) for i in range(20)} == {"c*rt", "ca*t"}
    assert {attacks.dotted("ab", np.random.default_rng(i)) for i in range(30)} == {"a.b", "a-b", "a_b"}
    assert {attacks.repeated("ab", np.random.default_rng(i)) for i in range(60)} == {
        "a" + "b" * n for n in range(3, 7)
    }
    found = attacks.accented("bode", rng())
    assert found != "bode" and len(found) == 4  # composed
    assert "".join(c for c in unicodedata.normalize("NFD", found) if c.isascii()) == "bode"


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("word", ["a", "I", "ab", "don't", "ПОЗОР", "weiß"])
def test_short_and_foreign_words_do_no_harm(name, word):
    assert attacks.ATTACKS[name](word, rng())


def test_only_chosen_words_change_and_the_rest_of_the_text_stays():
    assert attacks.attacked("Go on,  you fine dog! 2024", attacks.leet, rng()) == "Go on,  you f1n3 dog! 2024"
    short = attacks.attacked("a fine dog", attacks.leet, rng(), chosen={"dog"}.__contains__)
    assert short == "a fine d0g"
    assert attacks.attacked("fine dogs", attacks.leet, rng(), share=0) == "fine dogs"


def test_a_share_of_the_words():
    text = attacks.attacked("tone " * 2000, attacks.leet, rng(), share=0.3)
    assert 0.25 < text.count("70n3") / 2000 < 0.35


@given(st.text(max_size=60), st.sampled_from(sorted(attacks.ATTACKS)), st.integers(0, 99))
def test_the_same_seed_gives_the_same_text(text, name, seed):
    one, two = (attacks.attacked(text, attacks.ATTACKS[name], np.random.default_rng(seed)) for _ in range(2))
    assert one == two
