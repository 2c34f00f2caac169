"""Word vectors from plain text as the start of a scorer's table: an SVD of positive pointwise mutual information.

Words with similar neighbours get similar vectors, so that a scorer also knows words that its labelled texts lack.
Counting takes seconds for millions of words (Levy and Goldberg 2014; context counts to the power .75).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

WINDOW = 4  # words on either side, weighted by 1 / distance


def vectors(texts: Iterable[list[str]], *, size: int, most: int, least: int = 5) -> tuple[list[str], np.ndarray]:
    """The `most` most frequent words that occur at least `least` times, and their (words, size) vectors.

    Each column has mean 0; the standard deviation of all numbers is 1.
    """
    texts = list(texts)
    counts = Counter(word for text in texts for word in text)
    names = [word for word, count in counts.most_common(most) if count >= least]
    left, values, _ = svds(information(texts, names), k=size, random_state=0)
    found = left * np.sqrt(values)
    found -= found.mean(axis=0)
    return names, found / found.std()


def information(texts: list[list[str]], names: list[str]) -> sp.csr_matrix:
    """(words, words) positive pointwise mutual information of each word and each neighbour."""
    number = {name: i for i, name in enumerate(names)}
    apart = [-1] * WINDOW  # keeps words of different texts from being neighbours
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
