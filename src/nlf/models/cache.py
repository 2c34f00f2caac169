"""Rows of completions that continue prompts, and a key-value cache with room for future tokens.

transformers' dynamic cache copies all keys and values at every step; with a small model the copy takes longer than the
forward pass. Here a step writes one token in place, and keys and values are copied only when rows leave the batch.

Letters in shapes: N rows, P prompts, H heads, L prompt tokens (left padded), S tokens so far, T to come, D width of a head,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import LongTensor, Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from nlf.models.encoder import pad
from nlf.models.reading import forward_parameters

COMPACT_AT = 7 / 8  # drop finished rows once at most this share is unfinished; dropping copies the cache


def cached_forward(model: nn.Module) -> Callable:
    """The model's pass as `Rows` wants it: (ids, mask, position, cache or None) → logits (N, V) of the last position, cache."""
    accepted = forward_parameters(model)

    def forward(ids: Tensor, mask: Tensor, position: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        optional = {"position_ids": position, "logits_to_keep": 1}
        extra = {name: value for name, value in optional.items() if name in accepted}
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1], out.past_key_values

    return forward


def read_prompts(
    forward: Callable, prompts: Sequence[Sequence[int]], device: torch.device, cache: Cache | None = None
) -> tuple[Tensor, Cache]:
    """Read P prompts, left padded to L → logits of the last position (P, V), and the cache.

    Args:
        forward: From `cached_forward`.
        cache: An empty cache to fill; None = the model's own kind.
    """
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    ids = pad(prompts, 0, "left").to(device)  # (P, L)
    width = ids.shape[1]
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return forward(ids, mask, mask.cumsum(-1).sub(1).clamp(min=0), cache)


class Rows:
    """Rows that grow by one token per step. This class suits every model; `shared.SharedRows` and `static.StaticRows` are
    faster.

    Args:
        forward: (ids (N, 1), mask (N, S + 1), position (N, 1), cache) → logits (N, V) at the last position, and the cache. In
            a compiled pass the mask covers the whole cache, (N, 1, 1, S).
        caches: Caches that hold the prompts; this class takes one cache (the subclasses take several).
        order: (P,), prompt numbers in the order of `caches`.
        lengths: (P,), tokens of each prompt.
        take: (N,), the number of each row's prompt.
        room: T, the most new tokens.
    """

    def __init__(
        self, forward: Callable, caches: Sequence[Cache], order: Tensor, lengths: Tensor, take: Tensor, room: int
    ):
        self.forward, self.seen = forward, int(lengths.max())  # tokens in the cache
        reach = torch.arange(self.seen + room, device=lengths.device)
        self.mask = (reach >= self.seen - lengths[take, None]).long()  # (N, L + T), 1 where new tokens will come
        self.position = lengths[take] - 1  # (N,)
        self.cache = self._hold(caches, order, lengths, take, room)

    def step(self, tokens: Tensor) -> Tensor:
        """The next token of each row (N,) → logits (N, V) of the token after it."""
        self.seen, self.position = self.seen + 1, self.position + 1
        logits, self.cache = self.forward(*self._inputs(tokens), self.cache)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.mask, self.position = self.mask[rows], self.position[rows]
        self._keep(rows)

    def shrinks(self, left: int) -> bool:
        """Whether dropping finished rows pays when `left` rows are unfinished."""
        return left <= COMPACT_AT * len(self.position)

    def _hold(self, caches: Sequence[Cache], order: Tensor, lengths: Tensor, take: Tensor, room: int) -> Cache:
        (cache,) = caches
        select_with_room(cache, take, room)
        return cache

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and position of the next forward pass."""
        return tokens[:, None], self.mask[:, : self.seen], self.position[:, None]

    def _keep(self, rows: Tensor) -> None:
        self.cache.reorder_cache(cast(LongTensor, rows))  # transformers asks for this type


class WholeRows(Rows):
    """Rows of a model whose cache cannot be continued: each step reads the whole text again. Slow, but right for any model.

    Args:
        forward: (ids (N, S), right padded, tokens of each row (N,)) → logits (N, V) at the rows' last tokens.
        caches: One "cache": the prompts' ids (P, L), right padded.
        order, lengths, take, room: See `Rows`.
    """

    def __init__(
        self, forward: Callable, caches: Sequence[Tensor], order: Tensor, lengths: Tensor, take: Tensor, room: int
    ):
        (prompts,) = caches
        self.forward, self.position = forward, lengths[take]  # (N,), where the next token goes
        self.ids = torch.cat([prompts[take], prompts.new_zeros(len(take), room)], dim=1)  # (N, L + T)

    def step(self, tokens: Tensor) -> Tensor:
        self.ids.scatter_(1, self.position[:, None], tokens[:, None])
        self.position = self.position + 1
        return self.forward(self.ids[:, : int(self.position.max())], self.position)

    def keep(self, rows: Tensor) -> None:
        self.ids, self.position = self.ids[rows], self.position[rows]


def select_with_room(cache: Cache, rows: Tensor, extra: int) -> None:
    """Select `rows` of a prefilled cache, repeats included, and make room for `extra` tokens.

    Layers other than attention over all tokens (sliding windows, linear attention) only select rows: they manage their own
    room.
    """
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(_given(layer.keys), _given(layer.values), rows, extra)
        else:
            layer.reorder_cache(cast(LongTensor, rows))  # transformers asks for this type


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose `keys` and `values` (N, H, S, D) are views of the front of larger tensors."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, extra: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.room = []
        for old in (keys, values):
            room = old.new_empty(len(rows), old.shape[1], old.shape[2] + extra, old.shape[3])  # (N, H, S + extra, D)
            room[:, :, : old.shape[2]] = old.index_select(0, rows.to(old.device))
            self.room.append(room)
        self._show(keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        start = _given(self.keys).shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start : start + new.shape[2]] = new
        return self._show(start + key_states.shape[2])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.room = [room.index_select(0, beam_idx.to(room.device)) for room in self.room]
        self._show(_given(self.keys).shape[2])

    def _show(self, size: int) -> tuple[Tensor, Tensor]:
        keys, values = (room[:, :, :size] for room in self.room)
        self.keys, self.values = keys, values
        return keys, values


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # keys and values of an initialized layer
    return tensor


def together(parts: Sequence[Tensor], order: Tensor, width: int) -> Tensor:
    """Keys or values of prompts that were read in several passes (p, K, l, D) → (P, K, L, D), left padded with zeros."""
    if len(parts) == 1 and parts[0].shape[2] == width:
        return parts[0][order.argsort()]
    whole = parts[0].new_zeros(len(order), parts[0].shape[1], width, parts[0].shape[3])
    for rows, part in zip(order.split([len(part) for part in parts]), parts, strict=True):
        whole[rows, :, width - part.shape[2] :] = part
    return whole
