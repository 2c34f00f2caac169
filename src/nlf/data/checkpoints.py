"""Checkpoints: the marker that makes one complete, and the checks that it is still whole.

Trainer writes `checkpoint-N` in place, and resumes from whatever it finds there: if the optimizer's file is missing, it
starts a new optimizer. Here a checkpoint has a marker, `nlf.json`, which is written last and lists every file with its
size and checksum. A checkpoint is whole if all these files are unchanged.

The checksum is CRC-32, which finds torn and exchanged files, but no forgery. It reads about 3 GB a second, as fast as the
files come from the disk, once when a checkpoint is written and once when a run resumes from it.
"""

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nlf.data.files import write_text
from nlf.errors import UserError

MARKER = "nlf.json"
TRAINER_STATE = "trainer_state.json"
NEEDED = {  # what Trainer resumes from, and the files that hold it: of one process or DDP, of FSDP, of DeepSpeed
    "weights": ("*model*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "learning rate schedule": ("scheduler.pt", "global_step*"),
    "random state": ("rng_state*.pth",),
}
BLOCK = 2**24  # bytes read at a time


class NotWhole(UserError):
    """A run cannot be resumed from a checkpoint; the text says why."""


def mark_complete(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Mark a checkpoint as complete, once every rank has written its files.

    Args:
        state: The state of the loop, which Trainer does not save.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    paths = [path.relative_to(checkpoint) for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    names = [path.as_posix() for path in paths if path.name != MARKER and path.suffix != ".tmp"]
    files = {
        name: {"size": (checkpoint / name).stat().st_size, "crc32": _checksum(checkpoint / name)} for name in names
    }
    write_text(checkpoint / MARKER, json.dumps({**state, "files": files}, indent=1))


def loop_state(checkpoint: Path) -> dict[str, Any]:
    """The state of the loop that `mark_complete` saved, with the list of files.

    Raises:
        NotWhole: the folder has no marker, or the marker is torn.
    """
    try:
        state = json.loads((checkpoint / MARKER).read_bytes())
    except FileNotFoundError as error:
        raise NotWhole(f"it has no {MARKER}, which is written last") from error
    except (OSError, ValueError) as error:
        raise NotWhole(f"its {MARKER} cannot be read") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise NotWhole(f"its {MARKER} is not that of a checkpoint")
    if step_of(checkpoint) not in (None, state["step"]):
        raise NotWhole(f"its {MARKER} is that of step {state['step']}")
    return state


def check_files(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds what Trainer resumes from, unchanged since it was written.

    Args:
        state: The `loop_state`. Markers of earlier versions list no files; the files are then opened instead.

    Raises:
        NotWhole: a file is missing, torn or changed.
    """
    for what, patterns in NEEDED.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            only_model = " (save_only_model leaves it out)" if what != "weights" else ""
            raise NotWhole(f"it holds no {what}, expected {patterns[0]}{only_model}")
    try:
        if "files" in state:
            _check_listed(checkpoint, state["files"])
        else:
            _check_readable(checkpoint, state["step"])
    except OSError as error:
        raise NotWhole(f"a file cannot be read ({error.strerror or error})") from error


def _check_listed(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the files with the list of the marker: first the sizes, which cost nothing."""
    for name, listed in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise NotWhole(f"{name} is missing")
        if path.stat().st_size != listed["size"]:
            raise NotWhole(f"{name} has {path.stat().st_size:,} bytes, expected {listed['size']:,}")
    for name, listed in files.items():
        if _checksum(checkpoint / name) != listed["crc32"]:
            raise NotWhole(f"{name} has changed since it was written")


def _check_readable(checkpoint: Path, step: int) -> None:
    """Find torn files without a list: a truncated file lacks the end of its archive, or ends before its header says."""
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except SafetensorError as error:
                raise NotWhole(f"{path.name} is torn") from error
        elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            raise NotWhole(f"{path.name} is torn")
    for shard in _object_in(checkpoint / "model.safetensors.index.json").get("weight_map", {}).values():
        if not (checkpoint / shard).is_file():
            raise NotWhole(f"{shard} is missing")
    if trainer_state(checkpoint).get("global_step") != step:
        raise NotWhole(f"{TRAINER_STATE} is not that of step {step}")


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """What Trainer saved about its progress; empty if there is no such file.

    Raises:
        NotWhole: the file is torn.
    """
    return _object_in(checkpoint / TRAINER_STATE)


def _object_in(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise NotWhole(f"{path.name} is torn") from error
    if not isinstance(found, dict):
        raise NotWhole(f"{path.name} is torn")
    return found


def _checksum(path: Path) -> str:
    """The CRC-32 of a file, 8 hexadecimal digits."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


# ---- the checkpoints of a run ---------------------------------------------------------------------------------------


def numbered(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each checkpoint of a run, whole or not, newest first."""
    folders = [path for path in (run_dir.iterdir() if run_dir.is_dir() else ()) if path.is_dir()]
    return sorted([(step, path) for path in folders if (step := step_of(path)) is not None], reverse=True)


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder, `checkpoint-N`; None for any other name."""
    name = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(name[1]) if name else None


def clear_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint folder, so that old and new files never mix. The marker goes first. Of a symbolic link to a folder
    elsewhere, only the link is removed.
    """
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    if not (checkpoint / MARKER).is_dir():
        (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def remove_old(run_dir: Path, step: int, limit: int | None, best: Path | None) -> None:
    """Keep the `limit` newest complete checkpoints up to the one just written, at `step`, and the best one.

    Trainer counts incomplete and later checkpoints too, for which it would remove the only complete one.
    """
    if not limit or limit < 0:
        return
    found = [path for at, path in numbered(run_dir) if at <= step]
    kept = {run_dir / f"checkpoint-{step}", *([best] if best else [])}
    for path in found:
        if (path / MARKER).is_file() and len(kept) < limit:
            kept.add(path)
    for path in found:
        if path not in kept:
            clear_checkpoint(path)
