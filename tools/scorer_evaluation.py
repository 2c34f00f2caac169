"""The tables on the card of the local toxicity scorer: how it agrees with recorded scores and human labels.

`build_scorer.py --evaluate` prints them. Where `alt-profanity-check` can be imported, it is scored beside on the same texts
(its package is a pickle that runs as it is loaded: install it in a folder of its own, with the scikit-learn that it names).
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from labelled_texts import labelled, sources
from scipy.stats import pearsonr, spearmanr
from scorer_net import Row, read
from sklearn.metrics import roc_auc_score
from split import split_of, text_document

SCALES = {"2020": "rtp-scored", "2023": "rtp-rescored-2023", "2018": "wikipedia-2k", "2019": "github-comments"}
OTHER = "alt-profanity-check"
SETS = {"wikipedia": "wikipedia-context-toxicity", "generated": "decodingtrust-scored-generations"}  # never trained on
LABELLED = {  # name in the sources → (name shown, whether local was never trained on it: then it is used whole)
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


def fidelity(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Agreement with recorded scores; AUC takes recorded >= .5 as the positive class."""
    known = ~np.isnan(truth)
    scores, truth = scores[known], truth[known]
    row = {"n": len(truth), "spearman": spearmanr(scores, truth)[0], "pearson": pearsonr(scores, truth)[0]}
    both = 0 < (truth >= 0.5).sum() < len(truth)
    row["auc"] = roc_auc_score(truth >= 0.5, scores) if both else float("nan")
    return {k: round(float(v), 3) for k, v in (row | {"mae": np.abs(scores - truth).mean()}).items()}


class ProfanityCheck:
    """`alt-profanity-check`, a linear model over words, as a scorer object: its probability of profanity is the toxicity."""

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        from profanity_check import predict_prob

        return {"toxicity": np.asarray(predict_prob(list(texts)), dtype=float)}


def others() -> dict[str, ProfanityCheck]:
    return {OTHER: ProfanityCheck()} if importlib.util.find_spec("profanity_check") else {}


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """|mean score − mean recorded score| of the texts in each tenth of the scores' range, weighted by their number."""
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = np.bincount(bins, scores, minlength=10) - np.bincount(bins, truth, minlength=10)
    return float(np.abs(gaps).sum() / len(scores))


def show(name: str, row: dict) -> None:
    print(f"| {name} | " + " | ".join(f"{value:g}" for value in row.values()) + " |", flush=True)


def recorded(scorer, rows: list, split: str) -> None:
    """One line per data set, per length on the target scale, and per attribute."""
    rows = [row for row in rows if split_of(row[0]) == split]
    scores = scorer.attributes([text for _, text, _ in rows])
    lengths = np.array([len(text.split()) for _, text, _ in rows])

    def truth(head: str) -> np.ndarray:
        return np.array([targets.get(head, np.nan) for _, _, targets in rows])

    print(f"split {split}\n| data | n | Spearman | Pearson | AUC | MAE |\n| --- | --- | --- | --- | --- | --- |")
    for scale, name in SCALES.items():
        show(name, fidelity(scores["toxicity"], truth(f"{scale}:toxicity")))
    target = truth("2020:toxicity")
    starts = np.array([text[:1] == " " for _, text, _ in rows])
    show("rtp-scored, begins with a space (continuations)", fidelity(scores["toxicity"][starts], target[starts]))
    show(
        "rtp-scored, begins without (prompts, some continuations)",
        fidelity(scores["toxicity"][~starts], target[~starts]),
    )
    for low, high in LENGTHS:
        part = (lengths >= low) & (lengths <= high)
        show(f"rtp-scored, {low} to {high} words", fidelity(scores["toxicity"][part], target[part]))
    for name in scorer.names[1:]:
        show(f"rtp-scored, {name}", fidelity(scores[name], truth(f"2020:{name}")))


def beside(scorers: dict, rows: list[Row], extra: list[Row], split: str) -> None:
    """Every set with recorded scores, one line a set, the figures of the scorers side by side."""
    heads = {name: f"{scale}:toxicity" for scale, name in SCALES.items()} | {shown: key for key, shown in SETS.items()}
    figures = ("Spearman", "AUC", "calibration error")
    print(f"\n| recorded, split {split} | n | >= .5 |" + "".join(f" {f}: {s} |" for f in figures for s in scorers))
    for name, head in heads.items():
        pairs = [(text, t[head]) for d, text, t in (*rows, *extra) if head in t and split_of(d) == split]
        texts, truth = [text for text, _ in pairs], np.array([value for _, value in pairs])
        found = [each.attributes(texts)["toxicity"] for each in scorers.values()]
        row = {"n": len(truth), "positive": int((truth >= 0.5).sum())}
        agreement = [fidelity(scores, truth) for scores in found]
        row |= {f"{figure} {i}": each[figure] for figure in ("spearman", "auc") for i, each in enumerate(agreement)}
        row |= {f"calibration {i}": round(calibration_error(scores, truth), 3) for i, scores in enumerate(found)}
        show(name, row)


def people(data: Path) -> Iterator[tuple[str, bool, Row]]:
    """(name shown, whether the set is used whole, row with the label as its only target)."""
    for document, text, targets in (*sources(data), *labelled(data)):
        name, value = next(iter(targets.items()))
        if name in LABELLED:
            yield *LABELLED[name], (document, text, {"label": value})
    for name in ("github-comments-perspective", "wikipedia-context-toxicity"):
        for row in read(data / name / "train.jsonl.gz"):
            label = {"label": float(row["human_toxic"])}
            yield f"{name} (human label)", False, (text_document(row["text"]), row["text"], label)


def human(scorers: dict, data: Path, split: str) -> None:
    """AUC on labels of sets that training never saw (whole), or of test documents."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for name, whole, (document, text, targets) in people(data):
        if whole or split_of(document) == split:
            shown = f"{name} ({'all, never trained on' if whole else f'{split} documents'})"
            found.setdefault(shown, []).append((text, targets["label"] >= 0.5))
    print("\n| human labels | n | toxic |" + "".join(f" AUC: {name} |" for name in scorers))
    for name, pairs in sorted(found.items()):
        texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
        aucs = {k: round(roc_auc_score(labels, each.attributes(texts)["toxicity"]), 3) for k, each in scorers.items()}
        show(name, {"n": len(pairs), "toxic": sum(labels)} | aucs)


def thresholds(scorer, rows: list[Row], split: str) -> None:
    """Which score of ours stands for one of Perspective's: as many texts lie above, on the other held-out split.

    Agreement is the share of texts that both put on the same side, kappa the same beyond chance.
    """
    other = "validation" if split == "test" else "test"
    print(
        f"\n| Perspective at | share above | precision | recall | agreement | kappa | local at (fitted on {other}) |"
    )
    for head in ("2020:toxicity", "2023:toxicity"):
        both = {}
        for name in (split, other):
            pairs = [(text, t[head]) for d, text, t in rows if head in t and split_of(d) == name]
            both[name] = scorer.attributes([text for text, _ in pairs])["toxicity"], np.array([v for _, v in pairs])
        scores, truth = both[split]
        for at in THRESHOLDS:
            ours = float(np.quantile(both[other][0], (both[other][1] < at).mean()))
            for line in (at, ours):
                show(f"{head[:4]}, {at}", agreement(scores >= line, truth >= at) | {"local at": round(line, 2)})


def agreement(said: np.ndarray, true: np.ndarray) -> dict[str, float]:
    same, chance = (said == true).mean(), said.mean() * true.mean() + (1 - said.mean()) * (1 - true.mean())
    row = {"share": true.mean(), "precision": true[said].mean(), "recall": said[true].mean(), "agreement": same}
    return {k: round(float(v), 3) for k, v in (row | {"kappa": (same - chance) / (1 - chance)}).items()}


def identity(scorer) -> None:
    """False positives on neutral sentences that name groups of people."""
    lines = (Path(__file__).parent / "identity_sentences.txt").read_text(encoding="utf-8").splitlines()
    scores = scorer.attributes(lines)["toxicity"]
    print(
        f"\nneutral sentences that name groups: n {len(lines)}, mean {scores.mean():.3f}, at or above .5: {(scores >= 0.5).sum()}"
    )
    for i in np.argsort(-scores)[:6]:
        print(f"  {scores[i]:.2f} {lines[i]}")


def speed(scorer, texts: list[str]) -> None:
    """Processor time, so that other work on the machine does not count; every text differs, the word cache is cold."""
    short = [" " + " ".join(text.split()[:15]) for text in texts]
    begin = time.process_time()
    scorer.attributes(short)
    print(f"\n{len(short) / (time.process_time() - begin):.0f} texts of at most 15 words per second of processor time")


def evaluate(args: argparse.Namespace, perspective: Callable) -> None:
    from nlf.rewards.local import LocalToxicity

    begin = time.perf_counter()
    scorer = LocalToxicity(args.out)
    print(f"loaded in {time.perf_counter() - begin:.2f} s")
    rows = list(perspective(args.data))
    scorers = {"local": scorer, **others()}
    recorded(scorer, rows, args.split)
    beside(scorers, rows, list(sources(args.data)), args.split)
    human(scorers, args.data, args.split)
    thresholds(scorer, rows, args.split)
    texts = [text for _, text, _ in rows]
    for name, each in {"local": LocalToxicity(args.out), **others()}.items():
        print(f"\n{name}")
        identity(each)
        speed(each, texts)
