"""Draw a token: counter-based uniforms, top-k and top-p, and the inverse of the cumulative distribution.

A draw is a pure function of the scores and of (seed, iteration, request key, index, step); no random state is read or
changed. Top-k and top-p keep the same tokens as transformers' warpers, except that all tokens tied at the edge of top-p
are kept, where transformers keeps the first ones of an arbitrary order.

Letters in shapes: R rows, V vocabulary, W candidate tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nlf.config import SamplingOptions
from nlf.errors import UserError
from nlf.method.losses import guided_log_probs

INF = float("inf")
NUCLEUS = 256  # candidates at first
WIDER = 16  # times as many, until they hold the nucleus
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step


def scores_of(logits: Tensor, guidance_scale: float, eos: Sequence[int], banned: Sequence[int]) -> Tensor:
    """Logits (B, R, V) of one branch, or of two that guidance contrasts → scores (R, V): -inf at banned ids.

    Args:
        eos: Ids whose probability guidance does not change.

    Raises:
        UserError: a row has no finite score.
    """
    first, *second = logits
    scores = guided_log_probs(first, second[0], guidance_scale, eos) if second else first
    scores[:, [i for i in banned if i < scores.shape[-1]]] = -INF
    if not scores.amax(-1).isfinite().all():
        raise UserError("the model gave scores that are not finite (or every token is banned); has training diverged?")
    return scores


def drawn(scores: Tensor, u: Tensor, options: SamplingOptions) -> Tensor:
    """Draw from scores (R, V) with uniforms (R,), by temperature, top-k and top-p → ids (R,)."""
    if options.temperature == 0:
        return scores.argmax(-1)
    scores = scores if options.temperature == 1 else scores / options.temperature
    return pick(scores, u, top_k=options.top_k, top_p=options.top_p)


def pick(scores: Tensor, u: Tensor, *, top_k: int = 0, top_p: float = 1.0, width: int = NUCLEUS) -> Tensor:
    """Draw from scores (R, V) with uniforms (R,), after top-k and top-p → ids (R,).

    Without top-k only the best `width` tokens are sorted; a row whose nucleus is larger is drawn again from more of them.
    """
    if not 0 < top_k < scores.shape[-1]:
        top_k = 0
        if top_p >= 1:
            return inverse_cdf(scores, u)
    values, ids, cut = kept(scores, width, top_k, top_p)
    token = ids.gather(1, inverse_cdf(values, u)[:, None])[:, 0]  # (R,)
    if cut.any():
        token[cut] = pick(scores[cut], u[cut], top_p=top_p, width=WIDER * width)
    return token


def kept(scores: Tensor, width: int, top_k: int, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best tokens of each row of (R, V), and whether they hold the nucleus.

    Args:
        width: Number of candidates without top-k.

    Returns:
        Scores (R, W) in vocabulary order, -inf where filtered; ids (R, W); whether the nucleus is larger (R,), always
        False after top-k.
    """
    values, ids = best(scores, top_k or width)
    ranked = values.sort(-1, descending=True).values
    least = ranked[:, top_k - 1 : top_k] if top_k else ranked[:, -1:]  # (R, 1)
    partial = not top_k and values.shape[-1] < scores.shape[-1]
    cut = torch.full((len(scores),), partial, device=scores.device)
    if top_p < 1:
        ranked = ranked.masked_fill(ranked < least, -INF)
        mass = (ranked.double() - (ranked if top_k else scores).logsumexp(-1, keepdim=True)).exp()
        total = mass.cumsum(-1)
        needed = total - mass < top_p  # the mass above a token does not yet reach top_p
        needed[:, 0] = True
        least = ranked.masked_fill(~needed, INF).amin(-1, keepdim=True)
        cut &= total[:, -1] < top_p
    return values.masked_fill(values < least, -INF), ids, cut


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores of each row of (R, V), their ties, and perhaps a few more: (R, W) in vocabulary order, -inf after
    a row's last score; and their ids (R, W).

    This is faster than `topk`, which sorts: a lower bound of the k-th score removes most tokens first.
    """
    rows, vocabulary = scores.shape
    if k >= vocabulary:
        return scores, torch.arange(vocabulary, device=scores.device).expand_as(scores)
    floor = _floor(scores, k).clamp(min=torch.finfo(scores.dtype).min)  # so that -inf is never among the best
    flat = _nonzero(scores >= floor)  # (N,)
    row, token = flat // vocabulary, flat % vocabulary
    count = row.bincount(minlength=rows)  # (R,)
    place = torch.arange(len(flat), device=flat.device) - (count.cumsum(0) - count)[row]
    width = int(count.max())
    values, ids = scores.new_full((rows, width), -INF), token.new_zeros(rows, width)
    values[row, place], ids[row, place] = scores.flatten()[flat], token
    return values, ids


def _floor(scores: Tensor, k: int) -> Tensor:
    """A close lower bound of each row's k-th largest score: (R, V) → (R, 1)."""
    if scores.device.type != "cpu":
        return scores.topk(k).values[:, -1:]
    share = max(1, min(16, scores.shape[-1] // (2 * k)))
    width = scores.shape[-1] // share
    maxima = scores[:, : share * width].unflatten(1, (share, width)).amax(1)  # whose k-th largest is a lower bound
    return torch.from_numpy(np.partition(maxima.numpy(), width - k, axis=-1)[:, width - k, None])


def _nonzero(mask: Tensor) -> Tensor:
    """Positions of True in the flattened mask; on a CPU, NumPy's search is eight times as fast as torch's."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def inverse_cdf(scores: Tensor, u: Tensor) -> Tensor:
    """The first token whose cumulative probability, in vocabulary order, exceeds u: (R, V), (R,) → (R,).

    Tokens of probability 0 are never drawn, since the comparison is strict and u < 1.
    """
    cdf = (scores - scores.amax(-1, keepdim=True)).double().exp().cumsum(-1)  # (R, V), not normalised
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]


def uniforms(seed: int, iteration: int, keys: Sequence[int], indices: Sequence[int], steps: int) -> np.ndarray:
    """float64 (R, steps) in [0, 1): row r is the splitmix64 stream from a hash of (seed, iteration, key, index).

    Args:
        keys, indices: R of each.
    """
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
