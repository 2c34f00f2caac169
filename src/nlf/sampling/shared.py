"""Attention in which a prompt's completions read its keys and values from one place.

With transformers' cache, each of a prompt's n completions has a copy of the prompt's keys and values, and every step
reads all copies. Here they are kept once. One matrix product compares them with the queries of all n completions, a
second product compares each query with the tokens of its own completion, and one softmax runs over both parts (the
two-level attention of Hydragen, arXiv 2402.05099). New tokens are written in place.

This attention replaces transformers' "sdpa" through its AttentionInterface, for one new token at a time. It is used if
a small trial (`HFSampler._objection`) shows that the logits equal the logits of a separate cache for each row. The
trial passes for layers of plain attention over all tokens. Other models use `cache.Rows`.

Letters in shapes: P prompts, R rows, n most rows of a prompt, H heads, K heads of keys, G = H / K, L prompt tokens (left
padded), t own tokens so far, D width of a head.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nlf.models.cache import RoomyLayer, Rows, together

NAME = "nlf_shared_prompts"  # the attention has no mask function under this name, so transformers builds no mask


class Sharing:
    """Which prompt each row reads, for all layers of a batch.

    Args:
        owner: (R,), each row's prompt, in 0..P-1.
        lengths: (P,), tokens of each prompt.
    """

    def __init__(self, owner: Tensor, lengths: Tensor):
        self.owner, self.width = owner, int(lengths.max())
        pad = torch.arange(self.width, device=lengths.device) < self.width - lengths[:, None]  # (P, L)
        self.bias = torch.zeros(pad.shape, device=pad.device).masked_fill(pad, -torch.inf) if pad.any() else None
        self._place()

    def keep(self, rows: Tensor) -> Tensor:
        """Drop all other rows → the prompts (P',) that still have rows."""
        left, self.owner = self.owner[rows].unique(return_inverse=True)
        self.bias = None if self.bias is None else self.bias[left]
        self._place()
        return left

    def _place(self) -> None:
        """Find `slot` (R,), the place of a row in (P, n) flattened; None if the rows fill it in order."""
        count = self.owner.bincount()  # (P,)
        self.prompts, self.most = len(count), int(count.max())
        order = self.owner.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[self.owner[order]]
        slot = self.owner * self.most + rank
        straight = len(slot) == self.prompts * self.most and torch.equal(slot, torch.arange(len(slot)).to(slot))
        self.slot = None if straight else slot

    def by_prompt(self, x: Tensor) -> Tensor:
        """(R, K, G, E) → (P, K, n·G, E), with zeros where a prompt has fewer than n rows."""
        if self.slot is not None:
            x = x.new_zeros(self.prompts * self.most, *x.shape[1:]).index_copy_(0, self.slot, x)
        return x.view(self.prompts, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Tensor, group: int) -> Tensor:
        """(P, K, n·G, E) → (R, K, G, E)."""
        x = x.view(*x.shape[:2], self.most, group, x.shape[3]).transpose(1, 2).flatten(0, 1)
        return x if self.slot is None else x[self.slot]


class SharedLayer(RoomyLayer):
    """A layer that holds keys and values of the rows' own tokens (R, K, t, D), and separately of prompts (P, K, L, D).

    Args:
        parts: The layer in the caches that the prompts were read into.
        order: (P,), prompt numbers in the order of `parts`.
        room: Most own tokens of a row.
    """

    def __init__(self, parts: Sequence[DynamicLayer], order: Tensor, sharing: Sharing, room: int):
        order = order.to(parts[0].device)
        keys, values = (
            together([getattr(p, name) for p in parts], order, sharing.width) for name in ("keys", "values")
        )
        super().__init__(keys[:, :, :0], values[:, :, :0], sharing.owner, room)
        self.prompt, self.sharing = [keys, values], sharing

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states)
        cast(Any, keys).layer = self  # for `attend`, which gets the keys and not the cache
        return keys, values

    def get_seq_length(self) -> int:
        return self.prompt[0].shape[2] + cast(Tensor, self.keys).shape[2]  # `update` has set them

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        """Drop all other rows, and all other prompts."""
        self.reorder_cache(rows)
        if len(prompts) < len(self.prompt[0]):
            self.prompt = [x.index_select(0, prompts) for x in self.prompt]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **kwargs
) -> tuple[Tensor, None]:
    """Query (R, H, 1, D), the rows' own keys and values from `SharedLayer.update` → (R, 1, H, D), None."""
    layer: SharedLayer = cast(Any, key).layer  # set by `update`
    sharing, (prompt_keys, prompt_values) = layer.sharing, layer.prompt
    heads, length = key.shape[1], prompt_keys.shape[2]
    query = (query * scaling).view(len(query), heads, -1, query.shape[3])  # (R, K, G, D)
    group = query.shape[2]
    prompt = sharing.by_prompt(query) @ prompt_keys.transpose(2, 3)  # (P, K, n·G, L)
    if sharing.bias is not None:
        prompt = prompt + sharing.bias[:, None, None].to(prompt.dtype)
    scores = torch.cat([sharing.by_row(prompt, group), query @ key.transpose(2, 3)], -1)  # (R, K, G, L + t)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    prompt, own = weights[..., :length], weights[..., length:]
    out = own @ value + sharing.by_row(sharing.by_prompt(prompt) @ prompt_values, group)  # (R, K, G, D)
    return out.flatten(1, 2)[:, None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


class SharedRows(Rows):
    """Rows that share the cache of their prompts.

    Args:
        configs: The model's configurations, from `configs_with_sdpa`.
        args: See `Rows`.
    """

    def __init__(self, configs: list, *args: Any):
        self.configs = configs
        super().__init__(*args)

    def step(self, tokens: Tensor) -> Tensor:
        with shared_attention(self.configs):
            return super().step(tokens)

    def _keep(self, rows: Tensor) -> None:
        layers = cast(list[SharedLayer], self.cache.layers)  # made by `_hold`
        prompts = layers[0].sharing.keep(rows)
        for layer in layers:
            layer.keep(rows, prompts)

    def _hold(self, caches: Sequence[Cache], order: Tensor, lengths: Tensor, take: Tensor, room: int) -> Cache:
        sharing = Sharing(take, lengths)
        layers = zip(*(cache.layers for cache in caches), strict=True)
        caches[0].layers[:] = [SharedLayer(parts, order, sharing, room) for parts in layers]
        return caches[0]


def configs_with_sdpa(model: nn.Module) -> list:
    """The configurations of the model's parts whose attention is "sdpa"."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [c for c in configs.values() if getattr(c, "_attn_implementation", None) == "sdpa"]


@contextlib.contextmanager
def shared_attention(configs: list) -> Iterator[None]:
    """Inside the `with` block, models with these configurations use `attend`; "sdpa" is restored afterwards."""
    for config in configs:
        config._attn_implementation_internal = NAME  # the property would set it in the model's parts too
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation_internal = "sdpa"
