"""Word vectors from plain text, to start a scorer's table with: positive pointwise mutual information, cut down by an SVD.

Words that stand in the same company get similar vectors, so that a scorer knows something of words its labels never
show. Counting and numpy alone, seconds for millions of words (Levy and Goldberg 2014; contexts smoothed to the power .75).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

WINDOW = 4  # words on either side, weighed by 1 / distance


def vectors(texts: Iterable[list[str]], *, size: int, most: int, least: int = 5) -> tuple[list[str], np.ndarray]:
    """The `most` commonest words that occur `least` times, and their vectors (words, size) of mean 0 and deviation 1."""
    texts = list(texts)
    counts = Counter(word for text in texts for word in text)
    names = [word for word, count in counts.most_common(most) if count >= least]
    left, values, _ = svds(information(texts, names), k=size, random_state=0)
    found = left * np.sqrt(values)
    found -= found.mean(axis=0)
    return names, found / found.std()


def information(texts: list[list[str]], names: list[str]) -> sp.csr_matrix:
    """(words, words) positive pointwise mutual information of words and their neighbours."""
    number = {name: i for i, name in enumerate(names)}
    apart = [-1] * WINDOW  # texts do not see each other
    flat = np.fromiter((i for text in texts for i in [*(number.get(w, -1) for w in text), *apart]), dtype=np.int64)
    together = sp.csr_matrix((len(names), len(names)))
    for distance in range(1, WINDOW + 1):
        pairs = np.stack([flat[:-distance], flat[distance:]])
        pairs = pairs[:, (pairs >= 0).all(axis=0)]
        weight = np.full(pairs.shape[1], 1 / distance)
        together += sp.coo_matrix((weight, tuple(pairs)), shape=together.shape).tocsr()
    cells = (together + together.T).tocoo()
    of_word = np.asarray(cells.sum(axis=1)).ravel()
    of_context = of_word**0.75 / (of_word**0.75).sum()
    gain = np.log(cells.data / of_word[cells.row] / of_context[cells.col])
    kept = gain > 0
    return sp.csr_matrix((gain[kept], (cells.row[kept], cells.col[kept])), shape=cells.shape)
