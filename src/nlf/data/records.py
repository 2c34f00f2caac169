"""The rows of a file, one at a time: JSON Lines, CSV, TSV and Parquet, also gzipped, in memory that does not grow with the file.

`prompts` reads its files with the same functions. Every mistake is reported in one line, with file and line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from nlf.errors import UserError

Located = Iterator[tuple[str, dict]]  # the place for errors, and the record
BATCH = 1024  # rows of a Parquet file in memory at a time
LONGEST_FIELD = 2**31 - 1  # of CSV; Python's default refuses a field over 131,072 characters


def json_lines(file: TextIO, path: str) -> Located:
    """The objects of JSON Lines. The file ends its lines with \\n alone, because JSON text may hold U+2028."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", parsed(line.rstrip("\n"), f"{path}:{number}", "one object a line")


def parsed(text: str, where: str, expected: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: broken JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise UserError(f"{where}: broken JSON ({error.msg}, {place}); expected {expected}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise UserError(f"{where}: JSON that cannot be read ({error}); expected {expected}") from error


def delimited(file: TextIO, path: str, delimiter: str = ",") -> Located:
    """The rows of CSV, or of TSV, under the names of the header.

    Raises:
        UserError: two columns have one name, or a row has another number of fields than the header.
    """
    kind, sign = ("CSV", "comma") if delimiter == "," else ("TSV", "tab")
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(file, strict=True, delimiter=delimiter)
    try:
        names = reader.fieldnames or ()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{path}:1: two columns are named {twice!r}; rename one of them")
        for row in reader:
            if None in row or None in row.values():
                count = sum(value is not None for value in row.values()) + len(row.get(None, [None])) - 1
                raise UserError(
                    f"{path}:{reader.line_num}: {count} fields where the header has {len(reader.fieldnames or ())}; "
                    f'a {sign} inside a field needs quotes, "like{delimiter} this"'
                )
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken {kind} ({error})") from error


def parquet(file: Any, path: str) -> Located:
    """The rows of a Parquet file: a path, or an open file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(file).iter_batches(BATCH)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _json(file: TextIO, path: str) -> Located:
    """The objects of a JSON list, which is read whole; or of JSON Lines under this name."""
    text = file.read()
    if text.lstrip().startswith("{"):
        yield from json_lines(io.StringIO(text, newline="\n"), path)
        return
    rows = parsed(text, path, "a list of objects")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


TEXTS: dict[str, Callable[[TextIO, str], Located]] = {
    **{".jsonl": json_lines, ".json": _json, ".csv": delimited, ".tsv": partial(delimited, delimiter="\t")},
}
SUFFIXES = (*TEXTS, ".parquet")


def suffix_of(path: Path) -> str | None:
    """The end of a file's name that tells its kind, without .gz; None for a kind that has no rows."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def rows_of(path: Path) -> Located:
    """The rows of a file of one of `SUFFIXES`, also with .gz.

    Raises:
        UserError: no such file, or it cannot be read; a row is broken.
    """
    suffix, zipped = suffix_of(path), path.name.lower().endswith(".gz")
    try:
        with (gzip.open if zipped else open)(path, "rb") as binary:
            if suffix == ".parquet":
                yield from parquet(io.BytesIO(binary.read()) if zipped else binary, str(path))
            else:
                newline = "" if suffix in (".csv", ".tsv") else "\n"
                text = io.TextIOWrapper(cast(BinaryIO, binary), "utf-8-sig", newline=newline)
                yield from TEXTS[str(suffix)](text, str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
