"""The auditor: a toxicity scorer that shares no data set and no features with `local`.

A policy that games its reward raises the reward without becoming less toxic. A second scorer makes different mistakes,
so it can reveal such a policy. `audit` has two linear views over hashed n-grams of words (1 and 2) and characters (2
to 5): the *mean* view adds the weights of all n-grams of a text; the *peak* view adds them for each word and takes the
soft maximum over words. One monotone curve maps the sum of their logits to Perspective's scale. `tools/build_audit.py`
builds it; docs/rewards.md gives fidelity and limits.

N-grams are hashed by array operations on all texts at once: with prefix sums of c·B^i modulo 2^64 and an odd B, the hash
of any substring is one subtraction and one product. The table holds signed square roots in eight bits, because weights
span orders of magnitude; their squares are whole numbers, whose sums are exact in any order.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlf.rewards.characters import MAX_CHARACTERS
from nlf.rewards.embedded import SCORERS, ToxicityScorer

ASSET = SCORERS / "audit" / "audit-1.safetensors"
BITS = 20  # bits of a hash: the table has 2^20 rows
CHARACTERS = (2, 3, 4, 5)  # lengths of character n-grams
KINDS = (3, 2, 1, 1, 1, 1)  # weight factors of a word, a word pair and 2 to 5 characters
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
MIXER = 0xBF58476D1CE4E5B9


def clean(text: str) -> str:
    """The words and punctuation marks of a text in lower case, separated by one space."""
    return " ".join(WORD.findall(text[:MAX_CHARACTERS].lower().replace("’", "'")))


def powers(base: int, count: int) -> np.ndarray:
    """base^0 … base^(count - 1) modulo 2^64."""
    return np.multiply.accumulate(np.array([1, *[base] * (count - 1)], dtype=np.uint64))


def ngrams(texts: Sequence[str]) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Hashed n-grams of N texts with W words in total.

    Returns:
        kinds: For words, word pairs and each length of character n-grams two arrays: the table's row (below 2^BITS) of
            each n-gram, and the index of the word that it ends in.
        owners: `(W,)` the index of each word's text, ascending.
    """
    cleaned = [f" {clean(text)} " for text in texts]
    codes = np.frombuffer("".join(cleaned).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    text = np.repeat(np.arange(len(cleaned)), [len(each) for each in cleaned])
    sums = np.concatenate([[np.uint64(0)], np.cumsum((codes + np.uint64(1)) * powers(BASE, len(codes)))])
    back = powers(INVERSE, len(codes))

    def rows(begins: np.ndarray, ends: np.ndarray, kind: int) -> np.ndarray:
        mixed = (sums[ends] - sums[begins]) * back[begins]  # independent of the position in the text
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(MIXER * (2 * kind + 1) % (1 << 64))
        return (mixed >> np.uint64(64 - BITS)).astype(np.int64)

    space = codes == ord(" ")
    begins, ends = np.flatnonzero(space[:-1] & ~space[1:]) + 1, np.flatnonzero(~space[:-1] & space[1:]) + 1
    # a word's index; the space after a word belongs to it
    word = np.cumsum(np.concatenate([[False], space[:-1] & ~space[1:]])) - 1
    owners = text[begins]
    pairs = np.flatnonzero(owners[:-1] == owners[1:])
    kinds = [(rows(begins, ends, 0), np.arange(len(begins))), (rows(begins[pairs], ends[pairs + 1], 1), pairs + 1)]
    for n in CHARACTERS:
        start = np.flatnonzero(
            (text[: max(len(text) - n + 1, 0)] == text[n - 1 :]) & ~(space[n - 2 : -1] & space[n - 1 :])
        )
        kinds.append((rows(start, start + n, n), word[start + n - 1]))
    return kinds, owners


def soft_maximum(values: np.ndarray, owners: np.ndarray, texts: int) -> np.ndarray:
    """`(texts,)` log of the mean of exp(values) over the words of each text; 0 for a text without words.

    Args:
        values: `(W,)`.
        owners: `(W,)` the index of each word's text.
        texts: The number of texts.
    """
    total = np.bincount(owners, np.exp(np.clip(values, -50, 50)), minlength=texts)
    count = np.bincount(owners, minlength=texts)
    return np.log(np.where(count > 0, total, 1) / np.maximum(count, 1))


class AuditToxicity(ToxicityScorer):
    """Reward = 1 − toxicity of the completion alone, also the attribute `toxicity`. Ignores case."""

    name, version, asset = "audit", 1, ASSET

    def __init__(self, path: str | Path | None = None):
        super().__init__(path)
        self.table = self.arrays.pop("table").astype(np.float32) * self.card["table_scale"]
        self.table *= np.abs(self.table)
        self.net = {name: array.astype(np.float64) for name, array in self.arrays.items()}

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Toxicity `(len(texts), 1)`."""
        kinds, owners = ngrams(texts)
        sums, counts = np.zeros((2, len(owners))), np.zeros(len(owners))
        for factor, (rows, words) in zip(KINDS, kinds, strict=True):
            weights = factor * self.table[rows]  # (n-grams, 2): mean view, peak view
            sums += [np.bincount(words, column, minlength=len(owners)) for column in weights.T]
            counts += np.bincount(words, minlength=len(owners))
        mean, peak = sums * self.net["scale"][:, None]
        length = np.bincount(owners, counts, minlength=len(texts))
        mean = np.bincount(owners, mean, minlength=len(texts)) / np.sqrt(np.maximum(length, 1))
        logits = mean + soft_maximum(peak / np.sqrt(counts), owners, len(texts)) + self.net["bias"]
        logits = logits / 3  # the mean of three fits
        return np.round(np.interp(1 / (1 + np.exp(-logits)), *self.net["calibration"]), 6)[:, None]
