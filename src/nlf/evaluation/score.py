"""`nlf score`: write scores beside the texts of a file, in the file itself.

The file holds generations, in our form or in RealToxicityPrompts' (`nlf.data.rtp`), or is a .jsonl, .csv, .tsv or
.parquet with a text column. Scores stand under the reward's name and version (`local@1`) with a digest of the scored
texts. So a new reward leaves earlier scores alone, a finished reward is not called again, and a changed text is scored
again. A plain function has no version: its scores stay until the text changes. After a change of the function, rename
it or remove its entries to score again.

JSON Lines are read in blocks. CSV and Parquet are read and written whole; their scores are columns
`scores/local@1/reward`, `scores/local@1/toxicity`, …. A journal beside the file keeps each scored block
(`generations.annotate`), so a killed command continues where it stopped. A first pass reads the whole file, so that a
broken last line is found before hours of scoring.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from nlf.config import RemoteOptions, ScoreOptions, remote_options
from nlf.data import generations
from nlf.data.files import refuse_other
from nlf.data.generations import LineFormat, Row, annotate, measured, write_lines
from nlf.data.locks import locked_files
from nlf.data.markdown import text_table
from nlf.data.progress import progress_bar
from nlf.data.rtp import RECORDED
from nlf.errors import UserError
from nlf.evaluation.explain import check_explains, with_words, words_table
from nlf.evaluation.exports import check_file, write_generations
from nlf.evaluation.score_files import FEEDBACK, SCORES, WORDS, Form, form_of
from nlf.evaluation.unscored import BESIDE, percent, warning
from nlf.method.quantize import total
from nlf.rewards import Reward, check_weights
from nlf.rewards.contract import completion_text
from nlf.rewards.registry import configure, resolve_reward
from nlf.rewards.tables import nulls, score_completions

SUM = "sum"  # the weighted sum's name among the scorers of a line
WEIGHTED_SUM = "weighted sum"  # its name in the table of tallies


def score_command(options: ScoreOptions) -> str:
    """`nlf score`: score every text without a score, and return a table for each file."""
    paths = generations.files_of(options.path)
    with locked_files(*paths):
        rewards = [Reward(recorded) if name == RECORDED else resolve_reward(name) for name in options.reward_funcs]
        check_weights(rewards, options.reward_weights)
        configure(remote_options(options))
        for path in paths:
            check_format(options.format, path, options.text_column)
        tables = []
        for path in paths:
            tallies = score_file(
                path,
                rewards,
                weights=options.reward_weights,
                text_column=options.text_column,
                block=options.batch_size,
                explain=options.explain,
            )
            tables.append("\n".join([str(path), table(tallies), *warnings_of(tallies)]))
            if options.explain:
                tables += [words_table(path, form_of(path, options.text_column), reward) for reward in rewards]
            if options.format:
                tables.append(f"{options.format}: {write_generations(options.format, path, rewards[0].label)}")
    return "\n\n".join(tables)


def check_format(form: str | None, path: Path, text_column: str) -> None:
    """Refuse a file that cannot be written in a form, before it is scored.

    Raises:
        UserError: the file holds texts without prompts; or see `exports.check_file`.
    """
    if form and form_of(path, text_column).text_column is not None:
        raise UserError(
            f"--format {form}: {path} holds texts without prompts; expected generations; leave --format out"
        )
    check_file(form, path)


def recorded(completions: Sequence[str], **columns: object) -> list[float | None]:
    """The scores that a file brought along stand in its lines already, so they are never computed.

    Raises:
        UserError: always.
    """
    raise UserError(f"{RECORDED!r} names scores that stand in a file; expected generations with a toxicity")


def export_command(options: ScoreOptions) -> str:
    """`nlf score --export_cache FILE.jsonl`: write the cached answers of remote scorers to the file."""
    assert options.export_cache is not None  # this command runs where it is given
    refuse_other(Path(options.export_cache), _is_export)
    remote = _remote(remote_options(options))
    return f"{remote.export_cache(options.export_cache):,} answers written to {options.export_cache}"


def _is_export(text: str) -> bool:
    """Whether a text is the content of a file of cached answers."""
    try:
        return {"key", "scorer"} <= json.loads(text.partition("\n")[0]).keys()
    except (ValueError, AttributeError):
        return False


def import_command(options: ScoreOptions) -> str:
    """`nlf score --import_cache FILE.jsonl`: add the file's answers to the cache of remote scorers."""
    remote = _remote(remote_options(options))
    return f"{remote.import_cache(options.import_cache):,} answers taken from {options.import_cache}"


def _remote(options: RemoteOptions) -> ModuleType:
    from nlf.rewards import remote

    remote.configure(options)
    return remote


@dataclass
class Tally:
    """One scorer's counts in a file.

    Attributes:
        texts: Texts of the file.
        now: Texts that this call scored.
        unscored: Texts that the scorer could not score.
        total: Sum of the rewards of all scored texts.
    """

    scorer: str
    texts: int = 0
    now: int = 0
    unscored: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward of the scored texts; NaN if there are none."""
        scored = self.texts - self.unscored
        return self.total / scored if scored else float("nan")

    def add(self, values: Iterable[float | None]) -> None:
        """Count the rewards of a few texts; None = unscored."""
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
    explain: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Tally]:
    """Score every text of a file that has no score by these rewards, in place.

    Args:
        weights: Weights of the rewards in their sum; None = 1 for all.
        text_column: Column of the text, if the file does not hold generations.
        block: Lines scored and journaled at a time.
        explain: Also write which words made each score. A score that has no words keeps its value, and gets them.
        progress: Called with the number of finished scores (rewards x texts in all); None shows a bar.

    Returns:
        A tally for each reward and, of several rewards, one for their weighted sum.

    Raises:
        UserError: the file is empty, broken, of an unknown kind, without the column, cannot be written, or is being written
            by another command; two rewards share a name; a reward cannot explain; or a reward returned no score.
    """
    path = Path(path).resolve()  # so that a link stays a link
    labels = _labels(rewards)
    if explain:
        check_explains(rewards)
    with locked_files(path):
        form = form_of(path, text_column)
        count = _count(path, form, RECORDED in labels)
        progress = progress or progress_bar(f"scoring {path.name}", count * len(rewards))
        now = {}
        for reward in rewards:
            scored: list[int] = []
            annotate(
                path, SCORES, reward.label, partial(_measure, form, reward, explain, scored), fields=[WORDS] if explain else [],
                lines=LineFormat(form.read, form.write, form.texts), block=block, progress=progress,
            )  # fmt: skip
            now[reward.label] = sum(scored)
        return _tallies(path, form, now, weights)


def _labels(rewards: Sequence[Reward]) -> list[str]:
    """The names under which the scores of the rewards stand in a file.

    Raises:
        UserError: two rewards share a name, or one has the name of the scores that a file brought along.
    """
    labels = [reward.label for reward in rewards]
    if len(set(labels)) < len(labels):
        raise UserError(
            f"rewards {', '.join(labels)}: two rewards have the same name; rename a function, or leave one out"
        )
    if any(reward.label == RECORDED and reward.function is not recorded for reward in rewards):
        raise UserError(
            f"reward {RECORDED!r}: the name stands for scores that a file brought along; rename the function"
        )
    return labels


def _measure(
    form: Form, reward: Reward, explain: bool, scored: list[int], rows: list[Row]
) -> Sequence[Mapping[str, Any]]:
    """The scores of a block of lines, explained or not; `scored` gets the number of texts that had no score."""
    known = [measured(row, SCORES, reward.label, form.texts(row)) for row in rows]
    new = [row for row, scores in zip(rows, known, strict=True) if scores is None]
    scored.append(sum(len(form.texts(row)) for row in new))
    made = iter(_score(form, reward, new) if new else [])
    found = [scores or next(made) for scores in known]
    if not explain:
        return found
    return [with_words(scores, form.texts(row), reward) for row, scores in zip(rows, found, strict=True)]


def _score(form: Form, reward: Reward, rows: list[Row]) -> Sequence[Mapping[str, Any]]:
    column = form.text_column
    return score_rows(rows, reward) if column is None else _score_texts(column, rows, reward)


def _count(path: Path, form: Form, with_recorded: bool = False) -> int:
    """Count the texts of a file, and check that each line can be read and written.

    Args:
        with_recorded: Each line must have brought scores along.
    """
    texts = 0
    for number, row in enumerate(form.read(path), 1):
        texts += len(form.texts(row))
        if form.write is write_lines and form.text_column is not None:  # generations may hold NaN; null replaces it
            _check_json(row, f"{path}, row {number}")
        if with_recorded and RECORDED not in (row.get(SCORES) or {}):
            raise UserError(
                f"{path}, row {number}: no recorded scores; {RECORDED!r} needs generations with a toxicity, a reward, or "
                "DExperts' label and score"
            )
    if not texts:
        raise UserError(f"{path}: no texts in it; expected at least one; is it the right file?")
    return texts


def _check_json(row: Row, where: str) -> None:
    """Refuse values that Python reads but JSON does not allow, so that the write at the end cannot fail on them."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a UnicodeEncodeError is one
        raise UserError(
            f"{where}: a value that is not JSON (NaN, infinity or half a character: {error}); write null, or leave it out"
        ) from error


def _tallies(path: Path, form: Form, now: dict[str, int], weights: Sequence[float] | None) -> list[Tally]:
    tallies, together = [Tally(label, now=count) for label, count in now.items()], Tally(WEIGHTED_SUM)
    for row in form.read(path):
        found = [row[SCORES][tally.scorer]["reward"] for tally in tallies]
        by_scorer = [values if isinstance(values, list) else [values] for values in found]
        for tally, values in zip(tallies, by_scorer, strict=True):
            tally.add(values)
        if len(tallies) > 1:
            together.add(weighted_sums(by_scorer, weights))
    return [*tallies, together] if len(tallies) > 1 else tallies


def weighted_sums(by_scorer: Sequence[Sequence[float | None]], weights: Sequence[float] | None) -> list[float | None]:
    """The weighted sum of each text's rewards, by `method.quantize.total`.

    Args:
        by_scorer: The rewards of the same texts by each scorer; None = unscored.
        weights: Weights of the scorers; None = 1 for all.

    Returns:
        A sum for each text; None if no scorer could score the text.
    """
    return nulls(total([np.array(values, dtype=np.float64) for values in by_scorer], weights))


def add_sum(row: Mapping[str, Any], labels: Sequence[str], weights: Sequence[float] | None) -> Row:
    """A copy of the line in which the weighted sum of several scorers' rewards is one more scorer, SUM."""
    sums = weighted_sums([row[SCORES][label]["reward"] for label in labels], weights)
    return {**row, SCORES: {**row[SCORES], SUM: {"reward": sums}}}


def table(tallies: Sequence[Tally]) -> str:
    """Tallies in columns of text; the row of the weighted sum leaves out the counts of scored texts."""
    lines: list[tuple[str, ...]] = [("scorer", "texts", "scored now", "already had", "unscored", "mean")]
    for tally in tallies:
        counts = [tally.now, tally.texts - tally.now] if tally.scorer != WEIGHTED_SUM else ["", ""]
        mean = f"{tally.mean:.4g}" if tally.texts > tally.unscored else "-"
        unscored = f"{tally.unscored} ({percent(tally.unscored, tally.texts)})"
        lines.append((tally.scorer, *map(str, [tally.texts, *counts, unscored]), mean))
    return text_table(lines, ">")


def warnings_of(tallies: Sequence[Tally]) -> list[str]:
    """A line for each scorer that could not score more than 2 % of the texts."""
    scorers = [each for each in tallies if each.scorer != WEIGHTED_SUM]
    lines = (warning(each.scorer, each.unscored, each.texts, BESIDE, "texts") for each in scorers)
    return [line for line in lines if line]


class LineScores(TypedDict):
    """A scorer's scores of a line's n completions; None where a completion could not be scored."""

    reward: list[float | None]
    attributes: dict[str, list[float | None]]
    feedback: NotRequired[list[str | None]]  # sentences, where a judge wrote some


def score_rows(rows: Sequence[Mapping[str, Any]], reward: Reward, context: dict | None = None) -> list[LineScores]:
    """A reward's scores of lines of generations.

    The reward sees prompts, token ids and the data set's other columns, as in training.

    Args:
        context: More keyword arguments of the reward, as in `rewards.score`.

    Returns:
        The scores of each line.

    Raises:
        UserError: the reward returned no score.
    """
    counts = [len(row["completions"]) for row in rows]
    repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    texts = [text for row in rows for text in row["completions"]]
    found = score_completions(
        [reward], None, [row["prompt"] for row in repeated], texts, [ids for row in rows for ids in row["completion_ids"]],
        [row.get("columns") or {} for row in repeated], context,
    )  # fmt: skip
    attributes = {name: nulls(values) for name, values in found.attributes.items()}
    whole: LineScores = {"reward": nulls(found.reward), "attributes": attributes, "feedback": found.feedback}
    ends = itertools.accumulate(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [cast(LineScores, _at(whole, part)) for part in parts]  # a slice of a list is a list


def _at(scores: LineScores, where: int | slice) -> dict[str, Any]:
    """The scores of the completions in these places, with `feedback` where there is a sentence."""
    sentences = scores["feedback"][where]
    attributes = {name: values[where] for name, values in scores["attributes"].items()}
    found = {"reward": scores["reward"][where], "attributes": attributes}
    return found | ({FEEDBACK: sentences} if any(sentences or ()) else {})


def _score_texts(column: str, rows: Sequence[Row], reward: Reward) -> list[dict[str, Any]]:
    """Score texts as completions of an empty prompt, and messages as those of a conversation without messages; the reward
    gets the other columns by name.
    """
    lines = [
        {
            "prompt": "" if isinstance(row[column], str) else [],
            "completions": [completion_text(row[column])],
            "completion_ids": [[]],
            "columns": {name: value for name, value in row.items() if name not in (column, SCORES)},
        }
        for row in rows
    ]
    return [_at({"feedback": [None], **found}, 0) for found in score_rows(lines, reward)]
