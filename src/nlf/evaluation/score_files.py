"""Read and write the files that hold scores: generations of any form, JSON Lines, CSV and Parquet."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nlf.data import generations
from nlf.data.files import replacing
from nlf.data.generations import LineFormat, ReadLines, Row, WriteLines, read_lines, write_lines
from nlf.data.prompts import READERS
from nlf.errors import UserError
from nlf.rewards.contract import completion_text

SCORES = "scores"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
FEEDBACK = "feedback"  # a judge's sentences, beside "reward"
WORDS = "words"  # the shares of words in the scores, beside "reward"; JSON in a flat file
Located = Iterator[tuple[str, Row]]  # the place for errors, and the row


@dataclass(frozen=True)
class Form:
    """The functions that read and write a file.

    Attributes:
        texts: The texts of a row.
        text_column: Column of the text; None = the rows are generations, and the texts are their completions.
    """

    read: ReadLines
    write: WriteLines
    texts: Callable[[Row], Sequence[str]]
    text_column: str | None = None


def form_of(path: Path, column: str = "text") -> Form:
    """The form of a file, by its ending and, of JSON Lines, by its first line.

    Raises:
        UserError: the ending is unknown, or the file cannot be read.
    """
    kind = path.suffix.lower()
    if lines := _generations(path, column):
        return Form(*lines)
    if kind not in FORMATS:
        raise UserError(
            f"{path}: unknown kind of file; expected {', '.join(FORMATS)}, or a reward.json of generations, one prompt a line"
        )
    rows, write = FORMATS[kind]
    return Form(
        lambda path: (_checked(row, column, where) for where, row in rows(path)),
        write,
        lambda row: [completion_text(row[column])],
        column,
    )


def _generations(path: Path, column: str) -> LineFormat | None:
    """The format of a file of generations; None if it holds texts. Quark's `reward.json` holds JSON Lines too."""
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".json"):
        return None
    try:
        first = next(read_lines(path), {})
    except UserError:
        if kind == ".jsonl":
            raise
        return None  # one JSON value over several lines
    return None if column in first else generations.format_of(path)


def _checked(row: Row, column: str, where: str) -> Row:
    """The row, once it is checked.

    Raises:
        UserError: the column is missing or holds no text, or `scores` holds no scores.
    """
    if column not in row:
        there = ", ".join(repr(name) for name in row if name != SCORES) or "none"
        raise UserError(f"{where}: no column {column!r}; there are {there}; name the right one with --text_column")
    if not (isinstance(row[column], str) or _is_messages(row[column])):
        raise UserError(
            f"{where}: column {column!r} holds {json.dumps(row[column], default=str)[:40]}, expected text or messages; "
            "fill it, or remove the row"
        )
    if not isinstance(row.get(SCORES) or {}, dict):
        raise _taken(where)
    return row


def _is_messages(value: Any) -> bool:
    """Whether a value is a completion as a list of messages; its text is that of the last one."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in value)
    )


def _taken(where: str) -> UserError:
    return UserError(f"{where}: column {SCORES!r} is taken, but scores are written there; rename the column")


def _jsonl(path: Path) -> Located:
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(read_lines(path), 1))


def _csv(path: Path) -> Located:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next(csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()]), [])
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}:1: two columns {twice!r}; rename one, because only one of them could be written")
    for where, row in READERS[path.suffix.lower()](path.read_bytes(), str(path), ""):
        yield where, _nested(row, where)


def _parquet(path: Path) -> Located:
    for where, row in READERS[".parquet"](path.read_bytes(), str(path), ""):
        yield where, _nested(row, where)


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    flat = [{name: value for name, value in row.items() if name != SCORES} | _flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    with replacing(path) as file:
        lines = csv.DictWriter(_Encoded(file), names, restval="", delimiter=DELIMITERS[path.suffix.lower()])
        lines.writeheader()  # lines end in \r\n, so that a lone \r is quoted
        lines.writerows(flat)


@dataclass(frozen=True)
class _Encoded:
    """A binary file to which csv writes text."""

    file: BinaryIO

    def write(self, text: str) -> None:
        """Write the text as UTF-8."""
        self.file.write(text.encode())


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write the file with its scores; other columns keep their types, and a new column of scores comes last."""
    flat = [_flat(row) for row in rows]
    content = pq.ParquetFile(path).read()
    for name in dict.fromkeys(name for row in flat for name in row):
        values = [row.get(name) for row in flat]
        kind = pa.string() if any(isinstance(value, str) for value in values) else pa.float64()
        column, place = pa.array(values, kind), content.schema.get_field_index(name)
        content = content.append_column(name, column) if place < 0 else content.set_column(place, name, column)
    with replacing(path) as file:
        pq.write_table(content, file)


FORMATS: dict[str, tuple[Callable[[Path], Located], WriteLines]] = {
    ".jsonl": (_jsonl, write_lines),
    ".csv": (_csv, _write_csv),
    ".tsv": (_csv, _write_csv),
    ".parquet": (_parquet, _write_parquet),
}


def _flat(row: Row) -> Row:
    """The columns of `row["scores"]` in a flat file."""
    return {
        f"{SCORES}/{label}/{name}": value
        for label, found in (row.get(SCORES) or {}).items()
        for name, value in [
            *((key, found[key]) for key in ("of", "reward", FEEDBACK) if key in found),
            *((key, json.dumps(found[key])) for key in [WORDS] if key in found),
            *found["attributes"].items(),
        ]
    }


def _nested(row: Row, where: str) -> Row:
    """A row of a flat file with its columns of scores as `row["scores"]`; a label ends before `/of`."""
    if SCORES in row:
        raise _taken(where)
    labels = [name[len(SCORES) + 1 : -3] for name in row if name.startswith(f"{SCORES}/") and name.endswith("/of")]
    labels = [label for label in labels if f"{SCORES}/{label}/reward" in row]
    scores: dict[str, dict] = {label: {"attributes": {}} for label in labels if row[f"{SCORES}/{label}/of"]}
    plain = {}
    for column, value in row.items():
        mine = [label for label in labels if column.startswith(f"{SCORES}/{label}/")]
        if not mine:
            plain[column] = value
        elif (label := max(mine, key=len)) in scores:
            name = column.removeprefix(f"{SCORES}/{label}/")
            if name in (FEEDBACK, WORDS) and not value:
                continue
            found = scores[label] if name in ("of", "reward", FEEDBACK, WORDS) else scores[label]["attributes"]
            found[name] = value if name in ("of", FEEDBACK) else _value(name, value, f"{where}: column {column!r}")
    return {**plain, SCORES: scores} if labels else plain


def _value(name: str, value: str | float | None, where: str) -> Any:
    """A number, or the shares of words; None for an empty cell."""
    try:
        if name == WORDS:
            return json.loads(str(value))
        return None if value in ("", None) else float(value)
    except (ValueError, RecursionError) as error:
        expected = "a list in JSON" if name == WORDS else "a number"
        raise UserError(f"{where} holds {value!r}, expected {expected}; remove the column to score again") from error
