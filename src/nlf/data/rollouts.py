"""Rollouts on disk and the pool in memory.

A rollout is one (prompt, completion, reward, feedback, …) row. Each iteration's are Parquet parts in
`rollouts/iteration-0003/`; a part is written whole or not at all, and carries the stamp of what it was made from.
The pool is flat arrays of the token ids and rewards of all rollouts so far; quantiles are recomputed from it each
iteration and never stored. (The published code keeps lists of texts, sorts them, copies them all each iteration and
tokenises them again.)
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nlf.data.files import replacing
from nlf.errors import UserError

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),  # JSON text where the prompt is messages
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("completion_ids", pa.list_(pa.int32())),  # as sampled, EOS included
        ("generation", pa.int32()),
        ("ended", pa.bool_()),
        ("feedback", pa.string()),  # null = sampled from the bare prompt
        ("reward", pa.float64()),  # null = could not be scored
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("attributes", pa.map_(pa.string(), pa.float64())),
        ("scorer", pa.string()),
        ("judged", pa.string()),  # a judge's own sentence, as it is put before the prompt; null = none
    ]
)
STAMP = b"nlf.stamp"


def iteration_dir(run_dir: Path, iteration: int) -> Path:
    """Where an iteration's parts are."""
    return Path(run_dir) / "rollouts" / f"iteration-{iteration:04d}"


def part_path(run_dir: Path, iteration: int, part: int) -> Path:
    """Scored rollouts."""
    return iteration_dir(run_dir, iteration) / f"part-{part:05d}.parquet"


def samples_path(run_dir: Path, iteration: int, part: int) -> Path:
    """Rollouts that were sampled and not yet scored."""
    return iteration_dir(run_dir, iteration) / f"samples-{part:05d}.parquet"


def write_part(path: Path, table: pa.Table, stamp: dict) -> None:
    """Write a part under a temporary name, then move it into place; what a killed writer of it left is removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    table = table.replace_schema_metadata({STAMP: json.dumps(stamp, sort_keys=True)})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_part(path: Path, stamp: dict) -> pa.Table | None:
    """The part, or None where there is none. One that is broken, or made from something else, is removed.

    Raises:
        UserError: the file is there and the system does not let us read it; it is left alone.
    """
    if not path.is_file():
        return None
    table = _parse(_bytes(path))
    if table is not None and _is_of(table.schema.metadata, stamp):
        return _filled(table, SCHEMA.names)
    path.unlink()
    return None


def is_written(path: Path, stamp: dict) -> bool:
    """Whether there is such a part; it is only looked at, since another process may be writing it."""
    try:
        return _is_of(pq.read_metadata(path).metadata, stamp)
    except (pa.ArrowException, OSError):  # not there, or broken: not written
        return False


def _bytes(path: Path) -> pa.Buffer:
    try:
        return pa.py_buffer(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable and resume the run") from error


def _parse(data: pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The table, or None where the bytes are not whole: a part is only ever renamed into place when it is."""
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read(columns)
    except (pa.ArrowException, OSError):
        return None


def _filled(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The table with nulls in the columns that earlier versions did not write."""
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table


def _is_of(metadata: dict[bytes, bytes] | None, stamp: dict) -> bool:
    """Whether what stands in a file's metadata says that it was made from this."""
    found = (metadata or {}).get(STAMP)
    return found is not None and json.loads(found) == json.loads(json.dumps(stamp))


def by_name(column: pa.MapArray) -> dict[str, np.ndarray]:
    """A column of maps as an array for each key, NaN where a row has it not or holds null."""
    rows = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
    first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    keys = column.keys.slice(first, end - first).dictionary_encode()
    items = column.items.slice(first, end - first).to_numpy(zero_copy_only=False).astype(np.float64)
    codes, found = keys.indices.to_numpy(), {}
    for code, name in enumerate(keys.dictionary.to_pylist()):
        found[name] = np.full(len(column), np.nan)
        found[name][rows[codes == code]] = items[codes == code]
    return found
