"""Text to token ids: prompts with feedback, padded rows for a forward pass, groups of rows of similar length."""

import bisect
import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Literal, TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from nlf.data.prompts import Prompt, PromptRow
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import (
    PLACES,
    check_messages,
    check_rendered,
    position_of,
    render,
    render_bare,
    shortened,
    with_feedback,
)
from nlf.models.memory import Limit

logger = logging.getLogger(__name__)

# Tokens by which a joined text may be longer than its pieces: they are tokenized differently where they meet.
SLACK = 8
MARK = "\n"  # a text that no tokenizer joins with the word after it
KEPT_PIECES = 4096  # tokenized feedback kept: a judge writes many different sentences
# What a model was trained on, what a prompt is instead, and what to give.
KINDS = ("conversations, with the tag {}", "text", '[{"role": "user", "content": "…"}] as the prompt')
KINDS_OF_TEXT = ("texts, with the tag before the prompt", "a conversation", "text as the prompt")


class PromptEncoder:
    """Token ids of a prompt, with or without feedback.

    A text prompt becomes `prefix + before + prompt + after`, where before and after come from the tag template, and the
    prefix holds the tokens that the tokenizer puts before every text, such as BOS. In a conversation the feedback goes into
    the system message or the first user message, and the chat template renders the whole.

    Prompts over `max_prompt_length` are cut before feedback is put to them: texts lose their first tokens, conversations
    their oldest turns. A judge's sentences over `max_feedback_length` lose their last words.

    Args:
        added: Ids of tokens that tags added. A text prompt that spells such a token is read as plain text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        scheme: TagScheme | None,
        max_prompt_length: int | None = None,
        max_feedback_length: int | None = None,
        added: Collection[int] = (),
    ):
        self.tokenizer = tokenizer
        self.scheme = scheme
        self.max_prompt_length = max_prompt_length
        self.max_feedback_length = max_feedback_length
        self.added = frozenset(added)
        self.prefix = prefix_of(tokenizer)
        self.warned_of_cut = False
        self.pieces = lru_cache(KEPT_PIECES)(self._pieces)
        self._cut = lru_cache(KEPT_PIECES)(self._cut_conversation)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that the reference reads: the prefix and the last `max_prompt_length` tokens of a text, or the turns of a
        conversation that have as many at most.

        Raises:
            UserError: the model cannot read the prompt; the error does not name it.
        """
        if isinstance(prompt, str):
            ids = self.plain_ids(prompt)
            return self.prefix + (ids[-self.max_prompt_length :] if self.max_prompt_length else ids)
        return self._without_added(self._chat(self.kept(prompt)))

    def kept(self, messages: list[dict]) -> list[dict]:
        """The messages of a conversation that the models read: the system message and the latest turns.

        Raises:
            UserError: the last turn alone has more than `max_prompt_length` tokens.
        """
        return self._cut(json.dumps(messages)) if self.max_prompt_length else messages

    def _cut_conversation(self, written: str) -> list[dict]:
        """The kept messages of a conversation in JSON. Call `kept`, which caches them."""
        assert self.max_prompt_length is not None  # `kept` asks for no cut without it
        tokens = 0
        for messages in shortened(json.loads(written)):
            tokens = len(self._chat(messages))
            if tokens <= self.max_prompt_length:
                return messages
        raise UserError(
            f"its last turn has {tokens} tokens, over max_prompt_length {self.max_prompt_length}, and conversations are cut "
            "at whole turns; shorten it, or raise max_prompt_length"
        )

    def plain_ids(self, text: str) -> list[int]:
        """Ids of a text, without any token that tags added, and without the prefix.

        Raises:
            UserError: the tokenizer cannot spell such a token in other tokens.
        """
        ids = self._tokens(text)
        if self.added.isdisjoint(ids):
            return ids
        plain = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return self._without_added(plain["input_ids"])

    def completion_ids(self, text: str) -> list[int]:
        """Ids of a completion from its text, without EOS. Tokenizers that put a space before every text do not put it here."""
        if not self._adds_space:
            return self.plain_ids(text)
        return self.plain_ids(MARK + text)[len(self.plain_ids(MARK)) :]

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text, as Llama 2's does."""
        return self._tokens(MARK) + self._tokens(" a") != self._tokens(f"{MARK} a")

    def _without_added(self, ids: list[int]) -> list[int]:
        """The ids of a prompt.

        Raises:
            UserError: one is a token that tags added, which the reference does not know.
        """
        if not self.added.isdisjoint(ids):
            spelled = self.tokenizer.decode(next(i for i in ids if i in self.added))
            raise UserError(
                f"it contains {spelled!r}, a token that was added for the tags; leave it out of the prompt"
            )
        return ids

    def query_ids(self, feedback: str | None, prompt_ids: Sequence[int], prompt: Prompt | None = None) -> list[int]:
        """Ids that the policy reads: the prompt with feedback.

        Args:
            prompt_ids: From `prompt_ids`.
            prompt: The prompt; needed for a conversation only.
        """
        if feedback is None:
            return list(prompt_ids)
        if isinstance(prompt, list):
            return self._chat(with_feedback(self.kept(prompt), feedback, self._tag_scheme.feedback_position))
        before, after = self.pieces(feedback)
        return self.prefix + before + list(prompt_ids)[len(self.prefix) :] + after

    def _pieces(self, feedback: str) -> tuple[list[int], list[int]]:
        """Token ids of the template before and after the prompt. Call `pieces`, which caches them."""
        before, after = self._tag_scheme.pieces(feedback)
        return self._tokens(before), self._tokens(after)

    @property
    def _tag_scheme(self) -> TagScheme:
        assert self.scheme is not None  # only models with tags are given feedback
        return self.scheme

    def length(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._tokens(text))

    def sentence(self, text: str) -> str | None:
        """A judge's sentence as it is put before a prompt; None if nothing is left.

        The sentence is put on one line, special tokens (the separator, an end of turn) are removed, and the text is
        cut between words to `max_feedback_length` tokens.
        """
        text = " ".join(self._special.sub(" ", text).split())
        limit = self.max_feedback_length
        if limit is None or self.length(text) <= limit:
            return text or None
        kept = bisect.bisect_right(range(len(text)), limit, key=lambda end: self.length(text[:end])) - 1
        short = text[: max(kept, 0)]
        short = short.rpartition(" ")[0] or short  # cut inside a word if it is the first
        self._warn_of_cut(limit, text)
        return short or None

    @cached_property
    def _special(self) -> re.Pattern:
        known = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        known += [self.scheme.separator] if self.scheme and self.scheme.separator else []
        return re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))) or r"(?!)")

    def _warn_of_cut(self, limit: int, text: str) -> None:
        """Warn of the first sentence that is cut, and of no later one."""
        if not self.warned_of_cut:
            logger.warning(
                "a judge's sentence (%r…) is cut to %d tokens, and longer ones will be too: the limit is max_feedback_length, "
                "or the room that the longest prompt leaves in the context",
                text[:40],
                limit,
            )
        self.warned_of_cut = True

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Refuse prompts that the model cannot read, or would read without their tags.

        Raises:
            UserError: a prompt is text where the model was trained on conversations, or the other way round; the last turn
                of a conversation is too long; it is not rendered whole; or two tags have the same tokens.
        """
        tags = self.scheme.tags if self.scheme else ()
        ids = {tuple(self._tokens(tag)): tag for tag in tags}
        if len(ids) < len(tags):
            lost = next(tag for tag in tags if tag not in ids.values())
            raise UserError(
                f"tag {lost!r} has the same tokens as {ids[tuple(self._tokens(lost))]!r}; choose other words"
            )
        shapes: set[tuple] = set()  # the roles of conversations whose messages have been checked
        for number, row in enumerate(rows, 1):
            with naming(number, row):
                self._check(row["prompt"], tags, shapes)

    def _check(self, prompt: Prompt, tags: Sequence[str], shapes: set[tuple]) -> None:
        conversational = self.scheme.conversational if self.scheme else None
        if conversational is not None and conversational == isinstance(prompt, str):
            told, found, wanted = KINDS if conversational else KINDS_OF_TEXT
            told = told.format(PLACES[self._tag_scheme.feedback_position])
            raise UserError(f"it is {found}, and the model was trained on {told}; give {wanted}")
        if isinstance(prompt, str):
            self.plain_ids(prompt)
            return
        if tags:
            check_rendered(self.tokenizer, self.kept(prompt), tags, self._tag_scheme.feedback_position)
        else:
            render_bare(self.tokenizer, prompt)
        if roles_of(prompt) not in shapes:
            check_messages(self.tokenizer, prompt)
            shapes.add(roles_of(prompt))
        self.prompt_ids(prompt)

    def check_fits(
        self,
        rows: Sequence[PromptRow],
        context: int | None,
        max_completion_length: int,
        words: Sequence[str | None] = (),
    ) -> int | None:
        """Refuse a prompt that does not fit the context with its longest tag and a completion.

        Args:
            context: Tokens that the model can read; None = no limit.
            words: Feedback to check beside the tags.

        Returns:
            Most tokens that a judge's sentence may have before any of the prompts; None = no limit.

        Raises:
            UserError: a prompt is too long; the error names the prompt, its length and the context.
        """
        if not context:
            return None
        room, tags = context, self.scheme.tags if self.scheme else (None,)
        for i, row in enumerate(rows):
            ids = self.prompt_ids(row["prompt"])
            lengths = [len(self.query_ids(tag, ids, row["prompt"])) for tag in (*tags, *words)]
            needed = max(lengths) + max_completion_length
            if needed > context:
                raise UserError(
                    f"prompt {i + 1} ({str(row['prompt'])[:40]!r}…) needs {needed} tokens with its tag and "
                    f"{max_completion_length} for the completion, the model has {context}; "
                    + self._way_out(row["prompt"], len(ids), max(lengths), context, max_completion_length)
                )
            without_tag = lengths[0] - self.length(tags[0] or "") + max_completion_length
            room = min(room, context - without_tag - SLACK)
        return room if rows else None

    def _way_out(self, prompt: Prompt, tokens: int, longest: int, context: int, max_completion_length: int) -> str:
        """What to do about a prompt that does not fit the context.

        Args:
            tokens, longest: Its tokens without a tag, and with the longest.
        """
        left = context - longest - max_completion_length + tokens - len(self.prefix)  # tokens of it that would fit
        todo = "shorten it" if longest - tokens < context else "choose shorter tags"
        if self._can_be_cut_to(left, prompt):
            kept = "last tokens" if isinstance(prompt, str) else "latest turns"
            return f"{todo}, or set --max_prompt_length {left} to keep its {kept}"
        return f"{todo}, or set --max_completion_length {context - longest}" if longest < context else todo

    def _can_be_cut_to(self, tokens: int, prompt: Prompt) -> bool:
        """Whether `max_prompt_length` can shorten a prompt to so many tokens."""
        if isinstance(prompt, str):
            return tokens > 0
        *_, last = shortened(prompt)
        return len(self._chat(last)) <= tokens

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    def _chat(self, messages: list[dict]) -> list[int]:
        return self._tokens(render(self.tokenizer, messages))


def scheme_for(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PromptRow],
    tags: Sequence[str],
    *,
    template: str,
    separator: str | None,
    conversational: bool,
    position: str = "auto",
) -> TagScheme:
    """The tags as these prompts take them: before a text, or in a message of a conversation, which has no separator.

    Args:
        rows: The prompts, of which conversations show where they take the tags.
        position: See `feedback_position`.

    Raises:
        UserError: the tags cannot make a scheme, or the chat template shows them nowhere.
    """
    if not conversational:
        return TagScheme(tuple(tags), template, separator, conversational=False)
    position = feedback_position(tokenizer, rows, tags, position)
    return TagScheme(tuple(tags), template, None, conversational=True, feedback_position=position)


def feedback_position(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow], tags: Sequence[str], asked: str = "auto"
) -> str:
    """Where the feedback of conversations goes, "system" or "user", found by rendering one conversation of each sequence of
    roles.

    Args:
        asked: The position; "auto" = the system message if each of them shows the tags there, else the first user message.

    Raises:
        UserError: one of them shows the tags nowhere, or cannot be rendered.
    """
    if asked != "auto":
        return asked
    found: dict[tuple[str, ...], str] = {}
    for number, row in enumerate(rows, 1):
        messages, roles = row["prompt"], roles_of(row["prompt"])
        if not isinstance(messages, str) and roles not in found:
            with naming(number, row):
                found[roles] = position_of(tokenizer, messages, tags)
    return "user" if "user" in found.values() else "system"


def roles_of(prompt: Prompt) -> tuple[str, ...]:
    """The roles of a conversation's messages; none of a text."""
    return () if isinstance(prompt, str) else tuple(str(message["role"]) for message in prompt)


@contextlib.contextmanager
def naming(number: int, row: PromptRow) -> Iterator[None]:
    """Inside the `with` block, a UserError gets the number and the beginning of a prompt."""
    try:
        yield
    except UserError as error:
        raise UserError(f"prompt {number} ({str(row['prompt'])[:40]!r}…): {error}") from error


def prefix_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before every text, such as BOS or GLM's `[gMASK]<sop>`.

    Tokens that it puts after every text, such as T5's EOS, are not kept: a completion follows the prompt.
    """
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)]


# ---- rows of a forward pass ---------------------------------------------------------------------------------------


class ForwardInputs(TypedDict):
    """Inputs of one forward pass over queries with their completions; all tensors are (B, L). A dict, so that
    accelerate and Trainer move it between devices.

    Rows leave out their last token, which predicts nothing. They are padded on the right, which causal attention never
    attends to, so the mask is all ones.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    predicts: torch.Tensor  # bool, True where the next token is a completion token


PADDING = 0  # the id at padded positions: nothing attends to them, and every model has a row 0


def forward_inputs(
    queries: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> ForwardInputs:
    """The inputs of one forward pass over B queries, each followed by its completion."""
    rows = [[*query, *completion] for query, completion in zip(queries, completions, strict=True)]
    predicts = [[0] * (len(q) - 1) + [1] * len(c) for q, c in zip(queries, completions, strict=True)]
    ids = pad([row[: max(len(row) - 1, 1)] for row in rows], pad_id, "right")
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1]).expand_as(ids).contiguous(),
        "predicts": pad([row + [0] * (ids.shape[1] - len(row)) for row in predicts], 0, "right").bool(),
    }


def inputs_on(inputs: ForwardInputs, device: torch.device) -> ForwardInputs:
    """The inputs on a device."""
    return {
        "input_ids": inputs["input_ids"].to(device),
        "attention_mask": inputs["attention_mask"].to(device),
        "position_ids": inputs["position_ids"].to(device),
        "predicts": inputs["predicts"].to(device),
    }


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Rows of ids as one `(B, L)` tensor."""
    width = max(map(len, rows))
    filled = torch.full((len(rows), width), value, dtype=torch.long)  # (B, L)
    for i, row in enumerate(rows):
        filled[i, (width - len(row) if side == "left" else 0) :][: len(row)] = torch.tensor(row, dtype=torch.long)
    return filled


# ---- groups of similar length -------------------------------------------------------------------------------------

PASS_TOKENS = Limit(32, 4096)  # cost of one more forward pass, in tokens


def pass_tokens(device: torch.device, alone: bool) -> int | None:
    """The cost of one more forward pass, in tokens.

    None (do not cut micro-batches into groups) for several ranks: they wait for each other, so all ranks would have to
    make the same number of passes.
    """
    return PASS_TOKENS.on(device) if alone else None


def group_by_length(lengths: Sequence[int], pass_tokens: int | None) -> list[list[int]]:
    """Cut rows into groups of similar length, so that padded tokens and passes together cost least.

    Args:
        lengths: Tokens of each row.
        pass_tokens: Cost of one more pass, in tokens; None = one group, in the order given.

    Returns:
        Row numbers of each group.
    """
    if pass_tokens is None:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ends = [n for n in range(1, len(order)) if lengths[order[n - 1]] < lengths[order[n]]] + [len(order)]
    best = {0: (0, 0)}  # for the n shortest rows: their least cost, and where their last group begins
    for end in ends:
        width = lengths[order[end - 1]]
        best[end] = min((cost + width * (end - start) + pass_tokens, start) for start, (cost, _) in best.items())
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.insert(0, order[start:end])
        end = start
    return groups
