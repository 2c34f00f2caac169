"""The figures of scorer_suite.py, as data: what a scorer makes of the texts of suite_texts.py.

A score of NaN means that the scorer cannot score a text. Such a text counts as not toxic (a score of 0), and is counted.
Intervals hold 95 %: Wilson's for a share of texts, a bootstrap over kinds of sentences or over templates where texts of
one kind are alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from attacks import ATTACKS, WORD, attacked
from scipy.stats import binomtest
from suite_texts import Functionality, repeated

from nlf.evaluation.intervals import LEVEL

TOXIC = 0.5  # a text that scores this much is flagged
DRAWS = 1000  # of a bootstrap
LOW = 5  # percentile of the scores of clean texts below which no text without meaning should be
HACKS = 20  # words with the scorer's lowest scores, which are then repeated


class Scorer(Protocol):
    """What gives each text a score in [0, 1] for each attribute; NaN = cannot be scored."""

    def attributes(self, texts: Sequence[str]) -> Mapping[str, np.ndarray]: ...


class Estimate(NamedTuple):
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f}–{self.high:.2f})"


class Share(NamedTuple):
    """`hits` of `of` texts, and how many of those cannot be scored."""

    hits: int
    of: int
    unscored: int = 0

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else float("nan")

    def __str__(self) -> str:
        if not self.of:
            return "–"
        interval = binomtest(self.hits, self.of).proportion_ci(LEVEL, "wilson")
        return str(Estimate(self.value, interval.low, interval.high))


def flagged(scores: np.ndarray) -> Share:
    """The texts that score .5 or more."""
    return Share(int((scores >= TOXIC).sum()), len(scores), int(np.isnan(scores).sum()))


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def _times(rng: np.random.Generator, size: int) -> np.ndarray:
    """How often each of `size` things is drawn: once each in row 0, with replacement in the DRAWS rows below it."""
    drawn = rng.multinomial(size, np.full(size, 1 / size), DRAWS)
    return np.concatenate([np.ones((1, size), dtype=drawn.dtype), drawn])


# ---- hate and what looks like it ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    """One attribute of a scorer on the functionalities.

    Attributes:
        shares: The share flagged of every functionality.
        accuracies: The share right of every functionality.
        balanced: Mean of the accuracies on hateful and on other sentences; the interval resamples functionalities.
        auc: Probability that a hateful sentence scores more than another one; the interval as that of `balanced`.
    """

    shares: dict[str, Share]
    accuracies: dict[str, Share]
    balanced: Estimate
    auc: Estimate


def suite(scorer: Scorer, kinds: Sequence[Functionality]) -> dict[str, Suite]:
    """By attribute, what the scorer makes of every functionality: toxicity, and identity_attack if it has that."""
    found = scorer.attributes([text for kind in kinds for text in kind.texts])
    ends = np.cumsum([len(kind.texts) for kind in kinds])[:-1]
    return {
        name: _suite(kinds, np.split(np.asarray(found[name]), ends))
        for name in ("toxicity", "identity_attack")
        if name in found
    }


def _suite(kinds: Sequence[Functionality], scores: Sequence[np.ndarray]) -> Suite:
    shares = {kind.name: flagged(each) for kind, each in zip(kinds, scores, strict=True)}
    accuracies = {
        kind.name: share if kind.hateful else share._replace(hits=share.of - share.hits)
        for kind, share in zip(kinds, shares.values(), strict=True)
    }
    known = [np.nan_to_num(each) for each in scores]
    sides = [[i for i, kind in enumerate(kinds) if kind.hateful == hateful] for hateful in (True, False)]
    rng = np.random.default_rng(0)
    times = [_times(rng, len(side)) for side in sides]  # (1 + DRAWS, kinds of this side)
    sizes = [drawn @ np.array([len(known[i]) for i in side]) for drawn, side in zip(times, sides, strict=True)]
    right = [
        drawn @ np.array([accuracies[kinds[i].name].hits for i in side])
        for drawn, side in zip(times, sides, strict=True)
    ]
    wins = np.array([[_wins(known[i], known[j]) for j in sides[1]] for i in sides[0]])
    balanced = (right[0] / sizes[0] + right[1] / sizes[1]) / 2
    auc = ((times[0] @ wins) * times[1]).sum(axis=1) / (sizes[0] * sizes[1])
    return Suite(shares, accuracies, *(_estimate(each[0], each[1:]) for each in (balanced, auc)))


def _wins(high: np.ndarray, low: np.ndarray) -> float:
    """The pairs of texts in which the first scores more; a draw is half a pair."""
    return float((high[:, None] > low).sum() + (high[:, None] == low).sum() / 2)


# ---- neutral sentences -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """False positives on neutral sentences.

    Attributes:
        shares: By term, the share flagged.
        means: By term, the mean score of what can be scored.
        gap: Highest minus lowest share; the interval resamples templates.
    """

    shares: dict[str, Share]
    means: dict[str, float]
    gap: Estimate

    @property
    def ordered(self) -> list[str]:
        """The terms, worst first."""
        return sorted(self.shares, key=lambda term: (-self.shares[term].hits, -self.means[term]))


def identity(scorer: Scorer, sentences: Mapping[str, Sequence[str]]) -> Identity:
    """The false positives of every term.

    Args:
        sentences: By term, the same templates in the same order.
    """
    scores = np.asarray(scorer.attributes([text for texts in sentences.values() for text in texts])["toxicity"])
    scores = scores.reshape(len(sentences), -1)  # (terms, templates)
    rates = _times(np.random.default_rng(0), scores.shape[1]) @ (scores >= TOXIC).T / scores.shape[1]
    gaps = rates.max(axis=1) - rates.min(axis=1)
    shares = {term: flagged(row) for term, row in zip(sentences, scores, strict=True)}
    means = {term: mean(row) for term, row in zip(sentences, scores, strict=True)}
    return Identity(shares, means, _estimate(gaps[0], gaps[1:]))


def mean(scores: np.ndarray) -> float:
    """The mean of the known scores; NaN if there are none."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


# ---- attacks -----------------------------------------------------------------------------------------------------


def survivors(scorer: Scorer, texts: Sequence[str], chosen: Callable[[str], bool]) -> dict[str, Share]:
    """By attack, the share of texts that still score .5 or more when all chosen words are respelled.

    Only texts with a chosen word that score .5 or more as they are count.
    """
    texts = [text for text in texts if any(map(chosen, WORD.findall(text)))]
    texts = [text for text, score in zip(texts, scorer.attributes(texts)["toxicity"], strict=True) if score >= TOXIC]
    found = {}
    for name, attack in ATTACKS.items():
        rng = np.random.default_rng(0)
        respelled = [attacked(text, attack, rng, chosen=chosen) for text in texts]
        found[name] = flagged(np.asarray(scorer.attributes(respelled)["toxicity"]))
    return found


# ---- texts that say nothing, long texts, other languages ---------------------------------------------------------


class Degenerate(NamedTuple):
    """A family of texts that say nothing.

    Attributes:
        lowest: The lowest score; NaN if no text can be scored.
        text: The text that has it.
        below_low: The share below the 5th percentile of clean texts.
        below_median: The share below their median.
    """

    lowest: float
    text: str
    below_low: Share
    below_median: Share


def degenerate(
    scorer: Scorer, families: Mapping[str, Sequence[str]], clean: Sequence[str]
) -> tuple[tuple[float, float], dict[str, Degenerate]]:
    """What the scorer makes of texts that say nothing, and of its lowest single words repeated.

    Returns:
        The 5th percentile and the median of the clean texts that can be scored; and the families.
    """
    low, median = np.nanpercentile(scorer.attributes(clean)["toxicity"], [LOW, 50])

    def measured(texts: Sequence[str]) -> tuple[Degenerate, np.ndarray]:
        scores = np.asarray(scorer.attributes(texts)["toxicity"])
        unscored = int(np.isnan(scores).sum())
        shares = (Share(int((scores < line).sum()), len(texts), unscored) for line in (low, median))
        at = int(np.argmin(np.where(np.isnan(scores), np.inf, scores)))
        return Degenerate(float(scores[at]), texts[at], *shares), scores

    found = {}
    lowest: list[str] = []
    for name, texts in families.items():
        found[name], scores = measured(texts)
        if name == "one word":
            lowest = [texts[i] for i in np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")[:HACKS]]
    if lowest:
        found[f"its {HACKS} lowest words 2 to 500 times"], _ = measured(repeated(lowest))
    return (float(low), float(median)), found


def unscored(scorer: Scorer, groups: Mapping[str, Sequence[str]]) -> dict[str, Share]:
    """By group of texts, the share that cannot be scored."""
    found = {}
    for name, texts in groups.items():
        count = int(np.isnan(scorer.attributes(texts)["toxicity"]).sum())
        found[name] = Share(count, len(texts), count)
    return found


# ---- speed -------------------------------------------------------------------------------------------------------


def seconds(scorer: Scorer, texts: Sequence[str]) -> float:
    """CPU time of scoring texts, in which other work does not count."""
    begin = time.process_time()
    scorer.attributes(texts)
    return time.process_time() - begin
