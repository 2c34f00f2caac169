"""`local@2`, the embedded toxicity scorer: a small causal net over normalised words, run in numpy.

It is distilled from recorded Perspective scores (the 2020 scale of RealToxicityPrompts), because that service ends in 2026,
and trained on sentences of our own where counting words is not enough: `tools/build_scorer.py` builds it. Its card
gives fidelity and limits.

What the net makes of a word depends on that word and earlier ones only. A text and its prefixes therefore share their
words: a `Trail` has each shared word once, and beside them the words that a prefix ends in the middle of. Nobody looks
clean by writing little: a text of few different words scores no less than the floor in its file, and what is not English text
has no score.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlf.rewards.contract import Share
from nlf.rewards.embedded import SCORERS, ToxicityScorer
from nlf.rewards.english import KINDS, KNOWN, kind, readable
from nlf.rewards.normalize import Word, prefix_words, words
from nlf.rewards.subwords import CACHED_WORDS, WordVectors
from nlf.rewards.vocabulary import Vocabulary, digest

ASSET = SCORERS / "toxicity" / "local-2.safetensors"
WORDS_A_PASS = 2_000  # bounds memory, and larger passes are no faster
DILATIONS = 3  # convolutions, which look 1, 2 and 4 words back
CLIP = 15.0  # of the logarithm of a gate, as in training
GROUP = "groupname"  # stands for the names of groups of people
WINDOW, STRIDE = 64, 16  # words that the net pools, as in training, and words between the windows of a longer text
FEW, ENOUGH = 2, 6  # different words: up to FEW the whole floor holds, from ENOUGH on none


@dataclass(frozen=True)
class Reader:
    """How the net reads a text: as normalised words, in which one word stands for the names of groups of people.

    Recorded scores of Perspective take such a name itself for a part of an insult.

    Attributes:
        groups: Digests of lower-case names of groups.
    """

    vocabulary: Vocabulary
    groups: frozenset[int]

    def words(self, text: str) -> list[str]:
        """The words of a text."""
        return self.read(words(text, self.vocabulary))

    def prefixes(self, text: str, ends: Sequence[int]) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The words of a text; for each prefix `text[:end]` the number of words that it shares with them, and its further
        words."""
        whole, prefixes = prefix_words(text, ends, self.vocabulary)
        return self.read(whole), [(shared, self.read(tail)) for shared, tail in prefixes]

    def kind(self, word: str) -> int:
        """What a word says about its text's language."""
        return KNOWN if word == GROUP else kind(word, self.vocabulary)

    def read(self, found: Sequence[Word]) -> list[str]:
        """Normalised words as the net reads them."""
        return [GROUP if digest(word.text.lower()) in self.groups else word.text for word in found]


@dataclass
class Trail:
    """Words of several texts, with those of several prefixes of each, each word with the word before it.

    Attributes:
        words: R words.
        parents: `(R,)` the row of the word before; R = none.
        runs: Rows `begin:end` of consecutive words, which begin a text.
        levels: Rows whose parents are in runs, rows whose parents are in the first level, and so on.
        last: `(N,)` the row of the last word of each text; R = the text has no words.
        fresh: `(R,)` whether the word is new in its text.
    """

    words: list[str]
    parents: np.ndarray
    runs: list[tuple[int, int]]
    levels: list[np.ndarray]
    last: np.ndarray
    fresh: np.ndarray

    def running(self, x: np.ndarray, combine: np.ufunc) -> np.ndarray:
        """`(R, …)` what `combine` makes of each row and all rows before it in its text."""
        out = x.copy()
        for begin, end in self.runs:
            combine.accumulate(x[begin:end], axis=0, out=out[begin:end])
        for rows in self.levels:
            out[rows] = combine(out[self.parents[rows]], x[rows])
        return out

    @property
    def is_long(self) -> bool:
        """Whether a text has more than WINDOW words."""
        return max((end - begin for begin, end in self.runs), default=0) + len(self.levels) > WINDOW

    def recent(self, x: np.ndarray, combine: np.ufunc) -> np.ndarray:
        """`(R, …)` what `combine`, of which 0 is the neutral element, makes of each row and up to WINDOW − 1 rows before it."""
        if not self.is_long:
            return self.running(x, combine)
        out, back = np.concatenate([x, np.zeros_like(x[:1])]), np.append(self.parents, len(x))
        for _ in range(WINDOW.bit_length() - 1):  # rows of 1, 2, 4, … words become rows of twice as many
            out, back = combine(out, out[back]), back[back]
        return out[:-1]


def first_places(words: Sequence[str]) -> dict[str, int]:
    """Where each word, without case, first stands; marks and numbers are no words here."""
    return {word.lower(): i for i, word in reversed([*enumerate(words)]) if any(map(str.isalpha, word))}


def trail_of_texts(texts: Sequence[list[str]]) -> Trail:
    """The trail of whole texts, given by their words."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ends = np.cumsum(lengths)
    size = int(lengths.sum())
    begins = ends - lengths
    parents = np.arange(-1, size - 1)
    parents[begins[lengths > 0]] = size
    fresh = np.zeros(size, dtype=bool)
    for begin, text in zip(begins.tolist(), texts, strict=True):
        fresh[[begin + place for place in first_places(text).values()]] = True
    runs = [(b, e) for b, e in zip(begins.tolist(), ends.tolist(), strict=True) if b < e]
    return Trail(
        [word for text in texts for word in text], parents, runs, [], np.where(lengths > 0, ends - 1, size), fresh
    )


def _or_none(found: Sequence[int], none: int) -> np.ndarray:
    """The rows, `none` in place of negative ones."""
    rows = np.array(found, dtype=np.int64)
    return np.where(rows < 0, none, rows)


def trail_of_prefixes(whole: list[str], prefixes: Sequence[tuple[int, list[str]]]) -> Trail:
    """The trail of prefixes of one text: each is the first n words of `whole`, then words of its own."""
    found, parents = list(whole), [*range(-1, len(whole) - 1)]
    runs, last = [(0, len(whole))] if whole else [], []
    levels: list[list[int]] = []
    first = first_places(whole)
    fresh = [first.get(word.lower()) == i for i, word in enumerate(whole)]
    for shared, tail in prefixes:
        begin = len(found)
        if tail and not shared:
            runs.append((begin, begin + len(tail)))
        for depth, word in enumerate(tail):
            if shared:
                if depth == len(levels):
                    levels.append([])
                levels[depth].append(len(found))
            fresh.append(first_places(tail).get(word.lower()) == depth and first.get(word.lower(), shared) >= shared)
            parents.append(begin + depth - 1 if depth else shared - 1)
            found.append(word)
        last.append(len(found) - 1 if tail else shared - 1)
    rows = len(found)
    return Trail(
        found, _or_none(parents, rows), runs, [np.array(level, dtype=np.int64) for level in levels],
        _or_none(last, rows), np.array(fresh, dtype=bool),
    )  # fmt: skip


def joined(trails: Sequence[Trail]) -> Trail:
    """One trail of the texts of several trails, in order."""
    sizes = [len(trail.words) for trail in trails]
    begins = np.cumsum([0, *sizes])
    size = int(begins[-1])

    def moved(rows: np.ndarray, own: int, begin: int) -> np.ndarray:
        return np.where(rows < own, rows + begin, size)

    placed = [*zip(trails, sizes, begins.tolist(), strict=False)]
    depth = max((len(trail.levels) for trail in trails), default=0)
    levels = [[t.levels[d] + begin for t, _, begin in placed if d < len(t.levels)] for d in range(depth)]
    return Trail(
        [word for trail in trails for word in trail.words],
        np.concatenate([moved(trail.parents, own, begin) for trail, own, begin in placed]),
        [(first + begin, end + begin) for trail, _, begin in placed for first, end in trail.runs],
        [np.concatenate(level) for level in levels],
        np.concatenate([moved(trail.last, own, begin) for trail, own, begin in placed]),
        np.concatenate([trail.fresh for trail in trails]),
    )


def _passes(trails: Iterable[Trail]) -> Iterator[list[Trail]]:
    """The trails in parts of about WORDS_A_PASS words."""
    block: list[Trail] = []
    for trail in trails:
        block.append(trail)
        if sum(len(each.words) for each in block) > WORDS_A_PASS:
            yield block
            block = []
    if block:
        yield block


class LocalToxicity(ToxicityScorer):
    """Reward = 1 − toxicity of the completion alone; None for what is not English text.

    `attributes` gives toxicity and six related probabilities.
    """

    name, version, asset = "local", 2, ASSET

    def __init__(self, path: str | Path | None = None):
        super().__init__(path)
        table = self.arrays.pop("table").astype(np.float32) * self.card["table_scale"]  # (rows, d)
        vocabulary = Vocabulary(self.arrays.pop("vocabulary"), self.arrays.pop("rude"))
        self.reader = Reader(vocabulary, frozenset(self.arrays.pop("groups").tolist()))
        self.net = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        self.seen = WordVectors(
            table, lambda sums: np.maximum(sums @ self.net["enter.weight"].T + self.net["enter.bias"], 0)
        )
        self.kinds: dict[str, int] = {}

    def score_prefixes(self, text: str, ends: Sequence[int]) -> dict[str, np.ndarray]:
        """The attributes `(len(ends),)` of each prefix `text[:end]`, in one pass over the text.

        Args:
            ends: In characters; they may fall inside a word.
        """
        scores = self._scores(self._trail(text, ends))
        return {name: scores[:, i] for i, name in enumerate(self.names)}

    def prefix_rewards(self, texts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The rewards `(len(ends[i]),)` of the prefixes of each text."""
        found: list[np.ndarray] = []
        for trails in _passes(map(self._trail, texts, ends)):
            scores = self._scores(joined(trails))
            rewards = self.reward({name: scores[:, i] for i, name in enumerate(self.names)})
            found += np.split(rewards, np.cumsum([len(trail.last) for trail in trails])[:-1])
        return found

    def _trail(self, text: str, ends: Sequence[int]) -> Trail:
        """The trail of the prefixes of a text."""
        return trail_of_prefixes(*self.reader.prefixes(text, ends))

    def explain(self, text: str, attribute: str = "toxicity") -> list[Share]:
        """Which words made the score: the part of each word in the logit of an attribute.

        The logit is a sum over what the net pools. A maximum belongs to its word, a mean to all words, attention to each
        word by its weight. So the shares add up to the logit without its bias. A word is read together with words before it.
        """
        found = words(text, self.reader.vocabulary)
        if not found:
            return []
        weight = self.net["out.weight"][self.names.index(attribute)]  # (3 · channels,)
        hidden, gate = self._hidden(trail_of_texts([self.reader.read(found)]))  # (R, C), (R, 1)
        highest, mean, focus = np.split(weight, 3)
        shares = hidden @ mean / len(found) + (gate * hidden) @ focus / gate.sum()
        shares += np.bincount(hidden.argmax(axis=0), highest * hidden.max(axis=0), minlength=len(found))
        return [Share(word.start, word.end, float(share)) for word, share in zip(found, shares, strict=True)]

    def _blocks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """The texts in parts of about WORDS_A_PASS words."""
        begin, size = 0, 0
        for i, text in enumerate(texts):
            size += len(text) // 5 + 1
            if size > WORDS_A_PASS:
                yield texts[begin : i + 1]
                begin, size = i + 1, 0
        if begin < len(texts):
            yield texts[begin:]

    def _score(self, texts: Sequence[str]) -> np.ndarray:
        return self._scores(trail_of_texts([self.reader.words(text) for text in texts]))

    def _hidden(self, trail: Trail) -> tuple[np.ndarray, np.ndarray]:
        """What the net makes of each word `(R, C)`, and the weight of the word in attention `(R, 1)`."""
        net, back = self.net, np.append(trail.parents, len(trail.words))
        rows = self.seen.lookup(trail.words)
        hidden = np.concatenate(
            [self.seen.vectors[rows], np.zeros((1, self.seen.vectors.shape[1]))]
        )  # the last row is no word
        for i in range(DILATIONS):
            now, before = np.split(net[f"convolve.{i}.weight"], 2, axis=1)
            new = hidden @ now.T
            new += (hidden @ before.T)[back]
            new += net[f"convolve.{i}.bias"]
            hidden += np.maximum(new, 0, out=new)
            hidden[-1], back = 0, back[back]
        hidden = hidden[:-1]
        gate = np.exp(np.clip(hidden @ net["weigh.weight"].T, -CLIP, CLIP))
        sums = trail.recent(np.concatenate([hidden * gate, gate], axis=1), np.add)
        context = sums[:, :-1] / sums[:, -1:]
        now, around = np.split(net["mix.weight"], 2, axis=1)
        hidden = hidden + np.maximum(hidden @ now.T + context @ around.T + net["mix.bias"], 0)
        return hidden, np.exp(np.clip(hidden @ net["attend.weight"].T, -CLIP, CLIP))

    def _scores(self, trail: Trail) -> np.ndarray:
        """Scores `(N, attributes)` of the texts of a trail."""
        scores = np.full((len(trail.last), len(self.names)), np.nan)
        some = trail.last < len(trail.words)
        last = trail.last[some]
        kinds = np.array([self._kind(word) for word in trail.words], dtype=np.int64)
        counts = trail.running(np.concatenate([trail.fresh[:, None], np.eye(KINDS)[kinds]], axis=1), np.add)[last]
        raw = 1 / (1 + np.exp(-self._logits(trail, last)))
        found = np.stack([np.interp(x, *self.net[f"calibration.{i}"]) for i, x in enumerate(raw.T)], axis=1)
        few = np.clip(1 - (counts[:, :1] - FEW) / (ENOUGH - FEW), 0, 1)
        found = np.maximum(found, self.net["floor"] * few)
        scores[some] = np.where(readable(counts[:, 1:])[:, None], np.round(found, 6), np.nan)
        return scores

    def _logits(self, trail: Trail, last: np.ndarray) -> np.ndarray:
        """Logits `(len(last), attributes)` of the texts that end in the rows `last`.

        The net learned from texts of up to WINDOW words. A longer text has the highest logit of its windows, so that an
        insult is seen among many kind words.
        """
        hidden, gate = self._hidden(trail)
        one, windows = np.ones_like(gate), np.array([], dtype=np.int64)
        if trail.is_long:
            depth = trail.running(one, np.add)[:, 0]
            windows = np.flatnonzero((depth >= WINDOW) & (depth % STRIDE == 0))
        at = np.concatenate([last, windows])
        sums = trail.recent(np.concatenate([hidden, hidden * gate, gate, one], axis=1), np.add)[at]
        total, focus, gates, count = np.split(sums, np.cumsum([hidden.shape[1], hidden.shape[1], 1]), axis=1)
        pooled = np.concatenate([trail.recent(hidden, np.maximum)[at], total / count, focus / gates], axis=1)
        own, others = np.split(pooled @ self.net["out.weight"].T + self.net["out.bias"], [len(last)])
        if not trail.is_long:
            return own
        highest = np.full((len(trail.words), own.shape[1]), -np.inf)
        highest[windows] = others  # not those that end with another prefix, which the text alone does not have
        return np.maximum(own, trail.running(highest, np.maximum)[last])

    def _kind(self, word: str) -> int:
        found = self.kinds.get(word)
        if found is None:
            if len(self.kinds) > CACHED_WORDS:
                self.kinds.clear()
            found = self.kinds[word] = self.reader.kind(word)
        return found
