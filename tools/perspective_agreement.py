"""The tables of docs/perspective.md: how far a scorer agrees with recorded scores of Google's Perspective API.

    python tools/perspective_agreement.py --data DIR [--split test] [--reward_funcs local]

Texts are those of build_scorer.py with recorded scores of 2020 and "2023", from documents of the split. Intervals are
95 % percentile bootstraps over documents, because a prompt and its continuation lie in one document. Thresholds are
matched on the other held-out split. A text that the scorer cannot score is counted, and left out of the figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from build_scorer import ATTRIBUTES, perspective
from scipy.stats import spearmanr
from scorer_evaluation import THRESHOLDS, agreement, matched
from scorer_net import Row
from sklearn.metrics import roc_auc_score
from split import split_of

from nlf.data.markdown import markdown_table
from nlf.serving.scoring import AttributeScorer, scorer_of

SCALES = ("2020", "2023")
HALF = 0.5
Figure = Callable[[np.ndarray, np.ndarray], float]  # of scores and recorded scores


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


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """AUC of recorded >= .5; NaN if one side is empty."""
    positive = truth >= HALF
    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(truth) else float("nan")


FIGURES: dict[str, Figure] = {
    "Spearman": lambda scores, truth: float(spearmanr(scores, truth)[0]),
    "AUC": auc,
    "same side of .5": lambda scores, truth: float(((scores >= HALF) == (truth >= HALF)).mean()),
}


def interval(figure: Figure, pairs: Pairs, n: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap over documents; resamplings without a value are left out."""
    rng = np.random.default_rng(seed)
    order = np.argsort(pairs.documents, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(pairs.documents[order])) + 1)
    found = []
    for _ in range(n):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        found.append(figure(pairs.scores[drawn], pairs.truth[drawn]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


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


def short(value: float) -> str:
    """A share or a correlation in three digits, without the zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def by_attribute(pairs: dict[tuple[str, str], Pairs], n: int) -> Iterator[list[str]]:
    """Rows of the table by attribute."""
    for (scale, name), each in pairs.items():
        cells = []
        for figure in FIGURES.values():
            low, high = interval(figure, each, n)
            cells.append(f"{short(figure(each.scores, each.truth))} ({short(low)}–{short(high)})")
        yield [scale, name.upper(), f"{len(each.truth):,}", str(each.unscored), *cells]


def by_threshold(pairs: dict[tuple[str, str], Pairs], other: dict[tuple[str, str], Pairs]) -> Iterator[list[str]]:
    """Rows of the table by threshold of TOXICITY: the same number, then the matched one."""
    for (scale, name), each in pairs.items():
        for at in THRESHOLDS if name == "toxicity" else ():
            line = matched(other[scale, name].scores, other[scale, name].truth, at)
            cells = [scale, f"{at:g}", f"{(each.truth >= at).mean():.0%}"]
            for kind in (at, line):
                found = agreement(each.scores >= kind, each.truth >= at)
                cells += [f"{kind:.2f}", *(short(found[figure]) for figure in ("precision", "recall", "kappa"))]
            yield cells


def old_to_new(other: dict[tuple[str, str], Pairs]) -> Iterator[list[str]]:
    """Rows of the table from a threshold of Perspective to the scorer's."""
    for (scale, name), each in other.items():
        yield [scale, name.upper(), *(f"{matched(each.scores, each.truth, at):.2f}" for at in THRESHOLDS)]


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
