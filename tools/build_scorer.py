"""Build and evaluate the embedded toxicity scorer (src/nlf/assets/toxicity).

    python tools/build_scorer.py --data DIR              # train, calibrate, write the asset (about 4 minutes, 1 core)
    python tools/build_scorer.py --data DIR --evaluate   # the fidelity tables of docs/rewards.md

A convolutional net over hashed sub-words learns all sources at once, each with outputs of its own (a "head" per scorer
version, label set and word list), so that versions of Perspective are never mixed; only the heads of the 2020 scale ship.
Documents of the test split are read by `--evaluate` alone.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from sklearn.isotonic import IsotonicRegression
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from scorer_evaluation import evaluate, fidelity
from split import split_of, text_document

from nlf.rewards.local import ASSET, buckets, words

ATTRIBUTES = ("toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit")
ROWS, DIMENSION, CHANNELS, MAX_WORDS = 65536, 40, 96, 64
Row = tuple[str, str, dict[str, float]]  # document, text, head -> target in [0, 1]


def read(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def scored(document: str, text: str, scores: dict, scale: str) -> Row:
    names = (*ATTRIBUTES, "flirtation")
    return document, text, {f"{scale}:{n}": float(scores[n]) for n in names if scores.get(n) is not None}


def perspective(data: Path) -> Iterator[Row]:
    """Texts with recorded scores; every scale (version of the service) has its own heads."""
    for row in read(data / "rtp-scored/train.jsonl.gz"):
        yield from (scored(row["group"], row[part]["text"], row[part], "2020") for part in ("prompt", "continuation"))
    for row in read(data / "rtp-rescored-2023/train.jsonl.gz"):
        yield scored(row["group"], row["prompt"]["text"], row["prompt"], "2023")
    for row in read(data / "wikipedia-2k-perspective-2018/train.jsonl.gz"):
        yield scored(row["id"], row["text"], row, "2018")
    for row in read(data / "github-comments-perspective/train.jsonl.gz"):
        yield scored(text_document(row["text"]), row["text"], row, "2019")


def labelled(data: Path) -> Iterator[Row]:
    """Human labels and word lists: they teach the shared layers which words hurt."""
    for row in read(data / "labelled-edos-sexism/edos.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"edos": float(row["label_sexist"] == "sexist")}
    for row in read(data / "labelled-hatemojibuild/hatemojibuild.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"emoji": float(row["label_hateful"])}
    for row in read(data / "labelled-fox-news-comments/fox.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"fox": float(row["hateful"])}
    for row in read(data / "labelled-toxic-spans/comments_16k.jsonl.gz"):
        share = 1 - row["said_not_toxic"] / max(row["annotators"], 1)
        yield text_document(row["text"]), row["text"], {"civil": share}
    for row in read(data / "labelled-toxic-spans/semeval2021_spans.jsonl.gz"):
        yield from spans(row)
    for row in read(data / "sentiment-sentence-polarity/sentence_polarity.jsonl.gz"):
        yield text_document(row["text"]), row["text"], {"sentiment": float(row["label"] == "pos")}
    yield from lexicons(data / "word-lists")


def spans(row: dict) -> Iterator[Row]:
    """The words people marked, against what is left of the post without them."""
    left, last, document = "", 0, text_document(row["text"])
    for begin, end in row["toxic_char_ranges"]:
        left, last = left + row["text"][last:begin], end
        yield document, row["text"][begin:end], {"span": 1.0}
    yield document, left + row["text"][last:], {"span": 0.0}


def lexicons(folder: Path) -> Iterator[Row]:
    listed: dict[str, dict[str, float]] = {}
    with open(folder / "surge_profanity_en.csv", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            listed[row["text"].lower()] = {"severity": (float(row["severity_rating"]) - 1) / 2}
    for line in (folder / "ldnoobw_en.txt").read_text(encoding="utf-8").splitlines():
        listed.setdefault(line.strip().lower(), {})
    for line in (folder / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, mean = line.split("\t")[:2]
        yield "lexicon", word, {"valence": (float(mean) + 4) / 8, "listed": float(word.lower() in listed)}
    yield from (("lexicon", text, {**targets, "listed": 1.0}) for text, targets in listed.items())


def recalibrated(rows: list[Row]) -> list[Row]:
    """Prompts scored in 2023 only also get 2020 targets, by a monotone map fitted on training texts scored in both."""
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


class Net(nn.Module):
    """The torch twin of `LocalToxicity`: the same sums, on padded batches."""

    def __init__(self, outputs: int):
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, DIMENSION, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.one = nn.Conv1d(DIMENSION, CHANNELS, 3, padding=1)
        self.two = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=2, dilation=2)
        self.attend = nn.Linear(CHANNELS, 1, bias=False)
        self.out = nn.Linear(3 * CHANNELS, outputs)

    def forward(self, bags, place, shape) -> torch.Tensor:
        """`bags`: (ids, offsets, weights) of the distinct words; `place` (B, T): which word stands where, -1 = none."""
        ids, offsets, weights = bags
        vectors = F.dropout(self.table(ids, offsets, per_sample_weights=weights), 0.2, self.training)
        mask = (place >= 0).unsqueeze(1)  # (B, 1, T)
        x = vectors[place.clamp(min=0)].transpose(1, 2) * mask  # (B, d, T)
        one = F.relu(self.one(x)) * mask
        hidden = (one + F.relu(self.two(F.dropout(one, 0.1, self.training)))) * mask  # (B, C, T)
        score = self.attend(hidden.transpose(1, 2)).transpose(1, 2).clamp(-30, 30)
        gate = torch.exp(score) * mask
        focus = (hidden * gate).sum(2) / gate.sum(2).clamp(min=1e-9)
        mean = hidden.sum(2) / mask.sum(2).clamp(min=1)
        return self.out(F.dropout(torch.cat([hidden.amax(2), mean, focus], 1), 0.3, self.training))


class Corpus:
    """Texts as word numbers; every distinct word is cut into table rows once."""

    def __init__(self, rows: list[Row], heads: list[str]):
        vocabulary: dict[str, int] = {}
        self.texts = [
            np.array([vocabulary.setdefault(w, len(vocabulary)) for w in words(text)[:MAX_WORDS]] or [0])
            for _, text, _ in rows
        ]
        bags = [buckets(word, ROWS) for word in vocabulary]
        self.starts = np.cumsum([0] + [len(ids) for ids, _ in bags])
        self.ids = np.concatenate([np.array(ids) for ids, _ in bags])
        self.weights = np.concatenate([np.array(w, dtype=np.float32) for _, w in bags])
        column = {head: i for i, head in enumerate(heads)}
        self.targets = np.full((len(rows), len(heads)), np.nan, dtype=np.float32)
        self.soft = np.ones(len(rows), dtype=np.float32)
        for i, (_, _, targets) in enumerate(rows):
            for head, value in targets.items():
                name = head.replace("mapped:", "2020:")
                self.targets[i, column[name]] = value
                if name != head:
                    self.soft[i] = 0.5  # a mapped target is less sure

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None):
        """Inputs of `Net`; with `rng`, a tenth of the sub-words and a twentieth of the words are dropped."""
        texts = [self.texts[i] for i in rows]
        used, flat = np.unique(np.concatenate(texts), return_inverse=True)
        sizes = self.starts[used + 1] - self.starts[used]
        offsets = np.cumsum(sizes) - sizes
        spots = np.repeat(self.starts[used] - offsets, sizes) + np.arange(sizes.sum())
        weights = self.weights[spots]
        place = np.full((len(texts), max(map(len, texts))), -1)
        lengths = np.array([len(text) for text in texts])
        if rng is not None:
            weights = weights * (rng.random(len(weights)) > 0.1)
            flat = np.where(rng.random(len(flat)) < 0.05, -1, flat)
        place[np.arange(place.shape[1]) < lengths[:, None]] = flat
        bags = tuple(map(torch.from_numpy, (self.ids[spots], offsets, weights)))
        return bags, torch.from_numpy(place), None


def head_weights(heads: list[str]) -> torch.Tensor:
    """Toxicity on the target scale leads; its other attributes and the same scale's neighbours follow."""
    weight = {"2020:toxicity": 4.0} | {f"2020:{name}": 1.0 for name in ATTRIBUTES[1:]}
    return torch.tensor([weight.get(head, 0.5) for head in heads])


def train(rows: list[Row], heads: list[str], *, epochs: int, seed: int) -> Net:
    """AdamW on soft cross-entropy, linear decay; an average of the late weights. No clock: a rebuild repeats it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    corpus, net, weight = Corpus(rows, heads), Net(len(heads)), head_weights(heads)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01, fused=True)
    order_of = [np.array_split(rng.permutation(len(rows)), len(rows) // 96) for _ in range(epochs)]
    steps, average, begin = sum(map(len, order_of)), None, time.monotonic()
    for step, picked in enumerate(batch for order in order_of for batch in order):
        progress = step / steps
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 100) * max(1 - progress, 0.02)
        net.train()
        targets = torch.from_numpy(corpus.targets[picked])
        known = ~targets.isnan()
        losses = F.binary_cross_entropy_with_logits(
            net(*corpus.batch(picked, rng)), targets.nan_to_num(), reduction="none"
        )
        loss = (losses * known * weight * torch.from_numpy(corpus.soft[picked])[:, None]).sum() / len(picked)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        if progress > 0.6 and step % 5 == 0:
            now = [p.detach().clone() for p in net.parameters()]
            average = now if average is None else [a.lerp_(n, 0.02) for a, n in zip(average, now, strict=True)]
        if step % 200 == 0:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - begin:.0f} s", flush=True)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), average or [], strict=False):
            parameter.copy_(value)
    return net.eval()


def predict(net: Net, rows: list[Row], heads: list[str]) -> np.ndarray:
    corpus = Corpus(rows, heads)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(rows)), max(len(rows) // 128, 1))
        return torch.cat([torch.sigmoid(net(*corpus.batch(part))) for part in parts]).numpy()


def calibration(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, 17) knots of a monotone map from the net's score to the recorded one, the ends fixed at 0 and 1."""
    known = ~np.isnan(truth)
    fit = IsotonicRegression(out_of_bounds="clip").fit(scores[known], truth[known])
    knots = np.unique(np.quantile(scores[known], np.linspace(0.02, 0.98, 15)))
    smooth = [fit.predict(np.clip(knots + shift, 0, 1)) for shift in np.linspace(-0.06, 0.06, 13)]
    values = np.maximum.accumulate(np.mean(smooth, axis=0))
    return np.array([[0, *knots, 1], [0, *values, 1]], dtype=np.float32)


def write(net: Net, heads: list[str], knots: list[np.ndarray], path: Path, sources: dict) -> None:
    """int8 table with one scale, the rest in half precision; the .json beside names the file's sha256."""
    keep = [heads.index(f"2020:{name}") for name in ATTRIBUTES]
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    table = state.pop("table.weight")
    scale = float(np.quantile(np.abs(table), 0.9999)) / 127
    state |= {name: state[name][keep] for name in ("out.weight", "out.bias")}
    arrays = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in state.items()}
    arrays["table"] = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
    arrays |= {f"calibration.{i}": knot for i, knot in enumerate(knots)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
    card = {"name": "local", "version": 1, "scale": "Perspective TOXICITY, 2020 (RealToxicityPrompts)"}
    card |= {"attributes": ATTRIBUTES, "table_scale": scale, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card | {"texts_per_head": sources}, indent=1) + "\n")


def is_training(row: Row) -> bool:
    return row[0] == "lexicon" or split_of(row[0]) == "train"  # a word list is no document


def build(args: argparse.Namespace) -> None:
    rows = recalibrated([*perspective(args.data), *labelled(args.data)])
    held = {text_document(row[1]) for row in rows if not is_training(row)}
    training = [row for row in rows if is_training(row) and text_document(row[1]) not in held]
    validation = [row for row in rows if split_of(row[0]) == "validation" and "2020:toxicity" in row[2]]
    heads = sorted({head.replace("mapped:", "2020:") for _, _, targets in rows for head in targets})
    print(f"{len(training)} training texts, {len(validation)} validation, {len(heads)} heads", flush=True)
    net = train(training, heads, epochs=args.epochs, seed=args.seed)
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
