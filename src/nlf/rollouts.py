"""Rollouts on disk and the pool in memory.

A rollout is one (prompt, completion, reward, feedback, …) row. Each iteration's are Parquet parts in
`rollouts/iteration-0003/`; a part is written whole or not at all, and carries the stamp of what it was made from.
The pool is flat arrays of the token ids and rewards of all rollouts so far; quantiles are recomputed from it each
iteration and never stored.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    ]
)
STAMP = b"nlf.stamp"


def iteration_dir(run_dir: Path, iteration: int) -> Path:
    return Path(run_dir) / "rollouts" / f"iteration-{iteration:04d}"


def part_path(run_dir: Path, iteration: int, part: int) -> Path:
    """Scored rollouts."""
    return iteration_dir(run_dir, iteration) / f"part-{part:05d}.parquet"


def samples_path(run_dir: Path, iteration: int, part: int) -> Path:
    """Rollouts that were sampled and not yet scored."""
    return iteration_dir(run_dir, iteration) / f"samples-{part:05d}.parquet"


def digest(value) -> str:
    """A short digest of plain values, the same in every process."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_part(path: Path, table: pa.Table, stamp: dict) -> None:
    """Write a part under a temporary name, then move it into place.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    table = table.replace_schema_metadata({STAMP: json.dumps(stamp, sort_keys=True)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space and resume the run"
        ) from error


def read_part(path: Path, stamp: dict) -> pa.Table | None:
    """The part, or None where there is none. One that is broken, or made from something else, is removed."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError):
        table = None
    if table is not None and _stamp(table) == json.loads(json.dumps(stamp)):
        return table
    path.unlink()
    return None


def _stamp(table: pa.Table) -> dict | None:
    found = (table.schema.metadata or {}).get(STAMP)
    return json.loads(found) if found else None


class Pool:
    """All rollouts so far, as flat arrays: ids and their offsets, rewards (NaN = not scored), iteration, prompt.

    A million rollouts of 20 + 20 tokens take about 200 MB; texts stay on disk.
    """

    def __init__(self):
        self._prompts, self._completions = _Ragged(), _Ragged()
        self.rewards = np.empty(0)
        self.iteration = np.empty(0, np.int32)
        self.prompt_group = np.empty(0, np.int64)
        self._groups: dict[str, int] = {}

    @classmethod
    def load(cls, run_dir: Path, up_to_iteration: int, keep: int | None = None) -> "Pool":
        """The rollouts of iterations 0 … `up_to_iteration`, or of the last `keep` of them, in the order of their
        parts.
        """
        pool = cls()
        first = 0 if keep is None else max(0, up_to_iteration + 1 - keep)
        columns = ["prompt_id", "prompt_ids", "completion_ids", "reward"]
        for iteration in range(first, up_to_iteration + 1):
            paths = sorted(iteration_dir(run_dir, iteration).glob("part-*.parquet"))
            pool.add(pa.concat_tables([pq.read_table(path, columns=columns) for path in paths]), iteration)
        return pool

    def __len__(self) -> int:
        return len(self.rewards)

    def add(self, table: pa.Table, iteration: int) -> None:
        """Append a table of rollouts."""
        self._prompts.append(table["prompt_ids"])
        self._completions.append(table["completion_ids"])
        rewards = table["reward"].to_numpy(zero_copy_only=False).astype(np.float64)  # null → NaN
        groups = [self._groups.setdefault(name, len(self._groups)) for name in table["prompt_id"].to_pylist()]
        self.rewards = np.concatenate([self.rewards, rewards])
        self.iteration = np.concatenate([self.iteration, np.full(len(rewards), iteration, np.int32)])
        self.prompt_group = np.concatenate([self.prompt_group, np.array(groups, np.int64)])
        self._names = None

    def prompt_ids(self, i: int) -> np.ndarray:
        return self._prompts[i]

    def completion_ids(self, i: int) -> np.ndarray:
        return self._completions[i]

    @property
    def completion_lengths(self) -> np.ndarray:
        """Tokens of each completion, `(N,)`."""
        return np.diff(self._completions.offsets)

    def prompt_key(self, i: int) -> str:
        """The prompt id of row i."""
        if self._names is None:
            self._names = list(self._groups)
        return self._names[self.prompt_group[i]]


class _Ragged:
    """Rows of token ids as one flat array and its offsets."""

    def __init__(self):
        self.flat, self.offsets = np.empty(0, np.int32), np.zeros(1, np.int64)

    def append(self, column: pa.ChunkedArray) -> None:
        column = column.combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
        lengths = np.diff(column.offsets.to_numpy())
        self.flat = np.concatenate([self.flat, flat])
        self.offsets = np.concatenate([self.offsets, self.offsets[-1] + np.cumsum(lengths)])

    def __getitem__(self, i: int) -> np.ndarray:
        return self.flat[self.offsets[i] : self.offsets[i + 1]]
