"""The auditor: a toxicity scorer that shares no data set and no features with `local`.

A policy that games its reward raises the reward without becoming less toxic. A second scorer makes different mistakes,
so it can reveal such a policy. `audit` has linear views over hashed n-grams of words (1 and 2) and characters (2 to 5):
the *mean* view adds the weights of all n-grams of a text; the *peak* view adds them for each word and takes the soft
maximum over words. One monotone curve maps the sum of their logits to Perspective's scale. `tools/build_audit.py` builds
it; its card gives fidelity and limits.

Version 2 reads normalised words, in which all names of groups of people are one word, so that no group is more toxic than
another. A third view reads the words around such a name, to tell what is said of the group. The mean view counts each
n-gram of a text once, so that repetition does not change a score.

N-grams are hashed by array operations on all texts at once: with prefix sums of c·B^i modulo 2^64 and an odd B, the hash
of any substring is one subtraction and one product. The tables hold signed square roots in eight bits, because weights
span orders of magnitude; their squares are whole numbers, whose sums are exact in any order.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from nlf.rewards import english
from nlf.rewards.characters import MAX_CHARACTERS, source_of
from nlf.rewards.embedded import SCORERS, ToxicityScorer
from nlf.rewards.normalize import PIECE, SINGLE, words
from nlf.rewards.vocabulary import Vocabulary

ASSET = SCORERS / "audit" / "audit-2.safetensors"
ASSET_1 = SCORERS / "audit" / "audit-1.safetensors"
BITS = 20  # bits of a hash: the table has 2^20 rows
CHARACTERS = (2, 3, 4, 5)  # lengths of character n-grams
KINDS = (3, 2, 1, 1, 1, 1)  # weight factors of a word, a word pair and 2 to 5 characters
MANY = 600  # different n-grams; the mean view of a longer text is a mean, that of a shorter one a sum over a root
GROUP = "\ue000"  # the word that stands for every name of a group of people
REACH = 12  # words before and after a GROUP that are read as said of it
PHRASES = ((0,), (1, 0), (2, 1, 0), (2, 0))  # words that make a phrase, counted back from its last one
PHRASE_BITS = 16
MAX_PIECES = 50_000  # pieces of text whose words are remembered
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
MIXER = 0xBF58476D1CE4E5B9
Found = list[tuple[np.ndarray, np.ndarray]]  # for each kind of n-gram: its rows of the table, and the words it ends in


def clean(text: str) -> str:
    """The words and punctuation marks of a text in lower case, separated by one space."""
    return " ".join(WORD.findall(text[:MAX_CHARACTERS].lower().replace("’", "'")))


def powers(base: int, count: int) -> np.ndarray:
    """base^0 … base^(count - 1) modulo 2^64."""
    return np.multiply.accumulate(np.array([1, *[base] * (count - 1)], dtype=np.uint64))


def ngrams(cleaned: Sequence[str]) -> tuple[Found, np.ndarray]:
    """Hashed n-grams of N texts with W words in total.

    Args:
        cleaned: The words of each text, separated by one space.

    Returns:
        kinds: For words, word pairs and each length of character n-grams two arrays: the table's row (below 2^BITS) of
            each n-gram, and the index of the word that it ends in.
        owners: `(W,)` the index of each word's text, ascending.
    """
    framed = [f" {text} " for text in cleaned]
    codes = np.frombuffer("".join(framed).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    text = np.repeat(np.arange(len(framed)), [len(each) for each in framed])
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


def distinct(kinds: Found, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different n-grams of each text: the text's index, the table's row and the weight factor of each."""
    keys = np.concatenate(
        [(owners[last] << BITS | rows) << 2 | f for f, (rows, last) in zip(KINDS, kinds, strict=True)]
    )
    keys.sort()  # much faster than np.unique, which would have to say where each stood
    keys = keys[np.diff(keys >> 2, prepend=-1) != 0]
    return keys >> BITS + 2, keys >> 2 & (1 << BITS) - 1, keys & 3


def phrases(kinds: Found, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different phrases near a GROUP in each text: the text's index, and the row below 2^PHRASE_BITS of each.

    A phrase is one word, two or three in a row, or two with one between them.
    """
    single = kinds[0][0].astype(np.uint64)
    named = np.flatnonzero(single == ngrams([GROUP])[0][0][0])
    near = np.zeros(len(single), dtype=bool)
    for step in range(-REACH, REACH + 1):
        place = named + step
        inside = (place >= 0) & (place < len(single))
        place, source = place[inside], named[inside]
        near[place[owners[place] == owners[source]]] = True
    keys = []
    for number, steps in enumerate(PHRASES, start=1):
        last = np.flatnonzero(near)
        last = last[last >= steps[0]]
        last = last[owners[last] == owners[last - steps[0]]]
        mixed = np.full(len(last), number, dtype=np.uint64)
        for step in steps:
            mixed = (mixed + single[last - step] + np.uint64(1)) * np.uint64(MIXER)
            mixed ^= mixed >> np.uint64(29)
        rows = ((mixed * np.uint64(BASE)) >> np.uint64(64 - PHRASE_BITS)).astype(np.int64)
        keys.append(owners[last] << PHRASE_BITS | rows)
    found = np.unique(np.concatenate(keys))
    return found >> PHRASE_BITS, found & ((1 << PHRASE_BITS) - 1)


def divisor(size: np.ndarray) -> np.ndarray:
    """What the sum over so many different n-grams of a text is divided by."""
    return np.sqrt(np.maximum(size, 1) * np.maximum(size / MANY, 1))


def pooled(weights: np.ndarray, owners: np.ndarray, texts: int) -> np.ndarray:
    """`(texts,)` the sum of the weights of each text's different n-grams over the `divisor` of their number."""
    return np.bincount(owners, weights, minlength=texts) / divisor(np.bincount(owners, minlength=texts))


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


def word_sums(view: np.ndarray, kinds: Found, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the weights of the n-grams that end in each word, and their number, both `(W,)`."""
    sums, counts = np.zeros(size), np.zeros(size)
    for factor, (rows, last) in zip(KINDS, kinds, strict=True):
        sums += np.bincount(last, factor * view[rows], minlength=size)
        counts += np.bincount(last, minlength=size)
    return sums, counts


class AuditToxicity1(ToxicityScorer):
    """Version 1. Reward = 1 − toxicity of the completion alone, also the attribute `toxicity`. Ignores case."""

    name, version, asset = "audit", 1, ASSET_1

    def __init__(self, path: str | Path | None = None):
        super().__init__(path)
        self.table = self.arrays.pop("table").astype(np.float32) * self.card["table_scale"]
        self.table *= np.abs(self.table)
        self.net = {name: array.astype(np.float64) for name, array in self.arrays.items()}

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Toxicity `(len(texts), 1)`."""
        kinds, owners = ngrams([clean(text) for text in texts])
        sums, counts = np.zeros((2, len(owners))), np.zeros(len(owners))
        for i, view in enumerate(self.table.T):
            sums[i], counts = word_sums(view, kinds, len(owners))
        mean, peak = sums * self.net["scale"][:, None]
        length = np.bincount(owners, counts, minlength=len(texts))
        mean = np.bincount(owners, mean, minlength=len(texts)) / np.sqrt(np.maximum(length, 1))
        logits = mean + soft_maximum(peak / np.sqrt(counts), owners, len(texts)) + self.net["bias"]
        return self._calibrated(logits / 3)  # the mean of three fits

    def _calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Toxicity `(N, 1)` on Perspective's scale."""
        return np.round(np.interp(1 / (1 + np.exp(-logits)), *self.net["calibration"]), 6)[:, None]


class Reader:
    """Reads a text as the words that version 2 counts.

    Args:
        vocabulary: Known words.
        groups: Names of groups of people in lower case, one word each.
    """

    def __init__(self, vocabulary: Vocabulary, groups: Iterable[str]):
        self.vocabulary, self.groups = vocabulary, frozenset(groups)
        self._pieces: dict[str, tuple[bool, list[str], list[int]]] = {}

    def read(self, text: str) -> tuple[str, list[int]]:
        """The words of a text in lower case, separated by one space, and the kind of each (`english.kind`).

        Names of groups that follow each other ("black women") are one GROUP. What a piece of text without white space says
        is kept, because `words` takes most of the time; only a row of single letters has to be read as a whole.
        """
        forms: list[str] = []
        kinds: list[int] = []
        row = 0
        plain = source_of(text).plain
        for piece in PIECE.findall(plain):
            single, more, their_kinds = self._pieces.get(piece) or self._piece(piece)
            row = row + 1 if single else 0
            if row > 2:
                forms, kinds = self._read(plain)
                break
            forms += more
            kinds += their_kinds
        if GROUP in forms:
            forms = [form for form, last in zip(forms, ["", *forms], strict=False) if not form == last == GROUP]
        return " ".join(forms), kinds

    def _piece(self, piece: str) -> tuple[bool, list[str], list[int]]:
        if len(self._pieces) >= MAX_PIECES:
            self._pieces.clear()
        self._pieces[piece] = found = bool(SINGLE.fullmatch(piece)), *self._read(piece)
        return found

    def _read(self, text: str) -> tuple[list[str], list[int]]:
        found = [word.text for word in words(text, self.vocabulary)]
        forms = [GROUP if word.lower().removesuffix("'s") in self.groups else word.lower() for word in found]
        return forms, [english.kind(word, self.vocabulary) for word in found]


class AuditToxicity(AuditToxicity1):
    """Reward = 1 − toxicity of the completion alone, also the attribute `toxicity`; None for what is not English text."""

    version, asset = 2, ASSET

    def __init__(self, path: str | Path | None = None):
        super().__init__(path)
        known, rude = (self.net.pop(name).astype(np.uint32) for name in ("vocabulary", "rude"))
        self.reader = Reader(Vocabulary(known, rude), self.card["groups"])
        self.mean, self.peak = np.ascontiguousarray(self.table.T)
        self.phrases = self.net["phrases"] * np.abs(self.net["phrases"])

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Toxicity `(len(texts), 1)`; NaN = cannot be scored."""
        read, kinds = zip(*map(self.reader.read, texts), strict=True)
        text = np.repeat(np.arange(len(texts)), [*map(len, kinds)])
        places = text * english.KINDS + np.array([*chain.from_iterable(kinds)], dtype=np.int64)
        counts = np.bincount(places, minlength=len(texts) * english.KINDS).reshape(len(texts), english.KINDS)
        scores = self._calibrated(self._logits(read))
        return np.where(english.readable(counts)[:, None], scores, np.nan)

    def _logits(self, read: Sequence[str]) -> np.ndarray:
        """`(len(read),)` from the words of each text, separated by one space."""
        kinds, owners = ngrams(read)
        place, rows, factor = distinct(kinds, owners)
        mean = pooled(factor * self.mean[rows], place, len(read)) * self.net["scale"][0]
        sums, ending = word_sums(self.peak, kinds, len(owners))
        peak = soft_maximum(sums * self.net["scale"][1] / np.sqrt(ending), owners, len(read))
        place, rows = phrases(kinds, owners)
        said = pooled(self.phrases[rows], place, len(read)) * self.net["scale"][2]
        return (mean + peak + self.net["bias"]) / 3 + said
