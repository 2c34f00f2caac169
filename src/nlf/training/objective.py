"""One micro-batch through policy and reference: what the loss needs to know of each completion token.

Logits are made where completion tokens are, and nowhere else: no prompt, no padding. Where they are many they are made a
few rows at a time, over the output layer, and made again for the gradient, so that no tensor of batch × vocabulary ever
is. That needs a model whose logits are its output layer's and nothing else (`policy.bare_head`): one that scales or caps
them, or whose weights are sharded over ranks, gives its logits whole, at completion positions.

Letters in shapes: B completions, K branches (2 with contrast), T positions, N completion tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlf.method.losses import TokenStats, token_stats
from nlf.models.reading import predicting, project, unwrapped

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
    reference_device: torch.device | None = None,
    last: tuple[nn.Module | None, nn.Module | None] = (None, None),
) -> list[TokenStats]:
    """Log-probability, entropy and KL of the completion tokens of a group of `batches.collate`, for each branch.

    Args:
        bare: Both models have a `bare_head`, and whole weights on every rank.
        most_logits: Of one branch at a time; None = by the device.
        reference_device: Where the reference is, if not where the policy is.
        last: The `policy.last_feed_forward` of both, where they are bare.

    Returns:
        K statistics `(B, T)`, differentiable in the model; where there is no completion token they are 0.
    """
    labels, mask = group["labels"], group["completion_mask"]  # (B, T)
    away = reference_device or labels.device
    with torch.no_grad():
        there = {name: each.to(away) for name, each in group["reference"].items()}
        ref = predicting(reference, there, bare, last[1])  # (N, D or V)
    own = predicting(model, group["policy"], bare, last[0])  # (KN, D or V)
    branches = len(group["policy"]["input_ids"]) // len(labels)
    own = own.unflatten(0, (branches, len(ref))).transpose(0, 1)  # (N, K, .)

    def stats(own: Tensor, ref: Tensor, labels: Tensor) -> TokenStats:
        if bare:
            with torch.no_grad():
                ref = project(reference, ref)  # (n, V)
            own = project(model, own)  # (n, K, V)
        return token_stats(own, labels[:, None], ref.to(own.device)[:, None], excluded_ids, kl_direction)

    rows = rows_at_a_time(model, most_logits) if bare else None
    parts = in_chunks(stats, rows, own, ref, labels[mask])
    found = [torch.cat(each).T for each in zip(*parts, strict=True)]  # (K, N) each
    empty = found[0].new_zeros(branches, *mask.shape)  # (K, B, T)
    filled = [empty.masked_scatter(mask.expand_as(empty), values) for values in found]
    return [TokenStats(*branch) for branch in zip(*filled, strict=True)]


def loss_of_groups(
    groups: Sequence[dict], loss: Callable[[dict], Tensor], backward: Callable[[Tensor], Any]
) -> Tensor:
    """The sum of the groups' losses. Gradients of all but the last are taken at once, so that one group's activations are
    kept at a time.
    """
    *first, last = groups
    taken = 0.0
    for group in first:
        value = loss(group)
        backward(value)
        taken += value.detach()
    return loss(last) + taken


def rows_at_a_time(model: nn.Module, most_logits: int | None) -> int:
    """How many tokens' logits are made together."""
    parameter = next(model.parameters())
    most = most_logits or (CPU_LOGITS if parameter.device.type == "cpu" else DEVICE_LOGITS)
    return max(1, most // unwrapped(model).get_output_embeddings().weight.shape[0])


def in_chunks(function: Callable, rows: int | None, *tensors: Tensor) -> list:
    """What `function` makes of a few tokens after the other, the tensors' first dimension; forgotten in between and made
    again for the gradient. At once where they are few, or `rows` is None.
    """
    count = len(tensors[0])
    if rows is None or count <= rows:
        return [function(*tensors)]
    pieces = -(-count // rows)
    cut = zip(*(each.tensor_split(pieces) for each in tensors), strict=True)
    return [checkpoint(function, *each, use_reentrant=False, preserve_rng_state=False) for each in cut]
