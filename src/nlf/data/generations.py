"""Samples on disk: `generations.jsonl`, one line per prompt, appended part by part and annotated in place.

A line holds the prompt, its completions as text and as token ids, the feedback they were sampled under, and the settings
and weights they came from. Later measurements (scores, likelihoods) are added to the line, each with the digest of the
measured texts, so that an old score can never stand beside new text. (The published code kept scores in a second file,
paired by position: a second evaluation in one folder gave new text old scores.)

Annotation reads the file in blocks. The results of a block are appended to a journal beside the file; at the end a new
file with all results replaces the old one. A killed annotation keeps the finished blocks.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from nlf.data import rtp
from nlf.data.files import check_writable, digest, json_text, mode_of, replacing, writing
from nlf.data.prompts import Prompt
from nlf.errors import UserError

FILE = "generations.jsonl"
ANSWERS = (
    ".perspective.jsonl"  # the end of the name of a file of `nlf score --as perspective`, beside the file of its texts
)
START = b'{"prompt": '  # of each line

Row = dict[str, Any]  # a line of any JSON Lines file
ReadLines = Callable[[Path], Iterator[Any]]  # the lines, rows or generations
WriteLines = Callable[[Path, Iterable[Row]], None]


class Likelihoods(TypedDict, total=False):
    """The likelihoods of a line's n completions under one reader. A file also has `from`: "ids" or "text"."""

    nll: list[float]  # n, nats, summed over a completion's tokens
    tokens: list[int]  # n
    prompt_tokens: int
    kl: list[float]  # n, as in `Divergence`
    entropy: list[float]  # n, as in `Divergence`
    of: str  # digest of the measured texts


class Divergence(TypedDict):
    """The divergence of a line's n completions, in nats, summed over each completion's tokens."""

    kl: list[float]  # n, KL(reference || policy)
    entropy: list[float]  # n, entropy of the policy


class Generation(TypedDict, total=False):
    """A line of `generations.jsonl`: a prompt and its n completions."""

    prompt: Prompt
    prompt_id: str
    occurrence: int  # number of earlier lines with the same prompt
    prompt_ids: list[int]
    feedback: str | None  # None = sampled from the bare prompt
    completions: list[str]
    completion_ids: list[list[int]]  # as sampled, EOS included
    ended: list[bool]  # whether each completion ended with EOS
    columns: dict[str, Any]  # other columns of the prompt's row
    settings: dict[str, Any]  # of sampling, the weights included
    scores: dict[str, Mapping[str, Any]]  # by scorer, with the digest `of` the scored texts
    likelihoods: dict[str, Likelihoods]  # by reader
    divergence: dict[str, Divergence]  # by the two models


REQUIRED = ("prompt", "prompt_id", "prompt_ids", "feedback", "completions", "completion_ids", "ended")


def files_of(path: str | Path) -> list[Path]:
    """The generations files of a folder or of its folder `evaluation`, or the file itself.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not (found := in_folder(path) or in_folder(path / "evaluation")):
        what = "no generations*.jsonl in it" if path.is_dir() else "no such file or folder"
        raise UserError(f"{path}: {what}; expected a file or folder that `nlf sample` or `nlf evaluate` wrote")
    return found


def in_folder(folder: Path) -> list[Path]:
    """The generations files in a folder, in the order of their names."""
    return [path for path in sorted(folder.glob("generations*.jsonl")) if not path.name.endswith(ANSWERS)]


def read(path: str | Path) -> Iterator[Generation]:
    """The lines of a generations file, ours or in the form of RealToxicityPrompts (`rtp`).

    Raises:
        UserError: a line is not JSON or lacks a field of a generation; the error names file and line.
    """
    lines = format_of(Path(path)) or GENERATIONS
    yield from lines.read(Path(path))


def _read_ours(path: Path) -> Iterator[Generation]:
    for where, row in _located(path):
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise UserError(
                f"{where}: no field {missing[0]!r}; expected a line of generations, as `nlf sample` writes them"
            )
        yield cast(Generation, row)  # it has the required fields


# ---- JSON Lines ---------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file, without blank lines.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the error names file and line.
    """
    return (row for _, row in _located(path))


def _located(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON Lines file, each after its place, for errors: the file and the line."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def _object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({error}); expected one object a line; remove the line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file whole or not at all, with one line in memory at a time.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as file:
        file.writelines(_line(row).encode() for row in rows)


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a file in one write. The lines are on disk when this function returns.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write("".join(map(_line, rows)))
            file.flush()
            os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json_text(row) + "\n"


def refuse_other_lines(path: Path) -> None:
    """Refuse a file to which generations would be added, but which holds something else.

    Raises:
        UserError: the first line is no line of generations, nor the start of one that a killed writer left.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        first = file.readline()
    if first.endswith(b"\n"):
        next(_read_ours(path), None)
    elif not START.startswith(first[: len(START)]):
        raise UserError(f"{path}:1: no line of generations, as `nlf sample` writes them; move the file away")


def mend(path: Path) -> bool:
    """Cut off the partial last line that a killed writer left, so that the next line is appended to whole lines. A whole line
    that lacks its end gets it.

    Returns:
        Whether the last line had no end.
    """
    if not path.is_file():
        return False
    with writing(path), open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65_536, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start
            if newline >= 0:
                end = start + newline + 1
                break
        if end < size:
            file.seek(end)
            if _is_json(file.read()):
                file.write(b"\n")
            else:
                file.truncate(end)
        return end < size


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def keep_lines(path: Path, count: int) -> None:
    """Cut the file off after its first `count` lines."""
    with open(path, "rb+") as file:
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


# ---- measurements of lines ----------------------------------------------------------------------------------------


def texts_of(row: Row) -> list[str]:
    """The measured texts of a line of generations: its completions."""
    return row["completions"]


class LineFormat(NamedTuple):
    """How lines are read from a file and written to it, and which texts of a line are measured."""

    read: ReadLines = read_lines
    write: WriteLines = write_lines
    texts: Callable[[Row], Sequence[str]] = texts_of


def _read_records(path: Path) -> Iterator[Row]:
    """The lines of a file in RealToxicityPrompts' form, read as generations."""
    for where, row in _located(path):
        yield rtp.as_generation(row, where)


def _write_records(path: Path, rows: Iterable[Row]) -> None:
    write_lines(path, map(rtp.as_record, rows))


ANY_LINES = LineFormat()
GENERATIONS = LineFormat(_read_ours)
RECORDS = LineFormat(_read_records, _write_records)


def format_of(path: Path) -> LineFormat | None:
    """The format of a file of generations, by its first line; None if it holds something else.

    Raises:
        UserError: the file cannot be read, or its first line is not a JSON object.
    """
    first = next(read_lines(path), {})
    if rtp.is_record(first):
        return RECORDS
    return GENERATIONS if "completions" in first else None


def text_digest(texts: Sequence[str]) -> str:
    """A digest of the texts that a measurement belongs to."""
    return digest(list(texts))


def measured(row: Mapping[str, Any], kind: str, name: str, texts: Sequence[str]) -> dict | None:
    """The measurement `row[kind][name]` if it was made from exactly these texts, else None."""
    found = (row.get(kind) or {}).get(name)
    return found if isinstance(found, dict) and found.get("of") == text_digest(texts) else None


def annotate(
    path: Path,
    kind: str,
    name: str,
    measure: Callable[[list[Row]], Sequence[Mapping[str, Any]]],
    *,
    fields: Collection[str] = (),
    lines: LineFormat = ANY_LINES,
    block: int = 64,
    progress: Callable[[int], None] = lambda texts: None,
) -> int:
    """Add a measurement `row[kind][name]` to every line of a file that lacks it, or whose texts have changed since.

    Args:
        kind: "scores", "likelihoods" or "divergence".
        name: The scorer with its version, or the reader.
        measure: Lines of a block that need the measurement → a dict for each. A line holds the measurement that it has so far.
        fields: A measurement without one of these fields is made again.
        lines: The file's format.
        block: Number of consecutive lines measured together and journaled. Blocks do not depend on earlier work.
        progress: Called with the number of texts that are done now or were done before.

    Returns:
        The number of lines that were measured now or had been journaled; 0 means that the file is unchanged.

    Raises:
        UserError: the file cannot be read or written.
    """
    journal = path.with_name(f".{path.name}.{kind}.{digest(name)}.journal")
    mend(journal)
    known = {entry["line"]: entry["found"] for entry in read_lines(journal)} if journal.is_file() else {}

    def lacking(row: Row) -> bool:
        found = measured(row, kind, name, lines.texts(row))
        return found is None or not found.keys() >= set(fields)

    rows = ((i, _with(row, kind, name, known.get(i))) for i, row in enumerate(lines.read(path)))
    while picked := list(islice(rows, block)):
        todo = [(i, row) for i, row in picked if lacking(row)]
        if todo:
            check_writable(path)  # before the measurement
            with writing(journal):
                journal.touch(mode_of(path))
            entries = _entries(todo, measure, lines)
            append(journal, entries)
            known |= {entry["line"]: entry["found"] for entry in entries}
        progress(sum(len(lines.texts(row)) for _, row in picked))
    if known:
        lines.write(path, (_with(row, kind, name, known.get(i)) for i, row in enumerate(lines.read(path))))
    journal.unlink(missing_ok=True)
    return len(known)


def _entries(
    todo: Sequence[tuple[int, Row]], measure: Callable[[list[Row]], Sequence[Mapping[str, Any]]], lines: LineFormat
) -> list[dict]:
    """Measure numbered lines, as entries of the journal."""
    found = measure([row for _, row in todo])
    return [
        {"line": i, "found": {"of": text_digest(lines.texts(row)), **new}}
        for (i, row), new in zip(todo, found, strict=True)
    ]


def _with(row: Row, kind: str, name: str, found: dict | None) -> Row:
    """The line with a measurement added; None adds nothing."""
    return row if found is None else {**row, kind: {**(row.get(kind) or {}), name: found}}
