"""What a sampler is: requests in, token ids out.

`hf.py` samples in this process, `vllm.py` in processes of its own, `server.py` asks one that runs somewhere. A completion is a
function of the weights, the prompt's ids, the options and (seed, iteration, request key, index) only; the other two keep
that as far as the engine repeats itself for a seed. No torch here, so that naming a request costs nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nlf.errors import UserError

if TYPE_CHECKING:
    from nlf.config import SamplingOptions

__all__ = ["Request", "Sampler", "check_lengths", "context_of", "request_key", "seed_of"]


@dataclass(frozen=True)
class Request:
    """One prompt as the model reads it, feedback and all."""

    input_ids: tuple[int, ...]
    key: int  # 64 bits: names the random numbers of its completions, see `request_key`
    negative_ids: tuple[int, ...] | None = None  # the same prompt after the worst tag, for guidance


class Sampler(Protocol):
    label: str  # what files of samples say they came from

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

    def close(self) -> None:
        """Give back what is kept between calls: processes, and the memory they hold. Another call may follow."""
        ...


def request_key(prompt_id: str, occurrence: int) -> int:
    """64 bits from the prompt and how often it came before, so that the order of prompts does not matter."""
    return int(hashlib.sha256(f"{prompt_id}:{occurrence}".encode()).hexdigest()[:16], 16)


def seed_of(seed: int, iteration: int, key: int, index: int) -> int:
    """The seed of one completion for an engine that draws its own random numbers: 31 bits, which every engine takes."""
    return int(hashlib.sha256(f"{seed}:{iteration}:{key}:{index}".encode()).hexdigest()[:8], 16) >> 1


def context_of(config) -> float:
    """Tokens that a model of transformers reads at most, by its configuration; infinite where that says nothing."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or float("inf")


def check_lengths(prefixes: Sequence[Sequence[Sequence[int]]], new: int, context: float) -> None:
    """Raise UserError for the first prompt that is empty or leaves no room for `new` tokens.

    Args:
        prefixes: The ids of each prompt; with guidance also those after the worst tag.
    """
    for i, prefix in enumerate(prefixes, 1):
        shortest, longest = min(map(len, prefix)), max(map(len, prefix))
        if not shortest:
            what = "worst-tag prefix, which guidance needs" if prefix[0] else "tokens"
            raise UserError(f"prompt {i} of {len(prefixes)} has no {what}; give it one or remove the prompt")
        if longest + new > context:
            raise UserError(
                f"prompt {i} of {len(prefixes)} has {longest} tokens: with max_completion_length {new} that is "
                f"over the model's context of {context}; shorten it, or set max_prompt_length to {context - new} "
                "or less"
            )
