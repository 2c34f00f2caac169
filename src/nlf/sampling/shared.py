"""Attention in which a prompt's completions read its keys and values from one place.

n completions of a prompt would each carry a copy of its cache, and every step would read them all. Here the prompt's part
is kept once: its completions' queries meet it as one matrix product, each completion's own tokens are a second part, and
one softmax runs over both (the two-level attention of Hydragen, arXiv 2402.05099). Own tokens are written in place.

It stands in for transformers' "sdpa" through its AttentionInterface, for one new token at a time, where a small trial
(`HFSampler._objection`) shows that the model then says what it says with a cache of its own per row: layers of plain attention over
all tokens, one code path from cache to attention. Other models keep `cache.Rows`.

Letters in shapes: P prompts, R rows, n rows of a prompt at most, H heads, K heads of keys, G = H / K, L prompt tokens (left padded), t own
tokens so far, D width of a head.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nlf.models.cache import RoomyLayer, Rows, together

if TYPE_CHECKING:
    from transformers import Cache

NAME = "nlf_shared_prompts"  # has no mask function, so that transformers builds no mask


class Sharing:
    """Which prompt each row reads, for all layers of a batch."""

    def __init__(self, owner: Tensor, lengths: Tensor):
        """Owner (R,) in 0..P-1, lengths (P,) of the prompts."""
        self.owner, self.width = owner, int(lengths.max())
        pad = torch.arange(self.width, device=lengths.device) < self.width - lengths[:, None]  # (P, L)
        self.bias = torch.zeros(pad.shape, device=pad.device).masked_fill(pad, -torch.inf) if pad.any() else None
        self._place()

    def keep(self, rows: Tensor) -> Tensor:
        """Go on with these rows only → the prompts that still have one."""
        left, self.owner = self.owner[rows].unique(return_inverse=True)
        self.bias = None if self.bias is None else self.bias[left]
        self._place()
        return left

    def _place(self) -> None:
        """`slot` (R,): where a row stands in (P, n); None where that is the rows as they are."""
        count = self.owner.bincount()  # (P,)
        self.prompts, self.most = len(count), int(count.max())
        order = self.owner.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[self.owner[order]]
        slot = self.owner * self.most + rank
        straight = len(slot) == self.prompts * self.most and torch.equal(slot, torch.arange(len(slot)).to(slot))
        self.slot = None if straight else slot

    def by_prompt(self, x: Tensor) -> Tensor:
        """(R, K, G, E) → (P, K, n·G, E), zeros where a prompt has fewer than n rows."""
        if self.slot is not None:
            x = x.new_zeros(self.prompts * self.most, *x.shape[1:]).index_copy_(0, self.slot, x)
        return x.view(self.prompts, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Tensor, group: int) -> Tensor:
        """(P, K, n·G, E) → (R, K, G, E)."""
        x = x.view(*x.shape[:2], self.most, group, x.shape[3]).transpose(1, 2).flatten(0, 1)
        return x if self.slot is None else x[self.slot]


class SharedLayer(RoomyLayer):
    """A layer's prompts (P, K, L, D), as they were prefilled; its keys and values are the rows' own tokens (R, K, t, D)."""

    def __init__(self, parts: Sequence[DynamicLayer], order: Tensor, sharing: Sharing, room: int):
        order = order.to(parts[0].device)
        prompt = [together([getattr(p, name) for p in parts], order, sharing.width) for name in ("keys", "values")]
        super().__init__(*(x[:, :, :0] for x in prompt), sharing.owner, room)
        self.prompt, self.sharing = prompt, sharing

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states)
        keys.layer = self  # for `attend`, which gets the keys and not the cache
        return keys, values

    def get_seq_length(self) -> int:
        return self.prompt[0].shape[2] + self.keys.shape[2]

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        self.reorder_cache(rows)
        if len(prompts) < len(self.prompt[0]):
            self.prompt = [x.index_select(0, prompts) for x in self.prompt]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **kwargs
) -> tuple[Tensor, None]:
    """Query (R, H, 1, D), the rows' own keys and values as `SharedLayer.update` gave them → (R, 1, H, D), None."""
    sharing, (prompt_keys, prompt_values) = key.layer.sharing, key.layer.prompt
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
    """Rows of a model with `configs` that share their prompts' cache."""

    def __init__(self, configs: list, *args):
        self.configs = configs
        super().__init__(*args)

    def step(self, tokens: Tensor) -> Tensor:
        with shared_attention(self.configs):
            return super().step(tokens)

    def _keep(self, rows: Tensor) -> None:
        prompts = self.cache.layers[0].sharing.keep(rows)
        for layer in self.cache.layers:
            layer.keep(rows, prompts)

    def _hold(self, caches: "Sequence[Cache]", order: Tensor, lengths: Tensor, take: Tensor, room: int) -> "Cache":
        sharing = Sharing(take, lengths)
        layers = zip(*(cache.layers for cache in caches), strict=True)
        caches[0].layers[:] = [SharedLayer(parts, order, sharing, room) for parts in layers]
        return caches[0]


def configs_with_sdpa(model: nn.Module) -> list:
    """The configurations by which the parts of the model choose how they attend, where that is "sdpa"."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [c for c in configs.values() if getattr(c, "_attn_implementation", None) == "sdpa"]


@contextlib.contextmanager
def shared_attention(configs: list) -> Iterator[None]:
    """Models with these configurations attend by `attend`; their own way is back after."""
    for config in configs:
        config._attn_implementation_internal = NAME  # the property would set its parts too
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation_internal = "sdpa"
