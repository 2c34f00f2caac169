"""What remote scorers have answered, kept on disk, and the pace at which they are asked.

Both are SQLite files that the processes of one machine share. An answer is written as it arrives and outlives the
process: killed anywhere, a run never pays for it again. Its key is a digest of scorer, version, settings and text, so
that neither the text nor a service's key is in the file.

The pace is kept for the whole machine, whichever cache each run has, in the temporary folder: like the monotonic clock
it lasts as long as the machine runs. A slot is taken when its time has come and never booked ahead, so that a process
that is killed holds none back, and one that wakes up late does not push its request into the next one's second.
"""

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from nlf.data.files import replacing
from nlf.data.generations import read_lines
from nlf.errors import UserError

BUSY = 60.0  # seconds to wait for another process's write, which takes microseconds
SECOND = 1.1  # of ours: a server's own second holds no more, although requests travel for different times
CATCH_UP = 0.02  # seconds of being late that the next slot makes up for
FORMAT = "expected lines of nlf score --export_cache: key, scorer, and answer or refused"


def digest(value) -> str:
    """Names plain JSON values, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Database:
    """A SQLite file, open inside `with`; every write is one transaction.

    Raises:
        UserError: it cannot be read or written, or is no such file; also from every method.
    """

    schema = ""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()

    def _prepare(self) -> None:
        for _ in range(100):  # SQLite does not wait for others that switch to WAL at the same time
            with contextlib.suppress(sqlite3.OperationalError):
                self.connection.execute("PRAGMA journal_mode=WAL")
                break
            time.sleep(0.01)
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute(self.schema)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{self.path}: cannot keep answers or their pace in it: {reason}; free some space, move the file away, "
                "or choose another --cache_dir"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, begun with the right to write: reading first and writing later may fail for two at once."""
        with self._errors(), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection


class Cache(Database):
    """Answers by key. What is found for a text is `{"answer": plain JSON data}` or `{"refused": reason}`."""

    schema = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, scorer TEXT NOT NULL, found TEXT NOT NULL)"

    def get(self, keys: Iterable[str]) -> dict[str, dict]:
        """What is known of these keys."""
        with self._errors():
            rows = ((key, self._find(key)) for key in keys)
            return {key: json.loads(row[0]) for key, row in rows if row}

    def _find(self, key: str) -> tuple[str] | None:
        return self.connection.execute("SELECT found FROM answers WHERE key = ?", (key,)).fetchone()

    def put(self, key: str, scorer: str, found: dict) -> None:
        """Keep an answer, which is there for every process when this returns; the first one of a key stays."""
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, scorer, json.dumps(found)))

    def rows(self) -> Iterator[dict]:
        """All that is kept, in the order of arrival."""
        with self._errors():
            for key, scorer, found in self.connection.execute("SELECT key, scorer, found FROM answers ORDER BY rowid"):
                yield {"key": key, "scorer": scorer, **json.loads(found)}

    def export(self, path: Path) -> int:
        """Write all answers as JSON Lines, whole or not at all; how many."""
        with replacing(path) as file:
            return sum(1 for row in self.rows() if file.write(json.dumps(row).encode() + b"\n"))

    def take(self, path: Path) -> int:
        """Add what `export` wrote, a thousand lines at a time; a key that is there stays as it is.

        Returns:
            The number of new answers.

        Raises:
            UserError: with file and line: not such a line. Those before it are taken.
        """
        before = self.connection.total_changes
        lines = (_entry(row, f"{path}:{number}") for number, row in enumerate(read_lines(path), 1))
        while some := list(islice(lines, 1000)):
            with self._writing() as connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", some)
        return self.connection.total_changes - before


def _entry(row: dict, where: str) -> tuple[str, str, str]:
    found = {name: row[name] for name in ("answer", "refused") if name in row}
    texts = [row.get("key"), row.get("scorer"), found.get("refused", "")]
    if len(found) != 1 or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {FORMAT}")
    return row["key"], row["scorer"], json.dumps(found)


def gap(rate: float) -> float:
    """Seconds between starts so that no second holds more than `rate` of them; 2.5 a second is kept as 2."""
    return SECOND / (math.floor(rate) if rate >= 1 else rate)


def slot(last: float | None, now: float, rate: float) -> tuple[float, float]:
    """Whether a request may start now.

    Any floor(rate) + 1 starts in a row take at least SECOND - CATCH_UP, above 1; for a rate below 1, any two of them
    1 / rate.

    Args:
        last: The slot of the last start, None = none yet; later than now only if the clock was set anew.

    Returns:
        Seconds to wait, 0 = start now, and the last slot from now on.
    """
    if last is None:
        return 0.0, now
    last = min(last, now)
    due = last + gap(rate)
    return (due - now, last) if now < due else (0.0, max(due, now - CATCH_UP))


class Pace(Database):
    """When requests of a service may start, over all processes of this machine and user."""

    schema = "CREATE TABLE IF NOT EXISTS pace (service TEXT PRIMARY KEY, last REAL NOT NULL)"

    def __init__(self):
        user = getattr(os, "getuid", int)()  # 0 on Windows, where the folder is each user's own
        super().__init__(Path(tempfile.gettempdir()) / f"nlf-{user}" / "pace.sqlite")

    def start(self, service: str, rate: float) -> float:
        """Seconds to wait before asking again whether a request may start; 0 = it starts now."""
        with self._writing() as connection:
            row = connection.execute("SELECT last FROM pace WHERE service = ?", (service,)).fetchone()
            wait, last = slot(row and row[0], time.monotonic(), rate)
            connection.execute("INSERT OR REPLACE INTO pace VALUES (?, ?)", (service, last))
        return wait
