"""The run directory: whose run it is, which checkpoints are whole, and what a resumed run may not change.

Trainer writes `checkpoint-N` in place and takes the highest number as the latest, whole or not. So a checkpoint here
is whole only once its marker, `nlf.json`, is there; it is written last, and unmarked folders are ignored and replaced.
"""

import contextlib
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import yaml
from safetensors import SafetensorError

from nlf.errors import UserError

CONFIG, FACTS, METRICS, MARKER = "config.yaml", "run.json", "metrics.jsonl", "nlf.json"
AGAIN = {"iteration", "train_runtime"}  # in lines of the pool, when an iteration begins, and of the end of a run

# Settings that cannot change the result; a resumed run may change them.
FREE = {
    *("output_dir", "resume_from_checkpoint", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm"),
    *("log_completions", "num_completions_to_print", "log_level", "log_level_replica", "log_on_each_node"),
    *("logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "logging_nan_inf_filter"),
    *("save_total_limit", "save_steps", "save_on_each_node", "push_to_hub", "hub_token", "hub_model_id"),
    *("hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor", "local_rank", "ddp_timeout", "skip_memory_metrics"),
    *("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"),  # rounding, as ever with vLLM
    *("cache_dir", "replay", "rate_limit", "max_concurrency", "max_tries", "max_failures_in_a_row", "request_timeout"),
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),  # their product over all ranks is compared instead
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, whole and on disk, or not at all; what killed writers
    left is removed.

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
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """What to say where a file cannot be written."""
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


def make_folder(run_dir: Path) -> None:
    """The folder itself, before anything long is started.

    Raises:
        UserError: it cannot be made, or is no folder.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {run_dir}: {error.strerror}; choose another --output_dir") from error


def claim(run_dir: Path, settings: dict, facts: dict, resume: bool) -> None:
    """Make the folder this run's, or refuse in one line.

    Args:
        settings: Every knob's value: what `config.yaml` holds, to be given to `--config`.
        facts: What else the result depends on (the prompts' digest, say): `run.json`.

    Raises:
        UserError: the folder holds another run, holds a run and `resume` is off, or cannot be written.
    """
    path = run_dir / CONFIG
    if path.is_file():
        if not resume:
            raise UserError(
                f"{run_dir} already holds a run; add --resume_from_checkpoint true to go on with it, "
                "or choose another --output_dir"
            )
        earlier = {"sampler": "hf"} | run_settings(run_dir)  # as it was before there was a choice
        changed = changed_settings(earlier, settings | facts)
        if changed:
            old, new = changed[0][1:]
            more = f" (and {', '.join(name for name, _, _ in changed[1:6])})" if changed[1:] else ""
            raise UserError(
                f"{run_dir} was started with {changed[0][0]}={old!r}, now it is {new!r}{more}; "
                "resume with the settings of its config.yaml, or choose another --output_dir"
            )
    elif run_dir.is_dir() and any((run_dir / name).exists() for name in ("rollouts", "model.safetensors")):
        raise UserError(f"{run_dir} holds a run or a model but no {CONFIG}; choose another --output_dir")
    write_text(run_dir / FACTS, json.dumps(facts, indent=1))
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def run_settings(run_dir: Path) -> dict:
    """What the run's `config.yaml` and `run.json` hold; nothing where there are none.

    Raises:
        UserError: one of them cannot be read.
    """
    found = [_settings(path) for path in (run_dir / FACTS, run_dir / CONFIG) if path.is_file()]
    return {name: value for settings in found for name, value in settings.items()}


def _settings(path: Path) -> dict:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: {type(found).__name__} where names and values were expected; mend or remove it")
    return found


def changed_settings(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """(name, old, new) of the settings that differ and could change the result."""
    free = set(FREE)
    if str(new.get("lr_scheduler_type", "")).startswith("constant"):
        free.add("num_train_epochs")  # such a schedule does not depend on where it ends
    names = [name for name in new if name not in free]
    return [(name, old.get(name), new[name]) for name in names if name in old and old[name] != new[name]]


def mark_complete(checkpoint: Path, state: dict) -> None:
    """Say that everything in this checkpoint has been written, and keep what Trainer does not: the loop's own
    state.
    """
    write_text(checkpoint / MARKER, json.dumps(state, indent=1))


def loop_state(checkpoint: Path) -> dict:
    """What `mark_complete` kept.

    Raises:
        UserError: the folder is not a whole checkpoint of a run.
    """
    try:
        return json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is not a whole checkpoint of nlf (no readable {MARKER}); name another, or true for the last whole one"
        ) from error


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to go on from: the highest step among those that are whole."""
    steps = [
        (int(match[1]), path)
        for path in (run_dir.iterdir() if run_dir.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / MARKER).is_file()
    ]
    return max(steps)[1] if steps else None


def clear_checkpoint(checkpoint: Path) -> None:
    """Remove what an interrupted write left, so that old and new files never mix; the marker goes first."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop the logged lines that a run resumed at `step` writes again: those after it, at it what `AGAIN` names, and all
    where it starts anew.
    """
    path = run_dir / METRICS
    if path.is_file():
        write_text(path, "".join(_lines_up_to(path.read_text(encoding="utf-8").splitlines(), step)))


def _lines_up_to(lines: Iterable[str], step: int) -> Iterable[str]:
    for line in lines:
        try:
            row = json.loads(line)
            kept = row["step"] < step or (row["step"] == step > 0 and not AGAIN & row.keys())
        except ValueError:  # the line being written when the run was killed
            kept = False
        if kept:
            yield line + "\n"


def write_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write files into a temporary folder, then move them in; `config.json` goes last, and makes it a
    model. What killed writers left is removed.

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
