"""The embedded scorers of toxicity and sentiment: a small convolutional net over hashed sub-words, run in numpy.

`local` is distilled from recorded Perspective scores (the 2020 scale of RealToxicityPrompts) by `tools/build_scorer.py`,
because that service ends in 2026. `sentiment` is trained on labelled reviews by `tools/build_sentiment.py`. Scoring needs
numpy and safetensors only, not torch. The vector of a word depends on the word alone and is computed once. Sums are
float64 and scores are rounded to six decimals, so the score of a text does not depend on its batch. docs/rewards.md gives
fidelity and limits.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlf.data.files import ASSETS
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, degrees
from nlf.rewards.contract import completion_text

SCORERS = ASSETS / "scorers"
ASSET = SCORERS / "toxicity" / "local-1.safetensors"
SENTIMENT = SCORERS / "sentiment" / "sentiment-1.safetensors"
MAX_CHARACTERS = 20_000  # the rest of a text is not scored; Perspective takes 20,480 bytes
BLOCK = 512  # texts per numpy pass: bounds memory, and larger blocks are no faster
CACHED_WORDS = 50_000

# A masked swear word (f**k, a$$, sh!t) is one word; other punctuation marks are separate words.
WORD = re.compile(r"[^\W_](?:[\w'*@$!#]*[\w*$])?|[*@$#]{2,}\w+|[^\w\s]|_+")
STRETCH = re.compile(r"(.)\1{2,}")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, their case unchanged."""
    return WORD.findall(text[:MAX_CHARACTERS].replace("’", "'"))


def buckets(word: str, size: int) -> tuple[list[int], list[float]]:
    """Rows of a table with `size` rows whose weighted sum is a word's vector, and the weights.

    The rows stand for the word, for its shape (upper or title case) and for its 3- to 5-grams.
    """
    lower = STRETCH.sub(r"\1\1", word[:40].lower())
    lower = "0" if lower.isdigit() else lower
    framed = f"<{lower}>"
    grams = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
    shape = "upper" if len(word) > 1 and word.isupper() else "title" if word[:1].isupper() else ""
    names = [f"={lower}", *([f"^{shape}"] if shape else []), *grams]
    heads = len(names) - len(grams)
    weights = [1.0] * heads + [max(len(grams), 1) ** -0.5] * len(grams)
    return [zlib.crc32(name.encode("utf-8", "replace")) % size for name in names], weights


class LocalScorer:
    """Base class of the embedded scorers. A subclass names the asset and defines `reward`.

    Args:
        path: The weights; None = the shipped weights. A .json file of the same name stands beside them.

    Raises:
        UserError: a file cannot be read, differs from its recorded sha256, or belongs to another scorer.
    """

    name: str
    version: int
    asset: Path
    remote = False

    def __init__(self, path: str | Path | None = None):
        from safetensors.numpy import load_file

        path = Path(path or self.asset)
        try:
            blob, self.card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        except OSError as error:
            raise UserError(
                f"{self.name} scorer: cannot read {error.filename}: run `pip install .` in the source of nlf again, "
                "or rebuild it"
            ) from error
        if hashlib.sha256(blob).hexdigest() != self.card["sha256"]:
            raise UserError(
                f"{self.name} scorer: {path} is not the file its .json names (sha256 differs): run `pip install .` in "
                "the source of nlf again"
            )
        found, expected = f"{self.card['name']}@{self.card['version']}", f"{self.name}@{self.version}"
        if found != expected:
            raise UserError(f"{self.name} scorer: {path} is the asset of {found}; expected {expected}")
        arrays = load_file(path)
        self.table = arrays.pop("table").astype(np.float32) * self.card["table_scale"]  # (rows, d)
        self.net = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.names: list[str] = self.card["attributes"]
        self.last: tuple[tuple[str, ...], np.ndarray] = (), np.zeros((0, len(self.names)))  # texts and their scores
        self._forget()

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        """(N,) rewards from the attributes of N texts."""
        raise NotImplementedError

    def words(self, text: str) -> list[str]:
        """The words of a text that the net reads."""
        return words(text)

    def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[float]:
        """TRL's reward signature. A conversation is scored by its last message."""
        return self.reward(self.attributes([completion_text(completion) for completion in completions])).tolist()

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities `(len(texts),)` of each attribute. A text without words has a score too."""
        texts = tuple(texts)
        if texts != self.last[0]:  # the reward and the attributes of a batch are asked for in turn
            blocks = [self._score(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK)]
            self.last = texts, np.concatenate(blocks) if blocks else np.zeros((0, len(self.names)))
        return {name: self.last[1][:, i].copy() for i, name in enumerate(self.names)}

    def _forget(self) -> None:
        self.rows: dict[str, int] = {}
        self.vectors = np.zeros((0, self.table.shape[1]))

    def _lookup(self, texts: list[list[str]]) -> np.ndarray:
        """Rows of `self.vectors` for all words of all texts in order, `(W,)`; new words are added to it."""
        if len(self.rows) > CACHED_WORDS:
            self._forget()
        new = sorted({word for text in texts for word in text}.difference(self.rows))
        if new:
            bags = [buckets(word, len(self.table)) for word in new]
            starts = np.cumsum([0] + [len(ids) for ids, _ in bags[:-1]])
            ids = np.concatenate([ids for ids, _ in bags])
            weights = np.concatenate([weights for _, weights in bags])
            vectors = np.add.reduceat(self.table[ids] * weights[:, None], starts)
            self.rows.update(zip(new, range(len(self.rows), len(self.rows) + len(new)), strict=True))
            self.vectors = np.concatenate([self.vectors, vectors])
        return np.fromiter((self.rows[word] for text in texts for word in text), dtype=np.int64)

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Scores `(len(texts), attributes)`."""
        split = [self.words(text) for text in texts]
        lengths = np.array([len(text) for text in split])
        rows = self._lookup(split)
        full = lengths > 0
        pooled = np.zeros((len(texts), len(self.net["out.weight"].T)))
        if len(rows):
            pooled[full] = self._pool(self.vectors[rows], lengths[full])
        logits = pooled @ self.net["out.weight"].T + self.net["out.bias"]
        scores = 1 / (1 + np.exp(-logits))
        calibrated = [np.interp(column, *self.net[f"calibration.{i}"]) for i, column in enumerate(scores.T)]
        return np.round(np.stack(calibrated, axis=1), 6)

    def _pool(self, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Maximum, mean and attention over the words of each text.

        The texts lie end to end with two empty rows between them, so that a convolution never sees two texts.

        Args:
            vectors: `(W, d)`, the words of all texts.
            lengths: `(texts,)`, at least one word each.

        Returns:
            `(texts, 3 · channels)`.
        """
        starts = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) + 2 * np.repeat(np.arange(len(lengths)), lengths) + 2
        size = len(place) + 2 * len(lengths) + 2
        one = np.maximum(self._convolve(vectors, place, size, "one", 1), 0)
        hidden = one + np.maximum(self._convolve(one, place, size, "two", 2), 0)  # (words, channels)
        gate = np.exp(np.clip(hidden @ self.net["attend.weight"][0], -30, 30))[:, None]
        focus = np.add.reduceat(hidden * gate, starts) / np.add.reduceat(gate, starts)
        mean = np.add.reduceat(hidden, starts) / lengths[:, None]
        return np.concatenate([np.maximum.reduceat(hidden, starts), mean, focus], axis=1)

    def _convolve(self, x: np.ndarray, place: np.ndarray, size: int, name: str, dilation: int) -> np.ndarray:
        """Convolution of width 3 over words `(W, in)` that lie at the rows `place` of `size` rows; `(W, out)`."""
        padded = np.zeros((size, x.shape[1]))
        padded[place] = x
        kernel, out = self.net[f"{name}.weight"], self.net[f"{name}.bias"]  # (out, in, 3), (out,)
        for k in range(3):
            out = out + padded[place + dilation * (k - 1)] @ kernel[:, :, k].T
        return out


class LocalToxicity(LocalScorer):
    """Reward = 1 − toxicity of the completion alone. `attributes` gives toxicity and six related probabilities."""

    name, version, asset = "local", 1, ASSET
    none_is_worst = True
    default_tags = DEFAULT_TAGS

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        return 1.0 - attributes["toxicity"]


class LocalSentiment(LocalScorer):
    """Reward = the probability that the completion alone is positive, also the attribute `positive`. Ignores case."""

    name, version, asset = "sentiment", 1, SENTIMENT
    default_tags = degrees("Negativity")

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        return attributes["positive"]

    def words(self, text: str) -> list[str]:
        return words(text.lower())
