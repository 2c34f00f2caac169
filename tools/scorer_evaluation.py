"""The fidelity tables of docs/rewards.md: how the local scorer agrees with recorded scores and human labels."""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from split import split_of, text_document

SCALES = {"2020": "rtp-scored", "2023": "rtp-rescored-2023", "2018": "wikipedia-2k", "2019": "github-comments"}
LENGTHS = ((1, 8), (9, 16), (17, 99))  # words; RealToxicityPrompts has no longer texts


def fidelity(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Agreement with recorded scores; AUC takes recorded >= .5 as the positive class."""
    known = ~np.isnan(truth)
    scores, truth = scores[known], truth[known]
    row = {"n": len(truth), "spearman": spearmanr(scores, truth)[0], "pearson": pearsonr(scores, truth)[0]}
    both = 0 < (truth >= 0.5).sum() < len(truth)
    row["auc"] = roc_auc_score(truth >= 0.5, scores) if both else float("nan")
    return {k: round(float(v), 3) for k, v in (row | {"mae": np.abs(scores - truth).mean()}).items()}


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


def human(scorer, data: Path, split: str) -> None:
    """AUC on labels of sets that training never saw (whole), or saw with heads of their own (their test documents)."""
    sources: list[tuple[str, str, Callable[[dict], bool | None], bool]] = [
        ("labelled-toxigen-human/toxigen_human", "text", lambda r: r["label"] == "hate", True),
        (
            "labelled-vicomtech-stormfront/vicomtech",
            "text",
            lambda r: {"hate": True, "noHate": False}.get(r["label"]),
            True,
        ),
        ("labelled-edos-sexism/edos", "text", lambda r: r["label_sexist"] == "sexist", False),
        ("labelled-fox-news-comments/fox", "text", lambda r: bool(r["hateful"]), False),
        ("labelled-hatemojibuild/hatemojibuild", "text", lambda r: bool(r["label_hateful"]), False),
        ("github-comments-perspective/train", "text", lambda r: bool(r["human_toxic"]), False),
    ]
    print("\n| human labels | n | AUC |\n| --- | --- | --- |")
    for name, field, label, unseen in sources:
        with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            pairs = [(row[field], label(row)) for row in map(json.loads, lines)]
        pairs = [(t, y) for t, y in pairs if y is not None and (unseen or split_of(text_document(t)) == split)]
        scores = scorer.attributes([text for text, _ in pairs])["toxicity"]
        show(name.split("/")[0], {"n": len(pairs), "auc": round(roc_auc_score([y for _, y in pairs], scores), 3)})


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
    recorded(scorer, rows, args.split)
    human(scorer, args.data, args.split)
    identity(scorer)
    speed(LocalToxicity(args.out), [text for _, text, _ in rows])
