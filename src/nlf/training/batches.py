"""Rollouts → token batches: feedback and prompt padded left, the completion padded right.

Token ids are the record: a completion's ids are the sampled ones, EOS included, and a text prompt's ids are the same
with and without feedback, because the template is tokenised in pieces around it. (The published code re-tokenised
responses, which changes ids, and stripped EOS, so that stopping was never learned.)
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from nlf.data.feedback import Words
from nlf.data.pool import Pool
from nlf.method.quantize import Draws
from nlf.models.encoder import PromptEncoder, group_by_length, pad, read_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One drawn rollout, ready to be batched. `wrong` is the query under the mirror words, or None without contrast.

    `num_tokens` and `num_completions` are those of the whole optimizer step: the loss's two denominators.
    """

    right: list[int]
    wrong: list[int] | None
    prompt: list[int]
    completion: list[int]
    num_tokens: int
    num_completions: int


class PoolDataset(Dataset):
    """`steps × batch_size` drawn rollouts of one iteration; item i depends on (seed, iteration, i) and the pool only.

    The Trainer sees one dataset of fixed length; `refresh` replaces what is in it before each epoch.
    """

    def __init__(self, num_steps: int, batch_size: int, *, seed: int, contrast: bool, weights: Sequence[float] | None):
        self.num_steps, self.batch_size = num_steps, batch_size
        self.seed, self.contrast, self.weights = seed, contrast, weights
        self.make_example: Callable[[int, int], Example] | None = None

    def __len__(self) -> int:
        return self.num_steps * self.batch_size

    def refresh(
        self,
        pool: Pool,
        quantiles: np.ndarray,
        words: Words,
        encoder: PromptEncoder,
        iteration: int,
        conversations: dict[str, list[dict]] | None = None,
    ) -> None:
        """Point the dataset at this iteration's pool, and at the words of its rollouts."""
        draws = Draws(quantiles, batch_size=self.batch_size, weights=self.weights, seed=self.seed, iteration=iteration)

        def query(row: int, feedback: str) -> list[int]:
            messages = conversations[pool.prompt_key(row)] if conversations else None
            return encoder.query_ids(feedback, pool.prompt_ids(row).tolist(), messages)

        def make(i: int, num_tokens: int) -> Example:
            row = draws[i]
            right, wrong = words(row, i)
            return Example(
                right=query(row, right),
                wrong=query(row, wrong) if self.contrast else None,
                prompt=pool.prompt_ids(row).tolist(),
                completion=pool.completion_ids(row).tolist(),
                num_tokens=num_tokens,
                num_completions=self.batch_size,
            )

        self.make_example = make
        self._step_tokens = [
            sum(
                len(pool.completion_ids(draws[i])) for i in range(step * self.batch_size, (step + 1) * self.batch_size)
            )
            for step in range(self.num_steps)
        ]

    def __getitem__(self, i: int) -> Example:
        return self.make_example(i, self._step_tokens[i // self.batch_size])


def collate(examples: Sequence[Example], pad_id: int, pass_tokens: int | None = None) -> dict[str, list[dict]]:
    """One micro-batch as `groups` of examples of like length; the loss of the micro-batch is the sum of theirs.

    Args:
        pass_tokens: As of `group_by_length`.

    Returns:
        For each group of B examples: `policy`, `read_whole` of B or 2B rows, right branch first; `reference`, of B rows
        without feedback; `labels`, `completion_mask`: `(B, T)`; `num_tokens`, `num_completions`: of the whole step,
        scalars.
    """
    lengths = [max(len(e.right), len(e.wrong or ())) + len(e.completion) for e in examples]
    groups = group_by_length(lengths, pass_tokens)
    return {"groups": [_collate_group([examples[i] for i in group], pad_id) for group in groups]}


def _collate_group(examples: Sequence[Example], pad_id: int) -> dict:
    completions = [e.completion for e in examples]
    contrast = examples[0].wrong is not None
    queries = [e.right for e in examples] + ([e.wrong for e in examples] if contrast else [])
    return {
        "policy": read_whole(queries, completions * (2 if contrast else 1), pad_id),
        "reference": read_whole([e.prompt for e in examples], completions, pad_id),
        "labels": pad(completions, pad_id, "right"),
        "completion_mask": pad([[1] * len(c) for c in completions], 0, "right").bool(),
        "num_tokens": torch.tensor(examples[0].num_tokens),
        "num_completions": torch.tensor(examples[0].num_completions),
    }
