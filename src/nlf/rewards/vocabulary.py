"""Known English words and rude words, as hashes, for `nlf.rewards.normalize` and `nlf.rewards.english`."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def digest(word: str) -> int:
    """The number that stands for a word in a vocabulary's arrays."""
    return zlib.crc32(word.encode("utf-8", "replace"))


class Vocabulary:
    """Known English words, as hashes, so that no text ships.

    Args:
        words: uint32 `digest`s of lower-case words, the most frequent first.
        rude: uint32 digests of rude words, and of each beginning of one followed by `*`, by which masked words are found
            (`of` makes both arrays).
    """

    def __init__(self, words: np.ndarray, rude: np.ndarray):
        self.words, self.rude = words, rude
        self._ranks = {number: rank for rank, number in reversed(list(enumerate(words.tolist())))}
        self._rude = set(rude.tolist())
        self._next: dict[str, str] = {}
        self.pieces: dict[str, tuple] = {}  # the words of a text, kept by `nlf.rewards.normalize`

    @classmethod
    def of(cls, words: Iterable[str], rude: Iterable[str]) -> "Vocabulary":
        """A vocabulary of words by frequency and rude words."""
        rude = sorted(set(rude))
        beginnings = sorted({word[:n] + "*" for word in rude for n in range(1, len(word) + 1)})
        arrays = [np.array([digest(word) for word in names], dtype=np.uint32) for names in (words, rude + beginnings)]
        return cls(*arrays)

    def rank(self, word: str) -> int | None:
        """The place of a lower-case word by frequency, 0 = most frequent; None = unknown."""
        return self._ranks.get(digest(word))

    def is_rude(self, word: str) -> bool:
        return digest(word) in self._rude

    def knows(self, word: str) -> bool:
        """A known or rude word, or the possessive of one."""
        return self._has(word) or (word.endswith("'s") and self._has(word[:-2]))

    def _has(self, word: str) -> bool:
        number = digest(word)
        return number in self._ranks or number in self._rude

    def best(self, candidates: Iterable[str], *, common: int | None = None, letters: int = 3) -> str | None:
        """The rude, else the most frequent of the known candidates that have so many letters or more.

        Args:
            common: Words that are neither rude nor among so many most frequent ones do not count.
        """
        found = []
        for word in dict.fromkeys(candidates):
            rank, rude = self.rank(word), self.is_rude(word)
            if len(word) >= letters and (rude or (rank is not None and (common is None or rank < common))):
                found.append((not rude, len(self._ranks) if rank is None else rank, word))
        return min(found)[2] if found else None

    def rude_words(self, pattern: Sequence[str]) -> list[str]:
        """The rude words whose letter at each place is one of that place's letters."""
        found = [""]
        for letters in pattern:
            found = [head + letter for head in found for letter in self._after(head) if letter in letters]
        return [word for word in found if self.is_rude(word)]

    def _after(self, head: str) -> str:
        """The letters that follow a beginning in rude words."""
        if head not in self._next:
            self._next[head] = "".join(c for c in LETTERS if digest(f"{head}{c}*") in self._rude)
        return self._next[head]
