"""The tables on the card of the local sentiment scorer: its accuracy on held-out texts and on other kinds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scorer_evaluation import show, speed
from scorer_net import read
from sklearn.metrics import roc_auc_score
from split import split_of, text_document

from nlf.data.files import ASSETS
from nlf.rewards.convolution import LocalSentiment, words

Labelled = list[tuple[str, bool]]  # text, whether positive
HERE = Path(__file__).parent


def sentences(data: Path, split: str) -> Labelled:
    """Sentences of film reviews."""
    rows = read(data / "sentiment-sentence-polarity/sentence_polarity.jsonl.gz")
    return [(row["text"], row["label"] == "pos") for row in rows if split_of(text_document(row["text"])) == split]


def notes(data: Path, split: str) -> Labelled:
    """Notes on pros and cons of products."""
    rows = read(data / "sentiment-pros-cons/pros_cons.jsonl.gz")
    found = {row["text"]: row["label"] == "pos" for row in rows if split_of(text_document(row["text"])) == split}
    return list(found.items())


def whole_reviews(data: Path, split: str) -> Labelled:
    rows = read(data / "sentiment-movie-reviews/movie_reviews.jsonl.gz")
    return [(row["text"], row["label"] == "pos") for row in rows if split_of(row["id"]) == split]


def web(data: Path) -> Labelled:
    """OpenWebText sentences; their labels come from another classifier's scores of 25 continuations of the first half."""
    found = []
    for kind in ("negative", "positive"):
        rows = read(data / f"sentiment-prompts-owt/{kind}_prompts.jsonl.gz")
        found += [(f"{row['prompt']['text']} {row['continuation']['text']}", kind == "positive") for row in rows]
    return found


def ours() -> Iterator[tuple[str, Labelled]]:
    """Our own sentences, plain and negated, by name."""
    lines = (HERE / "sentiment_sentences.txt").read_text(encoding="utf-8").splitlines()[1:]
    for kind in ("plain", "negated"):
        cells = [line.split("\t") for line in lines if line.startswith(kind)]
        yield f"our sentences, {kind}", [(text, sign == "+") for _, sign, text in cells]


def accuracy(positive: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Share of texts on the right side of .5 with its 95 % bootstrap interval, AUC, and calibration error.

    The calibration error is |mean score − share of positive texts| in each of ten bins, weighted by texts.
    """
    right = (positive >= 0.5) == truth
    draws = np.random.default_rng(seed).integers(len(right), size=(2000, len(right)))
    low, high = np.quantile(right[draws].mean(axis=1), [0.025, 0.975])
    bins = np.minimum((positive * 10).astype(int), 9)
    gaps = [abs((positive[bins == b] - truth[bins == b]).sum()) for b in np.unique(bins)]
    row = {"n": len(truth), "accuracy": right.mean(), "low": low, "high": high}
    row |= {"auc": roc_auc_score(truth, positive), "calibration error": sum(gaps) / len(truth)}
    return {name: round(float(value), 3) for name, value in row.items()}


def by_lexicon(data: Path, texts: list[str]) -> np.ndarray:
    """The baseline: the logistic function of the sum of VADER's valences of a text's words."""
    lines = (data / "word-lists/vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    valence = {word: float(mean) for word, mean in (line.split("\t")[:2] for line in lines)}
    sums = np.array([sum(valence.get(word, 0.0) for word in words(text.lower())) for text in texts])
    return 1 / (1 + np.exp(-sums))


def evaluate(args: argparse.Namespace) -> None:
    """Print the tables of the asset."""
    scorer, split = LocalSentiment(args.out), args.split
    held = sentences(args.data, split)
    texts, truth = [text for text, _ in held], np.array([label for _, label in held])
    found = {"sentence polarity": accuracy(scorer.attributes(texts)["positive"], truth)}
    found["sentence polarity, by the VADER lexicon"] = accuracy(by_lexicon(args.data, texts), truth)
    others = [("pros and cons", notes(args.data, split)), ("whole film reviews", whole_reviews(args.data, split))]
    for name, rows in [*others, ("OpenWebText sentences", web(args.data)), *ours()]:
        positive = scorer.attributes([text for text, _ in rows])["positive"]
        found[name] = accuracy(positive, np.array([label for _, label in rows]))
    show([f"data, split {split}", "n", "accuracy", "low", "high", "AUC", "calibration error"], found)
    prompts()
    speed(LocalSentiment(args.out), texts)


def prompts() -> None:
    """Print the scores of the embedded prompts and of a text without words."""
    scorer = LocalSentiment()
    for kind in ("negative", "neutral", "positive"):
        lines = (ASSETS / f"prompts/sentiment-{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        positive = scorer.attributes([json.loads(line)["prompt"] for line in lines])["positive"]
        print(f"{kind} prompts: mean {positive.mean():.3f}, at or above .5: {(positive >= 0.5).mean():.0%}")
    print(f"no words: {scorer.attributes([''])['positive'][0]:.3f}")
