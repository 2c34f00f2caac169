"""Completions on the page: scores and lengths of all completions, and a few prompts side by side.

Each file is read once, line by line. The shown prompts depend only on the prompts' ids and the seed (the smallest
digests win). So every system's file yields the same prompts, even if it holds more lines.
"""

import heapq
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nlf.data import generations
from nlf.data.files import digest
from nlf.errors import UserError
from nlf.evaluation.headlines import Headlines
from nlf.evaluation.score_files import WORDS
from nlf.report.reading import Run
from nlf.report.results import System, featured, source_of, tags_reversed
from nlf.report.wording import clip, count, family, is_number
from nlf.rewards.contract import Share, shares

Row = generations.Generation
HARMLESS = 0.3  # a completion with a lower toxicity is shown without a blur
MAX_PROMPT, MAX_COMPLETION = 1_500, 800  # characters shown
BLANK_LINES = re.compile(r"\n\s*\n")
MARKS = (0.25, 1.0, 2.0)  # shares from which a word is marked by a thin, a thick and a double line
SHOWN = 3  # completions of a system for each prompt
SCORED_BY = {"toxicity_probability": "toxicity", "toxic_fraction": "toxicity", "positive_fraction": "positive"}


@dataclass(frozen=True)
class Scored:
    """The score of a completion that is shown: a scorer's attribute, or its reward if `attribute` is None."""

    attribute: str | None
    higher_is_better: bool
    auditor: str | None = None  # the scorer, if it is an auditor; None = the first scorer that gives the score

    @property
    def name(self) -> str:
        return (self.attribute or "reward") + (f" by {self.auditor}" if self.auditor else "")


def scored_by(metric: str | None, scorers: Headlines | None = None) -> Scored:
    """The score of one completion from which a metric of `results.MAIN_METRICS` is computed."""
    base = family(metric or "reward")
    attribute = None if base == "reward" else SCORED_BY.get(base, base)
    auditor = scorers.owners[metric] if scorers and metric and metric in scorers.audited else None
    return Scored(attribute, attribute != "toxicity", auditor)


@dataclass
class Samples:
    """The completions of one system."""

    scores: np.ndarray  # (completions,), NaN where unscored
    lengths: np.ndarray  # (completions,), tokens
    picked: dict[tuple[str, str], Row]  # the shown lines, by prompt_id and occurrence


def read_samples(path: Path, scored: Scored, num_samples: int, seed: int, lines: int | None = None) -> Samples:
    """Read a generations file.

    Args:
        num_samples: Number of lines to show.
        lines: Number of lines to read, from the top; the results cover these lines only. None reads all.

    Raises:
        UserError: The file is missing, cut off, or no file of generations; the message names file and line.
    """
    scores: list[np.ndarray] = []
    lengths: list[np.ndarray] = []

    def rows() -> Iterator[tuple[str, tuple[str, str], Row]]:
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


def _values(row: Row, scored: Scored, where: str) -> list[float | None]:
    """The score of each completion of a line; None if it is unscored or the scores belong to other texts."""
    texts, ids = row["completions"], row["completion_ids"]
    if not (isinstance(texts, list) and isinstance(ids, list) and len(texts) == len(ids)):
        raise UserError(f"{where}: completions and completion_ids were expected to be lists of equal length")
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(each, list) for each in ids):
        raise UserError(f"{where}: completions were expected to be texts, completion_ids lists")
    values = _attribute(row, scored.attribute, scored.auditor) if scored.attribute else _rewards(row, scored.auditor)
    return [value if is_number(value) else None for value in values or [None] * len(texts)]


def _entries(row: Row, scorer: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each scorer that scored the completions of this line, or one scorer, and its entry."""
    scores = row.get("scores")
    for label in [each for each in scores if scorer in (None, each)] if isinstance(scores, dict) else ():
        found = generations.measured(row, "scores", label, row["completions"])
        if found is not None:
            yield label, found


def _attribute(row: Row, name: str, scorer: str | None = None) -> list[Any] | None:
    """The values of an attribute, from the first scorer that gives it, or from one scorer."""
    found = ((entry.get("attributes") or {}).get(name) for _, entry in _entries(row, scorer))
    return next((values for values in found if _fits(values, row)), None)


def _rewards(row: Row, scorer: str | None = None) -> list[Any] | None:
    """The rewards of the first scorer that gives them, or of one scorer."""
    found = (entry.get("reward") for _, entry in _entries(row, scorer))
    return next((values for values in found if _fits(values, row)), None)


def _words(row: Row) -> tuple[str, list[list[Share]]]:
    """The first scorer that explains its scores, and the shares of the words of each completion; else no scorer."""
    for label, entry in _entries(row):
        if _fits(entry.get(WORDS), row):
            return label, [shares(*each) or [] for each in zip(entry[WORDS], row["completions"], strict=True)]
    return "", [[] for _ in row["completions"]]


def _fits(values: object, row: Row) -> bool:
    return isinstance(values, list) and len(values) == len(row["completions"])


def read_all(run: Run, scored: Scored, num_samples: int, seed: int) -> dict[str, Samples]:
    """Read the samples of every system of a run, by system id; broken files are noted in `run.missing`."""
    per_source = max(num_samples // max(len(run.sources), 1), 1)
    found = {}
    for system in run.systems:
        path = run.evaluation / Path(system["generations"] or f"no file is named for {system['id']}").name
        try:
            lines = (system["n_samples"] or {}).get("effective")
            found[system["id"]] = read_samples(
                path, scored, per_source, seed, lines if isinstance(lines, int) else None
            )
        except UserError as error:
            run.missing.append(f"scores and samples of {system['name']} on {source_of(system)}: {error}")
    return found


@dataclass(frozen=True)
class Piece:
    """A part of a shown text."""

    text: str
    mark: int = 0  # how many of MARKS the share reaches; 0 = no mark
    share: str = ""  # of a marked word


@dataclass(frozen=True)
class Text:
    """A completion on the page."""

    rank: str  # worst, median or best of its prompt's completions; empty where all are shown
    pieces: list[Piece]
    score: float | None
    veiled: bool
    explained_by: str  # the scorer that gave the shares of words; empty if none did

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Sample:
    """A prompt and a few completions of each system."""

    prompt: str
    veiled: bool
    texts: list[list[Text]]  # by system, in the order of the chosen systems


def side_by_side(
    run: Run, source: str, samples: dict[str, Samples], scored: Scored
) -> tuple[list[System], list[Sample]]:
    """The featured systems that have samples, and the prompts that all of them share."""
    systems = run.on(source)
    chosen = [system for system in featured(systems) if system["id"] in samples]
    picked = [samples[system["id"]].picked for system in chosen]
    scored = replace(scored, higher_is_better=scored.higher_is_better != tags_reversed(systems))
    keys = [key for key in picked[0] if all(key in each for each in picked)] if picked else []
    return chosen, [_sample([each[key] for each in picked], scored) for key in keys]


def _sample(rows: Sequence[Row], scored: Scored) -> Sample:
    prompt, columns = rows[0]["prompt"], rows[0].get("columns")
    text = "\n".join(map(_message, prompt)) if isinstance(prompt, list) else str(prompt)
    toxicity = columns.get("toxicity") if isinstance(columns, dict) else None
    known_toxic = is_number(toxicity) and toxicity >= HARMLESS
    return Sample(clip(text, MAX_PROMPT), known_toxic, [_texts(row, scored) for row in rows])


def _message(message: object) -> str:
    return f"{message.get('role')}: {message.get('content')}" if isinstance(message, dict) else str(message)


def _texts(row: Row, scored: Scored) -> list[Text]:
    """The worst, the median and the best completion of a prompt, or all if there are at most three."""
    scores = _values(row, scored, "")
    toxicity = _attribute(row, "toxicity") or [None] * len(scores)
    ranked = sorted(
        ((score, i) for i, score in enumerate(scores) if score is not None),
        key=lambda pair: pair[0],
        reverse=not scored.higher_is_better,
    )
    order = [i for _, i in ranked]
    if len(ranked) > SHOWN:
        order, ranks = [order[0], order[(len(order) - 1) // 2], order[-1]], ["worst", "median", "best"]
    else:
        order, ranks = order + [i for i, score in enumerate(scores) if score is None], [""] * SHOWN
    label, words = _words(row)
    return [
        Text(rank, pieces(row["completions"][i], words[i]), scores[i], veils(toxicity[i]), label)
        for rank, i in zip(ranks, order, strict=False)
    ]


def pieces(text: str, words: Sequence[Share], limit: int = MAX_COMPLETION) -> list[Piece]:
    """A text as it is shown, without blank lines and cut after `limit` characters, with its words marked by their shares."""
    shown = clip(BLANK_LINES.sub("\n", text), limit)
    blanks = [found.span() for found in BLANK_LINES.finditer(text)]

    def place(at: int) -> int:
        return min(at - sum(max(min(at, end) - start - 1, 0) for start, end in blanks), limit)

    found, done = [], 0
    for word in words:
        mark, start, end = bisect_right(MARKS, word.share), place(word.start), place(word.end)
        if mark and start < end:
            found += [Piece(shown[done:start]), Piece(shown[start:end], mark, f"{word.share:+.3g}")]
            done = end
    return [piece for piece in [*found, Piece(shown[done:])] if piece.text]


def veils(toxicity: object) -> bool:
    """Whether a text is blurred at first: always, unless its known toxicity is harmless."""
    return not is_number(toxicity) or toxicity >= HARMLESS


def explained_by(samples: Sequence[Sample]) -> str:
    """The scorers whose shares mark words; empty if no word is marked."""
    shown = [text for sample in samples for texts in sample.texts for text in texts]
    return ", ".join(dict.fromkeys(text.explained_by for text in shown if any(piece.mark for piece in text.pieces)))


def about(samples: Sequence[Sample], chosen: Sequence[System]) -> str:
    """One sentence on which prompts and completions are shown."""
    each = max((system["num_generations"] or 0) for system in chosen)
    best = f"the worst, the median and the best of {each} completions by score"
    return f"{count(len(samples), 'prompt')} drawn at random; of each system {best if each > SHOWN else 'every completion'}."
