"""A cache with room for the tokens to come.

transformers' dynamic cache copies all keys and values at every step; on a small model that takes longer than the model
does. Here a step writes one token in place, and the copy is made only when rows leave the batch.

Letters in shapes: N rows, H heads, S tokens so far, D width of a head.
"""

from typing import TYPE_CHECKING

from torch import Tensor
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import Cache


def select_with_room(cache: "Cache", rows: Tensor, extra: int) -> None:
    """Take `rows` (each as often as it is named) of a prefilled cache, with room for `extra` tokens where that is known.

    Layers of another kind than plain attention over all tokens (sliding windows, linear attention) keep their own way.
    """
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(layer.keys, layer.values, rows, extra)
        else:
            layer.reorder_cache(rows)


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose `keys` and `values` (N, H, S, D) are the front of tensors made once."""

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
        start = self.keys.shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start : start + new.shape[2]] = new
        return self._show(start + key_states.shape[2])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.room = [room.index_select(0, beam_idx.to(room.device)) for room in self.room]
        self._show(self.keys.shape[2])

    def _show(self, size: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:, :, :size] for room in self.room)
        return self.keys, self.values
