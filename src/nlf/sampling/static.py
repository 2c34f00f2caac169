"""Decode under `torch.compile`, for accelerators: launching kernels takes longer than their work for a small batch.

The model's pass over one token a row is one compiled graph; on a GPU it is replayed as CUDA graphs, one graph for each
shape. A graph reads and writes the memory addresses of its recording. So keys and values lie in buffers that are kept
from batch to batch, grow when needed, and are viewed in the shape of the batch. The numbers of rows and of tokens are
rounded up, so that few shapes occur. Each row has a copy of its prompt's keys and values.

Letters in shapes: N rows, M ≥ N rows of the graph, K heads of keys, L tokens so far, S ≥ L tokens of the graph, D width of
a head, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from nlf.models.cache import Rows, together

FEWEST_ROWS, FEWEST_TOKENS = 8, 32  # of a graph


class Compiled:
    """The compiled pass, and the layers of keys and values that it reads and writes. Both outlive a batch.

    Args:
        forward: See `Rows`.
    """

    def __init__(self, forward: Callable, device: torch.device):
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self.forward = torch.compile(forward, fullgraph=True, mode=mode)
        self.layers: list[FixedLayer] = []

    def layer(self, i: int) -> "FixedLayer":
        """Layer i; the first call makes it."""
        while len(self.layers) <= i:
            self.layers.append(FixedLayer())
        return self.layers[i]

    def clear(self) -> None:
        """Free the memory of all layers."""
        self.layers.clear()


class StaticRows(Rows):
    """Rows of a compiled pass. Surplus rows of the graph duplicate the last row; nobody reads their logits.

    Args:
        args: The arguments of `Rows` after `forward`.
    """

    def __init__(self, compiled: Compiled, *args: Any):
        self.compiled = compiled
        super().__init__(compiled.forward, *args)

    def step(self, tokens: Tensor) -> Tensor:
        return super().step(tokens)[: len(tokens)].clone()  # the next pass writes to the same memory

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

    def _hold(self, caches: Sequence[Cache], order: Tensor, lengths: Tensor, take: Tensor, room: int) -> Cache:
        layers = zip(*(cache.layers for cache in caches), strict=True)
        prompts = (
            [together([getattr(each, name) for each in parts], order, self.seen)[take] for name in ("keys", "values")]
            for parts in layers
        )
        self.tokens = rounded_up(self.seen + room, FEWEST_TOKENS)
        self._lay(caches[0], prompts)
        return caches[0]

    def _keep(self, rows: Tensor) -> None:
        layers = cast(list[FixedLayer], self.cache.layers)  # made by `_lay`
        self._lay(self.cache, ([x[rows, :, : self.seen] for x in (each.keys, each.values)] for each in layers))

    def _lay(self, cache: Cache, states: Iterable[list[Tensor]]) -> None:
        """Put each layer's keys and values (N, K, L, D) where the graph reads them."""
        count = len(self.position)
        self.size = rounded_up(count, FEWEST_ROWS)
        self.fill = torch.arange(self.size, device=self.position.device).clamp(max=count - 1)  # (M,)
        for i, pair in enumerate(states):
            self.compiled.layer(i).begin(pair, self.size, self.tokens)
        cache.layers[:] = self.compiled.layers


class FixedLayer(StaticLayer):
    """A StaticLayer with keys and values (M, K, S, D) in buffers, which keep their address until they must grow."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__(0)
        self.flat: dict[str, Tensor] = {}

    def begin(self, states: Sequence[Tensor], size: int, tokens: int) -> None:
        """Hold these keys and values, (N, K, L, D) each, in the shape of `size` rows of `tokens` tokens."""
        seen = states[0].shape[2]
        for name, x in zip(("keys", "values"), states, strict=True):
            shape = size, x.shape[1], tokens, x.shape[3]
            setattr(self, name, self._memory(name, math.prod(shape), x).view(shape))
            getattr(self, name)[: len(x), :, :seen] = x
            torch._dynamo.mark_dynamic(getattr(self, name), (0, 2))
        count = torch.empty((), dtype=torch.long, device=states[0].device)
        self.cumulative_length = self._memory("count", 1, count).view(()).fill_(seen)
        for tensor in (self.keys, self.values, self.cumulative_length):
            torch._dynamo.mark_static_address(tensor)  # or CUDA graphs copy written tensors, or are not used
        self.batch_size, self.num_heads, self.max_cache_len, self.k_head_dim = self.keys.shape
        self.v_head_dim, self.dtype, self.device = self.values.shape[3], self.keys.dtype, self.keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write new states; under autocast their type may differ from the prompts'."""
        return super().update(key_states.to(self.keys.dtype), value_states.to(self.values.dtype), *args, **kwargs)

    def _memory(self, name: str, size: int, like: Tensor) -> Tensor:
        """The front of a buffer, (size,). It holds finite numbers, since attention multiplies masked values by 0."""
        held = self.flat.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            self.flat.pop(name, None)  # freed before the allocation
            self.flat[name] = like.new_zeros(size)
        return self.flat[name][:size]


def rounded_up(count: int, least: int) -> int:
    """The count rounded up to a power of two or to three quarters of one, and to `least`."""
    power = 1 << max(count - 1, 0).bit_length()
    return max(least, power * 3 // 4 if count <= power * 3 // 4 else power)
