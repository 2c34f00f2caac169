"""Files: the package's assets, atomic writes, files of other programs, and digests."""

import contextlib
import errno
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from nlf.errors import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # the embedded model, scorers, prompts, recipes, tasks, judges
EMBEDDED = "embedded"  # the name of the shipped model, and of the shipped prompts


def cache_folder() -> Path:
    """$NLF_CACHE, or the user's cache folder: the answers of remote scorers, and converted models.

    Raises:
        UserError: the user has no home.
    """
    folder = os.environ.get("NLF_CACHE") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nlf")
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError(f"{folder}: this user has no home folder; set NLF_CACHE to a folder of yours") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which replaces `path` at the end of the block.

    A replaced file keeps its permissions, and a symbolic link stays a link. After an error, `path` stays unchanged.
    Temporary files that killed writers left are removed.

    Raises:
        UserError: the file cannot be written or the disk is full.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode_of(target))) as file:
                _copy_permissions(target, temporary)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be missing
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writers of this file."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for leftover in [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]:
        leftover.unlink(missing_ok=True)


def mode_of(path: Path) -> int:
    """The permissions of a file, for another file with its content; the usual ones if there is no such file."""
    return stat.S_IMODE(path.stat().st_mode) & 0o666 if path.exists() else 0o666


def check_writable(path: Path) -> None:
    """Refuse a write-protected file, which a replacement would overwrite.

    Raises:
        UserError: the file is write-protected.
    """
    with writing(path):
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _copy_permissions(path: Path, temporary: Path) -> None:
    """Give a temporary file the owner, the permissions and the access lists of the file that it will replace."""
    check_writable(path)
    if path.exists():
        if hasattr(os, "chown"):  # not on Windows
            with contextlib.suppress(PermissionError):  # only root may give a file to another user
                os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
        shutil.copystat(path, temporary)


# ---- errors of writing --------------------------------------------------------------------------------------------

ADVICE = {  # what to do about an error of the system
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and run again, or choose another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable, or choose another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "move away what is there, or choose another place"),
    errno.ENOENT: "its folder was removed meanwhile; run again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n) and run again",
}
HALF_WRITTEN = "unexpected pos"  # torch's words when the system wrote only a part
TORCH_CANNOT_WRITE = re.compile(r"inline_container\.cc|write\(\): fd|iostream error")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of writing a file or a folder, by Python, safetensors or torch, into one line.

    Raises:
        UserError: the path cannot be written or the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    except RuntimeError as error:  # of torch.save
        if not TORCH_CANNOT_WRITE.search(str(error)):
            raise
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be written: the system's reason, and what to do about this reason."""
    code, reason = _code_of(error), str(error)
    if HALF_WRITTEN in reason:
        code, reason = errno.ENOSPC, "only a part could be written"
    elif code is not None:
        reason = os.strerror(code)
    return UserError(f"cannot write {path}: {reason}; {ADVICE.get(code or 0, 'choose another place')}")


def _code_of(error: Exception) -> int | None:
    """The system's number of an error. Only the texts of safetensors and torch have it, as a number or in words."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"os error (\d+)", str(error))
    return int(number[1]) if number else next((code for code in ADVICE if os.strerror(code) in str(error)), None)


# ---- files of others ----------------------------------------------------------------------------------------------


def refuse_others(folder: Path, patterns: Iterable[str]) -> None:
    """Refuse a folder with files of other programs where a command would write its own; empty ones may be replaced.

    Args:
        patterns: The names of the files and folders that the command writes, as in a shell.

    Raises:
        UserError: one of them is there.
    """
    patterns = list(patterns)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns) and not _is_empty(path):
            raise _in_the_way(path)


def refuse_other(path: Path, is_ours: Callable[[str], bool], most: int = -1) -> None:
    """Refuse to overwrite a file of another program; an empty file may be replaced.

    Args:
        is_ours: Whether a text is the content of a file that nlf writes.
        most: Number of characters from its start that are read; -1 is all.

    Raises:
        UserError: the file is there, and is not ours.
    """
    if not os.path.lexists(path) or _is_empty(path):
        return
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            if is_ours(file.read(most)):
                return
    raise _in_the_way(path)


def _is_empty(path: Path) -> bool:
    """Whether a path is a file or a folder that holds nothing."""
    return not any(path.iterdir()) if path.is_dir() else path.is_file() and not path.stat().st_size


def _in_the_way(path: Path) -> UserError:
    return UserError(f"{path} is there already and would be overwritten; move it away, or choose another place")


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as file:
        file.write(text.encode())


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there, so that a long run does not fail at its first write.

    Raises:
        UserError: the folder cannot be made, or the path is not a folder.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write files into a temporary folder, then move them into the folder. `config.json`, which makes the folder a
    model, is moved last. Temporary folders that killed writers left are removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = folder / f".saving-{os.getpid()}"
    try:
        with writing(folder):
            for leftover in folder.glob(".saving-*"):
                shutil.rmtree(leftover)
            save(temporary)
            follow_umask(temporary.rglob("*"))
            for path in sorted(temporary.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
                target = folder / path.name
                if path.is_dir():
                    shutil.rmtree(target, ignore_errors=True)
                elif target.is_file():
                    shutil.copymode(target, path)
                os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def follow_umask(paths: Iterable[Path]) -> None:
    """Give new files the usual permissions: only their owner can read the files that safetensors writes."""
    umask = os.umask(0o077)  # the only way to read it
    os.umask(umask)
    for path in paths:
        if path.is_file():
            path.chmod(0o666 & ~umask)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON. NaN and infinity become null, because JSON has neither; a scalar of numpy or torch becomes a number,
    and any other object its text. The text can always be written as UTF-8: half a character (a lone surrogate) is escaped.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, indent=indent)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(finite(value), default=_plain, indent=indent)
    except ValueError:  # NaN or infinity
        return json_text(finite(value), indent)
    return text


def finite(value: Any) -> Any:
    """A JSON value in which None stands for NaN and infinity."""
    if hasattr(value, "item"):
        value = _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """An object that `json` does not know, as a number or as text."""
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)


def prompt_id(prompt: str | list[dict]) -> str:
    """A short digest of the prompt alone, independent of its place in a file.

    Raises:
        UnicodeEncodeError: the text holds half a character (a lone surrogate).
    """
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(value) -> str:
    """A short digest of plain values, equal in every process.

    Raises:
        TypeError: a value is not JSON, so its text might differ between processes.
    """
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
