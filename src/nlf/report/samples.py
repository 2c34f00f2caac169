"""What is shown of generations files: the scores and lengths of every completion, and a few prompts side by side.

Each file is read once, line by line. Which prompts are shown is a matter of their names and the seed alone (the
smallest digests win), so that every system's file yields the same ones, whatever else is in it.
"""

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from nlf.data import generations
from nlf.data.files import digest
from nlf.errors import UserError
from nlf.report.reading import Run, featured, source_of, turned
from nlf.report.wording import clip, count, family, is_number

HARMLESS = 0.3  # below this, a toxicity score lets a text be shown at once
MAX_PROMPT, MAX_COMPLETION = 1_500, 800  # characters shown
BLANK_LINES = re.compile(r"\n\s*\n")
SHOWN = 3  # completions of a system for each prompt
SCORED_BY = {"toxicity_probability": "toxicity", "toxic_fraction": "toxicity", "positive_fraction": "positive"}


@dataclass(frozen=True)
class Scored:
    """How completions are scored: by an attribute, or by the reward where there is none."""

    attribute: str | None
    higher_is_better: bool

    @property
    def name(self) -> str:
        return self.attribute or "reward"


def scored_by(metric: str | None) -> Scored:
    """The score of one completion that a metric of `reading.JUDGED_BY` over many is made of."""
    base = family(metric or "reward")
    attribute = None if base == "reward" else SCORED_BY.get(base, base)
    return Scored(attribute, attribute != "toxicity")


@dataclass
class Samples:
    """One system's file. scores: (completions,), NaN where unscored; lengths: (completions,) tokens."""

    scores: np.ndarray
    lengths: np.ndarray
    picked: dict[tuple[str, str], dict]


def read_samples(path: Path, scored: Scored, num_samples: int, seed: int, lines: int | None = None) -> Samples:
    """Everything that is shown of a generations file.

    Args:
        lines: How many of its lines the results were made of; the file may hold more. None is all.

    Raises:
        UserError: with file and line: missing, cut off, or not a file of generations.
    """
    scores: list[np.ndarray] = []
    lengths: list[np.ndarray] = []

    def rows() -> Iterator[tuple[str, tuple[str, str], dict]]:
        for number, row in enumerate(islice(generations.read(path), lines), 1):
            found = _values(row, scored, f"{path.name}:{number}")
            scores.append(np.array([np.nan if v is None else v for v in found], dtype=np.float32))
            lengths.append(np.array([len(ids) for ids in row["completion_ids"]], dtype=np.int32))
            key = (str(row["prompt_id"]), str(row.get("occurrence", 0)))
            yield digest([seed, *key]), key, row

    smallest = heapq.nsmallest(num_samples, rows(), key=lambda each: each[:2])
    if len(scores) < (lines or 1):
        raise UserError(
            f"{path.name}: {len(scores)} lines, expected {lines or 'at least 1'}; run `nlf evaluate` again"
        )
    return Samples(np.concatenate(scores), np.concatenate(lengths), {key: row for _, key, row in smallest})


def _values(row: dict, scored: Scored, where: str) -> list[float | None]:
    """A line's scores, one a completion; None where unscored, or where the scores belong to other texts."""
    texts, ids = row["completions"], row["completion_ids"]
    if not (isinstance(texts, list) and isinstance(ids, list) and len(texts) == len(ids)):
        raise UserError(f"{where}: completions and completion_ids were expected to be lists of one length")
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(each, list) for each in ids):
        raise UserError(f"{where}: completions were expected to be texts, completion_ids lists")
    values = _attribute(row, scored.attribute) if scored.attribute else _column(row, "reward")
    return [value if is_number(value) else None for value in values or [None] * len(texts)]


def _entries(row: dict) -> Iterator[dict]:
    """What each scorer says of these very texts."""
    scores = row.get("scores")
    for label in scores if isinstance(scores, dict) else ():
        found = generations.measured(row, "scores", label, row["completions"])
        if found is not None:
            yield found


def _attribute(row: dict, name: str) -> list | None:
    """A score in [0, 1] by its name, from the first scorer that gives it."""
    found = ((entry.get("attributes") or {}).get(name) for entry in _entries(row))
    return next((values for values in found if _fits(values, row)), None)


def _column(row: dict, name: str) -> list | None:
    found = (entry.get(name) for entry in _entries(row))
    return next((values for values in found if _fits(values, row)), None)


def _fits(values: object, row: dict) -> bool:
    return isinstance(values, list) and len(values) == len(row["completions"])


def read_all(run: Run, scored: Scored, num_samples: int, seed: int) -> dict[str, Samples]:
    """The samples of every system of a run, by its id; files that cannot be shown are listed in `run.missing`."""
    per_source = max(num_samples // max(len(run.sources), 1), 1)
    found = {}
    for system in run.systems:
        path = run.evaluation / Path(system["generations"] or f"no file is named for {system['id']}").name
        try:
            lines = (system["n_samples"] or {}).get("effective")
            found[system["id"]] = read_samples(path, scored, per_source, seed, lines if is_number(lines) else None)
        except UserError as error:
            run.missing.append(f"scores and samples of {system['name']} on {source_of(system)}: {error}")
    return found


@dataclass(frozen=True)
class Text:
    """A completion as it is shown; `rank` is worst, median or best among its prompt's."""

    rank: str
    text: str
    score: float | None
    veiled: bool


@dataclass(frozen=True)
class Sample:
    """A prompt, and for each system (by its index in the list) a few completions."""

    prompt: str
    veiled: bool
    texts: list[list[Text]]


def side_by_side(
    run: Run, source: str, samples: dict[str, Samples], scored: Scored
) -> tuple[list[dict], list[Sample]]:
    """The featured systems on the prompts that all of them have."""
    systems = run.on(source)
    chosen = [system for system in featured(systems) if system["id"] in samples]
    picked = [samples[system["id"]].picked for system in chosen]
    scored = replace(scored, higher_is_better=scored.higher_is_better != turned(systems))
    keys = [key for key in picked[0] if all(key in each for each in picked)] if picked else []
    return chosen, [_sample([each[key] for each in picked], scored) for key in keys]


def _sample(rows: Sequence[dict], scored: Scored) -> Sample:
    prompt, columns = rows[0]["prompt"], rows[0].get("columns")
    text = "\n".join(map(_message, prompt)) if isinstance(prompt, list) else str(prompt)
    toxicity = columns.get("toxicity") if isinstance(columns, dict) else None
    known_toxic = is_number(toxicity) and toxicity >= HARMLESS
    return Sample(clip(text, MAX_PROMPT), known_toxic, [_texts(row, scored) for row in rows])


def _message(message: object) -> str:
    return f"{message.get('role')}: {message.get('content')}" if isinstance(message, dict) else str(message)


def _texts(row: dict, scored: Scored) -> list[Text]:
    """The worst, the median and the best of a prompt's completions; all where there are no more than three."""
    scores = _values(row, scored, "")
    toxicity = _attribute(row, "toxicity") or [None] * len(scores)
    known = [i for i, score in enumerate(scores) if score is not None]
    order = sorted(known, key=lambda i: scores[i], reverse=not scored.higher_is_better)
    order += [i for i in range(len(scores)) if scores[i] is None]
    if len(known) > SHOWN:
        order = [order[0], order[(len(known) - 1) // 2], order[len(known) - 1]]
    ranks = ["worst", "median", "best"] if len(known) > SHOWN else [""] * SHOWN
    return [
        Text(rank, clip(BLANK_LINES.sub("\n", row["completions"][i]), MAX_COMPLETION), scores[i], veils(toxicity[i]))
        for rank, i in zip(ranks, order, strict=False)
    ]


def veils(toxicity: object) -> bool:
    """Whether a text is blurred at first: unless a scorer found it harmless."""
    return not is_number(toxicity) or toxicity >= HARMLESS


def about(samples: Sequence[Sample], chosen: Sequence[dict]) -> str:
    """One line on what is shown."""
    each = max((system["num_generations"] or 0) for system in chosen)
    shown = f"the worst, the median and the best of {each} by score" if each > SHOWN else "every completion"
    return f"{count(len(samples), 'prompt')} drawn at random; of each system {shown}."
