"""The net of the `local` and `sentiment` scorers, its training and its file; for build_scorer.py and build_sentiment.py.

A small convolutional net reads texts as hashed sub-words (`nlf.rewards.subwords.buckets`). Every source of labels has an
output of its own (a "head"), or shares a head under another name and weight. `write` keeps only the named heads.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from sklearn.isotonic import IsotonicRegression
from torch import nn

from nlf.rewards.convolution import words
from nlf.rewards.subwords import buckets

ROWS, DIMENSION, CHANNELS, MAX_WORDS = 65536, 40, 96, 64
Row = tuple[str, str, dict[str, float]]  # document, text, head -> target in [0, 1]
Aliases = Mapping[str, tuple[str, float]]  # name of a target -> its head, and the weight of its row


def read(path: Path) -> Iterator[dict]:
    """Read a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Net(nn.Module):
    """The trainable twin of `LocalScorer`: the same arithmetic in torch, on padded batches."""

    def __init__(self, outputs: int):
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, DIMENSION, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.one = nn.Conv1d(DIMENSION, CHANNELS, 3, padding=1)
        self.two = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=2, dilation=2)
        self.attend = nn.Linear(CHANNELS, 1, bias=False)
        self.out = nn.Linear(3 * CHANNELS, outputs)

    def forward(self, bags, place) -> torch.Tensor:
        """Compute the (B, outputs) logits.

        Args:
            bags: (ids, offsets, weights) of the distinct words.
            place: (B, T), the number of the word at each position; -1 = none.
        """
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


def targets_of(rows: Sequence[Row], heads: Sequence[str], aliases: Aliases) -> tuple[np.ndarray, np.ndarray]:
    """The targets (rows, heads), NaN where a row has none, and the weight (rows,) of each row."""
    column = {head: i for i, head in enumerate(heads)}
    found = np.full((len(rows), len(heads)), np.nan, dtype=np.float32)
    soft = np.ones(len(rows), dtype=np.float32)
    for i, (_, _, targets) in enumerate(rows):
        for name, value in targets.items():
            head, weight = aliases.get(name, (name, 1.0))
            found[i, column[head]] = value
            soft[i] = min(soft[i], weight)
    return found, soft


class Corpus:
    """Texts as word numbers; each distinct word is cut into table rows once."""

    def __init__(self, rows: Sequence[Row], heads: Sequence[str], aliases: Aliases | None = None):
        vocabulary: dict[str, int] = {}
        self.texts = [
            np.array([vocabulary.setdefault(w, len(vocabulary)) for w in words(text)[:MAX_WORDS]], dtype=np.int64)
            for _, text, _ in rows
        ]
        bags = [buckets(word, ROWS) for word in vocabulary]
        self.starts = np.cumsum([0] + [len(ids) for ids, _ in bags])
        self.ids = np.concatenate([np.array(ids) for ids, _ in bags])
        self.weights = np.concatenate([np.array(w, dtype=np.float32) for _, w in bags])
        self.targets, self.soft = targets_of(rows, heads, aliases or {})

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None, drop: float = 0.05):
        """Make inputs of `Net`; `rng` drops a tenth of the sub-words and a share `drop` of the words."""
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
            flat = np.where(rng.random(len(flat)) < drop, -1, flat)
        place[np.arange(place.shape[1]) < lengths[:, None]] = flat
        bags = tuple(map(torch.from_numpy, (self.ids[spots], offsets, weights)))
        return bags, torch.from_numpy(place)


def train(
    rows: Sequence[Row],
    weights: Mapping[str, float],
    *,
    aliases: Aliases | None = None,
    epochs: int,
    seed: int,
    drop: float = 0.05,
    start: Callable[[Net], None] | None = None,
) -> Net:
    """Train with AdamW on soft cross-entropy with linear decay, and average the late weights.

    The same arguments give the same net on one machine.

    Args:
        weights: The weight of each head in the loss, in the order of the net's outputs.
        drop: Share of words dropped in training.
        start: Changes the fresh net before training.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    corpus, net, weight = Corpus(rows, list(weights), aliases), Net(len(weights)), torch.tensor([*weights.values()])
    if start is not None:
        start(net)
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
            net(*corpus.batch(picked, rng, drop)), targets.nan_to_num(), reduction="none"
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


def predict(net: Net, rows: Sequence[Row], heads: Sequence[str]) -> np.ndarray:
    """Predict (rows, heads) probabilities before calibration."""
    corpus = Corpus(rows, heads)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(rows)), max(len(rows) // 128, 1))
        return torch.cat([torch.sigmoid(net(*corpus.batch(part))) for part in parts]).numpy()


def calibration(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fit (2, 17) knots of a monotone map from the net's score to the recorded score; 0 and 1 map to themselves."""
    known = ~np.isnan(truth)
    fit = IsotonicRegression(out_of_bounds="clip").fit(scores[known], truth[known])
    knots = np.unique(np.quantile(scores[known], np.linspace(0.02, 0.98, 15)))
    smooth = [fit.predict(np.clip(knots + shift, 0, 1)) for shift in np.linspace(-0.06, 0.06, 13)]
    values = np.maximum.accumulate(np.mean(smooth, axis=0))
    return np.array([[0, *knots, 1], [0, *values, 1]], dtype=np.float32)


def write(net: nn.Module, keep: Sequence[int], arrays: Mapping[str, np.ndarray], path: Path, card: dict) -> None:
    """Write the heads `keep`, and further arrays: the table as int8 with one scale, the rest of the net in half precision.

    A .json beside it has the card and the sha256.
    """
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    table = state.pop("table.weight")
    scale = float(np.quantile(np.abs(table), 0.9999)) / 127
    found = {name: value.astype(np.float16) for name, value in state.items()}
    found |= {name: found[name][list(keep)] for name in ("out.weight", "out.bias")}
    found["table"] = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**found, **arrays}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
    stamp = {"table_scale": scale, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card | stamp, indent=1) + "\n")
