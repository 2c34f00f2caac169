"""Metrics of diversity: dist-n, self-BLEU and repetition."""

import itertools
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

ORDERS = (1, 2, 3)  # n of dist-n
BLEU_ORDERS = (1, 2, 3, 4)  # n of BLEU-4
WAITING = 2**20  # codes of n-grams that are collected before they are counted


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of a completion's n-grams that repeat an earlier one (seq-rep-n, arXiv 1908.04319); NaN below n tokens."""
    total = len(token_ids) - n + 1
    return 1 - len(set(zip(*(token_ids[i:] for i in range(n)), strict=False))) / total if total > 0 else float("nan")


class WordCodes(dict):
    """64-bit codes of words, equal in every process. At most a quarter of a million words are remembered.

    Codes in place of words keep memory bounded and let numpy count. Among 15 million n-grams, two share a code with a
    probability of 1e-5.
    """

    def __missing__(self, word: str) -> int:
        if len(self) >= 2**18:
            self.clear()
        # JSON may hold half a surrogate pair, which strict UTF-8 refuses
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        code = self[word] = int.from_bytes(digest, "little")
        return code


def distinct_ngrams(texts: Sequence[str], codes: WordCodes) -> tuple[int, list[np.ndarray]]:
    """The number of words in texts, and for each n of ORDERS the codes of their distinct n-grams, ascending.

    No n-gram spans two texts.
    """
    words = [text.split() for text in texts]
    lengths = np.array([len(w) for w in words], dtype=np.int64)
    total = int(lengths.sum())
    first = np.fromiter(map(codes.__getitem__, itertools.chain.from_iterable(words)), np.uint64, total)  # (W,)
    room = np.repeat(lengths.cumsum(), lengths) - np.arange(total)  # words from this one to the end of its text
    grams, found = first, []
    for n in ORDERS:
        if n > 1:
            grams = (grams[:-1] ^ (grams[:-1] >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15) + first[n - 1 :]
        found.append(_distinct(grams[room[: len(grams)] >= n]))
    return total, found


def _distinct(codes: np.ndarray) -> np.ndarray:
    """Distinct codes, ascending; sorts `codes` in place, which is faster here than `np.unique`."""
    codes.sort()
    return codes[np.concatenate([[True], codes[1:] != codes[:-1]])] if len(codes) else codes


class DistinctCounter:
    """Counts distinct 64-bit codes in bounded memory, 8 bytes for each of `limit`.

    The count is exact up to `limit`, four million, the number of word triples in 250,000 completions of 20 tokens.
    Beyond the limit it is estimated from the `limit` smallest codes (k minimum values, Bar-Yossef et al. 2002) with a
    standard error of 1/√limit, .05 %. It does not depend on the order or the repetition of codes.
    """

    def __init__(self, limit: int = 2**22):
        self.limit, self._exact = limit, True
        self._kept = np.empty(0, dtype=np.uint64)
        self._waiting: list[np.ndarray] = []
        self._size = 0  # codes that wait

    def add(self, codes: np.ndarray) -> None:
        """Take more codes, uint64."""
        if not self._exact:
            codes = codes[codes < self._kept[-1]]
        self._waiting.append(codes)
        self._size += len(codes)
        if self._size >= WAITING:
            self._merge()

    def count(self) -> float:
        """The number of distinct codes, or its estimate."""
        self._merge()
        return float(len(self._kept)) if self._exact else (self.limit - 1) / (float(self._kept[-1]) / 2**64)

    def _merge(self) -> None:
        kept = _distinct(np.concatenate([self._kept, *self._waiting]))
        self._exact = self._exact and len(kept) <= self.limit
        # a copy, which frees the codes beyond the limit
        self._kept, self._waiting, self._size = kept[: self.limit].copy(), [], 0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against all other texts (Zhu et al. 2018, Texygen, arXiv 1802.01886).

    Sentence BLEU with equal weights of 1- to 4-grams of words split at white space. The brevity penalty takes the
    closest length among the others. As in Texygen, an order without a match counts a tenth of a match. A text of fewer
    than four words is measured by its shorter n-grams only; a text without words is left out.

    Returns:
        1.0 if all texts are equal; NaN for fewer than two texts.
    """
    sentences = [words for text in texts if (words := text.split())]
    if len(sentences) < 2:
        return float("nan")
    logs, orders = np.zeros(len(sentences)), np.zeros(len(sentences))
    for n in BLEU_ORDERS:
        counts = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in sentences]
        others = _second_largest(counts)
        for i, own in enumerate(counts):
            if own:
                # matches are clipped at the highest count of another text
                matches = sum(min(count, others[gram]) for gram, count in own.items())
                logs[i] += np.log((matches or 0.1) / own.total())
                orders[i] += 1
    return float(np.exp(logs / orders + _brevity([len(words) for words in sentences])).mean())


def _second_largest(counts: Sequence[Counter]) -> dict:
    """The second largest count of each key: the largest again in a tie, and 0 if only one counter has the key."""
    top: dict = {}
    for each in counts:
        for key, count in each.items():
            first, second = top.get(key, (0, 0))
            top[key] = (count, first) if count > first else (first, max(second, count))
    return {key: second for key, (_, second) in top.items()}


def _brevity(lengths: Sequence[int]) -> np.ndarray:
    """Log of each text's brevity penalty, against the closest length among the others (the shorter of two)."""
    having = Counter(lengths)
    closest = {
        own: min((abs(other - own), other) for other in having if other != own or having[own] > 1)[1] for own in having
    }
    return np.array([min(0.0, 1 - closest[own] / own) for own in lengths])
