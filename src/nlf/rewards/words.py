"""The words for the quantiles of a reward, which a run uses unless the person gives `tags`.

A scorer may carry words of its own: `default_tags`, best first, or, for a judge that answers with categories, `tags`. For
any other reward they are made from its name: `politeness` gives "Maximum Politeness" … "Lowest Politeness".
"""

import re
from collections.abc import Sequence

from nlf.method.tags import DEFAULT_TAGS, degrees
from nlf.rewards.contract import Reward

EMPTY = {  # words of a name that say nothing about what the reward measures
    *("a", "fn", "func", "function", "get", "label", "lambda", "model", "my"),
    *("reward", "rewards", "score", "scorer", "scores", "the"),
}
NOUNS = {"negative": "Negativity", "positive": "Positivity", "toxic": "Toxicity"}  # labels of classifiers
WORD = re.compile(r"[^\W\d_]+|\d+")


def default_tags(rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> tuple[list[str], str]:
    """The tags of a run, best first, and the reason for them.

    Several rewards with different words share none, so their sum is called "Reward". A reward with a negative weight has
    its words in reverse order.
    """
    found = [_words(reward) for reward in rewards]
    signs = weights or [1.0] * len(found)
    orders = [words[:: -1 if sign < 0 else 1] for (words, _), sign in zip(found, signs, strict=True)]
    if all(order == orders[0] for order in orders):
        return list(orders[0]), found[0][1]
    names = ", ".join(reward.name for reward in rewards)
    return [*degrees("Reward")[::-1]], f"the sum of {names} has no words of its own"


def measures_toxicity(reward: Reward) -> bool:
    """Whether the words of a reward are words for toxicity."""
    return any("Toxicity" in word for word in _words(reward)[0])


def _words(reward: Reward) -> tuple[tuple[str, ...], str]:
    own = getattr(reward.function, "tags", None) or getattr(reward.function, "default_tags", None)
    if own:
        return tuple(own), f"the words of the reward {reward.name!r}"
    count = getattr(reward.function, "levels", None) or len(DEFAULT_TAGS)
    why = f"made from the name of the reward {reward.name!r}"
    if "toxic" in reward.name.lower():  # higher is better, so the best completions have the lowest toxicity
        return degrees("Toxicity", count), why
    return degrees(noun_of(reward.name), count)[::-1], why


def noun_of(name: str) -> str:
    """The thing that a reward measures, from its name: "Politeness" from `politeness_reward`; "Reward" from `f`."""
    last = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.split(r"[:#/]", name)[-1])  # also the label of MODEL#LABEL
    words = [word.lower() for word in WORD.findall(last) if word.lower() not in EMPTY]
    noun = " ".join(NOUNS.get(word) or word.capitalize() for word in words)
    return noun if len(noun) > 1 else "Reward"
