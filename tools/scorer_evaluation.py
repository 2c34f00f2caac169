"""The tables on the card of the local toxicity scorer: how well it agrees with recorded scores and human labels.

`build_scorer.py --evaluate` prints them. Where `alt-profanity-check` can be imported, it is scored on the same texts.
(Its package is a pickle that runs code when loaded: install it in a folder of its own, with the scikit-learn it names.)
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from labelled_texts import audit_texts, local_texts
from scipy.stats import pearsonr, spearmanr
from scorer_net import Row, read
from sklearn.metrics import roc_auc_score
from split import split_of, text_document
from suite_figures import Scorer, seconds

from nlf.data.markdown import markdown_table

SCALES = {"2020": "rtp-scored", "2023": "rtp-rescored-2023", "2018": "wikipedia-2k", "2019": "github-comments"}
OTHER = "alt-profanity-check"
SETS = {
    "wikipedia": "wikipedia-context-toxicity",
    "generated": "decodingtrust-scored-generations",
}  # unseen by `local`
LABELLED = {  # name of a target → (name in the table, whether `local` never trained on the set: then all of it counts)
    "tweets": ("labelled-davidson-tweets", True),
    "replies": ("labelled-diasafety, Offending User", True),
    "edos": ("labelled-edos-sexism", False),
    "fox": ("labelled-fox-news-comments", False),
    "emoji": ("labelled-hatemojibuild", False),
    "civil": ("labelled-toxic-spans", False),
    "threads": ("labelled-toxichat-reddit", True),
    "implicit": ("labelled-toxigen-human", True),
    "forum": ("labelled-vicomtech-stormfront", True),
}
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9)  # of Perspective
LENGTHS = ((1, 8), (9, 16), (17, 99))  # words; RealToxicityPrompts has no longer texts


class ProfanityCheck:
    """`alt-profanity-check`, a linear model over words; its probability of profanity counts as toxicity."""

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        from profanity_check import predict_prob

        return {"toxicity": np.asarray(predict_prob(list(texts)), dtype=float)}


def others() -> dict[str, Scorer]:
    """The other scorers that are installed."""
    return {OTHER: ProfanityCheck()} if importlib.util.find_spec("profanity_check") else {}


# ---- figures ------------------------------------------------------------------------------------------------------


def fidelity(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Agreement with recorded scores; texts without one (NaN) are left out. AUC counts recorded >= .5 as positive."""
    known = ~np.isnan(truth)
    scores, truth = scores[known], truth[known]
    row = {"n": len(truth), "spearman": spearmanr(scores, truth)[0], "pearson": pearsonr(scores, truth)[0]}
    both = 0 < (truth >= 0.5).sum() < len(truth)
    row["auc"] = roc_auc_score(truth >= 0.5, scores) if both else float("nan")
    return {k: round(float(v), 3) for k, v in (row | {"mae": np.abs(scores - truth).mean()}).items()}


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """|mean score − mean recorded score| in each tenth of the scores' range, weighted by its number of texts."""
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = np.bincount(bins, scores, minlength=10) - np.bincount(bins, truth, minlength=10)
    return float(np.abs(gaps).sum() / len(scores))


def agreement(said: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Share of true texts, precision, recall, share of texts on which both agree, and kappa: agreement beyond chance."""
    same, chance = (said == true).mean(), said.mean() * true.mean() + (1 - said.mean()) * (1 - true.mean())
    row = {"share": true.mean(), "precision": true[said].mean(), "recall": said[true].mean(), "agreement": same}
    return {k: round(float(v), 3) for k, v in (row | {"kappa": (same - chance) / (1 - chance)}).items()}


def matched(scores: np.ndarray, truth: np.ndarray, at: float) -> float:
    """The score with the same share of texts at or above it as the recorded score `at` has."""
    return float(np.quantile(scores, (truth < at).mean()))


# ---- tables -------------------------------------------------------------------------------------------------------


def show(headings: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of named rows of figures; the first heading is that of the names."""
    cells = [[name, *(f"{value:g}" for value in row.values())] for name, row in rows.items()]
    print(f"\n{markdown_table(headings, cells)}", flush=True)


def recorded(scorer: Scorer, rows: Sequence[Row], split: str) -> None:
    """Print the fidelity for each data set, and on the 2020 scale for each kind and length of text and each attribute."""
    rows = [row for row in rows if split_of(row[0]) == split]
    scores = scorer.attributes([text for _, text, _ in rows])
    toxicity, lengths = scores["toxicity"], np.array([len(text.split()) for _, text, _ in rows])

    def truth(head: str) -> np.ndarray:
        return np.array([targets.get(head, np.nan) for _, _, targets in rows])

    found = {name: fidelity(toxicity, truth(f"{scale}:toxicity")) for scale, name in SCALES.items()}
    target = truth("2020:toxicity")
    starts = np.array([text[:1] == " " for _, text, _ in rows])
    parts = {"begins with a space (continuations)": starts, "begins without (prompts, some continuations)": ~starts}
    parts |= {f"{low} to {high} words": (lengths >= low) & (lengths <= high) for low, high in LENGTHS}
    found |= {f"rtp-scored, {name}": fidelity(toxicity[part], target[part]) for name, part in parts.items()}
    attributes = [name for name in scores if name != "toxicity"]
    found |= {f"rtp-scored, {name}": fidelity(scores[name], truth(f"2020:{name}")) for name in attributes}
    show([f"data, split {split}", "n", "Spearman", "Pearson", "AUC", "MAE"], found)


def beside(scorers: Mapping[str, Scorer], rows: Sequence[Row], extra: Sequence[Row], split: str) -> None:
    """Print the figures of all scorers on every set with recorded scores."""
    heads = {name: f"{scale}:toxicity" for scale, name in SCALES.items()} | {shown: key for key, shown in SETS.items()}
    found = {}
    for name, head in heads.items():
        pairs = [(text, t[head]) for d, text, t in (*rows, *extra) if head in t and split_of(d) == split]
        texts, truth = [text for text, _ in pairs], np.array([value for _, value in pairs])
        scores = [each.attributes(texts)["toxicity"] for each in scorers.values()]
        figures = [fidelity(each, truth) for each in scores]
        row = {"n": len(truth), "positive": int((truth >= 0.5).sum())}
        row |= {f"{figure} {i}": each[figure] for figure in ("spearman", "auc") for i, each in enumerate(figures)}
        found[name] = row | {f"calibration {i}": round(calibration_error(s, truth), 3) for i, s in enumerate(scores)}
    names = [f"{figure}: {name}" for figure in ("Spearman", "AUC", "calibration error") for name in scorers]
    show([f"recorded, split {split}", "n", ">= .5", *names], found)


def people(data: Path) -> Iterator[tuple[str, bool, Row]]:
    """Yield the set's name, whether all of it counts, and the row with its human label as the only target."""
    for document, text, targets in (*audit_texts(data), *local_texts(data)):
        name, value = next(iter(targets.items()))
        if name in LABELLED:
            yield *LABELLED[name], (document, text, {"label": value})
    for name in ("github-comments-perspective", "wikipedia-context-toxicity"):
        for row in read(data / name / "train.jsonl.gz"):
            label = {"label": float(row["human_toxic"])}
            yield f"{name} (human label)", False, (text_document(row["text"]), row["text"], label)


def human(scorers: Mapping[str, Scorer], data: Path, split: str) -> None:
    """Print AUCs on human labels: of all texts in sets that `local` never trained on, else of the split's documents."""
    labelled: dict[str, list[tuple[str, bool]]] = {}
    for name, whole, (document, text, targets) in people(data):
        if whole or split_of(document) == split:
            shown = f"{name} ({'all, never trained on' if whole else f'{split} documents'})"
            labelled.setdefault(shown, []).append((text, targets["label"] >= 0.5))
    found = {}
    for name, pairs in sorted(labelled.items()):
        texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
        aucs = {k: round(roc_auc_score(labels, each.attributes(texts)["toxicity"]), 3) for k, each in scorers.items()}
        found[name] = {"n": len(pairs), "toxic": sum(labels)} | aucs
    show(["human labels", "n", "toxic", *(f"AUC: {name}" for name in scorers)], found)


def thresholds(scorer: Scorer, rows: Sequence[Row], split: str) -> None:
    """Print how well thresholds of ours agree with thresholds of Perspective.

    Each threshold of Perspective is tried on our scores as it is, and then as the score with the same share of texts
    above it on the other held-out split.
    """
    other = "validation" if split == "test" else "test"
    found = {}
    for head in ("2020:toxicity", "2023:toxicity"):
        both = {}
        for name in (split, other):
            pairs = [(text, t[head]) for d, text, t in rows if head in t and split_of(d) == name]
            both[name] = scorer.attributes([text for text, _ in pairs])["toxicity"], np.array([v for _, v in pairs])
        scores, truth = both[split]
        for at in THRESHOLDS:
            for kind, line in (("same", at), ("fitted", matched(*both[other], at))):
                row = agreement(scores >= line, truth >= at) | {"local at": round(line, 2)}
                found[f"{head[:4]}, {at}, {kind}"] = row
    figures = ["share above", "precision", "recall", "agreement", "kappa", "local at"]
    show([f"Perspective at, local at the same threshold or one fitted on {other}", *figures], found)


def speed(scorer: Scorer, texts: Sequence[str]) -> None:
    """Print texts a second, in CPU time so that other work does not count. Distinct texts keep the word cache cold."""
    short = [" " + " ".join(text.split()[:15]) for text in texts]
    print(f"\n{len(short) / seconds(scorer, short):.0f} texts of at most 15 words a second of CPU time")


def evaluate(args: argparse.Namespace, perspective: Callable[[Path], Iterator[Row]]) -> None:
    """Print all tables; `perspective` yields the texts with recorded scores."""
    from nlf.rewards.local import LocalToxicity

    begin = time.perf_counter()
    scorer = LocalToxicity(args.out)
    print(f"loaded in {time.perf_counter() - begin:.2f} s")
    rows = list(perspective(args.data))
    scorers = {"local": scorer, **others()}
    recorded(scorer, rows, args.split)
    beside(scorers, rows, list(audit_texts(args.data)), args.split)
    human(scorers, args.data, args.split)
    thresholds(scorer, rows, args.split)
    texts = [text for _, text, _ in rows]
    for name, each in {"local": LocalToxicity(args.out), **others()}.items():
        print(f"\n{name}")
        speed(each, texts)
