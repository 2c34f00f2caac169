"""NLL, tag contrast, credit, KL and entropy on completion tokens, as pure functions of logits.

Notation: B completions, T positions, V vocabulary ids; x a completion, y+ its own tag, y- the mirror tag, p the
policy, q the reference, which never sees a tag.

    loss = nll_coef · Σ -log p(x|y+) / tokens  +  contrast_coef · Σ -log σ(log p(x|y+) - log p(x|y-)) / completions
         + beta · Σ (KL+ + KL-) / tokens       -  entropy_coef · Σ H+ / tokens
         + credit_coef · Σ C / tokens          C of each token: `credit_loss`

The published objective has the coefficients (1, 0, .05, .06, 0) and one branch. Ours adds the second branch and credit
(docs/method.md); the log p of the contrast leaves EOS out, and EOS gets no credit. Both denominators count the whole optimizer step, so the losses of micro-batches
and ranks add up to the loss of the step. Departure from the published code: added tokens are excluded from the KL by id.
The published code cuts the vocabulary at the reference's size, which fails where a vocabulary is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

KLDirection = Literal["forward", "reverse"]
Ids = slice | torch.Tensor  # vocabulary ids: a slice where they are consecutive, so that indexing gives a view


class TokenStats(NamedTuple):
    """Statistics of each completion token, `(B, T)` each, in nats. Values at padded positions are arbitrary."""

    logp: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor
    stop: torch.Tensor  # log-probability of ending here


@dataclass(frozen=True)
class Coefficients:
    """Weights of the terms of the loss, named as in the configuration."""

    nll_coef: float
    contrast_coef: float
    beta: float
    entropy_coef: float
    credit_coef: float = 0.0


class StepTotals(NamedTuple):
    """Denominators of the loss: counts of a whole optimizer step, over all ranks and micro-batches."""

    tokens: int | torch.Tensor
    completions: int | torch.Tensor


def token_stats(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ref_logits: torch.Tensor | None,
    excluded_ids: Sequence[int] = (),
    kl_direction: KLDirection = "forward",
    stop_ids: Sequence[int] = (),
) -> TokenStats:
    """Log-probability of each label and of ending, entropy, and KL to the reference; differentiable in `logits`.

    Args:
        excluded_ids: Ids that the KL leaves out on both sides, which are renormalised: tokens the reference does not
            know. Log-probability and entropy keep every id. The KL also leaves out ids beyond the narrower vocabulary.
        kl_direction: "forward" = KL(ref‖policy), "reverse" = KL(policy‖ref).
        stop_ids: Ids that end a completion; without any, `stop` is -inf.

    Shape:
        - logits: `(..., T, V)`; labels: `(..., T)`, any valid id at padded positions
        - ref_logits: `(..., T, V')`, broadcast over leading dimensions; None gives a KL of 0
        - returns: `(..., T)` each, float32 (float64 for float64 logits)
    """
    if kl_direction not in ("forward", "reverse"):
        raise ValueError(f"kl_direction {kl_direction!r}: expected 'forward' or 'reverse'")
    labels = labels.expand(logits.shape[:-1])
    with torch.autocast(logits.device.type, enabled=False):  # sums over a vocabulary need the 24 bits of float32
        if ref_logits is None:
            logp, entropy, _, stop = _Stats.apply(logits, labels, None, slice(None), slice(0), kl_direction, stop_ids)
            return TokenStats(logp, entropy, torch.zeros_like(logp), stop)
        kept, others = _compared_ids(logits.shape[-1], ref_logits.shape[-1], excluded_ids, logits.device)
        log_q = _log_softmax(ref_logits.detach()[..., kept])  # (..., T, V'')
        return TokenStats(*_Stats.apply(logits, labels, log_q, kept, others, kl_direction, stop_ids))


class _Stats(torch.autograd.Function):
    """`token_stats` with a hand-written gradient, in few passes over the vocabulary. Autograd would keep and traverse a
    tensor of vocabulary size for every term of every sum. A statistic that no loss uses costs nothing.

    p and q are distributions over the compared ids. `mass` is the policy's probability of all compared ids together,
    and `rest` is the policy's log-probabilities of the other ids.
    """

    @staticmethod
    def forward(ctx, logits, labels, log_q, kept, others, kl_direction, stop_ids):
        top = logits[..., kept].amax(-1, keepdim=True).to(torch.promote_types(logits.dtype, torch.float32))
        own = logits[..., kept] - top  # (..., T, V''), in float32 at least
        p = own.exp()
        unit = p.sum(-1)
        p /= unit.unsqueeze(-1)
        rest = logits[..., others] - top
        total = torch.logaddexp(unit.log(), rest.logsumexp(-1))
        rest -= total.unsqueeze(-1)
        logp = logits.gather(-1, labels.unsqueeze(-1)).sub(top).squeeze(-1) - total
        log_mass = unit.log() - total
        mass = log_mass.exp()
        ends = logits[..., list(stop_ids)] - top  # (..., T, number of stop_ids)
        stop = ends.logsumexp(-1) - total
        p_log_p = _dot(p, own) - unit.log()
        entropy = -mass * (p_log_p + log_mass) - _dot(rest.exp(), rest)
        kl = against = None
        if log_q is not None and kl_direction == "forward":
            against = log_q.exp()
            kl = _dot(against, log_q) - _dot(against, own) + unit.log()
        elif log_q is not None:
            against = log_q
            kl = p_log_p - _dot(p, log_q)
        ctx.save_for_backward(p, labels, against, rest, log_mass, entropy, kl, ends)
        ctx.ids, ctx.forward_kl, ctx.stop_ids = (kept, others), kl_direction == "forward", [*stop_ids]
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        ctx.set_materialize_grads(False)
        return logp, entropy, kl, stop

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_logp, of_entropy, of_kl, of_stop):
        p, labels, against, rest, log_mass, entropy, kl, ends = ctx.saved_tensors
        kept, others = ctx.ids
        mass, rest_p = log_mass.exp(), rest.exp()
        by_p, by_p_log_p = torch.zeros_like(mass), None  # the gradient: by_p · p + by_p_log_p · p log p - of_kl · q
        of_rest = torch.zeros_like(rest)
        if of_logp is not None:  # d log p_y = 1[y] - p
            by_p -= of_logp * mass
            of_rest -= of_logp.unsqueeze(-1) * rest_p
        if of_stop is not None:  # d log p_stop = p / p_stop at the ids that end - p
            by_p -= of_stop * mass
            of_rest -= of_stop.unsqueeze(-1) * rest_p
        if of_entropy is not None:  # dH = -p (log p + H)
            by_p -= of_entropy * mass * (log_mass + entropy)
            by_p_log_p = -of_entropy * mass
            of_rest -= of_entropy.unsqueeze(-1) * rest_p * (rest + entropy.unsqueeze(-1))
        if of_kl is not None and ctx.forward_kl:  # d KL(q‖p) = p - q
            by_p += of_kl
        elif of_kl is not None:  # d KL(p‖q) = p (log p/q - KL)
            by_p -= of_kl * kl
            by_p_log_p = of_kl if by_p_log_p is None else by_p_log_p + of_kl
            against = p * against
        part = p * by_p.unsqueeze(-1)  # (..., T, V'')
        if by_p_log_p is not None:
            part += torch.xlogy(p, p).mul_(by_p_log_p.unsqueeze(-1))
        if of_kl is not None:
            part.addcmul_(against, of_kl.unsqueeze(-1), value=-1)
        grad = part.new_empty(ctx.shape)
        grad[..., kept], grad[..., others] = part, of_rest
        if of_logp is not None:
            grad.scatter_add_(-1, labels.unsqueeze(-1), of_logp.unsqueeze(-1))
        if of_stop is not None:
            grad[..., ctx.stop_ids] += (of_stop.unsqueeze(-1) * ends.softmax(-1)).to(grad.dtype)
        return grad.to(ctx.dtype), None, None, None, None, None, None


def alt_loss(
    right: TokenStats,
    mask: torch.Tensor,
    wrong: TokenStats | None,
    *,
    totals: StepTotals,
    coefficients: Coefficients,
    contrast_mask: torch.Tensor | None = None,
    credit: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The share of one micro-batch in the loss of its optimizer step.

    Args:
        right, wrong: Statistics of the completions under their own tag and the mirror tag; None = no contrast.
        mask: `(B, T)` bool, True at completion tokens, EOS included.
        contrast_mask: `(B, T)` bool, False at tokens that contrast and credit leave out (EOS); None = all count.
        credit: `(B, T)` the credit of each token, for `credit_coef`.

    Returns:
        The loss, and detached sums: `nll`, `kl` (of both branches), `entropy` and, with `credit`, `credit` over tokens;
        `contrast`, `margin` and `accuracy` (margin above 0) over completions, 0 without `wrong`.
    """
    nll, entropy, kl = -_sum(right.logp, mask), _sum(right.entropy, mask), _sum(right.kl, mask)
    compared = mask if contrast_mask is None else mask & contrast_mask
    margin = nll.new_zeros(0)
    if wrong is not None:
        kl = kl + _sum(wrong.kl, mask)
        margin = (_masked(right.logp, compared) - _masked(wrong.logp, compared)).sum(-1)  # (B,)
    sums = {
        "nll": nll,
        "kl": kl,
        "entropy": entropy,
        "contrast": -F.logsigmoid(margin).sum(),
        "margin": margin.sum(),
        "accuracy": (margin > 0).sum(),
    }
    if credit is not None:
        first, second = _only(right, compared), wrong and _only(wrong, compared)
        sums["credit"] = credit_loss(first, second, _masked(credit, compared)).sum()
    return _weighted(sums, totals, coefficients), {name: value.detach() for name, value in sums.items()}


def credit_loss(right: TokenStats, wrong: TokenStats | None, credit: torch.Tensor) -> torch.Tensor:
    """The loss of each token whose credit is A `(B, T)`.

    With one branch it is -A log p(x), the policy gradient. With two it is 2 |A| softplus(-sign(A) m), where m is the token's
    log-probability under the first feedback less that under the second: the odds of the feedback follow the sign of the
    credit. A token's probability is taken among the tokens that do not end the completion, so that stopping is neither
    learned nor unlearned.
    """
    own = going_on(right)
    if wrong is None:
        return -credit * own
    return 2 * credit.abs() * F.softplus(-credit.sign() * (own - going_on(wrong)))


def going_on(stats: TokenStats) -> torch.Tensor:
    """`(B, T)` log-probability of each token, given that the completion does not end here; padded or ending: arbitrary."""
    return stats.logp - torch.log1p(-stats.stop.exp().clamp(max=1 - 1e-6))


def _weighted(sums: dict[str, torch.Tensor], totals: StepTotals, coefficients: Coefficients) -> torch.Tensor:
    """The loss: the sums of its terms, divided by their denominators and weighted."""
    nll = sums["nll"]
    terms = [
        (coefficients.nll_coef, nll, totals.tokens),
        (coefficients.beta, sums["kl"], totals.tokens),
        (-coefficients.entropy_coef, sums["entropy"], totals.tokens),
        (coefficients.contrast_coef, sums["contrast"], totals.completions),
        (coefficients.credit_coef, sums.get("credit", nll), totals.tokens),
    ]
    start = nll.new_zeros(())
    return sum((c * value / count for c, value, count in terms if c), start=start)  # no gradient of 0 × term


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax in float32 at least. The kernel widens half-precision logits itself, without a copy."""
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a, b)  # allocates no (..., T, V) product


def _compared_ids(width: int, other: int, excluded: Sequence[int], device: torch.device) -> tuple[Ids, Ids]:
    """The ids that both models know, and the policy's other ids; as slices if the other ids come last (added tokens)."""
    end = min(width, other)
    dropped = {i for i in excluded if 0 <= i < end}
    while end - 1 in dropped:
        end -= 1
        dropped.remove(end)
    if not dropped:
        return slice(end), slice(end, width)
    keep = torch.zeros(width, dtype=torch.bool)
    keep[:end] = True
    keep[sorted(dropped)] = False
    return keep.nonzero().squeeze(-1).to(device), (~keep).nonzero().squeeze(-1).to(device)


def _masked(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~mask, 0.0)  # not a product: 0 · inf at a padded position would be NaN


def _only(stats: TokenStats, mask: torch.Tensor) -> TokenStats:
    """The statistics with harmless log-probabilities where the mask is False, so that no gradient there is NaN."""
    return stats._replace(logp=_masked(stats.logp, mask), stop=stats.stop.masked_fill(~mask, -1.0))


def _sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _masked(values, mask).sum()


# ---- guidance and distillation ------------------------------------------------------------------------------------


def guided_log_probs(
    best: torch.Tensor,
    worst: torch.Tensor,
    guidance_scale: float | torch.Tensor,
    kept_ids: Sequence[int] = (),
) -> torch.Tensor:
    """Tag-contrast guidance: `(1+g) log p(.|best) - g log p(.|worst)`, renormalised.

    Args:
        guidance_scale: g, a number or a tensor that broadcasts over the logits.
        kept_ids: Ids that keep their probability under `best` (EOS), so that guidance does not change completion length.
            An early end is one way to be harmless, and strong guidance would find it.

    Shape:
        - best, worst: logits `(..., V)`; returns `(..., V)` log-probabilities
    """
    log_p = _log_softmax(best)
    scores = (1 + guidance_scale) * log_p - guidance_scale * _log_softmax(worst)
    kept = [i for i in kept_ids if i < scores.shape[-1]]
    if not kept:
        return scores.log_softmax(-1)
    scores[..., kept] = -torch.inf
    others = -torch.expm1(log_p[..., kept].logsumexp(-1, keepdim=True))  # (..., 1), probability of the other ids
    scores = scores.log_softmax(-1) + others.clamp(min=torch.finfo(others.dtype).tiny).log()
    scores[..., kept] = log_p[..., kept]
    return scores


def teacher_log_probs(
    best: torch.Tensor,
    worst: torch.Tensor,
    guidance_scale: float | torch.Tensor,
    *,
    kept_ids: Sequence[int] = (),
    excluded_ids: Sequence[int] = (),
    top_k: int = 0,
) -> torch.Tensor:
    """The distribution that a guided policy samples from at temperature 1.

    Args:
        kept_ids: See `guided_log_probs`.
        excluded_ids: Ids that are never sampled (the separator).
        top_k: Number of likeliest ids to keep, for big vocabularies; 0 keeps all.

    Shape:
        - best, worst: logits `(B, T, V)`; returns `(B, T, V)` log-probabilities, -inf at excluded ids
    """
    scores = guided_log_probs(best, worst, guidance_scale, kept_ids)
    scores[..., [i for i in excluded_ids if i < scores.shape[-1]]] = -torch.inf
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
    return scores.log_softmax(-1)


def distillation_kl(teacher: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher‖student) of each token, over the whole vocabulary; differentiable in `logits`.

    One vocabulary may have more ids at its end than the other. The teacher must give probability 0 to ids that the
    student lacks.

    Shape:
        - teacher: `(B, T, V)` log-probabilities; logits: `(B, T, V')`; returns `(B, T)`, nats
    """
    width = min(teacher.shape[-1], logits.shape[-1])
    log_q, log_p = _log_softmax(logits)[..., :width], teacher[..., :width]  # (B, T, V'')
    p = log_p.exp()
    return _dot(p, log_p.masked_fill(p == 0, 0.0)) - _dot(p, log_q)
