"""The run folder: the run it belongs to, its complete checkpoints, and the settings that a resumed run may not change.

Trainer writes `checkpoint-N` in place and takes the highest number as the latest, complete or not. Here a checkpoint is
complete only when it has a marker, `nlf.json`, which is written last. Folders without a marker are ignored and replaced.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nlf.config import RETIRED, current
from nlf.data.files import refuse_others, write_text
from nlf.errors import UserError

RESULTS, SCHEMA_VERSION = "results.json", 1  # of an evaluation
CONFIG, FACTS, METRICS, MARKER = "config.yaml", "run.json", "metrics.jsonl", "nlf.json"
DISTILLED = "distilled"  # folder of the plain model, in a run's folder
MODEL_FILES = (  # patterns of the files of a model folder, its `README.md` aside
    *("config.json", "generation_config.json", "model*.safetensors*", "adapter", "tags.json", "tokenizer*"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "*.bpe.model"),
    *("chat_template*", "additional_chat_templates", "modeling_*.py", "configuration_*.py", "tokenization_*.py"),
)
RUN_FILES = (
    *(CONFIG, FACTS, METRICS, "rollouts", ".sampling", "checkpoint-*", DISTILLED, "report.html", "README.md"),
    *MODEL_FILES,
)
AGAIN = {"iteration", "train_runtime"}  # keys of the lines that start an iteration or end a run

# Settings that do not change the result; a resumed run may change them.
FREE = {
    *("output_dir", "resume_from_checkpoint", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm"),
    *("log_completions", "num_completions_to_print", "log_level", "log_level_replica", "log_on_each_node"),
    *("logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "logging_nan_inf_filter"),
    *("save_total_limit", "save_steps", "save_on_each_node", "push_to_hub", "hub_token", "hub_model_id"),
    *("hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "dataloader_num_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor", "local_rank", "ddp_timeout", "skip_memory_metrics"),
    *("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"),  # they change rounding only
    *("cache_dir", "replay", "rate_limit", "max_concurrency", "max_tries", "max_failures_in_a_row", "request_timeout"),
    "sampling_batch_tokens",
    # The product of these two over all ranks is compared instead.
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
}


def check_free(run_dir: Path, resume: bool) -> None:
    """Refuse a folder that training would overwrite.

    Raises:
        UserError: the folder holds a run and `resume` is off, or no run but files where a run writes its own.
    """
    ours = "train_prompts" in settings_in(run_dir / FACTS)
    if not ours or not (run_dir / CONFIG).is_file():  # `claim` writes run.json first
        refuse_others(run_dir, [name for name in RUN_FILES if not ours or name != FACTS])
    elif not resume:
        raise UserError(
            f"{run_dir} already holds a run; add --resume_from_checkpoint true to continue it, "
            "or choose another --output_dir"
        )


def claim(run_dir: Path, settings: dict, facts: dict, resume: bool) -> None:
    """Write a run's settings into its folder, or refuse a folder that belongs to another run.

    Args:
        settings: The value of every knob, for `config.yaml`, which `--config` can read.
        facts: Other values that the result depends on, such as the prompts' digest, for `run.json`.

    Raises:
        UserError: the folder holds another run, holds a run and `resume` is off, holds files of other programs where the run
            writes its own, or cannot be written.
    """
    check_free(run_dir, resume)
    path = run_dir / CONFIG
    if path.is_file():
        earlier = earlier_settings(run_dir)
        changed = changed_settings(earlier, settings | facts)
        if changed:
            old, new = changed[0][1:]
            more = f" (and {', '.join(name for name, _, _ in changed[1:6])})" if changed[1:] else ""
            raise UserError(
                f"{run_dir} was started with {changed[0][0]}={old!r}, now it is {new!r}{more}; "
                "resume with the settings of its config.yaml, or choose another --output_dir"
            )
    write_text(run_dir / FACTS, json.dumps(facts, indent=1))
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def earlier_settings(run_dir: Path) -> dict:
    """The settings that the run in a folder was started with, in the names and values of today's knobs.

    Raises:
        UserError: a removed knob has a value that changes results and that training no longer supports.
    """
    old = {"sampler": "hf"} | run_settings(run_dir)  # a run that names no sampler used hf
    try:
        return current(without_unused(old))
    except UserError as error:
        raise UserError(f"{run_dir} cannot be resumed: {error}") from error


def without_unused(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the retired knobs that change no result, whatever their values."""
    return {name: value for name, value in settings.items() if name not in RETIRED or name not in FREE}


def run_settings(run_dir: Path) -> dict:
    """The settings in the run's `run.json` and `config.yaml`; empty if there are none.

    Raises:
        UserError: one of the files cannot be read.
    """
    return settings_in(run_dir / FACTS) | settings_in(run_dir / CONFIG)


def settings_in(path: Path) -> dict:
    """The settings in one file, YAML or JSON; empty if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds no names and values.
    """
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: {type(found).__name__} where names and values were expected; mend or remove it")
    return found


def changed_settings(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """(name, old, new) of settings that differ and can change the result."""
    free = set(FREE)
    if str(new.get("lr_scheduler_type", "")).startswith("constant"):
        free.add("num_train_epochs")  # a constant schedule does not depend on its end
    names = [name for name in new if name not in free]
    return [(name, old.get(name), new[name]) for name in names if name in old and old[name] != new[name]]


def mark_complete(checkpoint: Path, state: dict) -> None:
    """Mark a checkpoint as complete. The marker holds the state of the loop, which Trainer does not save."""
    write_text(checkpoint / MARKER, json.dumps(state, indent=1))


def loop_state(checkpoint: Path) -> dict:
    """The state of the loop that `mark_complete` saved.

    Raises:
        UserError: the folder is not a complete checkpoint of a run.
    """
    try:
        return json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is not a complete checkpoint of nlf (no readable {MARKER}); name another checkpoint, or use true "
            "for the last complete one"
        ) from error


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The complete checkpoint with the highest step; None if there is none."""
    steps = [
        (int(match[1]), path)
        for path in (run_dir.iterdir() if run_dir.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / MARKER).is_file()
    ]
    return max(steps)[1] if steps else None


def clear_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint folder, so that old and new files never mix. The marker goes first."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop the logged lines that a run resumed at `step` writes again: lines of later steps, lines of this step with a key in
    `AGAIN`, and all lines if the step is 0.
    """
    path = run_dir / METRICS
    if path.is_file():
        write_text(path, "".join(_lines_up_to(path.read_text(encoding="utf-8").splitlines(), step)))


def _lines_up_to(lines: Iterable[str], step: int) -> Iterable[str]:
    for line in lines:
        try:
            row = json.loads(line)
            kept = row["step"] < step or (row["step"] == step > 0 and not AGAIN & row.keys())
        except ValueError:  # a partial line, written when the run was killed
            kept = False
        if kept:
            yield line + "\n"
