"""Text to token ids: prompts with feedback before them, padded rows, groups of like length."""

import bisect
import logging
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch

from nlf.errors import UserError
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


CPU_PASS, DEVICE_PASS = 32, 4096  # what one more pass over rows of like length costs, in tokens


def pass_tokens(device: torch.device, alone: bool) -> int | None:
    """What one more pass within a micro-batch costs. None = no groups, where ranks wait for each other: they would have to
    make equally many passes.
    """
    if not alone:
        return None
    return CPU_PASS if device.type == "cpu" else DEVICE_PASS
