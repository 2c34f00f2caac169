"""Decoding under `torch.compile`, for accelerators, where a token of a small batch costs more in launches than in work.

The model's pass over one token a row becomes one compiled graph, on a GPU replayed as CUDA graphs, one for each shape. Those
read and write where they did when they were recorded: keys and values lie in memory that is kept from batch to batch, grows
where it must and is looked at in the shape of the batch, and the numbers of rows and of tokens are rounded up, so that few
shapes occur. Each row has a copy of its prompt.

Letters in shapes: N rows, M ≥ N rows of the graph, K heads of keys, L tokens so far, S ≥ L tokens of the graph, D width of a
head, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from nlf.models.cache import Rows, together

if TYPE_CHECKING:
    from transformers import Cache

FEWEST_ROWS, FEWEST_TOKENS = 8, 32  # of a graph


class Compiled:
    """The compiled pass, and the layers of keys and values that it reads and writes; both outlive a batch.

    Args:
        forward: As of `Rows`.
    """

    def __init__(self, forward: Callable, device: torch.device):
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self.forward = torch.compile(forward, fullgraph=True, mode=mode)
        self.layers: list[FixedLayer] = []

    def layer(self, i: int) -> "FixedLayer":
        while len(self.layers) <= i:
            self.layers.append(FixedLayer())
        return self.layers[i]

    def clear(self) -> None:
        self.layers.clear()


class StaticRows(Rows):
    """Rows of a compiled pass. Those of the graph that are too many repeat the last one and are not looked at."""

    def __init__(self, compiled: Compiled, *args):
        self.compiled = compiled
        super().__init__(compiled.forward, *args)

    def step(self, tokens: Tensor) -> Tensor:
        return super().step(tokens)[: len(tokens)].clone()  # the next pass writes where this one did

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.zeros(self.size, self.tokens, dtype=torch.bool, device=tokens.device)
        mask[:, : self.seen] = self.mask[self.fill, : self.seen]
        ids, position = tokens[self.fill, None], self.position[self.fill, None]  # (M, 1)
        mask = mask[:, None, None]  # (M, 1, 1, S)
        for tensor, sizes in ((ids, 0), (position, 0), (mask, (0, 3))):
            torch._dynamo.mark_dynamic(tensor, sizes)
        return ids, mask, position

    def shrinks(self, left: int) -> bool:
        return rounded_up(left, FEWEST_ROWS) < self.size

    def _hold(self, caches: "Sequence[Cache]", order: Tensor, lengths: Tensor, take: Tensor, room: int) -> "Cache":
        layers = zip(*(cache.layers for cache in caches), strict=True)
        prompts = (
            [together([getattr(each, name) for each in parts], order, self.seen)[take] for name in ("keys", "values")]
            for parts in layers
        )
        self.tokens = rounded_up(self.seen + room, FEWEST_TOKENS)
        self._lay(caches[0], prompts)
        return caches[0]

    def _keep(self, rows: Tensor) -> None:
        layers = self.cache.layers
        self._lay(self.cache, ([x[rows, :, : self.seen] for x in (each.keys, each.values)] for each in layers))

    def _lay(self, cache: "Cache", states: Iterable[list[Tensor]]) -> None:
        """Put each layer's keys and values (N, K, L, D) where the graph reads them."""
        count = len(self.position)
        self.size = rounded_up(count, FEWEST_ROWS)
        self.fill = torch.arange(self.size, device=self.position.device).clamp(max=count - 1)  # (M,)
        for i, pair in enumerate(states):
            self.compiled.layer(i).begin(pair, self.size, self.tokens)
        cache.layers[:] = self.compiled.layers


class FixedLayer(StaticLayer):
    """A StaticLayer whose keys and values (M, K, S, D) are the front of memory that stays where it is while it suffices."""

    def __init__(self):
        super().__init__(0)
        self.flat: dict[str, Tensor] = {}

    def begin(self, states: Sequence[Tensor], size: int, tokens: int) -> None:
        """Hold these keys and values, (N, K, L, D) each, in the shape of `size` rows of `tokens`."""
        seen = states[0].shape[2]
        for name, x in zip(("keys", "values"), states, strict=True):
            shape = size, x.shape[1], tokens, x.shape[3]
            setattr(self, name, self._memory(name, math.prod(shape), x).view(shape))
            getattr(self, name)[: len(x), :, :seen] = x
            torch._dynamo.mark_dynamic(getattr(self, name), (0, 2))
        count = torch.empty((), dtype=torch.long, device=states[0].device)
        self.cumulative_length = self._memory("count", 1, count).view(()).fill_(seen)
        for tensor in (self.keys, self.values, self.cumulative_length):
            torch._dynamo.mark_static_address(tensor)  # else CUDA graphs copy what they write to, or are not used
        self.batch_size, self.num_heads, self.max_cache_len, self.k_head_dim = self.keys.shape
        self.v_head_dim, self.dtype, self.device = self.values.shape[3], self.keys.dtype, self.keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Under autocast what is new may be of another type than what the prompts left."""
        return super().update(key_states.to(self.keys.dtype), value_states.to(self.values.dtype), *args, **kwargs)

    def _memory(self, name: str, size: int, like: Tensor) -> Tensor:
        """(size,), finite numbers: what is masked is multiplied by 0 all the same."""
        held = self.flat.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            self.flat.pop(name, None)  # before there is more
            self.flat[name] = like.new_zeros(size)
        return self.flat[name][:size]


def rounded_up(count: int, least: int) -> int:
    """To a power of two, or one and a half of it."""
    power = 1 << max(count - 1, 0).bit_length()
    return max(least, power * 3 // 4 if count <= power * 3 // 4 else power)
