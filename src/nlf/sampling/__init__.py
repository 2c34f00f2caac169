"""Samplers turn requests into token ids.

`hf.py` samples in this process, `vllm.py` in separate processes, and `server.py` asks a server. A completion is a
function of the weights, the prompt's ids, the options and (seed, iteration, request key, index) only. vLLM and servers
keep this rule as far as the engine repeats itself for a seed. This module imports no torch, so it loads fast.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nlf.config import SamplingOptions
from nlf.errors import UserError

__all__ = [
    "Completions",
    "Progress",
    "Request",
    "Requests",
    "Sampler",
    "Vocabulary",
    "check_known",
    "check_lengths",
    "context_of",
    "request_key",
    "seed_of",
]


@dataclass(frozen=True)
class Request:
    """One prompt as the model reads it, with its feedback.

    Attributes:
        key: 64 bits that name the random numbers of its completions, from `request_key`.
        negative_ids: The same prompt after the tag that guidance moves away from; None = no guidance.
    """

    input_ids: tuple[int, ...]
    key: int
    negative_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The facts that an engine needs about a policy's tokens.

    Attributes:
        eos: Ids that end a completion, which keeps its EOS.
        banned: Ids that are never sampled.
        context: Most tokens, prompt and completion, that the model reads.
        size: Number of token ids.
    """

    eos: Sequence[int]
    banned: Sequence[int] = ()
    context: float = float("inf")
    size: float = float("inf")


Requests = Sequence[Request]
Completions = list[list[list[int]]]  # for each request its completions, as token ids
Progress = Callable[[int], None] | None  # called with the number of completions finished since the last call


class Sampler(Protocol):
    """Draws completions.

    Attributes:
        label: The sampler's name in the settings of samples.
    """

    label: str

    def sample(
        self, requests: Requests, options: SamplingOptions, *, seed: int, iteration: int, progress: Progress = None
    ) -> Completions:
        """Sample `options.num_generations` completions of each request.

        Args:
            progress: Called with the number of completions finished since the last call.

        Returns:
            For each request its completions as lists of token ids, including the EOS that ended a completion.
        """
        ...

    def close(self) -> None:
        """Free everything kept between calls: processes, and their memory. A later call may follow."""
        ...


def request_key(prompt_id: str, occurrence: int) -> int:
    """64 bits from the prompt and its occurrence, so that completions do not depend on the order of prompts.

    Args:
        occurrence: The number of earlier rows with the same prompt.
    """
    return int(hashlib.sha256(f"{prompt_id}:{occurrence}".encode()).hexdigest()[:16], 16)


def seed_of(seed: int, iteration: int, key: int, index: int) -> int:
    """The seed of one completion, for an engine with its own random numbers: 31 bits, which every engine takes."""
    return int(hashlib.sha256(f"{seed}:{iteration}:{key}:{index}".encode()).hexdigest()[:8], 16) >> 1


def context_of(config: Any) -> float:
    """Most tokens that a transformers model reads, by its configuration; infinite if the configuration has no limit."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if limit and limit > 0 else float("inf")


def check_known(prefixes: Sequence[Sequence[Sequence[int]]], rows: int) -> None:
    """Raise UserError for the first prompt with a token that the model has no row for.

    Args:
        prefixes: See `check_lengths`.
        rows: The number of token ids that the model reads.
    """
    for i, prefix in enumerate(prefixes, 1):
        highest = max(max(ids, default=0) for ids in prefix)
        if highest >= rows:
            raise UserError(
                f"prompt {i} of {len(prefixes)} has token {highest}, and the model that samples it has {rows} rows: a token "
                "was added to the tokenizer only, or is the separator; take its text out of the prompt"
            )


def check_lengths(prefixes: Sequence[Sequence[Sequence[int]]], new: int, context: float) -> None:
    """Raise UserError for the first prompt that is empty or leaves no room for `new` tokens.

    Args:
        prefixes: For each prompt its ids; with guidance also its ids after the worst tag.
    """
    for i, prefix in enumerate(prefixes, 1):
        shortest, longest = min(map(len, prefix)), max(map(len, prefix))
        if not shortest:
            what = "worst-tag prefix, which guidance needs" if prefix[0] else "tokens"
            raise UserError(f"prompt {i} of {len(prefixes)} has no {what}; give it one or remove the prompt")
        if longest + new > context:
            raise UserError(
                f"prompt {i} of {len(prefixes)} has {longest} tokens: with max_completion_length {new} that is "
                f"over the model's context of {context}; shorten it, or lower max_completion_length"
            )
