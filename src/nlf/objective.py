"""One micro-batch through policy and reference: what the loss needs to know of each completion token.

Logits are made where completion tokens are, and nowhere else: no prompt, no padding. Where they are many they are made a
few rows at a time, over the output layer, and made again for the gradient, so that no tensor of batch × vocabulary ever
is. That needs a model whose logits are its output layer's and nothing else (`policy.bare_head`): one that scales or caps
them, or whose weights are sharded over ranks, gives its logits whole, at completion positions.

Letters in shapes: B completions, K branches (2 with contrast), T positions, N completion tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlf.losses import TokenStats, token_stats
from nlf.policy import predicting_hidden, predicting_logits, project, unwrapped

CPU_PASS, DEVICE_PASS = 32, 4096  # what one more pass over rows of like length costs, in tokens
CPU_LOGITS, DEVICE_LOGITS = 2**23, 2**28  # most logits of one branch at a time


def completion_stats(
    model: nn.Module,
    reference: nn.Module,
    group: dict,
    *,
    bare: bool,
    excluded_ids: Sequence[int] = (),
    kl_direction: str = "forward",
    most_logits: int | None = None,
) -> list[TokenStats]:
    """Log-probability, entropy and KL of the completion tokens of a group of `batches.collate`, for each branch.

    Args:
        bare: Both models have a `bare_head`, and whole weights on every rank.
        most_logits: Of one branch at a time; None = by the device.

    Returns:
        K statistics `(B, T)`, differentiable in the model; where there is no completion token they are 0.
    """
    labels, mask = group["labels"], group["completion_mask"]  # (B, T)
    read = predicting_hidden if bare else predicting_logits
    with torch.no_grad():
        ref = read(reference, group["reference"])  # (N, D or V)
    own = read(model, group["policy"])  # (KN, D or V)
    branches = len(group["policy"]["input_ids"]) // len(labels)
    own, labels = own.unflatten(0, (branches, len(ref))), labels[mask]  # (K, N, .), (N,)

    def stats(own: Tensor, ref: Tensor, labels: Tensor) -> TokenStats:
        if bare:
            with torch.no_grad():
                ref = project(reference, ref)  # (n, V)
            own = project(model, own)  # (K, n, V)
        return token_stats(own, labels, ref, excluded_ids, kl_direction)

    found = in_chunks(stats, rows_at_a_time(model, most_logits) if bare else None, own, ref, labels)  # (K, N) each
    empty = found.logp.new_zeros(len(own), *mask.shape)  # (K, B, T)
    filled = [empty.masked_scatter(mask.expand_as(empty), values) for values in found]
    return [TokenStats(*branch) for branch in zip(*filled, strict=True)]


def rows_at_a_time(model: nn.Module, most_logits: int | None) -> int:
    """How many tokens' logits are made together."""
    parameter = next(model.parameters())
    most = most_logits or (CPU_LOGITS if parameter.device.type == "cpu" else DEVICE_LOGITS)
    return max(1, most // unwrapped(model).get_output_embeddings().weight.shape[0])


def in_chunks(
    stats: Callable[..., TokenStats], rows: int | None, own: Tensor, ref: Tensor, labels: Tensor
) -> TokenStats:
    """`stats` of a few tokens after the other, forgotten in between and made again for the gradient; at once where they
    are few, or `rows` is None.
    """
    count = labels.shape[0]
    if rows is None or count <= rows:
        return stats(own, ref, labels)
    pieces = -(-count // rows)
    cut = zip(own.tensor_split(pieces, 1), ref.tensor_split(pieces), labels.tensor_split(pieces), strict=True)
    parts = [checkpoint(stats, *each, use_reentrant=False, preserve_rng_state=False) for each in cut]
    return TokenStats(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))
