"""Feedback: quantiles become the words that rollouts are trained under, and that later prompts are sampled under.

`TagFeedback` has one tag for each quantile of the reward; a sentence that a judge wrote about a rollout replaces its
tag. `AttributeFeedback` quantizes several rewards separately and joins their tags, "relevant, and some inaccuracies".
Both classes have three methods:

    quantiles(pool)                         the quantile of each rollout; draws are balanced over quantiles
    words(pool, quantiles, iteration)       (row, item) → its feedback, and the feedback it is contrasted with
    to_sample_under(n, iteration, past)     the feedback that each of n prompts is sampled under

Every draw is a function of (seed, iteration, item or prompt) and the pool, so that a resumed run repeats it. The published
code (ALT_LMU) has no contrast and samples under sentences of its own choice; here sentences come from the pool.
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np

from nlf.config import Attribute
from nlf.data.pool import Pool
from nlf.method import published
from nlf.method.quantize import levels, normalize, quantize, total, worst_for_none
from nlf.method.tags import TagScheme, mirror

Words = Callable[
    [int, int], tuple[str | None, str | None]
]  # (row of the pool, item of the iteration) → right, wrong feedback


@dataclass(frozen=True)
class Cut:
    """How a reward becomes quantiles.

    Attributes:
        rewards: pool → `(N,)`, NaN = no reward.
        scored: pool → `(N,)`, NaN where no scorer could score the rollout.
        rule: "even", "published", or "levels": the reward is a level that gives the quantile.
        scope: "pool" = cut all rollouts together; "prompt" = cut the rollouts of each prompt separately.
        name: The reward's name, for errors.
        logged_rule: The rule of logged rows, which are cut by themselves, because their rewards may be on another scale;
            None = `rule`. "ends": a reward above 0 means the best quantile, another one the worst.
    """

    rewards: Callable[[Pool], np.ndarray]
    scored: Callable[[Pool], np.ndarray]
    num_quantiles: int
    rule: str = "even"
    scope: str = "pool"
    name: str = "reward"
    logged_rule: str | None = None

    def __call__(self, pool: Pool) -> np.ndarray:
        """`(N,)` int8, 0 = best, -1 = no reward.

        A rollout that has a reward although nothing could score it, the worst one, falls into the last quantile. Its rank
        alone would not do: many such rollouts are equal, and their middle rank lies in a better quantile.

        Raises:
            UserError: the rule is "levels" and a reward is not a level.
        """
        rewards = self.rewards(pool)
        worst = np.isnan(self.scored(pool)) & ~np.isnan(rewards)
        logged = pool.logged
        if logged.any():
            own = self._ranked(np.where(logged, rewards, np.nan), pool, self.logged_rule or self.rule)
            others = self._ranked(np.where(logged, np.nan, rewards), pool, self.rule)
            ranked = np.where(logged, own, others)
        else:
            ranked = self._ranked(rewards, pool, self.rule)
        return np.where(worst, np.int8(self.num_quantiles - 1), ranked)

    def _ranked(self, rewards: np.ndarray, pool: Pool, rule: str) -> np.ndarray:
        """The quantiles by a rule."""
        if rule == "levels":
            return levels(rewards, self.num_quantiles, self.name)
        if rule == "ends":
            return np.where(np.isnan(rewards), -1, np.where(rewards > 0, 0, self.num_quantiles - 1)).astype(np.int8)
        groups = pool.prompt_group if self.scope == "prompt" else None
        cut = {"even": quantize, "published": published.quantize}[rule]
        return cut(rewards, self.num_quantiles, groups)


@dataclass(frozen=True)
class TagFeedback:
    """Feedback by the tags of the quantiles, or by a judge's sentences.

    A rollout is contrasted with its mirror quantile: with a sentence about a rollout of that quantile, or with that
    quantile's tag if there is no sentence. From iteration 1 on, each prompt is sampled under a sentence of the best
    quantile that has one, or under the best tag.

    A logged sentence without a reward is contrasted with any other sentence.

    Attributes:
        sentences: Whether a judge may write sentences, or logged rows have some.
    """

    scheme: TagScheme
    cut: Cut
    seed: int
    sentences: bool = False

    def quantiles(self, pool: Pool) -> np.ndarray:
        found = self.cut(pool)
        return np.where(pool.has_sentence_alone, np.int8(self.scheme.num_quantiles // 2), found)

    def words(self, pool: Pool, quantiles: np.ndarray, iteration: int) -> Words:
        sentence_rows = self.sentence_rows(pool, quantiles)
        tags, every = self.scheme.tags, np.flatnonzero(pool.has_sentence)
        alone = pool.has_sentence_alone

        def words(row: int, i: int) -> tuple[str, str]:
            quantile = int(quantiles[row])
            other = self.scheme.mirror(quantile, coin(self.seed, iteration, i))
            right, wrong = pool.judged(row) or tags[quantile], tags[other]
            rows = every if alone[row] else sentence_rows[other]
            if len(rows):
                drawn = pool.judged(pick(rows, self.seed, iteration, i))
                if drawn and drawn != right:  # identical feedback gives no contrast
                    wrong = drawn
            return right, wrong

        return words

    def to_sample_under(self, count: int, iteration: int, past: Callable[[], Pool]) -> list[str | None]:
        if iteration == 0:
            return [None] * count
        pool = past() if self.sentences else Pool()
        best = next((rows for rows in self.sentence_rows(pool, self.cut(pool)) if len(rows)), None)
        if best is None:
            return [self.scheme.best] * count
        return [pool.judged(pick(best, self.seed, iteration, "prompt", row)) for row in range(count)]

    def sentence_rows(self, pool: Pool, quantiles: np.ndarray) -> list[np.ndarray]:
        """For each quantile, the rows that a judge wrote a sentence about."""
        has_sentence = pool.has_sentence
        return [np.flatnonzero((quantiles == q) & has_sentence) for q in range(self.scheme.num_quantiles)]

    def cuts(self) -> dict[str, Cut]:
        """How each attribute's reward becomes quantiles: there are no attributes."""
        return {}

    def longest(self, size: Callable[[str], int]) -> str:
        """The longest tag. Sentences are not counted: they are cut."""
        return max(self.scheme.tags, key=size)


@dataclass(frozen=True)
class AttributeFeedback:
    """Feedback by several rewards, which are quantized separately. Their tags are joined.

    The contrast mirrors every attribute. An attribute that could not be scored is left out of a rollout's feedback. Draws are
    balanced over the quantiles of the total reward (`cut`).

    Attributes:
        attributes: How each attribute's reward becomes quantiles.
        tags: Tags of each attribute, best first.
        joint: Text between two tags.
        sampling: Feedback from iteration 1 on. "best": the best tag of each attribute; "all": prompts take all
            combinations of tags in turn, shifted by one in each iteration.
    """

    scheme: TagScheme
    cut: Cut
    seed: int
    attributes: dict[str, Cut]
    tags: Sequence[Sequence[str]]
    joint: str
    sampling: str = "best"

    def quantiles(self, pool: Pool) -> np.ndarray:
        return self.cut(pool)

    def words(self, pool: Pool, quantiles: np.ndarray, iteration: int) -> Words:
        by_attribute = [cut(pool) for cut in self.attributes.values()]

        def words(row: int, i: int) -> tuple[str, str]:
            tossed = coin(self.seed, iteration, i)
            right, wrong = [], []
            for tags, own in zip(self.tags, by_attribute, strict=True):
                if own[row] >= 0:
                    right.append(tags[own[row]])
                    wrong.append(tags[mirror(int(own[row]), len(tags), tossed)])
            return self.joint.join(right), self.joint.join(wrong)

        return words

    def to_sample_under(self, count: int, iteration: int, past: Callable[[], Pool]) -> list[str | None]:
        if iteration == 0:
            return [None] * count
        if self.sampling == "best":
            return [self.scheme.best] * count
        combinations = [self.joint.join(tags) for tags in itertools.product(*self.tags)]
        return [combinations[(row + iteration) % len(combinations)] for row in range(count)]

    def cuts(self) -> dict[str, Cut]:
        """How each attribute's reward becomes quantiles."""
        return self.attributes

    def longest(self, size: Callable[[str], int]) -> str:
        """The longest feedback that a rollout can have."""
        return self.joint.join(max(tags, key=size) for tags in self.tags)


@dataclass(frozen=True)
class CreditFeedback(TagFeedback):
    """Tags where each token is trained by its credit: every rollout is read under two tags, whatever its quantile.

    A third of the pairs or more are the best and the worst tag, which differ most; the others are all further pairs, so that
    the tags between take their places in order. No feedback counts as the middle of the tags, so that the bare prompt stays there.
    From iteration 1 on, half of the prompts are sampled under the best tag, and a quarter each under the middle and the worst.
    """

    def pairs(self) -> list[tuple[str | None, str | None]]:
        """The pairs of feedback, the better one first, that a rollout's pair is drawn from."""
        last = len(self.scheme.tags) - 1
        places: list[tuple[float, str | None]] = [*enumerate(self.scheme.tags), (last / 2, None)]
        found = [(a, b) for i, a in places for j, b in places if i < j]
        outer = (self.scheme.best, self.scheme.worst)
        return found + [outer] * (len(found) // 2)

    def words(self, pool: Pool, quantiles: np.ndarray, iteration: int) -> Words:
        pairs = self.pairs()
        return lambda row, i: pairs[pick(range(len(pairs)), self.seed, iteration, i)]

    def to_sample_under(self, count: int, iteration: int, past: Callable[[], Pool]) -> list[str | None]:
        if iteration == 0:
            return [None] * count
        tags = self.scheme.tags
        turns = [tags[0], tags[len(tags) // 2], tags[0], tags[-1]]
        return [turns[(row + iteration) % len(turns)] for row in range(count)]


@dataclass(frozen=True)
class NoFeedback:
    """The feedback of a plain model: none. Every scored rollout is drawn equally often."""

    cut: Cut

    def quantiles(self, pool: Pool) -> np.ndarray:
        return self.cut(pool)

    def words(self, pool: Pool, quantiles: np.ndarray, iteration: int) -> Words:
        return lambda row, i: (None, None)

    def to_sample_under(self, count: int, iteration: int, past: Callable[[], Pool]) -> list[str | None]:
        return [None] * count

    def cuts(self) -> dict[str, Cut]:
        """How each attribute's reward becomes quantiles: there are no attributes."""
        return {}

    def longest(self, size: Callable[[str], int]) -> None:
        """There is no feedback."""
        return None


Feedback = TagFeedback | AttributeFeedback | NoFeedback


@dataclass(frozen=True)
class RewardRules:
    """How several rewards become one, and one becomes quantiles.

    Attributes:
        rule, scope: See `Cut`.
        weights: Weight of each reward in the sum; None = 1 for all.
        normalization: "none", "zscore" or "rank": how each reward is scaled over the whole pool before the sum.
            (Statistics of one part alone would be too noisy. Scaling does not change the quantiles of a single
            reward.)
        logged_rule: See `Cut`.
    """

    rule: str = "even"
    scope: str = "pool"
    weights: Sequence[float] | None = None
    normalization: str = "none"
    logged_rule: str | None = None


DEFAULT_RULES = RewardRules()


RECORDED = attrgetter("rewards")  # pool → its sums of rewards as they were recorded


@dataclass(frozen=True)
class PooledRewards:
    """The rewards of a pool as they are quantized: scaled, filled and summed. They are a function of the pool alone.

    Attributes:
        names: Names of the rewards in the pool.
        worst: The rewards whose None counts as the worst reward of the pool. It is filled in after scaling, so that the
            scale is that of the scored rollouts, and before rewards are summed.
    """

    names: Sequence[str]
    rules: RewardRules
    worst: Collection[str]

    def recorded(self, name: str, pool: Pool) -> np.ndarray:
        """A reward as the scorer gave it."""
        return pool.by_function.get(name, np.full(len(pool), np.nan))

    def one(self, name: str, pool: Pool, weight: float = 1.0, normalization: str = "none") -> np.ndarray:
        """A reward, scaled and filled. `weight` is its weight in the sum."""
        scaled = normalize(self.recorded(name, pool), normalization)
        if name not in self.worst:
            return scaled
        filled = worst_for_none(scaled, weight)
        return np.where(pool.logged, scaled, filled)  # no scorer failed on a logged row

    def summed(self, pool: Pool) -> np.ndarray:
        """The weighted sum."""
        complete = not any(np.isnan(pool.by_function.get(name, pool.rewards)).any() for name in self.worst)
        if self.rules.normalization == "none" and complete:
            return pool.rewards
        weights = self.rules.weights or [1.0] * len(self.names)
        parts = zip(self.names, weights, strict=True)
        summed = total([self.one(name, pool, weight, self.rules.normalization) for name, weight in parts], weights)
        return np.where(
            pool.logged & np.isnan(summed), pool.rewards, summed
        )  # logged rows may have rewards of their own


@dataclass(frozen=True)
class AttributeRules:
    """Several attributes in place of one reward.

    Attributes:
        joint, sampling: See `AttributeFeedback`.
    """

    attributes: Sequence[Attribute]
    joint: str = ", and "
    sampling: str = "best"


def make_feedback(
    scheme: TagScheme | None,
    names: Sequence[str],
    *,
    seed: int,
    rules: RewardRules = DEFAULT_RULES,
    sentences: bool = False,
    attributes: AttributeRules | None = None,
    worst: Collection[str] = (),
    by_credit: bool = False,
) -> Feedback:
    """The feedback of a run.

    Args:
        scheme: None = a plain model, without tags.
        names: Names of the rewards in the pool; with attributes, the name of each attribute's reward, in order.
        sentences: Whether a judge may write sentences.
        worst: See `PooledRewards`.
        by_credit: Tokens are trained by their credit.
    """

    given = PooledRewards(names, rules, worst)
    if scheme is None:
        return NoFeedback(Cut(given.summed, RECORDED, 1, name=",".join(names)))
    count = scheme.num_quantiles
    if attributes is None:
        cut = Cut(given.summed, RECORDED, count, rules.rule, rules.scope, ",".join(names), rules.logged_rule)
        return CreditFeedback(scheme, cut, seed) if by_credit else TagFeedback(scheme, cut, seed, sentences)
    cuts = {
        each.name: Cut(
            partial(given.one, name), partial(given.recorded, name), len(each.tags),
            each.quantile_rule or rules.rule, rules.scope, name,
        )
        for each, name in zip(attributes.attributes, names, strict=True)
    }  # fmt: skip
    whole = Cut(given.summed, RECORDED, count, "even" if rules.rule == "levels" else rules.rule, rules.scope)
    tags = [each.tags for each in attributes.attributes]
    return AttributeFeedback(scheme, whole, seed, cuts, tags, attributes.joint, attributes.sampling)


def coin(seed: int, iteration: int, i: int) -> int:
    """0 or 1, a function of its arguments: chooses the extreme that a middle quantile is contrasted with."""
    return hashlib.blake2b(f"{seed}/{iteration}/{i}".encode(), digest_size=1).digest()[0] & 1


def pick(rows: Sequence[int] | np.ndarray, *key: int | str) -> int:
    """One of the rows, drawn by the key."""
    drawn = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8, person=b"nlf.pick").digest()
    return int(rows[int.from_bytes(drawn, "big") % len(rows)])
