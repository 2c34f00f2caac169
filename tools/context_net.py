"""The net of `local@2` in torch: how it learns to predict words, then to score, and its file; for build_scorer.py.

The net is causal: what it makes of a word depends on that word and earlier ones only, so one pass gives the scores of all
prefixes of a text. It reads words as hashed sub-words, mixes each with its neighbours on the left (convolutions) and with a
weighted mean of everything so far, and pools by maximum, mean and attention. It first learns to predict the next word of
ordinary text and what a larger model makes of words (word_meanings.py), which teaches it more words than the scored texts have. Then every source of labels has an output of its own
(a "head"), or shares a head under another name and weight. `scorer_net.write` keeps only the named heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scorer_net import Aliases, Row, targets_of
from torch import nn

from nlf.rewards.local import CLIP, DILATIONS
from nlf.rewards.subwords import buckets

ROWS, DIMENSION, CHANNELS, MAX_WORDS = 98_304, 64, 128, 64
PREDICTED = 30_000  # words that pretraining predicts
WRONG = 1024  # other words among which the right one must be found
TOLD, MEANING = 768, 3.0  # words whose meanings a step tells, and the weight of that
PIECE = 10_000  # characters of ordinary text that are read at once
WINDOW, WINDOWS = 96, 48  # words in a window, windows in a step of pretraining
BATCH, RATE = 96, 2e-3  # texts in a step of training, and its highest learning rate
Bags = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Read = Callable[[str], list[str]]


class Net(nn.Module):
    """The trainable twin of `LocalToxicity`: the same arithmetic in torch, on padded batches."""

    def __init__(self, outputs: int):
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, DIMENSION, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.enter = nn.Linear(DIMENSION, CHANNELS)
        self.convolve = nn.ModuleList(nn.Linear(2 * CHANNELS, CHANNELS) for _ in range(DILATIONS))
        self.weigh = nn.Linear(CHANNELS, 1, bias=False)
        self.mix = nn.Linear(2 * CHANNELS, CHANNELS)
        self.attend = nn.Linear(CHANNELS, 1, bias=False)
        self.out = nn.Linear(3 * CHANNELS, outputs)

    def hidden(self, bags: Bags, place: torch.Tensor) -> torch.Tensor:
        """(B, T, C) what the net makes of each word.

        Args:
            bags: (ids, offsets, weights) of the distinct words.
            place: (B, T), the number of the word at each position; -1 = none, at the end only.
        """
        ids, offsets, weights = bags
        vectors = F.dropout(self.table(ids, offsets, per_sample_weights=weights), 0.1, self.training)
        mask = (place >= 0).unsqueeze(2)  # (B, T, 1)
        h = F.relu(self.enter(vectors))[place.clamp(min=0)] * mask
        for i, layer in enumerate(self.convolve):
            before = F.pad(h, (0, 0, 2**i, 0))[:, : h.shape[1]]
            h = h + F.relu(layer(F.dropout(torch.cat([h, before], 2), 0.1, self.training))) * mask
        gate = torch.exp(self.weigh(h).clamp(-CLIP, CLIP)) * mask
        context = (h * gate).cumsum(1) / gate.cumsum(1).clamp(min=1e-9)
        return (h + F.relu(self.mix(F.dropout(torch.cat([h, context], 2), 0.1, self.training)))) * mask

    def forward(self, bags: Bags, place: torch.Tensor) -> torch.Tensor:
        """Compute the (B, outputs) logits."""
        h, mask = self.hidden(bags, place), (place >= 0).unsqueeze(2)
        gate = torch.exp(self.attend(h).clamp(-CLIP, CLIP)) * mask
        focus = (h * gate).sum(1) / gate.sum(1).clamp(min=1e-9)
        mean = h.sum(1) / mask.sum(1).clamp(min=1)
        return self.out(F.dropout(torch.cat([h.amax(1), mean, focus], 1), 0.3, self.training))


class Bagged:
    """Words cut into table rows once."""

    def __init__(self, words: Iterable[str]):
        bags = [buckets(word, ROWS) for word in words]
        self.starts = np.cumsum([0] + [len(ids) for ids, _ in bags])
        self.ids = np.concatenate([np.array(ids) for ids, _ in bags])
        self.weights = np.concatenate([np.array(w, dtype=np.float32) for _, w in bags])

    def pick(self, used: np.ndarray, rng: np.random.Generator | None = None) -> Bags:
        """The bags of some words; `rng` drops a tenth of the sub-words."""
        sizes = self.starts[used + 1] - self.starts[used]
        offsets = np.cumsum(sizes) - sizes
        spots = np.repeat(self.starts[used] - offsets, sizes) + np.arange(sizes.sum())
        weights = self.weights[spots]
        if rng is not None:
            weights = weights * (rng.random(len(weights)) > 0.1)
        return torch.from_numpy(self.ids[spots]), torch.from_numpy(offsets), torch.from_numpy(weights)


def pretrain(
    texts: Iterable[str], read: Read, meanings: tuple[Sequence[str], np.ndarray], *, steps: int, seed: int
) -> dict[str, torch.Tensor]:
    """Learn to predict the next word of ordinary texts, and the meanings of words; returns the weights below the heads.

    The right word must be found among WRONG others, drawn by their frequency to the power 3/4 (sampled softmax, Jean et
    al. 2015). Words to be found have the vectors that the net reads (tied, as Press and Wolf 2017), so a word learns from
    what stands before it, too. The same arguments give the same weights on one machine.

    Args:
        meanings: Words, and a vector `(W, D)` of variance 1 for each, which a linear map of the net's own must tell.
        steps: At most so many; each window of the texts is read at most once.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    numbers: dict[str, int] = {}
    pieces = (text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE))
    stream = np.concatenate([[numbers.setdefault(w, len(numbers)) for w in read(piece)] for piece in pieces])
    windows = stream[: len(stream) // (WINDOW + 1) * (WINDOW + 1)].astype(np.int32).reshape(-1, WINDOW + 1)
    windows = rng.permutation(windows)
    target, frequent, frequency = _targets([*numbers], windows)
    share = frequency**0.75 / (frequency**0.75).sum()
    expected = torch.from_numpy(np.log(share * WRONG)).float()
    net, bagged, guess, bias = Net(1), Bagged(numbers), nn.Linear(CHANNELS, CHANNELS), nn.Embedding(len(share), 1)
    nn.init.zeros_(bias.weight)
    named, meaning = Bagged(meanings[0]), torch.from_numpy(meanings[1])
    tell = nn.Linear(CHANNELS, meaning.shape[1])
    weights = [*net.parameters(), *guess.parameters(), *bias.parameters(), *tell.parameters()]
    optimizer, begin = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01, fused=True), time.monotonic()
    steps = min(steps, len(windows) // WINDOWS)
    for step in range(steps):
        _rate(optimizer, 2e-3, step, steps)
        window = windows[step * WINDOWS : (step + 1) * WINDOWS]
        used, place = np.unique(window[:, :-1], return_inverse=True)
        hidden = net.hidden(bagged.pick(used, rng), torch.from_numpy(place.reshape(WINDOWS, WINDOW)))
        right = target[window[:, 1:]]
        known = right >= 0
        hidden, right = guess(hidden[torch.from_numpy(known)]), right[known]
        found, index = np.unique(right, return_inverse=True)
        wrong = np.unique(rng.choice(len(share), WRONG, p=share))
        vectors = net.enter(
            net.table(*bagged.pick(frequent[np.concatenate([found, wrong])], rng))
        )  # (found + wrong, C)
        good, bad = vectors[: len(found)], vectors[len(found) :]
        right, wrong, index = map(torch.from_numpy, (right, wrong, index))
        high = (hidden * good[index]).sum(1) + bias(right)[:, 0] - expected[right]
        low = hidden @ bad.T + bias(wrong)[:, 0] - expected[wrong]
        low = low.masked_fill(wrong == right[:, None], -1e9)
        loss = F.cross_entropy(torch.cat([high[:, None], low], 1), torch.zeros(len(right), dtype=torch.long))
        some = rng.choice(len(meaning), TOLD, replace=False)
        told = tell(F.relu(net.enter(net.table(*named.pick(some, rng)))))
        loss = loss + MEANING * F.mse_loss(told, meaning[some])
        _step(optimizer, weights, loss)
        if step % 100 == 0:
            print(f"pretraining {step}/{steps} loss {loss.item():.3f} {time.monotonic() - begin:.0f} s", flush=True)
    return {name: value for name, value in net.state_dict().items() if not name.startswith("out.")}


def _targets(words: Sequence[str], windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What pretraining predicts: the PREDICTED most frequent words, without case.

    Returns:
        The number among these of each word, or -1; for each of these the number of a word in lower case or else in any
        case; and their frequencies.
    """
    lower: dict[str, int] = {}
    number = np.array([lower.setdefault(word.lower(), len(lower)) for word in words])
    counts = np.bincount(number[windows.ravel()], minlength=len(lower))
    frequent = np.argsort(-counts, kind="stable")[:PREDICTED]
    frequent = frequent[counts[frequent] > 0]
    place = np.full(len(lower), -1)
    place[frequent] = np.arange(len(frequent))
    own = np.zeros(len(lower), dtype=np.int64)
    for i in [i for i, word in enumerate(words) if word != word.lower()] + [
        i for i, word in enumerate(words) if word == word.lower()
    ]:
        own[number[i]] = i
    return place[number], own[frequent], counts[frequent].astype(float)


class Corpus:
    """Texts as word numbers, with targets."""

    def __init__(self, rows: Sequence[Row], heads: Sequence[str], read: Read, aliases: Aliases | None = None):
        numbers: dict[str, int] = {}
        self.texts = [
            np.array([numbers.setdefault(w, len(numbers)) for w in read(text)[:MAX_WORDS]], dtype=np.int64)
            for _, text, _ in rows
        ]
        self.bagged = Bagged(numbers)
        self.targets, self.soft = targets_of(rows, heads, aliases or {})

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> tuple[Bags, torch.Tensor]:
        """Make inputs of `Net`; `rng` drops a tenth of the sub-words and a twentieth of the words of longer texts."""
        texts = [self.texts[i] for i in rows]
        if rng is not None:
            texts = [text[rng.random(len(text)) > 0.05] if len(text) > 3 else text for text in texts]
        used, flat = np.unique(np.concatenate(texts), return_inverse=True)
        lengths = np.array([len(text) for text in texts])
        place = np.full((len(texts), max(lengths.max(), 1)), -1)
        place[np.arange(place.shape[1]) < lengths[:, None]] = flat
        return self.bagged.pick(used, rng), torch.from_numpy(place)

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield each row once, in batches of texts of like length."""
        lengths, found = np.array([len(text) for text in self.texts]), []
        for chunk in np.array_split(rng.permutation(len(lengths)), max(len(lengths) // (40 * BATCH), 1)):
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            found += np.array_split(chunk, max(len(chunk) // BATCH, 1))
        yield from (found[i] for i in rng.permutation(len(found)))


def train(
    rows: Sequence[Row],
    weights: Mapping[str, float],
    read: Read,
    *,
    start: Mapping[str, torch.Tensor],
    aliases: Aliases | None = None,
    epochs: int,
    seed: int,
) -> Net:
    """Train with AdamW on soft cross-entropy with linear decay, and average the late weights.

    The same arguments give the same net on one machine.

    Args:
        weights: The weight of each head in the loss, in the order of the net's outputs.
        start: Weights below the heads, from `pretrain`.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    corpus, net, weight = Corpus(rows, [*weights], read, aliases), Net(len(weights)), torch.tensor([*weights.values()])
    net.load_state_dict(start, strict=False)
    order = [batch for _ in range(epochs) for batch in corpus.batches(rng)]
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    average, begin = None, time.monotonic()
    for step, picked in enumerate(order):
        _rate(optimizer, RATE, step, len(order))
        targets = torch.from_numpy(corpus.targets[picked])
        known = ~targets.isnan()
        logits = net(*corpus.batch(picked, rng))
        losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
        loss = (losses * known * weight * torch.from_numpy(corpus.soft[picked])[:, None]).sum() / len(picked)
        _step(optimizer, [*net.parameters()], loss)
        if step > 0.6 * len(order) and step % 5 == 0:
            now = [p.detach().clone() for p in net.parameters()]
            average = now if average is None else [a.lerp_(n, 0.02) for a, n in zip(average, now, strict=True)]
        if step % 200 == 0:
            print(f"step {step}/{len(order)} loss {loss.item():.4f} {time.monotonic() - begin:.0f} s", flush=True)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), average or [], strict=False):
            parameter.copy_(value)
    return net.eval()


def _rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Warm up over 100 steps, then decay linearly to 2 %."""
    optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 100) * max(1 - step / steps, 0.02)


def _step(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 5.0)
    optimizer.step()


def predict(net: Net, rows: Sequence[Row], heads: Sequence[str], read: Read) -> np.ndarray:
    """Predict (rows, heads) probabilities before calibration."""
    corpus = Corpus(rows, heads, read)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(rows)), max(len(rows) // 128, 1))
        return torch.cat([torch.sigmoid(net(*corpus.batch(part))) for part in parts]).numpy()
