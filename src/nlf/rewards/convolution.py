"""`local@1` and `sentiment@1`: a small convolutional net over hashed sub-words, run in numpy.

`local@1` is distilled from recorded Perspective scores (the 2020 scale of RealToxicityPrompts). `sentiment` is trained on
labelled reviews by `tools/build_sentiment.py`. The cards beside the assets give fidelity and limits; `local@2` is in `local.py`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlf.method.tags import degrees
from nlf.rewards.characters import MAX_CHARACTERS
from nlf.rewards.embedded import SCORERS, EmbeddedScorer, ToxicityScorer
from nlf.rewards.subwords import WordVectors

ASSET = SCORERS / "toxicity" / "local-1.safetensors"
SENTIMENT = SCORERS / "sentiment" / "sentiment-1.safetensors"

# A masked swear word (f**k, a$$, sh!t) is one word; other punctuation marks are separate words.
WORD = re.compile(r"[^\W_](?:[\w'*@$!#]*[\w*$])?|[*@$#]{2,}\w+|[^\w\s]|_+")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, their case unchanged."""
    return WORD.findall(text[:MAX_CHARACTERS].replace("’", "'"))


class ConvolutionScorer(EmbeddedScorer):
    """Base class of the scorers that this net gives; a text without words has a score too."""

    def __init__(self, path: str | Path | None = None):
        super().__init__(path)
        table = self.arrays.pop("table").astype(np.float32) * self.card["table_scale"]  # (rows, d)
        self.net = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        self.words_seen = WordVectors(table)

    def words(self, text: str) -> list[str]:
        """The words of a text that the net reads."""
        return words(text)

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Scores `(len(texts), attributes)`."""
        split = [self.words(text) for text in texts]
        lengths = np.array([len(text) for text in split])
        rows = self.words_seen.lookup([word for text in split for word in text])
        full = lengths > 0
        pooled = np.zeros((len(texts), len(self.net["out.weight"].T)))
        if len(rows):
            pooled[full] = self._pool(self.words_seen.vectors[rows], lengths[full])
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


class LocalToxicity1(ConvolutionScorer, ToxicityScorer):
    """Reward = 1 − toxicity of the completion alone. `attributes` gives toxicity and six related probabilities."""

    name, version, asset = "local", 1, ASSET


class LocalSentiment(ConvolutionScorer):
    """Reward = the probability that the completion alone is positive, also the attribute `positive`. Ignores case."""

    name, version, asset = "sentiment", 1, SENTIMENT
    default_tags = degrees("Negativity")

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        return attributes["positive"]

    def words(self, text: str) -> list[str]:
        return words(text.lower())
