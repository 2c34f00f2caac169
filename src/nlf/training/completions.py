"""The completions of a run as tables: evaluations as Parquet files beside the run, and tables in trackers that have them.

`evaluation/eval-000060.parquet` in the run's folder holds what the evaluation after step 60 sampled: a row for each
completion, its scores, and in the file's metadata the metrics with their intervals, which the model card shows. With
`log_completions`, as with TRL's, trackers get the completions of each iteration and of each evaluation.
"""

import importlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from nlf.data.files import replacing
from nlf.data.generations import Generation
from nlf.data.markdown import markdown_table, printable
from nlf.data.prompts import Prompt
from nlf.data.rollouts import iteration_dir
from nlf.data.run_folder import CONFIG
from nlf.evaluation.intervals import intervals
from nlf.evaluation.metrics import Measured
from nlf.evaluation.score import SUM
from nlf.evaluation.systems import slug
from nlf.training.evaluation import REFERENCE, log_completions

METRICS = b"nlf.metrics"
TABLES = ("wandb", "trackio")  # trackers with tables, which take the same calls
TEXT_ROWS = 100  # rows of a table in TensorBoard, which shows it as text

Metrics = dict[str, dict[str, Any]]  # metric → value, stderr and ci95 (low, high)


# ---- Parquet ------------------------------------------------------------------------------------------------------


def evaluation_file(run_dir: Path, prefix: str, step: int) -> Path:
    """The file of an evaluation's completions.

    Args:
        prefix: Of the evaluation's metrics; "eval" is that of the run's own evaluations.
    """
    return run_dir / "evaluation" / f"{slug(prefix)}-{step:06d}.parquet"


def write_evaluation(path: Path, table: pa.Table, found: Measured) -> None:
    """Write an evaluation's completions and its metrics, whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    table = table.replace_schema_metadata({METRICS: json.dumps(with_intervals(found))})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_metrics(path: Path) -> Metrics:
    """The metrics of an evaluation; none if the file is missing or holds none."""
    try:
        return json.loads((pq.read_metadata(path).metadata or {}).get(METRICS, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return {}


def with_intervals(found: Measured) -> Metrics:
    """The metrics that training logs, with standard errors and 95 % intervals by a bootstrap over prompts, without NaN."""
    spread = intervals(found.ratios)
    named = {name: (ratio.value, *spread[name]) for name, ratio in found.ratios.items()}
    if f"reward/{SUM}" in named:
        named["reward"] = named.pop(f"reward/{SUM}")
    return {
        name: {"value": value, "stderr": stderr, "ci95": [low, high]}
        for name, (value, stderr, low, high) in named.items()
        if not any(map(math.isnan, (value, stderr, low, high)))
    }


# ---- tables -------------------------------------------------------------------------------------------------------


def evaluation_table(lines: Sequence[Generation], step: int) -> pa.Table:
    """The completions of an evaluation, a row each: prompt, words before it, completion, likelihoods and scores.

    Args:
        lines: As `evaluated_lines` returns them. A scorer's reward has its label as column, its attributes `label/attribute`.
    """
    return pa.Table.from_pylist([row for line in lines for row in _rows(line, step)])


def _rows(line: Generation, step: int) -> Iterable[dict[str, Any]]:
    measured = line["likelihoods"][REFERENCE]
    for i, completion in enumerate(line["completions"]):
        row = {
            **{"step": step, "prompt_id": line["prompt_id"], "prompt": _text(line["prompt"])},
            **{"feedback": line["feedback"], "completion": completion, "ended": line["ended"][i]},
            **{name: float(measured[name][i]) for name in ("nll", "kl", "entropy")},  # type: ignore[literal-required]
            "tokens": measured["tokens"][i],
        }
        for label, scores in line["scores"].items():
            row[label] = scores["reward"][i]
            row |= {f"{label}/{name}": values[i] for name, values in scores["attributes"].items()}
        yield row


def iteration_table(run_dir: Path, iteration: int, step: int) -> pa.Table:
    """The completions that an iteration sampled, a row each, with their rewards by name."""
    paths = sorted(iteration_dir(run_dir, iteration).glob("part-*.parquet"))
    columns = ["prompt", "feedback", "completion", "ended", "reward", "rewards"]
    rows = []
    for path in paths:
        for row in pq.read_table(path, columns=columns).to_pylist():
            rewards = dict(row.pop("rewards") or ())
            rows.append({"step": step, **row} | (rewards if len(rewards) > 1 else {}))
    return pa.Table.from_pylist(rows)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


# ---- what a trainer does with them ------------------------------------------------------------------------------------


def tell_iteration(trainer: Any, iteration: int) -> None:
    """Show the completions that an iteration sampled in the trackers, if the settings ask for it."""
    args = trainer.args
    if args.log_completions:
        table = iteration_table(Path(args.output_dir), iteration, trainer.state.global_step)
        show_table("completions", table, trainer.state.global_step, args.report_to, trainer.callback_handler.callbacks)


def tell_evaluation(trainer: Any, lines: Sequence[Generation], found: Measured, prefix: str) -> None:
    """Write the completions of an evaluation beside the run, and show them in the log and the trackers if the settings ask for it.

    Args:
        trainer: An ALTTrainer.
        prefix: Of the evaluation's metrics.

    Raises:
        UserError: the file cannot be written.
    """
    args, step, scorers = trainer.args, trainer.state.global_step, [*trainer.inputs.auditors, *trainer.inputs.rewards]
    log_completions(lines, scorers, args.num_completions_to_print, step)
    table = evaluation_table(lines, step)
    if (Path(args.output_dir) / CONFIG).is_file():  # an evaluation before `train` has no run to be written beside
        write_evaluation(evaluation_file(Path(args.output_dir), prefix, step), table, found)
    if args.log_completions:
        show_table(f"{prefix}_completions", table, step, args.report_to, trainer.callback_handler.callbacks)


# ---- trackers -----------------------------------------------------------------------------------------------------


def show_table(
    name: str, table: pa.Table, step: int, trackers: Sequence[str], callbacks: Iterable[TrainerCallback]
) -> None:
    """Show a table in the trackers that have tables; TensorBoard shows its first rows as text.

    Args:
        trackers: The names in `report_to`.
        callbacks: Of the trainer, among which TensorBoard's holds the writer.
    """
    columns = table.to_pydict()
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    for tracker in TABLES:
        if tracker in trackers:
            module: Any = importlib.import_module(tracker)
            if tracker != "wandb" or module.run is not None:  # wandb has no run before training, or without a server
                module.log({name: module.Table(columns=[*columns], data=rows)})
    cells = [[printable(str(cell)).replace("|", "\\|") for cell in row] for row in rows[:TEXT_ROWS]]
    for callback in callbacks:
        writer = callback.tb_writer if isinstance(callback, TensorBoardCallback) else None
        if writer is not None:
            writer.add_text(name, markdown_table([*columns], cells), step)
