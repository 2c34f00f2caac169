"""Drawing a token: counter-based uniforms, top-k and top-p, and the inverse of the cumulative distribution.

A draw is a pure function of the scores and of (seed, iteration, request key, index, step): no random state is read or
moved. The kept sets are those of transformers' warpers, save that tokens tied at the edge of top-p are all kept (there,
those that the sort happened to put first).

Letters in shapes: R rows, V vocabulary, W the tokens looked at.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INF = float("inf")
NUCLEUS = 256  # tokens looked at before the whole vocabulary is sorted
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step


def pick(scores: Tensor, u: Tensor, *, top_k: int = 0, top_p: float = 1.0, width: int | None = None) -> Tensor:
    """Draw from scores (R, V) with uniforms (R,), after top-k and top-p → ids (R,).

    Only the best `width` tokens are sorted; rows whose kept tokens go beyond them are drawn again from all.
    """
    vocabulary = scores.shape[-1]
    top_k = top_k if top_k < vocabulary else 0
    if not top_k and top_p >= 1:
        return inverse_cdf(scores, u)
    width = min(width or (top_k + 8 if top_k else NUCLEUS), vocabulary)
    values, ids, cut = kept(scores, width, top_k, top_p)
    ids, order = ids.sort()  # draws are in vocabulary order, however many tokens were looked at
    token = ids.gather(1, inverse_cdf(values.gather(1, order), u)[:, None])[:, 0]  # (R,)
    if width < vocabulary and cut.any():
        token[cut] = pick(scores[cut], u[cut], top_k=top_k, top_p=top_p, width=vocabulary)
    return token


def kept(scores: Tensor, width: int, top_k: int, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width` scores (R, W), -inf where filtered; their ids (R, W); whether `width` cut kept ones off (R,)."""
    values, ids = scores.topk(width)
    if top_k:
        values = values.masked_fill(values < values[:, top_k - 1 : top_k], -INF)
        cut = values[:, -1] > -INF  # more tokens may be tied with the k-th
    if top_p < 1:
        mass = (values.double() - (values if top_k else scores).logsumexp(-1, keepdim=True)).exp()
        needed = mass.cumsum(-1) - mass < top_p  # the mass above a token does not yet reach top_p
        needed[:, 0] = True
        edge = values.masked_fill(~needed, INF).amin(-1, keepdim=True)  # (R, 1)
        values = values.masked_fill(values < edge, -INF)
    return values, ids, cut if top_k else values[:, -1] > -INF


def inverse_cdf(scores: Tensor, u: Tensor) -> Tensor:
    """The first token whose cumulative probability, in vocabulary order, exceeds u: (R, V), (R,) → (R,).

    Tokens of probability 0 are never drawn, since the comparison is strict and u < 1.
    """
    cdf = (scores - scores.amax(-1, keepdim=True)).double().exp().cumsum(-1)  # (R, V), not normalised
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]


def uniforms(seed: int, iteration: int, keys: Sequence[int], indices: Sequence[int], steps: int) -> np.ndarray:
    """float64 (R, steps) in [0, 1): row r is the splitmix64 stream that starts at a hash of its words."""
    state = np.zeros(len(keys), np.uint64)
    for word in ([seed], [iteration], keys, indices):
        state = _mix(state + GOLDEN ^ np.array([int(w) % 2**64 for w in word], np.uint64))
    counter = np.arange(1, steps + 1, dtype=np.uint64) * GOLDEN
    return (_mix(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea, Flood 2014), on uint64."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)
