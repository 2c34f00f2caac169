"""Work cut to fit the memory of a device: limits, chunks of rows, and a budget that is halved when memory runs out."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nlf.errors import UserError

logger = logging.getLogger(__name__)

NO_ROOM = "out of memory with a single completion in the batch; use a smaller model or fewer tokens"


class Limit(NamedTuple):
    """A limit on a CPU and on an accelerator."""

    cpu: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        return self.cpu if device.type == "cpu" else self.accelerator


WHOLE_STEP = Limit(10_000_000, 160_000_000)  # parameters of the largest model whose step of 64 is computed at once
BATCH_TOKENS = Limit(8_192, 65_536)  # default token budget of a batch of prompts with their completions


def chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors along their first dimension into the same chunks, of nearly equal size and at most `rows` rows."""
    count = max(1, -(-len(tensors[0]) // rows))
    return zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)


def halved(size: int, smallest: int, unit: str) -> int:
    """Half of a batch size that ran out of memory. Frees the device's cache and logs a warning.

    Args:
        smallest: The size of a batch of one completion.
        unit: What the size counts, in the plural, for the warning.

    Raises:
        UserError: the batch cannot be made smaller.
    """
    if size <= smallest:
        raise UserError(NO_ROOM)
    torch.cuda.empty_cache()
    logger.warning("out of memory with %d %s in a batch; continuing with half as many", size, unit)
    return size // 2
