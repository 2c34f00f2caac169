"""Spellings that a person still reads but that hide a word from a scorer: of scorer_suite.py's table, and to train on.

An attack takes a word and a random generator and gives the word in another spelling. `attacked` does this to the words of
a text. The same generator state gives the same text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import numpy as np

Attack = Callable[[str, np.random.Generator], str]

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
LONG = 4  # letters of a word that matters, where no list of words says so
ZERO_WIDTH_SPACE, SOFT_HYPHEN = "\u200b", "\u00ad"
ACCENTS = "\u0300\u0301\u0302\u0303\u0308"  # combining grave, acute, circumflex, tilde, diaeresis
FULLWIDTH = ord("！") - ord("!")  # the distance of every printable ASCII character from its fullwidth form
LEET = str.maketrans("aeiostAEIOST", "431057431057")
CYRILLIC = str.maketrans("aceopxyisjhABCEHKMOPTXYISJ", "асеорхуіѕјһАВСЕНКМОРТХУІЅЈ")


def leet(word: str, rng: np.random.Generator) -> str:
    """Digits for the letters a, e, i, o, s, t."""
    return word.translate(LEET)


def masked(word: str, rng: np.random.Generator) -> str:
    """`*` for one letter, neither the first nor the last of three or more."""
    first = min(1, len(word) - 1)
    at = int(rng.integers(first, max(len(word) - 1, first + 1)))
    return word[:at] + "*" + word[at + 1 :]


def spaced(word: str, rng: np.random.Generator) -> str:
    """A space between all letters."""
    return " ".join(word)


def dotted(word: str, rng: np.random.Generator) -> str:
    """A full stop, hyphen or underscore between all letters."""
    return ".-_"[int(rng.integers(3))].join(word)


def cyrillic(word: str, rng: np.random.Generator) -> str:
    """Cyrillic letters for the Latin ones that they look like."""
    return word.translate(CYRILLIC)


def fullwidth(word: str, rng: np.random.Generator) -> str:
    """The wide forms of ASCII letters that stand beside Chinese characters."""
    return "".join(chr(ord(c) + FULLWIDTH) if "!" <= c <= "~" else c for c in word)


def bold(word: str, rng: np.random.Generator) -> str:
    """The mathematical bold forms of the letters a to z, which social media show as bold text."""
    lower, upper = ord("\N{MATHEMATICAL BOLD SMALL A}"), ord("\N{MATHEMATICAL BOLD CAPITAL A}")
    return "".join(
        chr((lower + ord(c) - ord("a")) if c.islower() else (upper + ord(c) - ord("A")))
        if c.isascii() and c.isalpha()
        else c
        for c in word
    )


def zero_width(word: str, rng: np.random.Generator) -> str:
    """A zero-width space, which nobody sees, between all letters."""
    return ZERO_WIDTH_SPACE.join(word)


def soft_hyphen(word: str, rng: np.random.Generator) -> str:
    """A soft hyphen, seen only at the end of a line, between all letters."""
    return SOFT_HYPHEN.join(word)


def repeated(word: str, rng: np.random.Generator) -> str:
    """One letter three to six times in a row, not the first of two or more."""
    at = int(rng.integers(min(1, len(word) - 1), len(word)))
    return word[:at] + word[at] * int(rng.integers(3, 7)) + word[at + 1 :]


def accented(word: str, rng: np.random.Generator) -> str:
    """An accent on every vowel, as one character where Unicode has it."""
    marks = (ACCENTS[int(rng.integers(len(ACCENTS)))] if c in "aeiouyAEIOUY" else "" for c in word)
    return unicodedata.normalize("NFC", "".join(c + mark for c, mark in zip(word, marks, strict=True)))


ATTACKS: dict[str, Attack] = {
    "leet": leet,
    "one letter masked": masked,
    "letters spaced": spaced,
    "letters dotted": dotted,
    "Cyrillic look-alikes": cyrillic,
    "fullwidth": fullwidth,
    "mathematical bold": bold,
    "zero-width space": zero_width,
    "soft hyphen": soft_hyphen,
    "a letter repeated": repeated,
    "accents": accented,
}


def long_word(word: str) -> bool:
    """Whether a word has at least LONG letters."""
    return len(word) >= LONG


def attacked(
    text: str,
    attack: Attack,
    rng: np.random.Generator,
    *,
    chosen: Callable[[str], bool] = long_word,
    share: float = 1.0,
) -> str:
    """A text whose chosen words are respelled; the rest of it stays.

    Args:
        chosen: Whether a word, as it is written, may be respelled.
        share: The probability that a chosen word is respelled.
    """

    def respelled(match: re.Match[str]) -> str:
        word = match.group()
        return attack(word, rng) if chosen(word) and rng.random() < share else word

    return WORD.sub(respelled, text)
