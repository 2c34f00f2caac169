"""Rows that come and go while others are decoded: the key-value cache of continuous batching.

Every row has a slot. The tokens of all rows end at the same column, so one pass writes one column for all, and the prompt of a
new row is put into the columns before it. A finished row's slot is given to a later row; columns that no row needs any
more are left out of the pass. Layers with a sliding window keep all tokens too: the mask hides those beyond the window.

Letters in shapes: N slots, P prompts, H heads, L prompt tokens (left padded), S columns in use, C columns in memory, D width
of a head, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from nlf.models.cache import read_prompts
from nlf.models.encoder import group_by_length, pad
from nlf.models.reading import last_logits

ROOM = 64  # columns in memory for tokens to come, when the cache is moved


class AnySlots(Protocol):
    """Slots of rows.

    Attributes:
        size: N, the number of slots.
    """

    size: int
    device: torch.device

    def arrange(self, kept: Sequence[int], size: int) -> None:
        """Put the rows of the slots `kept` into the first slots, and have `size` slots."""
        ...

    def read(self, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        """Read P prompts, each into its slots → logits (P, V) after each prompt."""
        ...

    def step(self, tokens: Tensor, live: Sequence[int]) -> Tensor:
        """The next token of each slot (N,) → logits (N, V) of the token after it; those of slots not in `live` mean nothing."""
        ...


class Slots:
    """Slots of a model whose cache can be continued.

    Args:
        forward: From `cached_forward`.
        pass_tokens: Cost of one more pass, in tokens; see `group_by_length`.
    """

    def __init__(self, forward: Callable, device: torch.device, pass_tokens: int | None):
        self.forward, self.device, self.pass_tokens = forward, device, pass_tokens
        self.size = self.start = self.end = self.columns = 0  # the columns in use are start..end
        self.cache = Cache(layers=[])
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=device)  # (N, C)
        self.position = torch.zeros(0, dtype=torch.long, device=device)  # (N,), of the last token read
        self.first: list[int] = []  # for each slot the column of its first token

    def arrange(self, kept: Sequence[int], size: int) -> None:
        self._move(kept, size, self.end - self.start if kept else 0, ROOM)

    def read(self, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        self._make_room([len(ids) for ids in prompts])
        groups = group_by_length([len(ids) for ids in prompts], self.pass_tokens)
        read = [
            self._read([prompts[i] for i in group], [(k, place) for k, i in enumerate(group) for place in places[i]])
            for group in groups
        ]
        order = torch.tensor([i for group in groups for i in group], device=self.device)
        return torch.cat(read)[order.argsort()]

    def _read(self, prompts: Sequence[Sequence[int]], places: Sequence[tuple[int, int]]) -> Tensor:
        """Read P prompts of a group → logits (P, V); `places` are pairs of a prompt and a slot that gets it."""
        logits, cache = read_prompts(self.forward, prompts, self.device, DynamicCache())
        take, slots = torch.tensor(places, device=self.device).unbind(1)  # (R,) each
        if not self.cache.layers:
            layers = [SlotLayer(cast(DynamicLayer, layer), self.size, self.columns) for layer in cache.layers]
            self.cache = Cache(layers=[*layers])
        for layer, read in zip(self.cache.layers, cache.layers, strict=True):
            cast(SlotLayer, layer).write(cast(DynamicLayer, read), take, slots, self.end)
        self.mask[slots] = 0
        for k, slot in places:
            length = len(prompts[k])
            self.first[slot] = self.end - length
            self.mask[slot, self.end - length : self.end] = 1
            self.position[slot] = length - 1
        self.start = min(self.start, *(self.first[slot] for _, slot in places))
        return logits

    def step(self, tokens: Tensor, live: Sequence[int]) -> Tensor:
        if self.end == self.columns:
            self._move(range(self.size), self.size, self.end - self.start, ROOM)
        self.start = min(self.first[slot] for slot in live)
        moving = torch.zeros_like(self.position)
        moving[torch.tensor(live, device=self.device)] = 1
        self.position += moving  # of a slot without a row it stays, so that it never leaves the context
        self.mask[:, self.end] = 1
        for layer in self.cache.layers:
            cast(SlotLayer, layer).show(self.start, self.end)
        self.end += 1
        mask = self.mask[:, self.start : self.end]
        logits, self.cache = self.forward(tokens[:, None], mask, self.position[:, None], self.cache)
        return logits

    def _make_room(self, lengths: Sequence[int]) -> None:
        """Have as many columns before the end as the longest prompt, and zeros before the prompts of an empty cache."""
        if max(lengths) > self.end:
            self._move(range(self.size), self.size, max(lengths), ROOM)

    def _move(self, kept: Sequence[int], size: int, before: int, after: int) -> None:
        """Put the rows of `kept` into the first of `size` slots, with their last columns ending at `before`."""
        width = min(self.end - self.start, before) if kept else 0
        columns, window = before + after, slice(self.end - width, self.end)
        rows = torch.tensor(list(kept), dtype=torch.long, device=self.device)
        mask = self.mask.new_zeros(size, columns)
        mask[: len(kept), before - width : before] = self.mask[rows, window]
        position = self.position.new_zeros(size)
        position[: len(kept)] = self.position[rows]
        for layer in self.cache.layers:
            cast(SlotLayer, layer).move(rows, size, columns, window, before)
        self.first = [self.first[slot] + before - self.end for slot in kept] + [before] * (size - len(kept))
        self.mask, self.position = mask, position
        self.size, self.columns = size, columns
        self.start, self.end = before - width, before


class SlotLayer(DynamicLayer):
    """A layer whose `keys` and `values` (N, H, S, D) are views of columns of larger tensors (N, H, C, D).

    Args:
        read: A layer of prompts, for its shape.
    """

    def __init__(self, read: DynamicLayer, size: int, columns: int):
        super().__init__()
        assert read.keys is not None and read.values is not None  # it has read prompts
        self.dtype, self.device, self.is_initialized = read.keys.dtype, read.keys.device, True
        shapes = [(x, (size, x.shape[1], columns, x.shape[3])) for x in (read.keys, read.values)]
        self.room = [x.new_zeros(shape) for x, shape in shapes]  # zeros, since attention multiplies masked values by 0

    def write(self, read: DynamicLayer, take: Tensor, slots: Tensor, end: int) -> None:
        """Put prompts `take` (R,) of a layer that has read them into slots (R,), before column `end`."""
        for room, new in zip(self.room, (read.keys, read.values), strict=True):
            assert new is not None
            room[slots, :, end - new.shape[2] : end] = new[take].to(room.dtype)

    def show(self, start: int, end: int) -> None:
        """Use the columns start..end; the next token goes to column `end`."""
        self.begin, self.until = start, end
        self.keys, self.values = (room[:, :, start:end] for room in self.room)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, self.until] = new[:, :, 0]
        self.show(self.begin, self.until + 1)
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    def move(self, rows: Tensor, size: int, columns: int, window: slice, before: int) -> None:
        """See `Slots._move`."""
        for i, old in enumerate(self.room):
            new = old.new_zeros(size, old.shape[1], columns, old.shape[3])
            new[: len(rows), :, before - (window.stop - window.start) : before] = old[rows.to(old.device), :, window]
            self.room[i] = new


class WholeSlots:
    """Slots of a model whose cache cannot be continued: each step reads the whole text again. Slow, but right for any model."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device, self.size = model, device, 0
        self.texts: list[list[int]] = []

    def arrange(self, kept: Sequence[int], size: int) -> None:
        self.texts = [self.texts[slot] for slot in kept] + [[0] for _ in range(size - len(kept))]
        self.size = size

    def read(self, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        for ids, slots in zip(prompts, places, strict=True):
            for slot in slots:
                self.texts[slot] = list(ids)
        return self._last(prompts)

    def step(self, tokens: Tensor, live: Sequence[int]) -> Tensor:
        for slot in live:
            self.texts[slot].append(int(tokens[slot]))
        found = self._last([self.texts[slot] for slot in live])  # (live, V)
        logits = found.new_zeros(self.size, found.shape[1])
        logits[torch.tensor(live, device=self.device)] = found
        return logits

    def _last(self, texts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in texts], device=self.device)
        return last_logits(self.model, pad(texts, 0, "right").to(self.device), lengths)
