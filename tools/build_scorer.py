"""Build and evaluate `local@2`, the embedded toxicity scorer (src/nlf/assets/scorers/toxicity).

    python tools/word_meanings.py --data DIR --model SMOLLM2 --out FILE    # once
    python tools/build_scorer.py --data DIR --meanings FILE    # train, calibrate, write the asset (about 40 minutes, 1 core)
    python tools/build_scorer.py --data DIR --evaluate         # the tables of the scorer's card

A causal net over hashed sub-words first learns to predict words, and what a larger model makes of them (word_meanings.py).
From there two nets learn from all sources at once, and the net that ships is their weighted mean. Each version of Perspective, label set and word list has an output of its own (a "head"),
so that versions are never mixed; only the heads of the 2020 scale ship. The second net also learns from sentences and
respelled texts of our own, and from fragments that the first net and `local@1` scored (own_texts.py), on the same heads.
Only `--evaluate` reads documents of the test split.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from context_net import Net, predict, pretrain, train
from english_words import frequent_words
from labelled_texts import local_texts
from lm_sources import SOURCES, documents
from own_texts import (
    BEGINNING,
    CLEAN,
    NOTHING,
    RESPELLED,
    SENTENCE,
    TAUGHT,
    Teacher,
    beginnings,
    fragments,
    nothing,
    respelled,
    sentences,
)
from scorer_evaluation import evaluate, fidelity
from scorer_net import Row, calibration, read, write
from split import split_of, text_document

from nlf.rewards.convolution import LocalToxicity1
from nlf.rewards.local import ASSET, LocalToxicity, Reader
from nlf.rewards.vocabulary import Vocabulary, digest

ATTRIBUTES = ("toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit")
# targets that share a head of the 2020 scale, and how much they weigh
WEIGHTS = {"mapped:": 0.5, SENTENCE: 0.3, RESPELLED: 0.3, BEGINNING: 0.15, NOTHING: 0.06, TAUGHT: 0.5}
SHARED = {kind + name: ("2020:" + name, weight) for kind, weight in WEIGHTS.items() for name in ATTRIBUTES}
GROUPS = Path(__file__).parent / "group_words.txt"
# ordinary text to predict words of; fragments are parts of the first two
CORPORA = (
    "reddit-rude",
    "reddit-general",
    "tldr-reddit",
    "classic-books",
    "toxic-spans",
    "edos-sexism",
    "movie-reviews",
)
CORPORA += ("sentence-polarity", "rtp-scored", "hh-rlhf-harmless", "writing-prompts")
FRAGMENTED = ("reddit-rude", "reddit-general")
FRAGMENTS, SENTENCES_A_TEMPLATE = 85_000, 10
SECOND = 0.8  # the second net's part in the mean


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


def is_training(row: Row) -> bool:
    return row[0] in ("lexicon", "sentences", "nothing") or split_of(row[0]) == "train"  # these have no split


def own_rows(
    training: list[Row], ordinary: Sequence[str], frequent: Sequence[str], teacher: Teacher, seed: int
) -> list[Row]:
    """Make the training texts that no data set has."""
    rng = np.random.default_rng(seed)
    recorded = [row for row in training if "2020:toxicity" in row[2]]
    made = [*sentences(rng, SENTENCES_A_TEMPLATE, teacher), *fragments(ordinary, rng, FRAGMENTS, teacher)]
    return [*made, *respelled(recorded, rng, 2_000), *beginnings(recorded, rng, 2_000), *nothing(frequent, rng, 1_000)]


def floors(scores: np.ndarray, truth: np.ndarray, knots: Sequence[np.ndarray]) -> np.ndarray:
    """The median calibrated score of clean texts for each attribute: a text of one word scores no less."""
    clean = scores[truth[:, 0] <= CLEAN]
    return np.array([np.median(np.interp(x, *knot)) for x, knot in zip(clean.T, knots, strict=True)])


def finish(
    net: Net, heads: list[str], training: list[Row], validation: list[Row], reader: Reader, path: Path
) -> LocalToxicity:
    """Calibrate a net on validation texts and write it as an asset."""
    truth = np.array([[t.get(f"2020:{n}", np.nan) for n in ATTRIBUTES] for _, _, t in validation])
    keep = [heads.index(f"2020:{name}") for name in ATTRIBUTES]
    scores = predict(net, validation, heads, reader.words)[:, keep]
    print(f"validation before calibration: {fidelity(scores[:, 0], truth[:, 0])}", flush=True)
    knots = [calibration(scores[:, i], truth[:, i]) for i in range(len(ATTRIBUTES))]
    arrays = {f"calibration.{i}": knot for i, knot in enumerate(knots)} | {"floor": floors(scores, truth, knots)}
    arrays |= {"vocabulary": reader.vocabulary.words, "rude": reader.vocabulary.rude}
    arrays |= {"groups": np.array(sorted(reader.groups), dtype=np.uint32)}
    counts = Counter(head for *_, targets in training for head in targets)
    card = {"name": "local", "version": 2, "scale": "Perspective TOXICITY, 2020 (RealToxicityPrompts)"}
    card |= {"attributes": ATTRIBUTES, "texts_per_head": dict(sorted(counts.items()))}
    write(net, keep, arrays, path, card)
    return LocalToxicity(path)


def teacher_of(first: LocalToxicity) -> Teacher:
    """The mean logit of the first net and of `local@1`, which reads words on both sides."""

    def said(texts: Sequence[str]) -> dict[str, np.ndarray]:
        found, other = first.attributes(texts), LocalToxicity1().attributes(texts)
        pairs = {name: np.clip([found[name], other[name]], 1e-4, 1 - 1e-4) for name in ATTRIBUTES}
        return {name: expit(np.nanmean(logit(pair), axis=0)) for name, pair in pairs.items()}

    return said


def build(args: argparse.Namespace) -> None:
    """Pretrain; train a first net on the data sets, and a second one also on texts of our own and texts that the first scores."""
    frequent, rude = frequent_words(args.data)
    reader = Reader(Vocabulary.of(frequent, rude), frozenset(map(digest, GROUPS.read_text().split())))
    harmless = [word for word in frequent[:5_000] if word not in {*rude}]
    rows = recalibrated([*perspective(args.data), *local_texts(args.data)])
    held = {text_document(row[1]) for row in rows if not is_training(row)}
    training = [row for row in rows if is_training(row) and text_document(row[1]) not in held]
    validation = [row for row in rows if split_of(row[0]) == "validation" and "2020:toxicity" in row[2]]
    heads = sorted({SHARED.get(name, (name, 1))[0] for *_, targets in training for name in targets})
    corpora = {s.name: [*documents(s, args.data, "train")] for s in SOURCES if s.name in CORPORA}
    ordinary = [text for name in FRAGMENTED for text in corpora[name]]
    start = pretrain(
        chain.from_iterable(corpora.values()),
        reader.words,
        meanings_in(args.meanings),
        steps=args.steps,
        seed=args.seed,
    )

    weights = head_weights(heads)

    def trained(rows: list[Row], epochs: int) -> Net:
        print(f"{len(rows)} training texts, {len(validation)} validation, {len(heads)} heads", flush=True)
        return train(rows, weights, reader.words, start=start, aliases=SHARED, epochs=epochs, seed=args.seed)

    first = trained(training, args.first_epochs)
    with TemporaryDirectory() as folder:
        teacher = teacher_of(finish(first, heads, training, validation, reader, Path(folder) / ASSET.name))
    everything = training + own_rows(training, ordinary, harmless, teacher, args.seed)
    second = trained(everything, args.epochs)
    finish(mean_of(first, second), heads, everything, validation, reader, args.out)


def meanings_in(path: Path) -> tuple[list[str], np.ndarray]:
    """The words and vectors of a file that word_meanings.py wrote."""
    with np.load(path) as file:
        return file["words"].tolist(), file["vectors"]


def mean_of(first: Net, second: Net) -> Net:
    """The net between two that were trained from one start, nearer to the second.

    The nearer to the second, the fairer to groups; the nearer to the first, the closer to recorded scores. Half way it
    agrees with them no worse than the first (Wortsman et al. 2022 found the like, arXiv 2203.05482).
    """
    with torch.no_grad():
        for mine, other in zip(first.parameters(), second.parameters(), strict=True):
            mine.lerp_(other, SECOND)
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--meanings", type=Path, help="the file that word_meanings.py wrote; needed unless --evaluate")
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--steps", type=int, default=4_000, help="steps of pretraining, at most")
    parser.add_argument("--first_epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="only print the fidelity tables of the asset")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    args = parser.parse_args()
    evaluate(args, perspective) if args.evaluate else build(args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
