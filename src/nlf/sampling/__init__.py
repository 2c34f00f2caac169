"""What a sampler is: requests in, token ids out. `hf.py` samples in this process; others can sit beside it.

A completion is a function of the weights, the prompt's ids, the options and (seed, iteration, request key, index)
only. No torch here, so that naming a request costs nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nlf.config import SamplingOptions

__all__ = ["Request", "Sampler", "request_key"]


@dataclass(frozen=True)
class Request:
    """One prompt as the model reads it, feedback and all."""

    input_ids: tuple[int, ...]
    key: int  # 64 bits: names the random numbers of its completions, see `request_key`
    negative_ids: tuple[int, ...] | None = None  # the same prompt after the worst tag, for guidance


class Sampler(Protocol):
    def sample(
        self,
        requests: Sequence[Request],
        options: "SamplingOptions",
        *,
        seed: int,
        iteration: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """Per request `options.num_generations` lists of token ids, with the EOS that ended them.

        `progress` is called with the number of completions finished since it was last called.
        """
        ...


def request_key(prompt_id: str, occurrence: int) -> int:
    """64 bits from the prompt and how often it came before, so that the order of prompts does not matter."""
    return int(hashlib.sha256(f"{prompt_id}:{occurrence}".encode()).hexdigest()[:16], 16)
