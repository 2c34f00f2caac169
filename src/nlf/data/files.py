"""Files: the package's assets, atomic writes, and digests."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from nlf.errors import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"  # the embedded model, scorers, prompts, recipes, tasks, judges
EMBEDDED = "embedded"  # the name of the shipped model, and of the shipped prompts


def model_path(name_or_path: str) -> str:
    """The folder or hub id of a model; `embedded` is the model shipped with the package."""
    return str(ASSETS / "lm") if name_or_path == EMBEDDED else name_or_path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which replaces `path` at the end of the block.

    After an error, `path` stays unchanged. Temporary files that killed writers left are removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            leftover.unlink(missing_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be missing
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space and run again, or choose another --output_dir"
    )


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --output_dir") from error


def write_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write files into a temporary folder, then move them into the folder. `config.json`, which makes the folder a
    model, is moved last. Temporary folders that killed writers left are removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = folder / f".saving-{os.getpid()}"
    try:
        for leftover in folder.glob(".saving-*"):
            shutil.rmtree(leftover)
        save(temporary)
        for path in sorted(temporary.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
            target = folder / path.name
            if path.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            os.replace(path, target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {folder}: {getattr(error, 'strerror', None) or error}; free some space and resume the run"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def not_yaml(where: str, error: Exception) -> UserError:
    """The error for text that is not YAML.

    Args:
        where: The file; the number of the wrong line is added.
        error: The parser's error.
    """
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return UserError(f"{where}{line}: not YAML: {getattr(error, 'problem', None) or error}")


def digest(value) -> str:
    """A short digest of plain values, equal in every process.

    Raises:
        TypeError: a value is not JSON, so its text might differ between processes.
    """
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
