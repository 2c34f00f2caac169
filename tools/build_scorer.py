"""Build and evaluate `local`, the embedded toxicity scorer (src/nlf/assets/scorers/toxicity).

    python tools/build_scorer.py --data DIR              # train, calibrate, write the asset (about 4 minutes, 1 core)
    python tools/build_scorer.py --data DIR --evaluate   # the tables of the scorer's card

A convolutional net over hashed sub-words learns from all sources at once. Each version of Perspective, label set and
word list has an output of its own (a "head"), so that versions are never mixed; only the heads of the 2020 scale ship.
Only `--evaluate` reads documents of the test split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import scorer_net
from labelled_texts import local_texts
from scorer_evaluation import evaluate, fidelity
from scorer_net import Net, Row, calibration, predict, read, train
from split import split_of, text_document

from nlf.rewards.local import ASSET

ATTRIBUTES = ("toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit")
MAPPED = {f"mapped:{name}": (f"2020:{name}", 0.5) for name in ATTRIBUTES}  # mapped targets weigh less


def scored(document: str, text: str, scores: dict, scale: str) -> Row:
    """Make a row of recorded scores on one scale."""
    names = (*ATTRIBUTES, "flirtation")
    return document, text, {f"{scale}:{n}": float(scores[n]) for n in names if scores.get(n) is not None}


def perspective(data: Path) -> Iterator[Row]:
    """Yield the texts with recorded scores; every scale (version of Perspective) has heads of its own."""
    for row in read(data / "rtp-scored/train.jsonl.gz"):
        yield from (scored(row["group"], row[part]["text"], row[part], "2020") for part in ("prompt", "continuation"))
    for row in read(data / "rtp-rescored-2023/train.jsonl.gz"):
        yield scored(row["group"], row["prompt"]["text"], row["prompt"], "2023")
    for row in read(data / "wikipedia-2k-perspective-2018/train.jsonl.gz"):
        yield scored(row["id"], row["text"], row, "2018")
    for row in read(data / "github-comments-perspective/train.jsonl.gz"):
        yield scored(text_document(row["text"]), row["text"], row, "2019")


def recalibrated(rows: list[Row]) -> list[Row]:
    """Add 2020 targets to prompts that were scored in 2023 only.

    A monotone map gives them. It is fitted on training texts that were scored in both years.
    """
    old = {text: t for _, text, t in rows if "2020:toxicity" in t}
    both = [(t, old[text]) for d, text, t in rows if "2023:toxicity" in t and text in old and split_of(d) == "train"]
    maps = {}
    for name in ATTRIBUTES:
        pairs = np.array([(n[f"2023:{name}"], o[f"2020:{name}"]) for n, o in both if f"2020:{name}" in o])
        maps[name] = IsotonicRegression(out_of_bounds="clip").fit(pairs[:, 0], pairs[:, 1])

    def add(text: str, targets: dict[str, float]) -> dict[str, float]:
        if "2023:toxicity" not in targets or text in old:
            return targets
        names = [n for n in ATTRIBUTES if f"2023:{n}" in targets]
        return targets | {f"mapped:{n}": float(maps[n].predict([targets[f"2023:{n}"]])[0]) for n in names}

    return [(document, text, add(text, targets)) for document, text, targets in rows]


def head_weights(heads: list[str]) -> dict[str, float]:
    """Weigh toxicity on the 2020 scale most, its other attributes next, and the other heads least."""
    weight = {"2020:toxicity": 4.0} | {f"2020:{name}": 1.0 for name in ATTRIBUTES[1:]}
    return {head: weight.get(head, 0.5) for head in heads}


def write(net: Net, heads: list[str], knots: list[np.ndarray], path: Path, sources: dict) -> None:
    """Write the seven heads of the 2020 scale and their card."""
    card = {"name": "local", "version": 1, "scale": "Perspective TOXICITY, 2020 (RealToxicityPrompts)"}
    card |= {"attributes": ATTRIBUTES, "texts_per_head": sources}
    scorer_net.write(net, [heads.index(f"2020:{name}") for name in ATTRIBUTES], knots, path, card)


def is_training(row: Row) -> bool:
    return row[0] == "lexicon" or split_of(row[0]) == "train"  # word lists have no split


def build(args: argparse.Namespace) -> None:
    rows = recalibrated([*perspective(args.data), *local_texts(args.data)])
    held = {text_document(row[1]) for row in rows if not is_training(row)}
    training = [row for row in rows if is_training(row) and text_document(row[1]) not in held]
    validation = [row for row in rows if split_of(row[0]) == "validation" and "2020:toxicity" in row[2]]
    heads = sorted({head.replace("mapped:", "2020:") for _, _, targets in rows for head in targets})
    print(f"{len(training)} training texts, {len(validation)} validation, {len(heads)} heads", flush=True)
    net = train(training, head_weights(heads), aliases=MAPPED, epochs=args.epochs, seed=args.seed)
    truth = np.array([[t.get(f"2020:{n}", np.nan) for n in ATTRIBUTES] for _, _, t in validation])
    scores = predict(net, validation, heads)[:, [heads.index(f"2020:{n}") for n in ATTRIBUTES]]
    print(f"validation before calibration: {fidelity(scores[:, 0], truth[:, 0])}")
    knots = [calibration(scores[:, i], truth[:, i]) for i in range(len(ATTRIBUTES))]
    counts = {h: sum(h in t for _, _, t in training) for h in sorted({h for _, _, t in training for h in t})}
    write(net, heads, knots, args.out, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="only print the fidelity tables of the asset")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    args = parser.parse_args()
    evaluate(args, perspective) if args.evaluate else build(args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
