"""One micro-batch through policy and reference: statistics of each completion token, for the loss.

Logits are computed only at positions that predict completion tokens. With many positions, the output layers compute
the logits of a few tokens at a time, and again in the backward pass, so that no tensor of batch × vocabulary is kept.
This needs models that return the output layer's values unchanged (`reading.bare_head`). A model that scales or caps
its logits, or whose weights are sharded over ranks, returns all logits at completion positions.

Letters in shapes: B completions, K branches (2 with contrast), T positions, N completion tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlf.method.losses import KLDirection, TokenStats, token_stats
from nlf.models.encoder import inputs_on
from nlf.models.memory import Limit, chunks
from nlf.models.reading import LogitsPlan, completion_outputs, output_layer, project
from nlf.training.batches import Group

TRAINING_LOGITS = Limit(2**23, 2**28)  # most logits of one branch computed at a time

AnyGroup = TypeVar("AnyGroup")
Found = TypeVar("Found")


def completion_stats(
    model: nn.Module,
    reference: nn.Module,
    group: Group,
    plan: LogitsPlan,
    *,
    excluded_ids: Sequence[int] = (),
    kl_direction: KLDirection = "forward",
    stop_ids: Sequence[int] = (),
    reference_device: torch.device | None = None,
) -> list[TokenStats]:
    """Log-probability, entropy and KL of the completion tokens of a group, for each branch.

    Args:
        plan: How both models compute logits.
        excluded_ids, kl_direction, stop_ids: See `losses.token_stats`.
        reference_device: The device of the reference; None = the policy's device.

    Returns:
        K statistics `(B, T)`, differentiable in the model's weights; 0 at padded positions.
    """
    labels, mask = group["labels"], group["completion_mask"]  # (B, T)
    with torch.no_grad():
        inputs = inputs_on(group["reference"], reference_device or labels.device)
        ref = completion_outputs(reference, inputs, plan.bare, plan.reference_mlp)  # (N, D or V)
    own = completion_outputs(model, group["policy"], plan.bare, plan.model_mlp)  # (KN, D or V)
    branches = len(group["policy"]["input_ids"]) // len(labels)
    own = own.unflatten(0, (branches, len(ref))).transpose(0, 1)  # (N, K, D or V)

    def stats(own: Tensor, ref: Tensor, labels: Tensor) -> TokenStats:
        if plan.bare:
            with torch.no_grad():
                ref = project(reference, ref)  # (n, V)
            own = project(model, own)  # (n, K, V)
        return token_stats(own, labels[:, None], ref.to(own.device)[:, None], excluded_ids, kl_direction, stop_ids)

    parts = in_chunks(stats, rows_at_a_time(model, plan), own, ref, labels[mask])
    found = [at_positions(torch.cat(each).T, mask) for each in zip(*parts, strict=True)]  # (K, B, T) each
    return [TokenStats(*branch) for branch in zip(*found, strict=True)]


def at_positions(values: Tensor, mask: Tensor) -> Tensor:
    """Put values of N completion tokens (K, N) at the N positions marked by `mask` (B, T): (K, B, T), 0 elsewhere."""
    empty = values.new_zeros(len(values), *mask.shape)
    return empty.masked_scatter(mask.expand_as(empty), values)


def loss_of_groups(
    groups: Sequence[AnyGroup], loss: Callable[[AnyGroup], Tensor], backward: Callable[[Tensor], Any]
) -> Tensor:
    """The sum of the groups' losses.

    Gradients of all groups except the last are taken immediately, so that only one group's activations are kept at a
    time.
    """
    *first, last = groups
    sum_of_first: Tensor | float = 0.0
    for group in first:
        value = loss(group)
        backward(value)
        sum_of_first = sum_of_first + value.detach()
    return loss(last) + sum_of_first


def rows_at_a_time(model: nn.Module, plan: LogitsPlan) -> int | None:
    """Number of tokens whose logits are computed together; None = all, if the models return all logits."""
    head = output_layer(model) if plan.bare else None
    if head is None:
        return None
    most = plan.most_logits or TRAINING_LOGITS.on(next(model.parameters()).device)
    return max(1, most // head.weight.shape[0])


def in_chunks(function: Callable[..., Found], rows: int | None, *tensors: Tensor) -> list[Found]:
    """Results of `function` on chunks of tensors, cut along their first dimension.

    With more than one chunk, activations are recomputed in the backward pass (activation checkpointing).

    Args:
        rows: Most rows in a chunk; None = one chunk.
    """
    if rows is None or len(tensors[0]) <= rows:
        return [function(*tensors)]
    return [  # torch does not type the result of `checkpoint`
        cast(Found, checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False))
        for chunk in chunks(rows, *tensors)
    ]
