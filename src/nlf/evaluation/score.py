"""`nlf score`: scores beside samples, or beside any texts, in the file itself.

A file is one of generations, or a .jsonl, .csv or .parquet with a text column. Each reward's scores stand under its name
and version (`local@1`) with a digest of the texts they belong to: a second reward is scored alone, the same one never
twice, and a text that has changed again. A reward without a version, a plain function, has its name only: its scores
stay until the text changes; to have them again after changing the function, rename it, or remove its entries.

JSON Lines stream, a block of lines in memory at a time; CSV and Parquet are read and written whole, their scores being
columns `scores/local@1/reward`, `scores/local@1/toxicity`, …. What is scored is journaled block by block beside the file
(`generations.annotate`), so that a killed command goes on where it was. The file is read through once before anything is
scored: a broken last line is found at once, not after hours.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nlf.config import remote_options
from nlf.data import generations
from nlf.data.generations import LineFormat, Row, annotate, write_lines
from nlf.data.progress import progress_bar
from nlf.errors import UserError
from nlf.evaluation.score_files import FEEDBACK, SCORES, Form, form_of
from nlf.rewards import Reward
from nlf.rewards.registry import configure, resolve_reward
from nlf.rewards.tables import nulls, score_completions

SUM = "sum"  # stands beside the scorers' names for their weighted sum


def score_command(options) -> str:
    """`nlf score`: score what has no score yet, and say what there is.

    Args:
        options: The fields of `config.COMMAND_GROUPS["score"]`.
    """
    paths = generations.files_of(options.path)
    rewards = [resolve_reward(name) for name in options.reward_funcs]
    configure(remote_options(options))
    tables = []
    for path in paths:
        tallies = score_file(
            path, rewards, weights=options.reward_weights, text_column=options.text_column, block=options.batch_size
        )
        tables.append(f"{path}\n{table(tallies)}")
    return "\n\n".join(tables)


def export_command(options) -> str:
    """`nlf score --export_cache FILE.jsonl`."""
    remote = _remote(options)
    return f"{remote.export_cache(options.export_cache):,} answers written to {options.export_cache}"


def import_command(options) -> str:
    """`nlf score --import_cache FILE.jsonl`."""
    remote = _remote(options)
    return f"{remote.import_cache(options.import_cache):,} answers taken from {options.import_cache}"


def _remote(options):
    from nlf.rewards import remote

    remote.configure(remote_options(options))
    return remote


@dataclass
class Tally:
    """What a file holds of one scorer: texts, those scored by this call, those that could not be, and a sum of the
    rest.
    """

    scorer: str
    texts: int = 0
    now: int = 0
    unscored: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward of the texts that have one; NaN where none has."""
        scored = self.texts - self.unscored
        return self.total / scored if scored else float("nan")

    def add(self, values: Iterable[float | None]) -> None:
        for value in values:
            self.texts += 1
            self.unscored += value is None
            self.total += value or 0.0


def score_file(
    path: str | Path,
    rewards: Sequence[Reward],
    *,
    weights: Sequence[float] | None = None,
    text_column: str = "text",
    block: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Tally]:
    """Score every text of a file that has no score by these rewards, in place.

    Args:
        weights: Of the weighted sum, which is told of several rewards; None = 1 each.
        text_column: Where the text is, if the file is not one of generations.
        block: Lines scored and journaled at a time.
        progress: Called with texts done, of len(rewards) times the file's; None shows a bar.

    Returns:
        A tally for each reward and, where there are several, one for their weighted sum.

    Raises:
        UserError: the file is empty, broken, of an unknown kind, without such a column, or cannot be written; two
            rewards share a name; or a reward returns what is no score.
    """
    path = Path(path).resolve()  # a link stays one
    labels = [reward.label for reward in rewards]
    if len(set(labels)) < len(labels):
        raise UserError(f"rewards {', '.join(labels)}: two of one name; rename a function, or leave one out")
    form = form_of(path, text_column)
    texts = _count(path, form)
    progress = progress or progress_bar(f"scoring {path.name}", texts * len(rewards))
    now = {}
    for reward in rewards:
        scored: list[int] = []
        measure = partial(_measure, form, reward, scored)
        annotate(
            path, SCORES, reward.label, measure,
            lines=LineFormat(form.read, form.write, form.texts), block=block, progress=progress,
        )  # fmt: skip
        now[reward.label] = sum(scored)
    return _tallies(path, form, now, weights)


def _measure(form: Form, reward: Reward, scored: list[int], rows: list[Row]) -> list[dict]:
    column = form.text_column
    found = score_rows(rows, reward) if column is None else _score_texts(column, rows, reward)
    scored.append(sum(len(form.texts(row)) for row in rows))
    return found


def _count(path: Path, form: Form) -> int:
    """The texts of a file, every line of which can be read, and written again."""
    texts = 0
    for number, row in enumerate(form.read(path), 1):
        texts += len(form.texts(row))
        if form.write is write_lines:
            _check_json(row, f"{path}, row {number}")
    if not texts:
        raise UserError(f"{path}: no texts in it; expected at least one; is it the right file?")
    return texts


def _check_json(row: Row, where: str) -> None:
    """What Python reads as JSON and JSON does not know would fail at the very end."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a UnicodeEncodeError is one
        raise UserError(
            f"{where}: a value that is no JSON (NaN, infinity or half a character: {error}); write null, or leave it out"
        ) from error


def _tallies(path: Path, form: Form, now: dict[str, int], weights: Sequence[float] | None) -> list[Tally]:
    tallies = [Tally(label, now=count) for label, count in now.items()]
    weights = weights or [1.0] * len(tallies)
    together = Tally("weighted sum")
    for row in form.read(path):
        found = [row[SCORES][tally.scorer]["reward"] for tally in tallies]
        each = [values if isinstance(values, list) else [values] for values in found]
        for tally, values in zip(tallies, each, strict=True):
            tally.add(values)
        together.add(weighted_sum(values, weights) for values in zip(*each, strict=True))
    return [*tallies, together] if len(tallies) > 1 else tallies


def weighted_sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """TRL's rule: a reward that could not be had counts as nothing; None where none could."""
    known = [value * weight for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(known) if known else None


def add_sum(row: Row, labels: Sequence[str], weights: Sequence[float] | None) -> Row:
    """The line with the weighted sum of several scorers' rewards as one more scorer, SUM."""
    each = [row[SCORES][label]["reward"] for label in labels]
    weights = weights or [1.0] * len(labels)
    total = [weighted_sum(values, weights) for values in zip(*each, strict=True)]
    return {**row, SCORES: {**row[SCORES], SUM: {"reward": total}}}


def table(tallies: Sequence[Tally]) -> str:
    """Tallies in columns; the sum is of what is there, so that nothing of it is scored now or before."""
    lines = [("scorer", "texts", "scored now", "already had", "unscored", "mean")]
    for tally in tallies:
        counts = [tally.now, tally.texts - tally.now] if tally.scorer != "weighted sum" else ["", ""]
        mean = f"{tally.mean:.4g}" if tally.texts > tally.unscored else "-"
        lines.append((tally.scorer, *map(str, [tally.texts, *counts, tally.unscored]), mean))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True))
        for name, *cells in lines
    )


# ---- scoring ------------------------------------------------------------------------------------------------------


def score_rows(rows: Sequence[Row], reward: Reward, context: dict | None = None) -> list[dict]:
    """A reward's scores of lines of generations: `{"reward": [n], "attributes": {name: [n]}}` for each, None where it
    could not score, and `"feedback": [n]` where a judge wrote sentences. It sees prompts, token ids and the data set's
    other columns, as in training, and takes of the context what `rewards.score` says.

    Raises:
        UserError: the reward returned what is no score.
    """
    counts = [len(row["completions"]) for row in rows]
    each = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    texts = [text for row in rows for text in row["completions"]]
    found = score_completions(
        [reward], None, [row["prompt"] for row in each], texts,
        [ids for row in rows for ids in row["completion_ids"]], [row.get("columns") or {} for row in each], context,
    )  # fmt: skip
    parts = np.cumsum(counts)[:-1]
    rewards = [nulls(part) for part in np.split(found.reward, parts)]
    attributes = {
        name: [nulls(part) for part in np.split(_attribute(reward, name, values, len(texts)), parts)]
        for name, values in found.attributes.items()
    }
    sentences = [found.feedback[end - count : end] for end, count in zip(np.cumsum(counts), counts, strict=True)]
    return [
        {"reward": rewards[i], "attributes": {name: values[i] for name, values in attributes.items()}}
        | ({FEEDBACK: sentences[i]} if any(sentences[i]) else {})
        for i in range(len(rows))
    ]


def _attribute(reward: Reward, name: str, values, count: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,) or np.isinf(array).any():
        raise UserError(
            f"reward {reward.name!r}: attribute {name!r} of shape {array.shape} for {count} texts; "
            "expected one finite number each"
        )
    return array


def _score_texts(column: str, rows: Sequence[Row], reward: Reward) -> list[dict]:
    """Scores of plain texts: completions of nothing, whose other columns the reward is given by name."""
    lines = [
        {
            "prompt": "",
            "completions": [row[column]],
            "completion_ids": [[]],
            "columns": {name: value for name, value in row.items() if name not in (column, SCORES)},
        }
        for row in rows
    ]
    return [
        {"reward": found["reward"][0], "attributes": {name: values[0] for name, values in found["attributes"].items()}}
        | ({FEEDBACK: found[FEEDBACK][0]} if FEEDBACK in found else {})
        for found in score_rows(lines, reward)
    ]


# ---- kinds of files -----------------------------------------------------------------------------------------------
