"""Rollouts → token batches.

Token ids are the record: a completion keeps its sampled ids, EOS included. A text prompt has equal ids with and
without feedback, because the pieces of the template around it are tokenized separately. (The published code tokenized
responses again, which changes ids, and stripped EOS, so that the model never learned to stop.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from nlf.data.feedback import Words
from nlf.data.pool import Pool
from nlf.data.prompts import Prompt
from nlf.method.quantize import Draws, SharedDraws
from nlf.models.encoder import ForwardInputs, PromptEncoder, forward_inputs, group_by_length, pad


@dataclass(frozen=True)
class Example:
    """Token ids of one drawn rollout.

    Attributes:
        right, wrong: The prompt with the rollout's own feedback and with the mirror feedback; `wrong` is None without
            contrast.
        prompt: The prompt without feedback, which the reference reads.
        num_tokens, num_completions: Totals of the optimizer step that the example belongs to.
        credit: Of each token of the completion; None = the run has no credit.
    """

    right: list[int]
    wrong: list[int] | None
    prompt: list[int]
    completion: list[int]
    num_tokens: int
    num_completions: int
    credit: np.ndarray | None = None


class Group(TypedDict):
    """B examples of similar length, ready for the models. K branches: 2 with contrast, else 1."""

    policy: ForwardInputs  # (KB, L), all `right` rows before all `wrong` rows
    reference: ForwardInputs  # (B, L'), without feedback
    labels: torch.Tensor  # (B, T), completions padded on the right
    completion_mask: torch.Tensor  # (B, T) bool
    num_tokens: torch.Tensor  # (), of the whole optimizer step
    num_completions: torch.Tensor  # (), of the whole optimizer step
    credit: torch.Tensor | None  # (B, T) float32; None = the run has no credit


class PoolDataset(Dataset):
    """`num_steps × batch_size` drawn rollouts of one iteration. Item i depends on (seed, iteration, i) and the pool only.

    The dataset has a fixed length for Trainer; `refresh` replaces its contents before each epoch.

    Args:
        weights: Share of each quantile in a step; see `Draws`.
        logged_share: Share of a step that is logged feedback, where the pool has both.
        pairs: Logged rows are pairs, whose two rows are drawn together.
    """

    def __init__(
        self,
        num_steps: int,
        batch_size: int,
        *,
        seed: int,
        contrast: bool,
        weights: Sequence[float] | None,
        logged_share: float = 0.0,
        pairs: bool = False,
    ):
        self.num_steps, self.batch_size = num_steps, batch_size
        self.logged_share, self.pairs = logged_share, pairs
        self.seed, self.contrast, self.weights = seed, contrast, weights
        self._make_example: Callable[[int, int], Example] | None = None
        self._step_tokens: list[int] = []

    def __len__(self) -> int:
        return self.num_steps * self.batch_size

    def refresh(
        self,
        pool: Pool,
        quantiles: np.ndarray,
        words: Words,
        encoder: PromptEncoder,
        iteration: int,
        conversations: Mapping[str, Prompt] | None = None,
        credit: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Draw this iteration's rollouts from the pool.

        Args:
            quantiles: `(N,)`, of the pool's rollouts.
            words: Right and wrong feedback of each rollout.
            conversations: Messages of each prompt id; None = prompts are text.
            credit: Of each token of the rollouts of this iteration, which are the last of the pool.
        """
        draws = self._draws(pool.logged, quantiles, iteration)
        query = partial(_query, pool, encoder, conversations)
        first = len(pool) - len(credit or ())

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
                credit=None if credit is None else credit[row - first],
            )

        self._make_example = make
        lengths = [len(pool.completion_ids(draws[i])) for i in range(len(self))]
        self._step_tokens = [sum(lengths[i : i + self.batch_size]) for i in range(0, len(self), self.batch_size)]

    def _draws(self, logged: np.ndarray, quantiles: np.ndarray, iteration: int) -> Draws | SharedDraws:
        """The rows of the iteration's items. Logged rows `(N,)` and rollouts each fill their share of every step."""
        draw = partial(Draws, weights=self.weights, seed=self.seed, iteration=iteration)
        own, others = (np.where(which, quantiles, np.int8(-1)) for which in (logged, ~logged))
        if not logged.any():
            return draw(quantiles, batch_size=self.batch_size)
        count = min(max(round(self.logged_share * self.batch_size), 1), self.batch_size)
        if count == self.batch_size or not (others >= 0).any():
            return draw(own, batch_size=self.batch_size, together=self.pairs)
        return SharedDraws(
            draw(own, batch_size=count, together=self.pairs), draw(others, batch_size=self.batch_size - count)
        )

    def __getitem__(self, i: int) -> Example:
        assert self._make_example is not None  # refresh has been called before the epoch
        return self._make_example(i, self._step_tokens[i // self.batch_size])


def _query(
    pool: Pool, encoder: PromptEncoder, conversations: Mapping[str, Prompt] | None, row: int, feedback: str | None
) -> list[int]:
    """Token ids of the prompt of a rollout with this feedback."""
    messages = conversations[pool.prompt_key(row)] if conversations else None
    return encoder.query_ids(feedback, pool.prompt_ids(row).tolist(), messages)


def collate(examples: Sequence[Example], pad_id: int, pass_tokens: int | None = None) -> dict[str, list[Group]]:
    """One micro-batch, cut into `groups` of examples of similar length. Its loss is the sum of the groups' losses.

    Args:
        pass_tokens: See `group_by_length`.
    """
    lengths = [max(len(e.right), len(e.wrong or ())) + len(e.completion) for e in examples]
    groups = group_by_length(lengths, pass_tokens)
    return {"groups": [_collate_group([examples[i] for i in group], pad_id) for group in groups]}


def _collate_group(examples: Sequence[Example], pad_id: int) -> Group:
    completions = [e.completion for e in examples]
    branches = [[e.right for e in examples], [e.wrong for e in examples if e.wrong is not None]]
    queries = [query for branch in branches for query in branch]
    credits = [e.credit.tolist() for e in examples if e.credit is not None]
    return {
        "policy": forward_inputs(queries, completions * (len(queries) // len(examples)), pad_id),
        "reference": forward_inputs([e.prompt for e in examples], completions, pad_id),
        "labels": pad(completions, pad_id, "right"),
        "completion_mask": pad([[1] * len(c) for c in completions], 0, "right").bool(),
        "num_tokens": torch.tensor(examples[0].num_tokens),
        "num_completions": torch.tensor(examples[0].num_completions),
        "credit": _padded_floats(credits) if credits else None,
    }


def _padded_floats(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """`(B, T)` float32, padded with 0 on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)
