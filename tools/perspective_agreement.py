"""The tables of docs/perspective.md: how far a scorer agrees with recorded scores of Google's Perspective API.

    python tools/perspective_agreement.py --data DIR [--split test] [--reward_funcs local]

Texts are those of build_scorer.py with recorded scores of 2020 and "2023", from documents of the split. Intervals are
95 % percentile bootstraps over documents, because a prompt and its continuation lie in one document. Thresholds are
matched on the other held-out split, if at least ten texts lie at or above them. A text that the scorer cannot score is counted, and left out of the figures.
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
LEAST = 10  # texts at or above a threshold, for one to be matched
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


def intervals(pairs: Pairs, n: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The 95 % percentile bootstrap of each figure over documents; resamplings without a value are left out."""
    rng = np.random.default_rng(seed)
    order = np.argsort(pairs.documents, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(pairs.documents[order])) + 1)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(n):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        for name, figure in FIGURES.items():
            found[name].append(figure(pairs.scores[drawn], pairs.truth[drawn]))
    ends = {name: np.nanquantile(values, [0.025, 0.975]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


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


def short(value: float) -> str:
    """A share or a correlation in three digits, without the zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def by_attribute(pairs: dict[tuple[str, str], Pairs], n: int) -> Iterator[list[str]]:
    """Rows of the table by attribute."""
    for (scale, name), each in pairs.items():
        ends = intervals(each, n)
        values = {name: figure(each.scores, each.truth) for name, figure in FIGURES.items()}
        cells = [f"{short(values[name])} ({short(low)}–{short(high)})" for name, (low, high) in ends.items()]
        yield [scale, name.upper(), f"{len(each.truth):,}", str(each.unscored), *cells]


def by_threshold(pairs: dict[tuple[str, str], Pairs], other: dict[tuple[str, str], Pairs]) -> Iterator[list[str]]:
    """Rows of the table by threshold of TOXICITY: the same number, then the matched one."""
    for (scale, name), each in pairs.items():
        for at in THRESHOLDS if name == "toxicity" else ():
            line = threshold(other[scale, name], at)
            if line is None:
                continue
            cells = [scale, f"{at:g}", f"{(each.truth >= at).mean():.0%}"]
            for kind in (at, line):
                found = agreement(each.scores >= kind, each.truth >= at)
                cells += [f"{kind:.2f}", *(short(found[figure]) for figure in ("precision", "recall", "kappa"))]
            yield cells


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
