"""Decoding under `torch.compile`, for accelerators, where a token of a small batch costs more in launches than in work.

The model's pass over one token a row becomes one compiled graph, on a GPU replayed as CUDA graphs. Those read and write
where they did when they were recorded: keys and values lie in memory that is taken once and looked at in the shape of the
batch, and the numbers of rows and of tokens are rounded up, so that few shapes occur. Each row has a copy of its prompt.

Letters in shapes: N rows, M ≥ N rows of the graph, K heads of keys, L tokens so far, S ≥ L tokens of the graph, D width of a
head, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from nlf.sampling.cache import Rows
from nlf.sampling.shared import together

if TYPE_CHECKING:
    from transformers import Cache

FEWEST_ROWS = 8  # of a graph
TOKENS = 32  # of a graph: a multiple of them


class StaticRows(Rows):
    """Rows of a compiled pass. Those of the graph that are too many repeat the last one and are not looked at."""

    def __init__(self, store: "Store", *args):
        self.store = store
        super().__init__(*args)

    def step(self, tokens: Tensor) -> Tensor:
        self.seen, self.position = self.seen + 1, self.position + 1
        mask = torch.zeros(self.size, self.tokens, dtype=torch.bool, device=tokens.device)
        mask[:, : self.seen] = self.mask[self.fill, : self.seen]
        ids, position = tokens[self.fill, None], self.position[self.fill, None]  # (M, 1)
        mask = mask[:, None, None]  # (M, 1, 1, S)
        for tensor, sizes in ((ids, 0), (position, 0), (mask, (0, 3))):
            torch._dynamo.mark_dynamic(tensor, sizes)
        logits, self.cache = self.store.forward(ids, mask, position, self.cache)
        return logits[: len(tokens)].clone()  # the next pass writes where this one did

    def keep(self, rows: Tensor) -> None:
        self.mask, self.position = self.mask[rows], self.position[rows]
        self._lay(
            self.cache, ((x[rows, :, : self.seen] for x in (each.keys, each.values)) for each in self.cache.layers)
        )

    def shrinks(self, left: int) -> bool:
        return size_of_graph(left) < self.size

    def _hold(self, caches: "Sequence[Cache]", order: Tensor, lengths: Tensor, take: Tensor, room: int) -> "Cache":
        layers = zip(*(cache.layers for cache in caches), strict=True)
        prompts = (
            (together([getattr(each, name) for each in parts], order, self.seen)[take] for name in ("keys", "values"))
            for parts in layers
        )
        self.tokens = -(-(self.seen + room) // TOKENS) * TOKENS
        return self._lay(caches[0], prompts)

    def _lay(self, cache: "Cache", states: Iterable[Iterable[Tensor]]) -> "Cache":
        """Put keys and values (N, K, L, D) of each layer where the graph reads them."""
        count = len(self.position)
        self.size = size_of_graph(count)
        self.fill = torch.arange(self.size, device=self.position.device).clamp(max=count - 1)  # (M,)
        cache.layers[:] = [self.store.layer(i, *pair, self.size, self.tokens) for i, pair in enumerate(states)]
        return cache


class Store:
    """The compiled pass, and the memory of its keys and values; both outlive a batch.

    Args:
        forward: As of `Rows`.
    """

    def __init__(self, forward: Callable, device: torch.device):
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self.forward = torch.compile(forward, fullgraph=True, mode=mode)
        self.memory: dict[tuple[int, str], Tensor] = {}  # of each layer

    def clear(self) -> None:
        self.memory.clear()

    def layer(self, i: int, keys: Tensor, values: Tensor, size: int, tokens: int) -> "FixedLayer":
        """Layer i (M, K, S, D), which begins with these keys and values (N, K, L, D)."""
        seen, shown = keys.shape[2], []
        for name, x in (("keys", keys), ("values", values)):
            shape = size, x.shape[1], tokens, x.shape[3]
            shown.append(self._memory(i, name, math.prod(shape), x).view(shape))
            shown[-1][: len(x), :, :seen] = x
        count = self._memory(i, "count", 1, torch.empty((), dtype=torch.long, device=keys.device)).view(())
        return FixedLayer(*shown, count.fill_(seen))

    def _memory(self, i: int, name: str, size: int, like: Tensor) -> Tensor:
        """(size,), of what layer i has under this name."""
        if (i, name) not in self.memory or self.memory[i, name].numel() < size:
            self.memory[i, name] = like.new_zeros(size)
        return self.memory[i, name][:size]


class FixedLayer(StaticLayer):
    """A StaticLayer over memory that is there already."""

    def __init__(self, keys: Tensor, values: Tensor, count: Tensor):
        super().__init__(keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, count
        self.batch_size, self.num_heads, _, self.k_head_dim = keys.shape
        self.v_head_dim, self.dtype, self.device = values.shape[3], keys.dtype, keys.device
        self.is_initialized = True
        for tensor in (keys, values, count):
            torch._dynamo.mark_static_address(tensor)  # else CUDA graphs copy what they write to, or are not used
        for tensor in (keys, values):
            torch._dynamo.mark_dynamic(tensor, (0, 2))


def size_of_graph(rows: int) -> int:
    """Rows rounded up by a quarter at most: sizes that occur are few."""
    step = max(FEWEST_ROWS, 1 << max(0, rows.bit_length() - 3))
    return -(-rows // step) * step
