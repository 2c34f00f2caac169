"""The tables of docs/perspective.md: how far a scorer agrees with recorded scores of Google's Perspective API.

    python tools/perspective_agreement.py --data DIR [--split test] [--reward_funcs local]

Texts are those of build_scorer.py with recorded scores of 2020 and "2023", from documents of the split. Intervals are
those of bootstrap.py. Thresholds are matched on the other held-out split, if at least ten texts lie at or above them. A
text that the scorer cannot score is counted, and left out of the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from bootstrap import Figure, auc, cells, short, spearman
from build_scorer import ATTRIBUTES, perspective
from scorer_net import Row
from split import split_of

from nlf.data.markdown import markdown_table
from nlf.serving.scoring import AttributeScorer, scorer_of

SCALES = ("2020", "2023")
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9)  # of Perspective
HALF = 0.5
LEAST = 10  # texts at or above a threshold, for one to be matched


@dataclass(frozen=True)
class Pairs:
    """Scores of one attribute beside recorded ones, `(N,)` each, with the number of each text's document.

    Attributes:
        unscored: Texts with a recorded score that the scorer could not score.
    """

    scores: np.ndarray
    truth: np.ndarray
    documents: np.ndarray
    unscored: int


FIGURES: dict[str, Figure] = {
    "Spearman": spearman,
    "AUC": lambda scores, truth: auc(scores, truth >= HALF),
    "same side of .5": lambda scores, truth: float(((scores >= HALF) == (truth >= HALF)).mean()),
}


def agreement(said: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Share of true texts, precision, recall, share of texts on which both agree, and kappa: agreement beyond chance."""
    same, chance = (said == true).mean(), said.mean() * true.mean() + (1 - said.mean()) * (1 - true.mean())
    row = {"share": true.mean(), "precision": true[said].mean(), "recall": said[true].mean(), "agreement": same}
    return {k: round(float(v), 3) for k, v in (row | {"kappa": (same - chance) / (1 - chance)}).items()}


def matched(scores: np.ndarray, truth: np.ndarray, at: float) -> float:
    """The score with the same share of texts at or above it as the recorded score `at` has."""
    return float(np.quantile(scores, (truth < at).mean()))


def threshold(pairs: Pairs, at: float) -> float | None:
    """The scorer's threshold in place of Perspective's; None if too few texts lie at or above it to say."""
    return matched(pairs.scores, pairs.truth, at) if (pairs.truth >= at).sum() >= LEAST else None


def pairs_of(scorer: AttributeScorer, rows: Sequence[Row], split: str) -> dict[tuple[str, str], Pairs]:
    """The pairs of each scale and attribute that the scorer offers, of the documents of a split."""
    rows = [row for row in rows if split_of(row[0]) == split]
    found = scorer([text for _, text, _ in rows])
    number = {document: i for i, document in enumerate(dict.fromkeys(row[0] for row in rows))}
    documents = np.array([number[row[0]] for row in rows])
    pairs = {}
    for scale in SCALES:
        for name in (name for name in ATTRIBUTES if name.upper() in scorer.offered):
            truth = np.array([targets.get(f"{scale}:{name}", np.nan) for _, _, targets in rows])
            scores = np.array([(each or {}).get(name.upper(), np.nan) for each in found])
            recorded = ~np.isnan(truth)
            both = recorded & ~np.isnan(scores)
            if both.any():
                unscored = int((recorded & ~both).sum())
                pairs[scale, name] = Pairs(scores[both], truth[both], documents[both], unscored)
    return pairs


def by_attribute(pairs: dict[tuple[str, str], Pairs], n: int) -> Iterator[list[str]]:
    """Rows of the table by attribute."""
    for (scale, name), each in pairs.items():
        found = cells(FIGURES, (each.scores, each.truth), each.documents, n)
        yield [scale, name.upper(), f"{len(each.truth):,}", str(each.unscored), *found.values()]


def by_threshold(pairs: dict[tuple[str, str], Pairs], other: dict[tuple[str, str], Pairs]) -> Iterator[list[str]]:
    """Rows of the table by threshold of TOXICITY: the same number, then the matched one."""
    for (scale, name), each in pairs.items():
        for at in THRESHOLDS if name == "toxicity" else ():
            line = threshold(other[scale, name], at)
            if line is None:
                continue
            row = [scale, f"{at:g}", f"{(each.truth >= at).mean():.0%}"]
            for kind in (at, line):
                found = agreement(each.scores >= kind, each.truth >= at)
                row += [f"{kind:.2f}", *(short(found[figure]) for figure in ("precision", "recall", "kappa"))]
            yield row


def old_to_new(other: dict[tuple[str, str], Pairs]) -> Iterator[list[str]]:
    """Rows of the table from a threshold of Perspective to the scorer's."""
    for (scale, name), each in other.items():
        found = [threshold(each, at) for at in THRESHOLDS]
        yield [scale, name.upper(), *("–" if line is None else f"{line:.2f}" for line in found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--reward_funcs", nargs="+", default=["local"], help="the scorer")
    parser.add_argument("--resamplings", type=int, default=1000)
    args = parser.parse_args()
    scorer, rows = scorer_of(args.reward_funcs), list(perspective(args.data))
    held_out = "validation" if args.split == "test" else "test"
    pairs, other = pairs_of(scorer, rows, args.split), pairs_of(scorer, rows, held_out)
    print(f"{scorer.label}, {args.split} documents; thresholds matched on {held_out} documents\n")
    headings = ["recorded", "attribute", "n", "cannot be scored", *(f"{name} (95 %)" for name in FIGURES)]
    print(markdown_table(headings, by_attribute(pairs, args.resamplings)), end="\n\n")
    sides = [f"{side}: {figure}" for side in ("same", "matched") for figure in ("at", "precision", "recall", "kappa")]
    print(
        markdown_table(["recorded", "Perspective at", "texts above", *sides], by_threshold(pairs, other)), end="\n\n"
    )
    print(markdown_table(["recorded", "attribute", *(f"{at:g}" for at in THRESHOLDS)], old_to_new(other)))


if __name__ == "__main__":
    main()
