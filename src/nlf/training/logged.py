"""Logged feedback in a run: the words for it, and its parts of the pool.

Logged rows become parts of the pool once, before the first step: token ids from text, EOS unless the completion was cut. The
parts are cut from the records in their order and stamped, so a killed run makes only the missing ones. Rows that nobody has
scored are scored by the run's rewards, as rollouts are.

No importance ratio: the loss asks under which feedback a completion is likelier, and both sides have the same completion,
whoever wrote it (docs/feedback.md).
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nlf.config import Attribute
from nlf.data.files import prompt_id
from nlf.data.logged import Found, Logged, count_unused, unused_lines
from nlf.data.logged_rows import LoggedRow
from nlf.data.pool import read_parts
from nlf.data.prompts import Prompt, PromptRow
from nlf.data.rollouts import SCHEMA, logged_parts, logged_path, read_part, write_part
from nlf.errors import UserError
from nlf.method.quantize import total
from nlf.method.tags import degrees, diagonal
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.rewards.tables import nulls, score_table
from nlf.rewards.words import noun_of
from nlf.training.collector import Scoring

logger = logging.getLogger(__name__)

BLOCK = 4096  # records of a part
MOST_CUT = 0.1  # the highest share of cut completions that needs no warning
GOOD_OR_BAD = ("Good response", "Bad response")
CHOSEN_OR_NOT = ("Better response", "Worse response")


# ---- words --------------------------------------------------------------------------------------------------------


def tags_of(logged: Logged, options: Any, samples: bool) -> tuple[list[str], str] | None:
    """The tags of logged feedback, best first, and the reason for them; None = those of the run's rewards.

    Args:
        options: The knobs of the run.
        samples: The run samples too, so its rewards name the tags.

    Raises:
        UserError: ratings do not go with the run's attributes, its tags, or its sampling.
    """
    shape = logged.shape
    if options.attributes:
        _check_ratings(logged, [attribute["name"] for attribute in options.attributes])
        return None
    if shape.name == "ratings":
        if samples:
            names = ", ".join(column.name for column in shape.rewards)
            raise UserError(
                f"feedback holds the ratings {names}, and sampled completions need a scorer for each: give attributes of these "
                "names, one rating as feedback_columns reward=NAME, or num_train_epochs 0"
            )
        joined = diagonal([dial.tags for dial in dials_of(logged)], options.attribute_template)
        if options.tags not in (None, joined):
            raise UserError(
                "tags: every rating of the feedback has tags of its own; leave tags out, or give attributes"
            )
        return joined, "one dial for each rating of the feedback"
    if samples or shape.name == "completions":
        return None
    if shape.by_word:
        words = CHOSEN_OR_NOT if shape.name == "pairs" else GOOD_OR_BAD
        return [*words], f"the feedback holds {shape.name}"
    if not shape.rewards:
        return [*GOOD_OR_BAD], "the feedback holds sentences"
    return _degrees(logged, 0), f"made from the column {shape.rewards[0].name!r} of the feedback"


def _degrees(logged: Logged, number: int) -> list[str]:
    """The tags of a column of numbers, best first: one for each level, else five."""
    column = logged.shape.rewards[number]
    words = degrees(noun_of(column.name), _levels(logged, number) or 5)
    return [*words] if column.sign < 0 else [*words[::-1]]


def _levels(logged: Logged, number: int) -> int | None:
    return logged.levels(number) if logged.shape.rewards[number].sign > 0 else None


def dials_of(logged: Logged) -> list[Attribute]:
    """One attribute for each rating; a rating of whole numbers keeps its levels."""
    return [
        Attribute(column.name, "", _degrees(logged, i), "levels" if _levels(logged, i) else "even")
        for i, column in enumerate(logged.shape.rewards)
    ]


def rule_of(logged: Logged, num_tags: int) -> str | None:
    """How the rewards of logged rows become quantiles; None = by the run's rule."""
    if logged.shape.by_word:
        return "ends"
    numbers = logged.shape.name in ("scores", "sentences") and logged.shape.rewards
    return "levels" if numbers and _levels(logged, 0) == num_tags else None


def _check_ratings(logged: Logged, names: Sequence[str]) -> None:
    own = [column.name for column in logged.shape.rewards]
    if logged.shape.name != "completions" and (missing := [name for name in names if name not in own]):
        raise UserError(
            f"attributes: the feedback has no numbers for {missing[0]!r}; it has {', '.join(own) or logged.shape.name}; name "
            f"attributes as its columns, or give feedback_columns reward={missing[0]}"
        )


def described(logged: Logged) -> str:
    """What was understood, in a few words."""
    form = "conversations" if logged.conversational else "texts"
    kind = logged.shape.words + (", which the rewards score" if logged.shape.name == "completions" else "")
    return f"{len(logged):,} completions from {logged.records:,} rows of {form}: {kind}"


# ---- the parts of the pool ----------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A logged row as token ids."""

    row: LoggedRow
    prompt_ids: list[int]
    completion_ids: list[int]
    ended: bool


@dataclass(frozen=True)
class LoggedWriter:
    """Writes logged feedback as parts of the pool.

    Attributes:
        logged: None = nothing is written.
        names: See `names_in_pool`.
        feedback: The longest feedback that a row can get.
        context: Tokens that the model can read; None = no limit.
        most_tokens: `max_completion_length`.
        scoring: The rewards that score completions without feedback.
    """

    logged: Logged | None
    policy: Policy
    encoder: PromptEncoder
    names: Sequence[str | None]
    feedback: str | None
    context: int | None
    most_tokens: int
    scoring: Scoring

    def write(self, run_dir: Path, settings: str, tell: Callable[[str], None]) -> None:
        """Write the parts that are missing, and remove parts beyond the last.

        Args:
            settings: The digest of what rollouts depend on, for the stamps.

        Raises:
            UserError: no row fits the model, a reward fails, or the disk is full.
        """
        if self.logged is None:
            return
        stamp = {"feedback": self.logged.digest, "settings": settings}
        unused: dict[str, tuple[int, str]] = {}
        rows = cut = part = 0
        for part, block in enumerate(blocks(self.logged.files), 1):
            path = logged_path(run_dir, part - 1)
            table = read_part(path, stamp)
            if table is None:
                found = [each for one in block for each in self._encoded(one, unused)]
                table = self._table(found)
                write_part(path, table, stamp)
            rows, cut = rows + len(table), cut + len(table) - int(np.sum(table["ended"].to_numpy()))
        for path in logged_parts(run_dir)[part:]:
            path.unlink()
        for line in unused_lines(unused, self.logged.records):
            tell(f"feedback: {line}")
        if not rows:
            raise UserError(
                f"feedback {', '.join(self.logged.files.sources)}: no row fits the model, so none can be trained on"
            )
        if cut > MOST_CUT * rows:
            tell(
                f"warning: {cut:,} of {rows:,} logged completions have no end: they were cut when they were written, or are cut to "
                f"max_completion_length {self.most_tokens}"
            )

    def _encoded(self, found: Found, unused: dict[str, tuple[int, str]]) -> list[Encoded]:
        """The rows of a record that fit the model; a pair that does not fit as a whole is left out."""
        pairs = self.logged is not None and self.logged.shape.name == "pairs"
        kept: list[Encoded] = []
        for group in [found.rows] if pairs else [[row] for row in found.rows]:
            try:
                rows = [self._ids(row) for row in group]
                reason = next(filter(None, map(self._misfit, rows)), None)
            except UserError:
                rows, reason = [], "the model cannot read the prompt"
            if len(rows) == 2 and rows[0].completion_ids == rows[1].completion_ids:
                reason = f"both completions begin with the same {self.most_tokens} tokens"
            if reason:
                count_unused(unused, reason, found.where)
            else:
                kept += rows
        return kept

    def _ids(self, row: LoggedRow) -> Encoded:
        """Token ids of prompt and completion; a long completion is cut."""
        ids = self.encoder.completion_ids(row.completion)
        end = [self.policy.end_token_id] if row.ended and self.policy.end_token_id is not None else []
        ended = bool(end) and len(ids) < self.most_tokens
        kept = [*ids, *end] if ended else ids[: self.most_tokens]
        return Encoded(row, self.encoder.prompt_ids(row.prompt), kept, ended)

    def _misfit(self, encoded: Encoded) -> str | None:
        """Why a row does not fit the model; None if it does."""
        words = self.feedback if encoded.row.sentence is None else self.encoder.sentence(encoded.row.sentence)
        length = len(self.encoder.query_ids(words, encoded.prompt_ids, encoded.row.prompt)) + len(
            encoded.completion_ids
        )
        if not encoded.completion_ids:
            return "the completion has no tokens"
        if self.context and length > self.context:
            return f"longer than the {self.context:,} tokens that the model reads; lower max_prompt_length or max_completion_length"
        return None

    def _table(self, found: Sequence[Encoded]) -> pa.Table:
        """The rows as a part of the pool."""
        rows = [each.row for each in found]
        dials = [i for i, name in enumerate(self.names) if name] or [0]
        rewards = [np.array([(row.rewards or (np.nan,))[i] for row in rows], np.float64) for i in dials]  # R of (N,)
        names = [name for name in self.names if name]
        columns: dict[str, Sequence] = {
            "prompt_id": [prompt_id(row.prompt) for row in rows],
            "prompt": [row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt) for row in rows],
            "prompt_ids": [each.prompt_ids for each in found],
            "completion": [row.completion for row in rows],
            "completion_ids": [each.completion_ids for each in found],
            "generation": [0] * len(rows),
            "ended": [each.ended for each in found],
            "judged": [row.sentence and self.encoder.sentence(row.sentence) for row in rows],
            "reward": nulls(total(rewards)),
            "rewards": [[*zip(names, values, strict=False)] for values in zip(*map(nulls, rewards), strict=True)],
        }
        nothing = [None] * len(rows)
        table = pa.table({f.name: pa.array(columns.get(f.name, nothing), f.type) for f in SCHEMA}, schema=SCHEMA)
        if self.logged is None or self.logged.shape.name != "completions" or not rows:
            return table
        prompts: list[PromptRow] = [{"prompt": row.prompt, "prompt_id": prompt_id(row.prompt)} for row in rows]
        scoring = self.scoring
        return score_table(
            table, prompts, scoring.rewards, scoring.weights, sentence=scoring.sentence, context=scoring.context
        )


def blocks(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Records in blocks of the size of a part."""
    rest = iter(found)
    while block := list(islice(rest, BLOCK)):
        yield block


class Conversations(dict[str, Prompt]):
    """The messages of each prompt id; those of logged rows are kept as JSON text until they are asked for."""

    def __getitem__(self, key: str) -> Prompt:
        value = super().__getitem__(key)
        return json.loads(value) if isinstance(value, str) else value


def logged_conversations(run_dir: Path) -> Conversations:
    """The messages of the logged rows of a run, by prompt id."""
    found = Conversations()
    for path in logged_parts(run_dir):
        table = read_parts([path], ["prompt_id", "prompt"], "the logged feedback")
        found |= zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    return found


# ---- the length of the run ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def all_steps(args: Any) -> Iterator[None]:
    """Inside the `with` block, Trainer counts the iterations on logged feedback too."""
    given = args.max_steps
    if given <= 0 and args.feedback_epochs:
        args.max_steps = args.last_step
    try:
        yield
    finally:
        args.max_steps = given


def names_in_pool(logged: Logged, options: Any, rewards: Sequence[str]) -> list[str | None]:
    """For each reward of the shape its name in the pool; None = it is no dial. Empty for shapes that are no ratings.

    Args:
        rewards: Names of the run's rewards, one for each attribute if there are attributes.
    """
    columns = [column.name for column in logged.shape.rewards]
    if options.attributes:
        own = dict(zip((attribute["name"] for attribute in options.attributes), rewards, strict=True))
        return [own.get(name) for name in columns]
    return [*columns] if logged.shape.name == "ratings" else []
