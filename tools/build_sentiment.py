"""Build and evaluate the embedded sentiment scorer (src/nlf/assets/scorers/sentiment).

    python tools/build_sentiment.py --data DIR              # train, calibrate, write the asset (about 2 minutes, 1 core)
    python tools/build_sentiment.py --data DIR --evaluate   # the tables of the scorer's card

The net and its training are those of the toxicity scorer (`scorer_net`). The shipped head learns from labelled sentences
of film reviews (Pang and Lee 2005, the source of SST). Pros and cons of products, sentences of whole reviews and a lexicon
train the shared layers through heads of their own. The table starts from word vectors of plain text. Only `--evaluate`
reads sentences of the test split, and no training text shares eight words in a row with a held-out sentence.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import scorer_net
import sentiment_evaluation
from scorer_net import Net, Row, predict, read, train
from split import split_of, text_document
from word_vectors import vectors

from nlf.rewards.convolution import SENTIMENT, words
from nlf.rewards.subwords import buckets

HEADS = {"positive": 2.0, "pros": 0.5, "review": 0.3, "valence": 0.5}  # weights in the loss; the first head ships
DOUBT = 0.05  # labels become .95 and .05, so that the net's scores stay moderate
BLANKS = 200  # texts without words, with the target .5
VECTOR_WORDS = 6_000_000  # words of plain text for the word vectors


def polarity(data: Path) -> Iterator[Row]:
    """Yield sentences of film reviews, half of them positive; each is a document."""
    for row in read(data / "sentiment-sentence-polarity/sentence_polarity.jsonl.gz"):
        yield text_document(row["text"]), row["text"].lower(), {"positive": float(row["label"] == "pos")}


def pros_cons(data: Path) -> Iterator[Row]:
    """Yield buyers' notes on pros and cons of products; each is a document."""
    for row in read(data / "sentiment-pros-cons/pros_cons.jsonl.gz"):
        yield text_document(row["text"]), row["text"].lower(), {"pros": float(row["label"] == "pos")}


def reviews(data: Path) -> Iterator[Row]:
    """Yield sentences of film reviews with the label of their review: often wrong, so their head weighs little."""
    for row in read(data / "sentiment-movie-reviews/movie_reviews.jsonl.gz"):
        lines = [line for line in row["text"].lower().splitlines() if 4 <= len(line.split()) <= 60]
        yield from ((row["id"], line, {"review": float(row["label"] == "pos")}) for line in lines)


def lexicon(data: Path) -> Iterator[Row]:
    """Yield VADER's words; ten people rated each from -4 to 4."""
    for line in (data / "word-lists/vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, mean = line.split("\t")[:2]
        yield "lexicon", word.lower(), {"valence": float(expit(1.2 * float(mean)))}


def runs(text: str, length: int = 8) -> set[tuple[str, ...]]:
    """All runs of `length` words in a text."""
    found = re.findall(r"\w+", text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def training_rows(data: Path) -> list[Row]:
    """Read the texts of training documents, without texts that repeat a held-out sentence of the polarity data."""
    held = [row for row in polarity(data) if split_of(row[0]) != "train"]
    names, seen = {row[0] for row in held}, set().union(*(runs(row[1]) for row in held))
    rows = [row for source in (polarity, pros_cons, reviews) for row in source(data) if split_of(row[0]) == "train"]
    rows = [row for row in rows if text_document(row[1]) not in names and not runs(row[1]) & seen]
    rows = [(d, text, {h: DOUBT + (1 - 2 * DOUBT) * v for h, v in targets.items()}) for d, text, targets in rows]
    return [*rows, *lexicon(data), *[("blank", "", {"positive": 0.5})] * BLANKS]


def plain_text(data: Path, rows: list[Row]) -> Iterator[list[str]]:
    """Yield the words of texts for the word vectors: the training texts, then forum posts."""
    posts = (row["text"].lower() for row in read(data / "lm-reddit-posts/general.jsonl.gz"))
    total = 0
    for text in (*(row[1] for row in rows), *posts):
        if total < VECTOR_WORDS:
            yield (found := words(text))
            total += len(found)


def start(net: Net, names: list[str], found: np.ndarray) -> None:
    """Write the word vectors into the table rows of whole words; sub-words start small.

    Where words share a row, the most common word gets it.
    """
    with torch.no_grad():
        net.table.weight.mul_(0.5)
        for name, vector in zip(reversed(names), found[::-1], strict=True):
            net.table.weight[buckets(name, scorer_net.ROWS)[0][0]] = torch.tensor(0.2 * vector, dtype=torch.float32)


def calibrate(net: Net, validation: list[Row]) -> float:
    """Divide the shipped head's logits by the temperature that fits the validation sentences best; .5 stays .5.

    Returns:
        The temperature.
    """
    scores = logit(np.clip(predict(net, validation, list(HEADS))[:, 0].astype(float), 1e-6, 1 - 1e-6))
    truth = np.array([targets["positive"] for *_, targets in validation])

    def surprise(scale: float) -> float:
        return float(np.mean(np.logaddexp(0, np.where(truth > 0.5, -1, 1) * scale * scores)))

    scale = float(minimize_scalar(surprise, bounds=(0.1, 3), method="bounded").x)
    with torch.no_grad():
        net.out.weight[0] *= scale
        net.out.bias[0] *= scale
    return 1 / scale


def build(args: argparse.Namespace) -> None:
    """Train, calibrate and write the asset."""
    rows = training_rows(args.data)
    validation = [row for row in polarity(args.data) if split_of(row[0]) == "validation"]
    print(f"{len(rows)} training texts, {len(validation)} validation", flush=True)
    names, found = vectors(plain_text(args.data, rows), size=scorer_net.DIMENSION, most=30_000)
    net = train(
        rows, HEADS, epochs=args.epochs, seed=args.seed, drop=0.2, start=partial(start, names=names, found=found)
    )
    temperature = calibrate(net, validation)
    card = {"name": "sentiment", "version": 1, "scale": "probability that the text is positive"}
    card |= {"attributes": ["positive"], "seed": args.seed, "epochs": args.epochs, "temperature": temperature}
    card["texts_per_head"] = dict(Counter(head for *_, targets in rows for head in targets))
    line = np.array([[0, 1], [0, 1]], dtype=np.float32)  # the identity: `calibrate` has changed the logits
    scorer_net.write(net, [0], {"calibration.0": line}, args.out, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, one folder each")
    parser.add_argument("--out", type=Path, default=SENTIMENT)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="only print the tables of the asset")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    args = parser.parse_args()
    sentiment_evaluation.evaluate(args) if args.evaluate else build(args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
