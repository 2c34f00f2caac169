"""Rollouts on disk: Parquet files, one row for each (prompt, completion, reward, feedback, …).

The rollouts of an iteration are parts in `rollouts/iteration-0003/`. A part is written whole or not at all, and
carries a stamp: the settings and weights it was made from. Quantiles are recomputed from all rollouts
(`nlf.data.pool`) in each iteration and never stored. (The published code keeps lists of texts; in each iteration it
sorts, copies and tokenizes all texts again.)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nlf.data.files import replacing
from nlf.errors import UserError

SCHEMA = pa.schema(  # the columns of a rollout
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),  # JSON text where the prompt is messages
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("completion_ids", pa.list_(pa.int32())),  # as sampled, EOS included
        ("generation", pa.int32()),  # number among the completions of its prompt
        ("ended", pa.bool_()),  # with EOS
        ("feedback", pa.string()),  # null = sampled from the bare prompt
        ("reward", pa.float64()),  # weighted sum; null = could not be scored
        ("rewards", pa.map_(pa.string(), pa.float64())),  # each reward by its name
        ("attributes", pa.map_(pa.string(), pa.float64())),
        ("scorer", pa.string()),
        (
            "prefix_tokens",
            pa.list_(pa.int32()),
        ),  # tokens of the scored prefixes, rising; null = no reward of the run scores prefixes
        ("prefix_ends", pa.list_(pa.int32())),  # where these prefixes end in `completion`, in characters
        ("prefix_rewards", pa.map_(pa.string(), pa.list_(pa.float64()))),  # the reward of each prefix by its name
        ("judged", pa.string()),  # the sentence of a judge, as it is put before the prompt; null = none
    ]
)
STAMP = b"nlf.stamp"


LOGGED = -1  # stands for the iteration of logged rows


def logged_parts(run_dir: Path) -> list[Path]:
    """The files of logged feedback in a run's folder, in order."""
    return in_order(Path(run_dir, "rollouts", "logged"))


def in_order(folder: Path) -> list[Path]:
    """The parts in a folder, in order."""
    return sorted(folder.glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))  # 100000 after 99999


def logged_path(run_dir: Path, part: int) -> Path:
    """The file of a part of the logged feedback."""
    return Path(run_dir, "rollouts", "logged", f"part-{part:05d}.parquet")


def iteration_dir(run_dir: Path, iteration: int) -> Path:
    """The folder of an iteration's parts."""
    return Path(run_dir) / "rollouts" / f"iteration-{iteration:04d}"


def part_path(run_dir: Path, iteration: int, part: int) -> Path:
    """The file of scored rollouts."""
    return iteration_dir(run_dir, iteration) / f"part-{part:05d}.parquet"


def samples_path(run_dir: Path, iteration: int, part: int) -> Path:
    """The file of rollouts that are sampled but not yet scored."""
    return iteration_dir(run_dir, iteration) / f"samples-{part:05d}.parquet"


def write_part(path: Path, table: pa.Table, stamp: dict) -> None:
    """Write a part whole or not at all.

    Args:
        stamp: The settings and weights that the part was made from.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    table = table.replace_schema_metadata({STAMP: json.dumps(stamp, sort_keys=True)})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_part(path: Path, stamp: dict) -> pa.Table | None:
    """The part; None if there is none. A broken part, or a part with another stamp, is removed.

    Raises:
        UserError: the system cannot read the file; the file is left alone.
    """
    if not path.is_file():
        return None
    table = parsed(part_bytes(path))
    if table is not None and _is_of(table.schema.metadata, stamp):
        return filled(table, SCHEMA.names).select(SCHEMA.names)
    path.unlink()
    return None


def is_written(path: Path, stamp: dict) -> bool:
    """Whether the part is there, with this stamp. Nothing is removed: another process may be writing it."""
    try:
        return _is_of(pq.read_metadata(path).metadata, stamp)
    except (pa.ArrowException, OSError):  # missing or broken
        return False


def part_bytes(path: Path) -> pa.Buffer:
    """The contents of a part.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return pa.py_buffer(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable and resume the run") from error


def parsed(data: pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The table of a part; None if the bytes are broken."""
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(columns)
    except (pa.ArrowException, OSError):
        return None


def filled(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The table, with a column of nulls for each column that an earlier version did not write."""
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table


def _is_of(metadata: dict[bytes, bytes] | None, stamp: dict) -> bool:
    """Whether a file's metadata holds this stamp."""
    return _stamp_of(metadata) == json.loads(json.dumps(stamp))


def _stamp_of(metadata: dict[bytes, bytes] | None) -> Any:
    """The stamp in a file's metadata; None if there is none that can be read."""
    try:
        return json.loads((metadata or {})[STAMP])
    except (KeyError, ValueError):
        return None


def fault_of(run_dir: Path, iteration: int, rows: Sequence[int], expected: Mapping[str, Any]) -> str | None:
    """What is wrong with the rollouts of a past iteration; None if they are whole.

    Args:
        rows: The number of rollouts in each part.
        expected: The stamp of every part. Keys that it lacks must agree among the parts.
    """
    expected = dict(expected)
    for part, count in enumerate(rows):
        path = part_path(run_dir, iteration, part)
        if not path.is_file():
            return f"{path} is missing"
        table = parsed(part_bytes(path))
        if table is None:
            return f"{path} is torn"
        stamp = _stamp_of(table.schema.metadata)
        if not isinstance(stamp, dict) or any(stamp.get(key) != value for key, value in expected.items()):
            return f"{path} holds rollouts of other weights or settings"
        if len(table) != count:
            return f"{path} holds {len(table)} rollouts, expected {count}"
        expected = stamp
    return None


def check_no_others(run_dir: Path, iteration: int, parts: int) -> None:
    """Check that an iteration's folder holds no other parts than the run's own, which would be trained on.

    Raises:
        UserError: the folder holds a part that the run did not write.
    """
    own = {part_path(run_dir, iteration, part) for part in range(parts)}
    for path in sorted(iteration_dir(run_dir, iteration).glob("part-*.parquet")):
        if path not in own:
            raise UserError(f"{path}: not of this run, whose iterations have {parts} parts; move the file away")


def by_name(column: pa.MapArray) -> dict[str, np.ndarray]:
    """A column of maps as one array for each key; NaN where a row lacks the key or holds null."""
    rows = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
    first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    keys = column.keys.slice(first, end - first).dictionary_encode()
    items = column.items.slice(first, end - first).to_numpy(zero_copy_only=False).astype(np.float64)
    codes, found = keys.indices.to_numpy(), {}
    for code, name in enumerate(keys.dictionary.to_pylist()):
        found[name] = np.full(len(column), np.nan)
        found[name][rows[codes == code]] = items[codes == code]
    return found


def lists_by_name(column: pa.MapArray, counts: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A column of N maps to lists of numbers as flat arrays, for each key.

    Args:
        counts: `(N,)` the length of a row's lists.

    Returns:
        For each key `(N,)` whether the row has it, and `(sum of counts,)` the numbers of all rows, NaN = null or no list.
    """
    rows = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
    first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    keys = column.keys.slice(first, end - first).dictionary_encode()
    items, codes, found = column.items.slice(first, end - first), keys.indices.to_numpy(), {}
    for code, name in enumerate(keys.dictionary.to_pylist()):
        own = np.flatnonzero(codes == code)
        known = np.zeros(len(column), bool)
        known[rows[own]] = True
        numbers = np.full(int(counts.sum()), np.nan)
        numbers[np.repeat(known, counts)] = items.take(pa.array(own)).flatten().to_numpy(zero_copy_only=False)
        found[name] = known, numbers
    return found
