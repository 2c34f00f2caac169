"""The pool in memory: flat arrays of the token ids and rewards of all rollouts so far."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from nlf.data.rollouts import LOGGED, by_name, filled, in_order, iteration_dir, logged_parts, parsed, part_bytes
from nlf.errors import UserError


class Pool:
    """All rollouts so far, as flat arrays of N rows: token ids, rewards, prompts, feedback, and sentences of judges. Prompts
    and completions as text stay on disk.

    A million rollouts of 20 tokens take about 105 MB. A prompt's ids are kept once for all its rollouts: its prompt id is a
    digest of the prompt. Rows are in the order (iteration, part, row), so the pool does not depend on the number of
    processes that wrote the parts.

    Attributes:
        rewards: float64 `(N,)`, the weighted sum of the rewards; NaN = unscored.
        by_function: Each reward by name, float64 `(N,)`. A single reward shares the array of the sum.
        iteration: int32 `(N,)`; -1 = logged feedback, which comes first.
        ended: bool `(N,)`, whether the completion ended with EOS.
    """

    COLUMNS = ("prompt_id", "prompt_ids", "completion_ids", "feedback", "ended", "reward", "rewards", "judged")

    def __init__(self) -> None:
        self._prompts, self._completions = _Ragged(), _Ragged()
        self._keys, self._feedback, self._judged = _Words(), _Words(), _Words()
        self._rewards, self._iteration, self._ended = _Column(np.float64), _Column(np.int32), _Column(np.bool_)
        self._by_function: dict[str, _Column] = {}

    @classmethod
    def load(cls, run_dir: Path, up_to_iteration: int, keep: int | None = None, since: int = 0) -> "Pool":
        """The logged feedback of a run, and the rollouts of iterations `since` … `up_to_iteration`, or of the last `keep` of
        these iterations.

        Raises:
            UserError: an iteration's rollouts are missing or broken.
        """
        first = since if keep is None else max(since, up_to_iteration + 1 - keep)
        pool = cls()
        for path in logged_parts(run_dir):
            pool.add(read_parts([path], cls.COLUMNS, "the logged feedback"), LOGGED)
        for iteration in range(first, up_to_iteration + 1):
            pool.add(read_iteration(run_dir, iteration, cls.COLUMNS), iteration)
        return pool

    def __len__(self) -> int:
        return len(self._completions)

    def add(self, table: pa.Table, iteration: int) -> None:
        """Append a table of rollouts."""
        before, known = len(self), len(self._keys.names)
        keys, first = np.unique(self._keys.append(table["prompt_id"]), return_index=True)
        self._prompts.append(table["prompt_ids"].take(first[keys >= known]))
        self._completions.append(table["completion_ids"])
        self._feedback.append(table["feedback"])
        self._judged.append(table["judged"])
        self._iteration.append(np.full(len(table), iteration, np.int32))
        self._ended.append(table["ended"].to_numpy().astype(np.bool_))  # null → False
        rewards, given = table["reward"].to_numpy(), by_name(table["rewards"].combine_chunks())  # null → NaN
        for name in {**self._by_function, **given}:
            values = given.get(name, np.full(len(table), np.nan))
            column = self._by_function.get(name) or (_Column.of(np.full(before, np.nan)) if before else self._rewards)
            if column is self._rewards and not np.array_equal(values, rewards, equal_nan=True):
                column = _Column.of(self.rewards)  # so far it equalled the sum
            if column is not self._rewards:
                column.append(values)
            self._by_function[name] = column
        self._rewards.append(rewards)
        pa.default_memory_pool().release_unused()  # Arrow would keep the memory that this method used

    @property
    def rewards(self) -> np.ndarray:
        return self._rewards.values

    @property
    def by_function(self) -> dict[str, np.ndarray]:
        return {name: column.values for name, column in self._by_function.items()}

    @property
    def iteration(self) -> np.ndarray:
        return self._iteration.values

    @property
    def logged(self) -> np.ndarray:
        """bool `(N,)`, whether the row is logged feedback, which no policy of this run wrote."""
        return self.iteration == LOGGED

    @property
    def ended(self) -> np.ndarray:
        return self._ended.values

    def prompt_ids(self, i: int) -> np.ndarray:
        """The prompt's token ids, int32; a view."""
        return self._prompts[self._keys.codes[i]]

    def completion_ids(self, i: int) -> np.ndarray:
        """The completion's token ids as sampled, int32; a view."""
        return self._completions[i]

    @property
    def completion_lengths(self) -> np.ndarray:
        """Number of tokens of each completion, `(N,)`."""
        return self._completions.lengths

    @property
    def prompt_group(self) -> np.ndarray:
        """The number of each row's prompt, `(N,)`, for quantiles within a prompt."""
        return self._keys.codes

    def prompt_key(self, i: int) -> str:
        """The prompt id of row i."""
        return str(self._keys[i])

    def feedback(self, i: int) -> str | None:
        """The feedback that row i was sampled under; None = the bare prompt."""
        return self._feedback[i]

    def judged(self, i: int) -> str | None:
        """The sentence that a judge wrote about row i, if any."""
        return self._judged[i]

    @property
    def has_sentence_alone(self) -> np.ndarray:
        """bool `(N,)`, True at logged rows that have a sentence and no reward."""
        return self.logged & self.has_sentence & np.isnan(self.rewards)

    @property
    def has_sentence(self) -> np.ndarray:
        """bool `(N,)`, True where a judge wrote a sentence."""
        return np.array([name is not None for name in self._judged.names], bool)[self._judged.codes]


def read_iteration(run_dir: Path, iteration: int, columns: Sequence[str]) -> pa.Table:
    """All parts of an iteration, in order."""
    folder = iteration_dir(run_dir, iteration)
    paths = in_order(folder)
    if not paths:
        raise UserError(
            f"{folder}: no rollouts; expected the rollouts of iteration {iteration}; restore them or start afresh"
        )
    return read_parts(paths, columns, f"the rollouts of iteration {iteration}")


def read_parts(paths: Sequence[Path], columns: Sequence[str], expected: str) -> pa.Table:
    """The rows of parts, in order.

    Args:
        expected: What the parts hold, for errors.
    """
    tables = []
    for path in paths:
        table = parsed(part_bytes(path), columns)
        if table is None:
            raise UserError(f"{path}: broken; expected {expected}; restore it or start afresh")
        tables.append(filled(table, columns).select(columns))
    return pa.concat_tables(tables)


class _Column:
    """A column of numbers. Pieces are joined on first use, so that adding one does not copy the earlier ones."""

    def __init__(self, dtype: DTypeLike):
        self.pieces: list[np.ndarray] = [np.empty(0, dtype)]

    @classmethod
    def of(cls, values: np.ndarray) -> "_Column":
        column = cls(values.dtype)
        column.append(values)
        return column

    def append(self, values: np.ndarray) -> None:
        self.pieces.append(values)

    @property
    def values(self) -> np.ndarray:
        if len(self.pieces) > 1:
            self.pieces = [np.concatenate(self.pieces)]
        return self.pieces[0]


class _Ragged:
    """A column of token ids. Added rows make a new flat array with offsets, so that adding does not copy earlier rows."""

    def __init__(self) -> None:
        self.pieces: list[tuple[np.ndarray, np.ndarray]] = []
        self.starts: list[int] = []  # the first row of each piece

    def __len__(self) -> int:
        return self.starts[-1] + len(self.pieces[-1][1]) - 1 if self.pieces else 0

    def append(self, column: pa.ChunkedArray) -> None:
        flat = np.concatenate([np.empty(0, np.int32), *(chunk.flatten().to_numpy() for chunk in column.chunks)])
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
        offsets = np.concatenate([[0], *lengths]).cumsum()
        self.starts.append(len(self))
        self.pieces.append((flat, offsets.astype(np.int32 if len(flat) < 2**31 else np.int64)))

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int32), *(np.diff(offsets) for _, offsets in self.pieces)])

    def __getitem__(self, i: int) -> np.ndarray:
        piece = bisect.bisect_right(self.starts, i) - 1
        flat, offsets = self.pieces[piece]
        row = i - self.starts[piece]
        return flat[offsets[row] : offsets[row + 1]]


class _Words:
    """A column of texts that repeat: a code for each row, and the text of each code, in order of appearance."""

    def __init__(self) -> None:
        self._codes = _Column(np.uint8)
        self._known: dict[str | None, int] = {}
        self.names: list[str | None] = []

    @property
    def codes(self) -> np.ndarray:
        return self._codes.values

    def append(self, column: pa.ChunkedArray) -> np.ndarray:
        """Add texts; returns the codes of the added rows."""
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        new = [self._known.setdefault(name, len(self._known)) for name in encoded.dictionary.to_pylist()]
        codes = np.array(new, np.min_scalar_type(len(self._known)))[encoded.indices.to_numpy()]
        self._codes.append(codes)
        self.names = list(self._known)
        return codes

    def __getitem__(self, i: int) -> str | None:
        return self.names[self.codes[i]]
