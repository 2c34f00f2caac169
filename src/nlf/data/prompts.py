"""Prompts from JSONL (also RealToxicityPrompts' `prompt.text`), JSON (also BOLD's), CSV, TSV, Parquet or plain text (one prompt
per line, also ToxiGen's lists), each also gzipped, or from a hub id.

A prompt is text or a conversation (messages with role and content). Other columns are kept and reach the reward
functions, with None for NaN. Every mistake is reported in one line, with file, line and field. Only blank lines are
skipped; a prompt without text is an error.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from nlf.data import prompt_sets, rtp
from nlf.data.files import ASSETS, EMBEDDED, finite, prompt_id, write_text
from nlf.data.records import Located, delimited, json_lines, parquet, parsed
from nlf.errors import UserError
from nlf.method.prompt_order import number_occurrences

PROMPTS = ASSETS / "prompts"
CONVERSATIONS, TEXT, EMBEDDED_PROMPTS = "conversations", "text", "the embedded prompts"  # kinds of prompts


Prompt = str | list[dict]  # text, or messages with role and content
Reader = Callable[..., Located]  # of a file's bytes, its path and the column of the prompt


class PromptRow(TypedDict):
    """A prompt with its id. The other columns of the data set stand beside them."""

    prompt: Prompt
    prompt_id: str


class NumberedPrompt(NamedTuple):
    """A prompt row, and the number of equal prompts before it: equal prompts get different random numbers."""

    row: PromptRow
    occurrence: int


def numbered(rows: Sequence[PromptRow]) -> list[NumberedPrompt]:
    """Prompt rows in their order, each with its occurrence."""
    order = number_occurrences(range(len(rows)), [row["prompt_id"] for row in rows])
    return [NumberedPrompt(rows[i], occurrence) for i, occurrence in order]


def load_prompts(
    source: str | Path,
    *,
    column: str = "prompt",
    split: str = "train",
    limit: int | None = None,
    config: str | None = None,
    streaming: bool = False,
) -> list[PromptRow]:
    """Read prompt rows.

    Args:
        source: "embedded", "embedded:NAME" for another shipped file of prompts, a path, or a hub id.
        column: Column of the prompt; `{"text": …}` in it is unpacked.
        split: Split of embedded or hub data.
        limit: Number of first rows to keep; None keeps all.
        config: Configuration of a hub data set; None is its only one.
        streaming: Read a hub data set as a stream, so that no more than `limit` rows are downloaded.

    Returns:
        Rows with text or messages, the digest of the prompt as its id, and the other columns.

    Raises:
        UserError: missing or unreadable source, broken line, no such column, wrong type, empty prompt, no prompts at
        all, or a configuration for a source that has none.
    """
    kind, _, name = str(source).partition(":")
    if kind == EMBEDDED:
        source = PROMPTS / f"{name or split}.jsonl"
        if not source.is_file():
            known = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.jsonl")))
            raise UserError(f"the embedded prompts have no {name or f'split {split!r}'}; there are {known}")
    hub = partial(hub_rows, split=split, config=config, streaming=streaming)
    rows = [_row(record, column, where) for where, record in islice(_records(source, column, hub, config), limit)]
    if not rows:
        raise UserError(f"{source}: no prompts in it; expected at least one; is it the right file?")
    return rows


def as_prompts(dataset: Iterable[Any], column: str = "prompt") -> list[PromptRow]:
    """Prompt rows of anything that iterates over dicts: a list, a `datasets.Dataset`.

    Rows of `load_prompts` stay unchanged. A column `prompt_id` of the data set is replaced.

    Raises:
        UserError: a row without a valid prompt, or no rows.
    """
    if isinstance(dataset, (str, Path)):
        raise UserError(
            f"the dataset is the name {str(dataset)!r}; expected its rows: give nlf.load_prompts({str(dataset)!r})"
        )
    if isinstance(dataset, Mapping):
        raise UserError(
            f"the dataset is {type(dataset).__name__} with {', '.join(map(repr, dataset)) or 'nothing'}; expected rows: give "
            "one of its splits, or a list of objects"
        )
    if hasattr(dataset, "itertuples"):
        raise UserError('the dataset is a DataFrame; expected rows: give dataset.to_dict("records")')
    rows = [_row(row, column, f"row {i}") for i, row in enumerate(dataset)]
    if not rows:
        raise UserError("the dataset has no rows; expected at least one prompt")
    return rows


def other_columns(row: PromptRow) -> dict[str, Any]:
    """The columns of a prompt row beside `prompt` and `prompt_id`."""
    return {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}


def write_prompts(path: Path, rows: Iterable[PromptRow]) -> list[str]:
    """Write prompt rows as JSON Lines, which `load_prompts` reads.

    Returns:
        The columns that are left out, because JSON cannot hold their values.
    """
    lines, left_out = [], set()
    for row in rows:
        record: dict[str, Any] = {"prompt": row["prompt"]}
        for name, value in other_columns(row).items():
            try:
                record[name] = json.loads(json.dumps(value, default=_listed))
            except (TypeError, ValueError):
                left_out.add(name)
        lines.append(json.dumps(record) + "\n")
    write_text(path, "".join(lines))
    return sorted(left_out)


def _listed(value: Any) -> Any:
    """An array as a list, for JSON.

    Raises:
        TypeError: the value is no array.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def all_conversations(rows: Iterable[PromptRow]) -> bool:
    """Whether the prompts are conversations; otherwise they are text.

    Raises:
        UserError: the rows mix both.
    """
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if len(kinds) > 1:
        raise UserError("some prompts are text and some are messages; expected one kind for training and evaluation")
    return kinds == {False}


def kind_of(rows: Sequence[PromptRow]) -> str:
    """The kind of prompts, by the first of them; the default length of completions follows it."""
    if not isinstance(rows[0]["prompt"], str):
        return CONVERSATIONS
    paths = sorted(PROMPTS.glob("*.jsonl"))
    embedded = {
        prompt_id(record["prompt"]) for path in paths for _, record in _jsonl(path.read_bytes(), str(path), "")
    }
    return EMBEDDED_PROMPTS if rows[0]["prompt_id"] in embedded else TEXT


def _row(record: Any, column: str, where: str) -> PromptRow:
    """A record as a prompt row.

    Raises:
        UserError: the record has no valid prompt.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with a field {column!r}, found {type(record).__name__}")
    if column not in record:
        raise UserError(
            f"{where}: no field {column!r}; there are {', '.join(map(repr, record)) or 'none'}; "
            "name the right one with --dataset_prompt_column"
        )
    if unnamed := [name for name in record if not isinstance(name, str)]:
        raise UserError(
            f"{where}: the name of a field is {unnamed[0]!r}; expected text, because rewards get it by its name"
        )
    try:
        others = {name: finite(value) for name, value in record.items() if name not in (column, "prompt_id")}
    except RecursionError as error:
        raise UserError(f"{where}: a field is nested too deeply; leave it out") from error
    prompt = record[column]
    if isinstance(prompt, dict) and "text" in prompt:
        prompt = prompt["text"]
    where = f"{where}: field {column!r}"
    if isinstance(prompt, list):
        _check_messages(prompt, where)
    elif not isinstance(prompt, str):
        raise UserError(
            f"{where} is {type(prompt).__name__}; expected text, a list of messages, or an object with 'text'"
        )
    elif not prompt.strip():
        raise UserError(f"{where} is empty; expected some text; remove the line or fill it")
    try:  # a TypedDict has no place for the other columns
        return cast(PromptRow, {**others, "prompt": prompt, "prompt_id": prompt_id(prompt)})
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half a character ({error.object[error.start]!a}); expected Unicode") from error


def _check_messages(messages: list, where: str) -> None:
    if not messages:
        raise UserError(f"{where} has no messages; expected at least one")
    for number, message in enumerate(messages, 1):
        fields = [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
        if not all(isinstance(field, str) for field in fields):
            raise UserError(
                f'{where}, message {number}: expected {{"role": "user", "content": "…"}} with both as text, '
                f"found {json.dumps(message, default=str)[:60]}"
            )
    if not messages[-1]["content"].strip():
        raise UserError(f"{where}: the last message is empty; expected some text; remove the line or fill it")


def is_hub_id(source: str | Path) -> bool:
    """Whether a source of prompts is neither the embedded prompts nor a file, so that the hub is asked for it."""
    return str(source).partition(":")[0] != EMBEDDED and not (_suffix(Path(source)) or Path(source).exists())


def _suffix(path: Path) -> str | None:
    """The end of a file's name that says how to read it; None for any other name."""
    return next((suffix for suffix in READERS if path.name.lower().removesuffix(".gz").endswith(suffix)), None)


def _records(source: str | Path, column: str, hub: Callable[[str], Located], config: str | None) -> Located:
    """(place, record) of every row; the place names file and line for errors.

    Args:
        hub: Reads a hub data set.
    """
    path = Path(source).expanduser()
    suffix = _suffix(path)
    if path.is_dir():
        raise UserError(f"{source}: a folder; expected a file in it, ending in {', '.join(READERS)} (also with .gz)")
    if suffix and config:
        raise UserError(f"dataset_config {config}: {source} is a file, which has no configurations; leave it out")
    if suffix:
        return READERS[suffix](_bytes(path), str(source), column)
    if path.exists():
        raise UserError(f"{source}: unknown kind of file; expected {', '.join(READERS)} (also with .gz), or a hub id")
    return hub(str(source))


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte {error.start}); convert the file to UTF-8") from error


def _jsonl(data: bytes, path: str, column: str) -> Located:
    return json_lines(io.StringIO(_text(data, path), newline="\n"), path)


def _json(data: bytes, path: str, column: str) -> Located:
    text = _text(data, path)
    if _is_reward_json(text):
        for where, row in _jsonl(data, path, column):
            prompt = row.get(column)
            yield where, {**row, column: rtp.without_token(prompt)} if isinstance(prompt, str) else row
        return
    rows = parsed(text, path, "a list of objects")
    if prompt_sets.is_bold(rows) and column not in rows:
        yield from prompt_sets.bold(rows, path, column)
        return
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: expected a list of objects, found {type(rows).__name__}; is it JSON Lines? name it .jsonl"
        )
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


def _is_reward_json(text: str) -> bool:
    """Whether a text is that of Quark's `reward.json`, which holds JSON Lines: a prompt with its generations a line."""
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and rtp.is_record(first)


def _csv(data: bytes, path: str, column: str, delimiter: str = ",") -> Located:
    return delimited(io.StringIO(_text(data, path), newline=""), path, delimiter)


def _lines(data: bytes, path: str, column: str) -> Located:
    lines = ((f"{path}:{n}", line) for n, line in enumerate(_text(data, path).split("\n"), 1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    every = chain([first], lines)
    if prompt_sets.is_toxigen(first[1]):
        yield from prompt_sets.toxigen(every, path, column)
        return
    yield from ((where, {column: line.rstrip("\r")}) for where, line in every)


def _parquet(data: bytes, path: str, column: str) -> Located:
    return parquet(io.BytesIO(data), path)


READERS: dict[str, Reader] = {
    **{".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": partial(_csv, delimiter="\t")},
    **{".parquet": _parquet, ".txt": _lines},
}


def hub_rows(name: str, split: str, config: str | None = None, streaming: bool = False) -> Located:
    folder, _, rest = name.rpartition("/")
    if name.startswith((".", "/", "~")) or "/" in folder or not rest or (folder and Path(folder).is_dir()):
        raise UserError(f"{name}: no such file")
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{name}: no such file, and no data set that can be loaded from the hub ({reason}); "
            "give the path of a file, or check the id, the configuration, the split and the connection"
        ) from error
    yield from ((f"{name} ({split}), row {number}", row) for number, row in enumerate(rows, 1))
