"""The cache of remote scorers' answers, and the rate limit of their requests.

Both are SQLite files that all processes of one machine share. An answer is written as soon as it arrives, so a killed run
never pays for it twice. Its key is a digest of scorer, version, settings and text; the file holds neither the text nor
the service's key. A judge's answer can quote the text, so new files are for their owner alone.

The rate limit holds for all runs of a user, even if they have different values of `cache_dir`. A process takes a slot when
the slot is due and never in advance: a killed process blocks no slot, and a late request does not fall into the second
of the next request.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypedDict, cast

from nlf.data.files import replacing
from nlf.data.generations import read_lines
from nlf.errors import UserError

logger = logging.getLogger(__name__)

BUSY = 60.0  # seconds to wait for another process's write, which takes microseconds
SECOND = 1.1  # above 1, since requests travel for different times and no second of the server may hold too many
CATCH_UP = 0.02  # a request this many seconds late does not delay the next slot
TEXT = "CAST(found AS BLOB)"  # bytes, because sqlite3 raises an error for text that is not UTF-8
FORMAT = "expected lines of nlf score --export_cache: key, scorer, and answer or refused"


class Found(TypedDict, total=False):
    """The cached result of a text. It has exactly one of the two fields."""

    answer: Any  # plain JSON data
    refused: str  # why the service cannot score the text


def digest(value: object) -> str:
    """A name for plain JSON data, equal in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Database:
    """A SQLite file that is open inside `with`. Each write is one transaction.

    Raises:
        UserError: the file cannot be read or written, is not a SQLite file, or another user may have put it there; every
            method may raise it.
    """

    schema = ""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Self:
        with self._errors():
            self._make()
            self.connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()

    def _make(self) -> None:
        """Make the file, readable by its owner alone, unless it is there and ours.

        SQLite follows symbolic links, so one that another user planted would make it write into any file of ours.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for suffix in ("", "-wal", "-shm", "-journal"):
            if Path(f"{self.path}{suffix}").is_symlink():
                raise OSError(None, f"{self.path.name}{suffix} is a symbolic link, and the target would be written to")
        flags = os.O_CREAT | os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        os.close(os.open(self.path, flags, 0o600))
        anyone = self.path.parent.stat().st_mode & stat.S_IWOTH
        if not self.path.is_file():
            raise OSError(None, "it is not a file")
        if anyone and self.path.stat().st_uid != getattr(os, "getuid", int)():
            raise OSError(None, "another user owns it, in a folder that everyone can write to")

    def _prepare(self) -> None:
        for _ in range(100):  # SQLite does not wait while another process switches to WAL
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
                f"{self.path}: cannot keep answers or the rate limit in it: {reason}; free some space, move the file "
                "away, or choose another folder with --cache_dir or NLF_CACHE"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that may write from its start: two that begin by reading and then write could both fail."""
        with self._errors(), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection


class Cache(Database):
    """Answers by key."""

    schema = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, scorer TEXT NOT NULL, found TEXT NOT NULL)"

    def get(self, keys: Iterable[str], answer_type: type = object) -> dict[str, Found]:
        """The known answers among these keys. Damaged rows are removed, and a warning counts them.

        Args:
            answer_type: An answer of another type is damaged.
        """
        with self._errors():
            rows = {key: row[0] for key in keys if (row := self._find(key))}
        found = {key: _found(text, answer_type) for key, text in rows.items()}
        damaged = [(key, rows[key]) for key, each in found.items() if each is None]
        if damaged:
            logger.warning(f"{self.path}: {len(damaged):,} answers are damaged; they count as not yet asked for")
            with self._writing() as connection:
                connection.executemany(f"DELETE FROM answers WHERE key = ? AND {TEXT} = ?", damaged)
        return {key: each for key, each in found.items() if each is not None}

    def _find(self, key: str) -> tuple[bytes] | None:
        return self.connection.execute(f"SELECT {TEXT} FROM answers WHERE key = ?", (key,)).fetchone()

    def put(self, key: str, scorer: str, found: Found) -> None:
        """Write an answer. Other processes can read it when this returns; a key keeps its first answer."""
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, scorer, json.dumps(found)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All answers in the order of arrival: `key`, `scorer`, and `answer` or `refused`. Damaged rows are left out."""
        damaged = 0
        with self._errors():
            for key, scorer, text in self.connection.execute(
                f"SELECT key, scorer, {TEXT} FROM answers ORDER BY rowid"
            ):
                found = _found(text)
                if found is None:
                    damaged += 1
                else:
                    yield {"key": key, "scorer": scorer, **found}
        if damaged:
            logger.warning(f"{self.path}: {damaged:,} answers are damaged and left out")

    def export(self, path: Path) -> int:
        """Write all answers to a JSON Lines file, atomically; returns their number."""
        with replacing(path) as file:
            return sum(1 for row in self.rows() if file.write(json.dumps(row).encode() + b"\n"))

    def take(self, path: Path) -> int:
        """Add the answers of a file that `export` wrote, a thousand lines at a time; a known key keeps its answer.

        Returns:
            The number of new answers.

        Raises:
            UserError: a line has another form; the message names file and line. Earlier lines may have been added.
        """
        before = self.connection.total_changes
        lines = (_entry(row, f"{path}:{number}") for number, row in enumerate(read_lines(path), 1))
        while some := list(islice(lines, 1000)):
            with self._writing() as connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", some)
        return self.connection.total_changes - before


def _found(text: bytes | None, answer_type: type = object) -> Found | None:
    """The result in a row of the cache; None if the row is damaged."""
    try:
        found = json.loads(text or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or len(found) != 1:
        return None
    whole = isinstance(found["answer"], answer_type) if "answer" in found else isinstance(found.get("refused"), str)
    return cast(Found, found) if whole else None


def _entry(row: dict, where: str) -> tuple[str, str, str]:
    found = {name: row[name] for name in ("answer", "refused") if name in row}
    texts = [row.get("key"), row.get("scorer"), found.get("refused", "")]
    if len(found) != 1 or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {FORMAT}")
    return row["key"], row["scorer"], json.dumps(found)


def gap(rate: float) -> float:
    """Seconds between two requests so that no second holds more than `rate` of them; a rate of 2.5 is rounded to 2."""
    return SECOND / (math.floor(rate) if rate >= 1 else rate)


def slot(last: float | None, now: float, rate: float) -> tuple[float, float]:
    """Whether a request may start now.

    floor(rate) + 1 requests in a row take at least SECOND - CATCH_UP seconds, more than 1. For a rate below 1, two
    requests take at least 1 / rate seconds.

    Args:
        last: The slot of the last request; None = there was none. It is later than `now` only if the clock was reset.

    Returns:
        Seconds to wait (0 = start now), and the last slot from now on.
    """
    if last is None:
        return 0.0, now
    last = min(last, now)
    due = last + gap(rate)
    return (due - now, last) if now < due else (0.0, max(due, now - CATCH_UP))


class Pace(Database):
    """The rate limits of all services, shared by the processes of one user.

    Args:
        folder: The folder of the file.
    """

    schema = "CREATE TABLE IF NOT EXISTS pace (service TEXT PRIMARY KEY, last REAL NOT NULL)"

    def __init__(self, folder: Path):
        super().__init__(folder / "pace.sqlite")

    def start(self, service: str, rate: float) -> float:
        """Seconds until this should be called again; 0 = a request may start now, and its slot is taken."""
        with self._writing() as connection:
            row = connection.execute("SELECT last FROM pace WHERE service = ?", (service,)).fetchone()
            known = row is not None and isinstance(row[0], float)  # a damaged row counts as none
            wait, last = slot(row[0] if known else None, time.time(), rate)
            connection.execute("INSERT OR REPLACE INTO pace VALUES (?, ?)", (service, last))
        return wait
