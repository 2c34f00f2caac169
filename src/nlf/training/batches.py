"""Rollouts → token batches: feedback and prompt padded left, the completion padded right.

Token ids are the record: a completion's ids are the sampled ones, EOS included, and a text prompt's ids are the same
with and without feedback, because the template is tokenised in pieces around it. (The published code re-tokenised
responses, which changes ids, and stripped EOS, so that stopping was never learned.)
"""

import bisect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from nlf.data.feedback import Words
from nlf.data.rollouts import Pool
from nlf.errors import UserError
from nlf.method.quantize import Draws
from nlf.method.tags import TagScheme

logger = logging.getLogger(__name__)

Prompt = str | list[dict]  # text, or messages with role and content
SLACK = 8  # tokens; where pieces meet they may be cut otherwise than alone
KEPT_PIECES = 4096  # a judge's sentences are many


class PromptEncoder:
    """Token ids of a prompt, with or without feedback.

    Text: `BOS? + before + prompt + after`, where before and after are the template's pieces. Conversations: the
    feedback is appended to the system message and the chat template renders the whole.

    Longer prompts lose their first tokens, a judge's longer sentences (`sentence`) their last words.
    """

    def __init__(
        self,
        tokenizer,
        scheme: TagScheme | None,
        max_prompt_length: int | None = None,
        max_feedback_length: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.scheme = scheme
        self.max_prompt_length = max_prompt_length
        self.max_feedback_length = max_feedback_length
        empty = tokenizer("")["input_ids"]
        self.bos = [i for i in empty if i == tokenizer.bos_token_id][:1]
        self.told_of_cut = False
        self.pieces = lru_cache(KEPT_PIECES)(self._pieces)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What the reference model reads: BOS where the tokenizer has one, and the prompt (its last tokens, if
        cut).
        """
        if isinstance(prompt, str):
            ids = self._tokens(prompt)
            return self.bos + (ids[-self.max_prompt_length :] if self.max_prompt_length else ids)
        ids = self._chat(prompt)
        return ids[-self.max_prompt_length :] if self.max_prompt_length else ids

    def query_ids(self, feedback: str | None, prompt_ids: Sequence[int], prompt: Prompt | None = None) -> list[int]:
        """What the policy reads. `prompt` is what `prompt_ids` came from; only a conversation need be given."""
        if feedback is None:
            return list(prompt_ids)
        if isinstance(prompt, list):
            return self._chat(with_feedback(prompt, feedback))
        before, after = self.pieces(feedback)
        return self.bos + before + list(prompt_ids)[len(self.bos) :] + after

    def _pieces(self, feedback: str) -> tuple[list[int], list[int]]:
        """Token ids of the template before and after the prompt; `pieces` keeps the last ones."""
        before, after = self.scheme.pieces(feedback)
        return self._tokens(before), self._tokens(after)

    def length(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self._tokens(text))

    def sentence(self, text: str) -> str | None:
        """A judge's sentence as it is put before a prompt: on one line, without the text of special tokens (the
        separator, say, or what ends a turn), and cut at a word to `max_feedback_length` tokens. None where nothing is left.
        """
        text = " ".join(self._special.sub(" ", text).split())
        limit = self.max_feedback_length
        if limit is None or self.length(text) <= limit:
            return text or None
        kept = bisect.bisect_right(range(len(text)), limit, key=lambda end: self.length(text[:end])) - 1
        short = text[: max(kept, 0)]
        short = short.rpartition(" ")[0] or short  # at a character where there are no words
        self._tell_of_cut(limit, text)
        return short or None

    @cached_property
    def _special(self) -> re.Pattern:
        known = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        known += [self.scheme.separator] if self.scheme and self.scheme.separator else []
        return re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))) or r"(?!)")

    def _tell_of_cut(self, limit: int, text: str) -> None:
        """Once: sentences may be many."""
        if not self.told_of_cut:
            logger.warning(
                "a judge's sentence (%r…) is cut to %d tokens, and others will be: that is max_feedback_length, or what the "
                "longest prompt leaves of the context",
                text[:40],
                limit,
            )
        self.told_of_cut = True

    def check_fits(
        self, rows: Sequence[dict], context: int | None, max_completion_length: int, words: Sequence[str] = ()
    ) -> int | None:
        """Refuse a prompt that cannot stand in the context with its longest tag (or these words) and its completion.

        Returns:
            Tokens that a judge's sentence may have before any of the prompts; None = no limit.

        Raises:
            UserError: naming the prompt, its length and the room there is.
        """
        room = None
        for i, row in enumerate(rows if context else ()):
            ids = self.prompt_ids(row["prompt"])
            lengths = [len(self.query_ids(tag, ids, row["prompt"])) for tag in (*self.scheme.tags, *words)]
            needed = max(lengths) + max_completion_length
            if needed > context:
                raise UserError(
                    f"prompt {i + 1} ({str(row['prompt'])[:40]!r}…) needs {needed} tokens with its tag and "
                    f"{max_completion_length} for the completion, the model has {context}; "
                    "shorten it, or set --max_prompt_length to keep its last tokens"
                )
            bare = lengths[0] - self.length(self.scheme.best) + max_completion_length
            room = min(context - bare - SLACK, context if room is None else room)
        return room

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _chat(self, messages: list[dict]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._tokens(text)


def with_feedback(messages: list[dict], feedback: str) -> list[dict]:
    """The conversation with the feedback in its system message, appended to one that is there."""
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{feedback}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": feedback}, *messages]


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


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Rows of ids as one `(B, L)` tensor, padded on the left or the right."""
    width = max(map(len, rows))
    filled = torch.full((len(rows), width), value, dtype=torch.long)  # (B, L)
    for i, row in enumerate(rows):
        filled[i, (width - len(row) if side == "left" else 0) :][: len(row)] = torch.tensor(row, dtype=torch.long)
    return filled


def read_whole(queries: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> dict:
    """Inputs of one forward pass over whole rows but for their last token, which predicts nothing: `(B, L)` each;
    `predicts` is true where the next token is one of the completion's.

    Rows are padded on the right, where what is read does not look, so that the mask hides nothing and attention is plainly
    causal.
    """
    rows = [[*query, *completion] for query, completion in zip(queries, completions, strict=True)]
    told = [[0] * (len(q) - 1) + [1] * len(c) for q, c in zip(queries, completions, strict=True)]
    ids = pad([row[: max(len(row) - 1, 1)] for row in rows], pad_id, "right")
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1]).expand_as(ids).contiguous(),
        "predicts": pad([row + [0] * (ids.shape[1] - len(row)) for row in told], 0, "right").bool(),
    }


def group_by_length(lengths: Sequence[int], pass_tokens: int | None) -> list[list[int]]:
    """Rows cut into groups of like length, so that their tokens, padded, and their passes cost least together.

    Args:
        pass_tokens: What one more pass costs, in tokens; None = one group, as they come.
    """
    if pass_tokens is None:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [n for n in range(1, len(order)) if lengths[order[n - 1]] < lengths[order[n]]] + [len(order)]
    best = {0: (0, 0)}  # for the first n rows: their cost, and where their last group begins
    for end in ends:
        width = lengths[order[end - 1]]
        best[end] = min((cost + width * (end - start) + pass_tokens, start) for start, (cost, _) in best.items())
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.insert(0, order[start:end])
        end = start
    return groups


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
