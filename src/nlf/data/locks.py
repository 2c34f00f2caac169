"""Locks: one command at a time writes a folder or a file.

A lock is held on a small file, `_nlf.lock` in the folder or `.NAME.lock` beside the file, which is removed at the end. The
system frees the lock when its process ends, even if the process is killed; the small file then stays and means nothing.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from threading import get_ident

from filelock import FileLock, Timeout

from nlf.data.files import unwritable, writing
from nlf.errors import UserError

logger = logging.getLogger(__name__)

FOLDER_LOCK = "_nlf.lock"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # errors of file systems without locks

_held: set[tuple[Path, int]] = set()  # the locks of this process, with the thread that holds each


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made, and removed at the end if it is empty.

    The holder may lock the folder again inside the block. Of several ranks, only the first holds the lock.

    Raises:
        UserError: another command holds the lock (the error says which), or the folder cannot be written.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    try:
        with _locked(folder.resolve() / FOLDER_LOCK, folder):
            yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()


@contextlib.contextmanager
def locked_files(*paths: Path) -> Iterator[None]:
    """Hold the locks of files, as `locked_folder` does. A folder that cannot be written needs no locks of its files.

    Raises:
        UserError: another command holds one of the locks; the error says which.
    """
    with contextlib.ExitStack() as held:
        for path in paths:
            real = path.resolve()
            if not real.parent.exists() or os.access(real.parent, os.W_OK):
                held.enter_context(_locked(real.with_name(f".{real.name}.lock"), path))
        yield


@contextlib.contextmanager
def in_turn(folder: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of a folder in the cache, which is beside it, after every other command and rank that holds it.

    Args:
        waiting: The line to log if another holds it.

    Raises:
        UserError: the folder cannot be written.
    """
    place = folder.resolve().with_name(f".{folder.name}.lock")
    lock = _acquired(place, folder, waiting)
    try:
        yield
    finally:
        _release(lock, place)


def refuse_while_written(folder: Path) -> None:
    """Refuse to read a model from a folder while another command writes it.

    Raises:
        UserError: another command holds the folder's lock.
    """
    place = folder.resolve() / FOLDER_LOCK
    if place.is_file() and (place, get_ident()) not in _held:
        with contextlib.suppress(OSError), _refused(place, folder, "or name a checkpoint in it"):
            FileLock(place, timeout=0, fallback_to_soft=False).acquire().lock.release()


@contextlib.contextmanager
def _locked(place: Path, what: Path) -> Iterator[None]:
    """Hold the lock on the file `place`, which protects `what`."""
    mine = (place, get_ident())
    if mine in _held or os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = _acquired(place, what)
    _held.add(mine)
    try:
        yield
    finally:
        _held.discard(mine)
        _release(lock, place)


def _release(lock: FileLock | None, place: Path) -> None:
    if lock is not None and lock.is_locked:  # not in a forked process
        place.unlink(missing_ok=True)
        lock.release()


def _acquired(place: Path, what: Path, waiting: str | None = None) -> FileLock | None:
    """The acquired lock; None if the file system has no locks.

    Args:
        waiting: Log this line and wait if another command holds it; None = refuse.
    """
    with writing(what):
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(place.parent.stat().st_mode) & 0o666  # others who can write there can see the holder
    lock = FileLock(place, timeout=0, mode=mode | 0o600, fallback_to_soft=False, on_acquired=_sign)
    try:
        with _refused(place, what):
            try:
                lock.acquire()
            except Timeout:
                if waiting is None:
                    raise
                logger.info(waiting)
                lock.acquire(timeout=-1)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(what, error) from error
        logger.warning("%s: this file system has no locks; run one command at a time there", what)
        return None
    return lock


@contextlib.contextmanager
def _refused(place: Path, what: Path, advice: str = "or choose another place") -> Iterator[None]:
    """Turn a lock of another command into an error that says who holds it."""
    try:
        yield
    except Timeout as error:
        holder = ""
        with contextlib.suppress(OSError):  # it may be removed at this moment
            holder = place.read_text(encoding="utf-8", errors="replace")[:300].strip()
        raise UserError(
            f"{what} is being written by {holder or 'another command'}; wait until it ends, {advice}"
        ) from error


def _sign(descriptor: int) -> None:
    """Write into the lock's file who holds it: command, process, host and time."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    text = f"{_command()} (process {os.getpid()} on {socket.gethostname()}, since {since})\n"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text.encode())


def _command() -> str:
    """The command of this process, without its arguments, which may hold secrets."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return f"nlf {sys.argv[1]}" if name == "nlf" and len(sys.argv) > 1 else f"python {name}"
