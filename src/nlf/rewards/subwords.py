"""Words as sums of hashed sub-word vectors, which the embedded nets read.

The vector of a word depends on the word alone; it is computed once and kept.
"""

import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

CACHED_WORDS = 50_000
STRETCH = re.compile(r"(.)\1{2,}")


def buckets(word: str, size: int) -> tuple[list[int], list[float]]:
    """Rows of a table with `size` rows whose weighted sum is a word's vector, and the weights.

    The rows stand for the word, for its shape (upper or title case) and for its 3- to 5-grams.
    """
    lower = STRETCH.sub(r"\1\1", word[:40].lower())
    lower = "0" if lower.isdigit() else lower
    framed = f"<{lower}>"
    grams = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
    shape = "upper" if len(word) > 1 and word.isupper() else "title" if word[:1].isupper() else ""
    names = [f"={lower}", *([f"^{shape}"] if shape else []), *grams]
    heads = len(names) - len(grams)
    weights = [1.0] * heads + [max(len(grams), 1) ** -0.5] * len(grams)
    return [zlib.crc32(name.encode("utf-8", "replace")) % size for name in names], weights


class WordVectors:
    """The vectors of the words seen so far.

    Args:
        table: `(rows, d)` sub-word vectors.
        after: Changes the sums `(N, d)` of N new words to what is kept, `(N, e)`.

    Attributes:
        vectors: `(at least W, e)`, in which `lookup` names rows.
    """

    def __init__(self, table: np.ndarray, after: Callable[[np.ndarray], np.ndarray] = lambda sums: sums):
        self.table, self.after = table, after
        self._forget()

    def _forget(self) -> None:
        self.rows: dict[str, int] = {}
        self.vectors = self.after(np.zeros((0, self.table.shape[1])))

    def lookup(self, words: Sequence[str]) -> np.ndarray:
        """Rows `(W,)` of `vectors` for W words; rows of an earlier call may no longer be right."""
        if len(self.rows) > CACHED_WORDS:
            self._forget()
        new = sorted(set(words).difference(self.rows))
        if new:
            bags = [buckets(word, len(self.table)) for word in new]
            starts = np.cumsum([0] + [len(ids) for ids, _ in bags[:-1]])
            ids = np.concatenate([ids for ids, _ in bags])
            weights = np.concatenate([weights for _, weights in bags])
            found = self.after(np.add.reduceat(self.table[ids] * weights[:, None], starts))
            self._keep(new, found)
        return np.fromiter((self.rows[word] for word in words), dtype=np.int64, count=len(words))

    def _keep(self, new: Sequence[str], found: np.ndarray) -> None:
        """Add the vectors of new words; the array doubles, so that adding costs little."""
        begin = len(self.rows)
        end = begin + len(new)
        if end > len(self.vectors):
            grown = np.zeros((max(end, 2 * len(self.vectors)), found.shape[1]))
            grown[:begin] = self.vectors[:begin]
            self.vectors = grown
        self.vectors[begin:end] = found
        self.rows.update(zip(new, range(begin, end), strict=True))
