"""What a rollout is trained under, and what the next ones are sampled under: quantiles → words.

Two kinds, of one shape. `TagFeedback` has a tag for each quantile of the reward; where a judge wrote a sentence of its own
about a rollout, that takes the tag's place. `AttributeFeedback` cuts several rewards apart and joins their tags, "relevant,
and some inaccuracies". Either answers three questions:

    quantiles(pool)                         which quantile is each rollout of? Draws are balanced over these.
    words(pool, quantiles, iteration)       (row, item) → its words, and those it is contrasted with
    to_sample_under(n, iteration, past)     which words does each of the n prompts get?

Whatever is drawn is a function of (seed, iteration, item or prompt) and the pool, so that a resumed run draws it again. The
published code (ALT_LMU) contrasts with nothing and samples under sentences of its own choice; here both come from the pool.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nlf.data.pool import Pool
from nlf.method import published
from nlf.method.quantize import levels, normalize, quantize, total
from nlf.method.tags import TagScheme, mirror

Words = Callable[[int, int], tuple[str, str]]  # (row of the pool, item of the iteration) → right, wrong


@dataclass(frozen=True)
class Cut:
    """How rewards become quantiles.

    Attributes:
        rewards: pool → `(N,)`, NaN = unscored.
        rule: "even", "published", or "levels": the reward names its quantile.
        scope: "pool", or "prompt": each prompt's rollouts are cut apart.
        name: Whose reward it is, for errors.
    """

    rewards: Callable[[Pool], np.ndarray]
    num_quantiles: int
    rule: str = "even"
    scope: str = "pool"
    name: str = "reward"

    def __call__(self, pool: Pool) -> np.ndarray:
        """`(N,)` int8, 0 = best, -1 = unscored.

        Raises:
            UserError: a reward is no level, where the rule is "levels".
        """
        if self.rule == "levels":
            return levels(self.rewards(pool), self.num_quantiles, self.name)
        groups = pool.prompt_group if self.scope == "prompt" else None
        rule = {"even": quantize, "published": published.quantize}[self.rule]
        return rule(self.rewards(pool), self.num_quantiles, groups)


@dataclass(frozen=True)
class TagFeedback:
    """The tags of the quantiles, or a judge's own sentences (`sentences`: there may be some).

    The contrast of a rollout is the mirror quantile: the sentence of one of its rollouts, or its tag where it has none.
    From iteration 1 on each prompt is sampled under a sentence of the best quantile that has any, or the best tag.
    """

    scheme: TagScheme
    cut: Cut
    seed: int
    sentences: bool = False
    attributes: dict[str, Cut] = field(default_factory=dict)  # none

    def quantiles(self, pool: Pool) -> np.ndarray:
        return self.cut(pool)

    def words(self, pool: Pool, quantiles: np.ndarray, iteration: int) -> Words:
        told = self.told(pool, quantiles)
        tags = self.scheme.tags

        def words(row: int, i: int) -> tuple[str, str]:
            quantile = int(quantiles[row])
            other = self.scheme.mirror(quantile, coin(self.seed, iteration, i))
            right, wrong = pool.judged(row) or tags[quantile], tags[other]
            if len(told[other]):
                drawn = pool.judged(pick(told[other], self.seed, iteration, i))
                wrong = drawn if drawn != right else wrong  # words that both have teach nothing
            return right, wrong

        return words

    def to_sample_under(self, count: int, iteration: int, past: Callable[[], Pool]) -> list[str | None]:
        if iteration == 0:
            return [None] * count
        pool = past() if self.sentences else Pool()
        best = next((rows for rows in self.told(pool, self.cut(pool)) if len(rows)), None)
        if best is None:
            return [self.scheme.best] * count
        return [pool.judged(pick(best, self.seed, iteration, "prompt", row)) for row in range(count)]

    def told(self, pool: Pool, quantiles: np.ndarray) -> list[np.ndarray]:
        """Rows of each quantile that a judge wrote a sentence of."""
        has_sentence = pool.has_sentence
        return [np.flatnonzero((quantiles == q) & has_sentence) for q in range(self.scheme.num_quantiles)]

    def longest(self, size: Callable[[str], int]) -> str:
        """The longest words but for sentences, which are cut."""
        return max(self.scheme.tags, key=size)


@dataclass(frozen=True)
class AttributeFeedback:
    """Several rewards, each with quantiles and tags of its own; the words are their tags, joined.

    Every attribute is mirrored at once. One that could not be scored is left out of a rollout's words. Draws are balanced
    over the quantiles of the total reward (`cut`).

    Attributes:
        tags: Of each attribute, best first.
        joint: What stands between two tags.
        sampling: From iteration 1 on, "best": every prompt is sampled under the best of each; "all": prompts walk
            through all combinations, one further in each iteration.
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
        each = [cut(pool) for cut in self.attributes.values()]

        def words(row: int, i: int) -> tuple[str, str]:
            tossed = coin(self.seed, iteration, i)
            right, wrong = [], []
            for tags, own in zip(self.tags, each, strict=True):
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

    def longest(self, size: Callable[[str], int]) -> str:
        """The longest words of any rollout."""
        return self.joint.join(max(tags, key=size) for tags in self.tags)


Feedback = TagFeedback | AttributeFeedback


def make_feedback(
    scheme: TagScheme,
    names: Sequence[str],
    *,
    seed: int,
    rule: str = "even",
    scope: str = "pool",
    weights: Sequence[float] | None = None,
    normalization: str = "none",
    sentences: bool = False,
    attributes: Sequence[dict] | None = None,
    joint: str = ", and ",
    sampling: str = "best",
) -> Feedback:
    """The feedback of a run.

    Args:
        names: Under which the pool has each reward's values; of attributes, in their order.
        normalization: "none", "zscore" or "rank": what is done to each reward over the whole pool before they are added
            up. (A part at a time would be noise; and one reward alone has the same quantiles either way.)
        attributes: `{name, reward, tags, quantile_rule?}` each, as in a recipe.
    """

    def own(name: str) -> Callable[[Pool], np.ndarray]:
        return lambda pool: pool.by_function.get(name, np.full(len(pool), np.nan))

    def summed(pool: Pool) -> np.ndarray:
        if normalization == "none":
            return pool.rewards
        return total([normalize(own(name)(pool), normalization) for name in names], weights)

    if not attributes:
        return TagFeedback(scheme, Cut(summed, scheme.num_quantiles, rule, scope, ",".join(names)), seed, sentences)
    cuts = {
        each["name"]: Cut(own(name), len(each["tags"]), each.get("quantile_rule", rule), scope, name)
        for each, name in zip(attributes, names, strict=True)
    }
    whole = Cut(summed, scheme.num_quantiles, "even" if rule == "levels" else rule, scope)
    return AttributeFeedback(scheme, whole, seed, cuts, [each["tags"] for each in attributes], joint, sampling)


def coin(seed: int, iteration: int, i: int) -> int:
    """0 or 1, a function of its arguments: which extreme a middle quantile is contrasted with."""
    return hashlib.blake2b(f"{seed}/{iteration}/{i}".encode(), digest_size=1).digest()[0] & 1


def pick(rows: Sequence[int], *key: int | str) -> int:
    """One of the rows, as the key falls."""
    drawn = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8, person=b"nlf.pick").digest()
    return int(rows[int.from_bytes(drawn, "big") % len(rows)])
