"""The cache with room holds the same keys and values as transformers' own cache."""

import torch
from transformers import DynamicCache

from nlf.models.cache import RoomyLayer, select_with_room


def test_room_holds_what_concatenation_would():
    def states(rows, tokens, seed):
        return torch.randn(2, rows, 2, tokens, 4, generator=torch.Generator().manual_seed(seed)).unbind()

    ours, theirs = DynamicCache(), DynamicCache()
    for cache in (ours, theirs):
        cache.update(*states(2, 5, seed=0), 0)
    rows = torch.tensor([0, 0, 1])
    select_with_room(ours, rows, 3)
    theirs.reorder_cache(rows)
    assert type(ours.layers[0]) is RoomyLayer
    for step in range(3):
        if step == 2:
            rows = torch.tensor([2, 0])
            ours.reorder_cache(rows)
            theirs.reorder_cache(rows)
        new = states(len(rows), 1, seed=step + 1)
        for got, expected in zip(ours.update(*new, 0), theirs.update(*new, 0), strict=True):
            assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length() == 6 + step
