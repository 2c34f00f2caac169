"""The run folder: the run it belongs to, and the settings that a resumed run may not change."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nlf.config import FIXED, RETIRED, current, renamed
from nlf.data.checkpoints import step_of
from nlf.data.files import refuse_others, replacing, write_text
from nlf.data.yaml_files import read_mapping
from nlf.errors import UserError

RESULTS, SCHEMA_VERSION = "results.json", 1  # of an evaluation
CONFIG, FACTS, METRICS = "config.yaml", "run.json", "metrics.jsonl"
MODEL_DIGEST = "model_digest"  # key in `run.json`: the digest of the GGUF file that the run started from
DISTILLED = "distilled"  # folder of the student of `nlf distill`, in a run's folder
PLAIN = "plain"  # folder of the run that trains the plain model directly, in a run's folder
# The data sets of a run that was started from Python, in its folder; the command line records where it read them.
RECORDED = {"dataset_name": "train-prompts.jsonl", "eval_dataset": "eval-prompts.jsonl"}
TOKENIZER_FILES = (  # patterns
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("*.bpe.model", "chat_template*", "additional_chat_templates", "tokenization_*.py"),
)
MODEL_FILES = (  # patterns of the files of a model folder, its `README.md` aside
    *("config.json", "generation_config.json", "model*.safetensors*", "adapter", "tags.json", *TOKENIZER_FILES),
    *("modeling_*.py", "configuration_*.py"),
)
RUN_FILES = (
    *(CONFIG, FACTS, METRICS, "rollouts", ".sampling", "checkpoint-*", DISTILLED, "report.html", "README.md"),
    *RECORDED.values(),
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
    *("dataloader_persistent_workers", "save_only_model", "restore_callback_states_from_checkpoint"),
    *("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"),  # they change rounding only
    *("cache_dir", "replay", "rate_limit", "max_concurrency", "max_tries", "max_failures_in_a_row", "request_timeout"),
    *("sampling_batch_tokens", "audit_funcs", "auditors", "use_cache", "dataset_streaming", *FIXED),
    *("feedback", "feedback_columns"),  # the digest of their rows is compared instead, as `feedback_rows`
    # The product of these two over all ranks is compared instead.
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
}

# Settings of tags, which change nothing of a plain run.
OF_TAGS = {
    *(
        "tags",
        "tag_template",
        "separator",
        "tag_tokens",
        "attribute_template",
        "feedback_sampling",
        "max_feedback_length",
        "feedback_position",
    ),
    *("quantile_rule", "quantile_scope", "quantile_weights", "nll_coef", "contrast_coef"),
}


def plain_folder(output_dir: str | Path) -> Path:
    """The folder of the plain run of an output folder: `plain` in it, or the folder itself if that is its name."""
    folder = Path(output_dir)
    return folder if folder.absolute().name == PLAIN else folder / PLAIN


def is_plain_run(folder: str | Path) -> bool:
    """Whether a folder holds a run that trains a plain model, which has no tags."""
    return settings_in(Path(folder, CONFIG)).get("plain") == "only"


def model_folder(model: str) -> str:
    """The model that a command means: the folder of a run, or its `plain` if the run trained nothing else."""
    plain = Path(model, PLAIN)
    empty = not any(Path(model, name).is_file() for name in ("config.json", FACTS))
    return str(plain) if empty and is_plain_run(plain) else model


def check_free(run_dir: Path, resume: bool) -> None:
    """Refuse a folder that training would overwrite.

    Raises:
        UserError: the folder holds a run and `resume` is off, or no run but files where a run writes its own.
    """
    ours = "train_prompts" in settings_in(run_dir / FACTS)
    _check_settings_are_there(run_dir)
    if not ours or not (run_dir / CONFIG).is_file():  # `claim` writes run.json first
        refuse_others(run_dir, [name for name in RUN_FILES if not ours or name != FACTS])
    elif not resume:
        raise UserError(
            f"{run_dir} already holds a run; add --resume_from_checkpoint true to continue it, "
            "or choose another --output_dir"
        )


def _check_settings_are_there(run_dir: Path) -> None:
    """Refuse a folder with rollouts and only one of the two files that a run writes before them.

    Raises:
        UserError: the other file is lost.
    """
    known = {
        FACTS: "train_prompts" in settings_in(run_dir / FACTS),
        CONFIG: "reward_funcs" in settings_in(run_dir / CONFIG),
    }
    lost = [name for name, found in known.items() if not found]
    if len(lost) == 1 and any((run_dir / "rollouts").glob("*")):
        raise UserError(
            f"{run_dir} holds a run, but its {lost[0]} is missing or damaged; restore the file, or choose another --output_dir"
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
    try:
        return todays(run_settings(run_dir))
    except UserError as error:
        raise UserError(f"{run_dir} cannot be resumed: {error}") from error


def todays(old: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings in the names and values of today's knobs.

    Raises:
        UserError: a removed knob has a value that changes results and that training no longer supports.
    """
    return current(without_unused({"sampler": "hf"} | dict(old)))  # a run that names no sampler used hf


def without_unused(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the retired knobs that change no result, whatever their values."""
    return {name: value for name, value in settings.items() if name not in RETIRED or name not in FREE}


def run_settings(run_dir: Path) -> dict:
    """The settings in the run's `run.json` and `config.yaml`; empty if there are none.

    Data sets in the run's folder are named by the folder's path of today: it may have been moved.

    Raises:
        UserError: one of the files cannot be read.
    """
    found = renamed(settings_in(run_dir / FACTS) | settings_in(run_dir / CONFIG))
    for name, file in RECORDED.items():
        if Path(str(found.get(name))).name == file and (run_dir / file).is_file():
            found[name] = str(run_dir / file)
    return found


def trained_run(model: str | Path) -> dict:
    """The settings of the run that made a model: of the folder itself, of the run that a checkpoint in it belongs to, or of
    the run that a student was distilled from; empty if `nlf train` did not make the model.

    Raises:
        UserError: a file of settings cannot be read.
    """
    folder = Path(model)
    found, places = run_settings(folder), [folder]
    if "distilled_from" in found:
        places = [Path(found["distilled_from"]), folder / PLAIN, folder.resolve().parent]  # they may have been moved
    elif step_of(folder) is not None:
        places = [folder.resolve().parent]
    runs = (run for place in places if "reward_funcs" in (run := run_settings(place)))
    return next(runs, found if "distilled_from" in found else {})


def settings_in(path: Path) -> dict:
    """The settings in one file, YAML or JSON; empty if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds no names and values.
    """
    if not path.is_file():
        return {}
    try:
        return read_mapping(path)  # JSON is YAML
    except UserError as error:
        raise UserError(f"{error}; mend or remove it") from error


def changed_settings(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """(name, old, new) of settings that differ and can change the result."""
    free = set(FREE)
    if str(new.get("lr_scheduler_type", "")).startswith("constant"):
        free.add("num_train_epochs")  # a constant schedule does not depend on its end
    if new.get("plain") == "only":
        free |= OF_TAGS
    names = [name for name in new if name not in free]
    other = [name for name in names if name in old and old[name] != new[name]]
    return [(name, old[name], new[name]) for name in other if not _is_renamed(name, old[name], new[name])]


def _is_renamed(name: str, old: Any, new: Any) -> bool:
    """Whether two values mean the same for a run: the data set in its folder, which may have been moved, rewards, which
    earlier versions recorded without import paths and versions, or a plain run that follows. The versions of rewards are
    compared as `rewards`.
    """
    if name == "plain":  # whether a plain run follows changes nothing of a run with tags
        return "only" not in (old, new)
    if name in RECORDED:
        return Path(str(old)).name == Path(str(new)).name == RECORDED[name]
    if name == "attributes" and old and new:
        rewards = [[attribute.get("reward") for attribute in side] for side in (old, new)]
        others = [[{**attribute, "reward": None} for attribute in side] for side in (old, new)]
        return others[0] == others[1] and _is_renamed("reward_funcs", *rewards)
    if name != "reward_funcs" or len(old) != len(new):
        return False
    return all(
        each in (spec, spec.partition(":")[2], spec.partition("@")[0]) for each, spec in zip(old, new, strict=True)
    )


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop the logged lines that a run resumed at `step` writes again: lines of later steps, lines of this step with a key in
    `AGAIN`, and all lines if the step is 0.
    """
    path = run_dir / METRICS
    if path.is_file():
        with replacing(path) as file:
            file.writelines(_lines_up_to(path.read_bytes().splitlines(), step))


def _lines_up_to(lines: Iterable[bytes], step: int) -> Iterable[bytes]:
    for line in lines:
        try:
            row = json.loads(line)
            kept = row["step"] < step or (row["step"] == step > 0 and not AGAIN & row.keys())
        except (ValueError, TypeError, KeyError):  # a partial line, written when the run was killed
            kept = False
        if kept:
            yield line + b"\n"
