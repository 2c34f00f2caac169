"""What the embedded scorers share: reading their files, and TRL's signature around `attributes`.

Scoring needs numpy and safetensors only, not torch. Sums are float64 and scores are rounded to six decimals, so the score
of a text does not depend on its batch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nlf.data.files import ASSETS
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS
from nlf.rewards.contract import completion_text

SCORERS = ASSETS / "scorers"
BLOCK = 512  # texts per numpy pass: bounds memory, and larger blocks are no faster


class EmbeddedScorer:
    """Base class of the embedded scorers. A subclass names the asset and defines `reward` and `_score`.

    Args:
        path: The weights; None = the shipped weights. A .json file of the same name stands beside them.

    Raises:
        UserError: a file cannot be read, differs from its recorded sha256, or belongs to another scorer.
    """

    name: str
    version: int
    asset: Path
    remote = False
    prefixes = True

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
        self.arrays = load_file(path)
        self.names: list[str] = self.card["attributes"]
        self.last: tuple[tuple[str, ...], np.ndarray] = (), np.zeros((0, len(self.names)))  # texts and their scores

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        """(N,) rewards from the attributes of N texts."""
        raise NotImplementedError

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        """Scores `(len(texts), attributes)`; NaN = cannot be scored."""
        raise NotImplementedError

    def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[float | None]:
        """TRL's reward signature. A conversation is scored by its last message; None = cannot be scored."""
        rewards = self.reward(self.attributes([completion_text(completion) for completion in completions]))
        return [None if reward != reward else reward for reward in rewards.tolist()]

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities `(len(texts),)` of each attribute; NaN = cannot be scored."""
        texts = tuple(texts)
        if texts != self.last[0]:  # the reward and the attributes of a batch are asked for in turn
            blocks = [self._score(block) for block in self._blocks(texts)]
            self.last = texts, np.concatenate(blocks) if blocks else np.zeros((0, len(self.names)))
        return {name: self.last[1][:, i].copy() for i, name in enumerate(self.names)}

    def _blocks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """The texts in parts that are scored in one pass."""
        return (texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK))


class ToxicityScorer(EmbeddedScorer):
    """Reward = 1 − the attribute `toxicity` of the completion alone."""

    default_tags = DEFAULT_TAGS
    none_is_worst = True

    def reward(self, attributes: dict[str, np.ndarray]) -> np.ndarray:
        return 1.0 - attributes["toxicity"]
