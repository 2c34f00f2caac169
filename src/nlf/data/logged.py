"""Logged feedback: files of completions with feedback, read row by row, and what was understood of them.

`understand` reads everything once, before anything is loaded or trained, and counts the rows that cannot be used by their
reasons. Training then reads the files a second time, in blocks, into parts of the pool (`training.logged`). Memory holds one
block, and the numbers of all rows.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlf.config import columns_of
from nlf.data.logged_rows import Columns, LoggedRow, Shape, Unusable, rows_in, shape_of, unfolded
from nlf.data.prompts import Prompt, hub_rows
from nlf.data.records import SUFFIXES, Located, rows_of, suffix_of
from nlf.errors import UserError

EXAMPLES = 3
FIRST = 64  # records by which a file is recognised
MOST_LEVELS = 11  # of numbers that are whole, such as 0 … 4 or 0 … 10


class Found(NamedTuple):
    """A record that was read: its rows, or the reason why it has none."""

    where: str
    rows: list[LoggedRow]
    reason: str | None = None


@dataclass(frozen=True)
class LoggedFiles:
    """Files, folders and hub ids with feedback of one shape.

    Attributes:
        shape: Of the first records.
    """

    sources: Sequence[str]
    columns: Columns
    shape: Shape

    @classmethod
    def open(cls, sources: Sequence[str], columns: Sequence[str] | None) -> "LoggedFiles":
        """Recognise the files by the first records of each.

        Args:
            columns: As `feedback_columns` names them.

        Raises:
            UserError: a source is missing or broken, has no feedback that is known, or differs in shape from the others.
        """
        known = Columns(columns_of(columns))
        shapes: dict[Shape, str] = {}
        for path in chain.from_iterable(map(_files, sources)):
            merged, where = _first_records(path, known)
            if merged:
                shapes.setdefault(shape_of(merged, known, where), path)
        if not shapes:
            raise UserError(f"feedback {', '.join(sources)}: no rows in it; is it the right file?")
        if len(shapes) > 1:
            (one, first), (two, second) = list(shapes.items())[:2]
            raise UserError(
                f"feedback: {first} holds {one.words} and {second} holds {two.words}; train on one kind, then on the other"
            )
        return cls(list(sources), known, next(iter(shapes)))

    def __iter__(self) -> Iterator[Found]:
        """Every record of every file, in order.

        Raises:
            UserError: a file cannot be read, or a line is broken.
        """
        for where, record in chain.from_iterable(_records(one) for source in self.sources for one in _files(source)):
            try:
                each = unfolded(record, self.columns, where)
                yield Found(where, [row for one in each for row in rows_in(one, self.shape, self.columns)])
            except Unusable as error:
                yield Found(where, [], str(error))


def _files(source: str) -> list[str]:
    """The files of a source: a folder's, in the order of their names; else the source itself."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return [source]
    parts = sorted(folder.glob("part-*.parquet"))  # rollouts; other files of an iteration hold no completions
    found = parts or sorted(path for path in folder.rglob("*") if path.is_file() and suffix_of(path))
    if not found:
        raise UserError(
            f"feedback {source}: the folder has no files that end in {', '.join(SUFFIXES)} (also with .gz)"
        )
    return [str(path) for path in found]


def _first_records(source: str, columns: Columns) -> tuple[dict, str]:
    """The fields of the first records together, because lines of JSON may leave fields out; and the place of the first."""
    merged: dict = {}
    place = source
    for where, record in islice(_records(source), FIRST):
        place = place if merged else where
        for each in unfolded(record, columns, where):
            merged = {**each, **merged}
    return merged, place


def _records(source: str) -> Located:
    path = Path(source).expanduser()
    if suffix_of(path):
        return rows_of(path)
    if path.exists():
        raise UserError(
            f"feedback {source}: expected a file that ends in {', '.join(SUFFIXES)} (also with .gz), or a hub id"
        )
    name, config, split = [*source.split(":", 2), "", ""][:3]
    return hub_rows(name, split or "train", config or None)


# ---- what was understood --------------------------------------------------------------------------------------------


@dataclass
class Logged:
    """What was understood of logged feedback.

    Attributes:
        files: The files, to be read again.
        records: Number of records that were read.
        unused: Reason → number of records that cannot be used for it, and the place of the first.
        rewards: For each reward of the shape, the numbers of all rows; one array for pairs and labels. NaN = none.
        sentences: Number of rows with a sentence.
        glued: Number of rows whose prompt and completion are texts that meet inside a word.
        conversational: Prompts are messages; None = no row can be used.
        digest: Of all rows, so that a resumed run notices a change.
        examples: The first rows.
    """

    files: LoggedFiles
    records: int = 0
    unused: dict[str, tuple[int, str]] = field(default_factory=dict)
    rewards: list[np.ndarray] = field(default_factory=list)
    sentences: int = 0
    glued: int = 0
    conversational: bool | None = None
    digest: str = ""
    examples: list[LoggedRow] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        return self.files.shape

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rewards[0])

    def levels(self, number: int) -> int | None:
        """The number of levels of a reward, if it takes only whole numbers from 0, each of them; else None."""
        values = np.unique(self.rewards[number][~np.isnan(self.rewards[number])])
        whole = 2 <= len(values) <= MOST_LEVELS and np.array_equal(values, np.arange(len(values)))
        return len(values) if whole else None

    def lines(self) -> list[str]:
        """A line for each reason for which records cannot be used, and one if prompts and completions meet without a space."""
        found = unused_lines(self.unused, self.records)
        if self.glued > len(self) / 2:
            row = self.examples[0]
            found.append(
                f"warning: prompts and completions meet without a space, as in {str(row.prompt)[-12:] + row.completion[:12]!r}; begin "
                "completions with a space, or give feedback_columns user=COLUMN if the prompts are a user's messages"
            )
        return found


def unused_lines(unused: dict[str, tuple[int, str]], records: int) -> list[str]:
    """A line for each reason for which records are not used, the most frequent first."""
    order = sorted(unused.items(), key=lambda item: -item[1][0])
    return [f"{n:,} of {records:,} rows are not used: {why} (first: {where})" for why, (n, where) in order]


def count_unused(unused: dict[str, tuple[int, str]], reason: str, where: str) -> None:
    """Add one to the records that are not used for a reason."""
    count, first = unused.get(reason, (0, where))
    unused[reason] = (count + 1, first)


def understand(sources: Sequence[str], columns: Sequence[str] | None) -> Logged:
    """Read logged feedback once.

    Raises:
        UserError: see `LoggedFiles`; text and messages are mixed; no row can be used, or all labels are the same.
    """
    files = LoggedFiles.open(sources, columns)
    found, hashed = Logged(files), hashlib.sha256()
    numbers = [array("d") for _ in files.shape.rewards or (None,)]
    for where, rows, reason in files:
        found.records += 1
        if reason:
            count_unused(found.unused, reason, where)
        for row in rows:
            _check_kind(found, row.prompt, where)
            hashed.update(repr(tuple(row)).encode())
            found.sentences += row.sentence is not None
            found.glued += isinstance(row.prompt, str) and not row.prompt[-1].isspace() and row.completion[0].isalnum()
            for column, value in zip(numbers, row.rewards or (np.nan,), strict=True):
                column.append(value)
        found.examples += rows[: max(0, EXAMPLES - len(found.examples))]
    found.rewards = [np.frombuffer(column, np.float64) if column else np.empty(0) for column in numbers]
    found.digest = hashed.hexdigest()[:16]
    _check_usable(found)
    return found


def _check_kind(found: Logged, prompt: Prompt, where: str) -> None:
    kind = not isinstance(prompt, str)
    if found.conversational is None:
        found.conversational = kind
    elif found.conversational != kind:
        raise UserError(
            f"{where}: feedback mixes prompts that are text with prompts that are messages; expected one kind"
        )


def _check_usable(found: Logged) -> None:
    names = ", ".join(found.files.sources)
    if not len(found):
        lines = unused_lines(found.unused, found.records) or ["it has no rows"]
        raise UserError(f"feedback {names}: nothing can be used: {'; '.join(lines)}")
    values = np.unique(found.rewards[0])
    if found.shape.name == "labels" and len(values) < 2:
        word = "true" if values[0] else "false"
        raise UserError(f"feedback {names}: all labels are {word}, so there is nothing to contrast; give both kinds")
