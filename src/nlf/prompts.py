"""Prompts in: JSONL (RealToxicityPrompts' `prompt.text` too), JSON, CSV, Parquet, plain text, each also .gz, or a
hub id.

A prompt is text or a conversation (messages with role and content). Other columns are kept and reach the reward
functions. Everything wrong is said in one line, with file, line and field.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from nlf.errors import UserError

EMBEDDED = "embedded"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


def load_prompts(
    source: str | Path, *, column: str = "prompt", split: str = "train", limit: int | None = None
) -> list[dict]:
    """Read prompt rows.

    Args:
        source: "embedded", a path, or a hub id.
        column: Where the prompt is; `{"text": …}` inside it is unpacked.
        split: Of embedded or hub data.
        limit: Keep only the first rows.

    Returns:
        Rows `{"prompt": text or messages, "prompt_id": digest of the prompt, **other columns}`.

    Raises:
        UserError: missing or unreadable source, broken line, no such column, wrong type, empty prompt, no prompts at
        all.
    """
    if str(source) == EMBEDDED:
        source = resources.files("nlf") / "assets" / "prompts" / f"{split}.jsonl"
        if not source.is_file():
            raise UserError(f"the embedded prompts have no split {split!r}; expected train or test")
    rows = []
    for where, record in _records(source, split):
        if limit is not None and len(rows) >= limit:
            break
        rows.append(_row(record, column, where))
    if not rows:
        raise UserError(f"{source}: no prompts in it; expected at least one")
    return rows


def as_prompts(dataset: Iterable[dict] | None, column: str = "prompt") -> list[dict] | None:
    """The same rows out of anything that iterates over dicts: a list, a `datasets.Dataset`."""
    if dataset is None:
        return None
    rows = [row if "prompt_id" in row else _row(row, column, f"row {i}") for i, row in enumerate(dataset)]
    if not rows:
        raise UserError("the dataset has no rows; expected at least one prompt")
    return rows


def all_conversations(rows: Iterable[dict]) -> bool:
    """Whether the prompts are messages rather than text.

    Raises:
        UserError: some are and some are not.
    """
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if len(kinds) > 1:
        raise UserError("some prompts are text and some are messages; expected one kind for training and evaluation")
    return kinds == {False}


def prompt_id(prompt: str | list[dict]) -> str:
    """A short digest of the prompt alone, whatever its place in a file."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(record: dict, column: str, where: str) -> dict:
    """Check one record and give it its prompt id."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with a field {column!r}, found {type(record).__name__}")
    if column not in record:
        raise UserError(
            f"{where}: no field {column!r}; there are {', '.join(map(repr, record))}; name one with --dataset_prompt_column"
        )
    prompt = record[column]
    if isinstance(prompt, dict) and "text" in prompt:
        prompt = prompt["text"]
    if isinstance(prompt, list):
        _check_messages(prompt, f"{where}: field {column!r}")
    elif not isinstance(prompt, str):
        raise UserError(
            f"{where}: field {column!r} is {type(prompt).__name__}; expected text, messages, or an object with 'text'"
        )
    elif not prompt.strip():
        raise UserError(f"{where}: field {column!r} is empty; expected some text; remove the line or fill it")
    others = {name: value for name, value in record.items() if name not in (column, "prompt_id")}
    return {**others, "prompt": prompt, "prompt_id": prompt_id(prompt)}


def _check_messages(messages: list, where: str) -> None:
    whole = messages and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not whole:
        raise UserError(f'{where}: expected messages like [{{"role": "user", "content": "…"}}]')
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the last message is the assistant's; expected one to answer, e.g. the user's")


def _records(source, split: str) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of every row."""
    path = source if hasattr(source, "open") and not isinstance(source, (str, Path)) else Path(source)
    name = path.name.removesuffix(".gz")
    suffix = next((s for s in SUFFIXES if name.endswith(s)), None)
    if suffix is None and not path.exists():
        yield from _hub(str(source), split)
    elif suffix is None or path.is_dir():
        raise UserError(f"{source}: expected a file ending in {', '.join(SUFFIXES)} (or .gz of those), or a hub id")
    elif suffix == ".parquet":
        yield from _parquet(path)
    else:
        text = _text(path)
        reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _lines}[suffix]
        yield from reader(text, str(path))


def _text(path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte {error.start}); convert the file to UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _jsonl(text: str, path: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: broken JSON ({error}); expected one object a line") from error


def _json(text: str, path: str) -> Iterator[tuple[str, dict]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); expected a list of objects") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


def _csv(text: str, path: str) -> Iterator[tuple[str, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames)} fields as in the header")
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken CSV ({error})") from error


def _lines(text: str, path: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", {"prompt": line.rstrip("\r")}


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1))


def _hub(name: str, split: str) -> Iterator[tuple[str, dict]]:
    looks_like_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not looks_like_id:
        raise UserError(f"{name}: no such file")
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: no such file, and no data set of the hub that can be loaded ({reason})") from error
    yield from ((f"{name} ({split}), row {number}", row) for number, row in enumerate(rows, 1))
