"""The contract of rewards: what a reward function gets and returns, and how several rewards become one number.

A reward function is TRL's: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async.
Higher is better; None means that a completion could not be scored: it gets no tag. If a scorer object has
`none_is_worst = True`, its None counts in training as the worst reward seen, so that a text does not escape by being of a
kind that the scorer cannot read. A scorer object is callable in the same way and has
a `name`, a `version`, and may have one of two methods:

- `attributes(texts) -> {name: array in [0, 1]}` adds numbers beside the reward;
- `judge`, with the arguments of a reward function, returns a `Judgement` for each completion, which holds reward,
  attributes and feedback at once. Any scorer may define it. It is called in place of the function and of `attributes`.

A function or scorer object may have `prefixes = True`: the reward of a beginning of a completion then means what the reward
of a whole one means, so that training can tell which token earned it. It is called with beginnings in the place of
completions, one of each completion at a time. A scorer may also have a method `prefix_rewards(texts, ends)`, sync or async,
which scores many beginnings `text[:end]` of each text at once and returns `len(ends[i])` numbers for text i, NaN or None where
a beginning cannot be scored.

A further method, `explain(text, attribute="toxicity")`, says which words made a score: `(start, end, share)` for each word, as
in `Share`. It is called without `attribute`, whose default names what the shares are parts of.

Each reward gets copies of its arguments, so it may change them. An exception in a reward function reaches the user; it
never becomes a reward of 0.
"""

import asyncio
import copy
import functools
import inspect
import itertools
import operator
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nlf.errors import UserError, shown
from nlf.method.quantize import total
from nlf.rewards.numbers import LARGEST, attribute_values, checked, listed, number, numbers

# Arguments that are never filled from a column of the data set, as in TRL.
RESERVED = {"prompt", "prompts", "completion", "completions", "completion_ids"}


@dataclass(frozen=True)
class Judgement:
    """One scorer's answer about one completion.

    Attributes:
        reward: Higher is better; None = the completion could not be scored.
        attributes: Further numbers in [0, 1] by name; None = not known.
        feedback: A sentence that is put before the prompt in training; only judges write one.
    """

    reward: float | None
    attributes: Mapping[str, float | None] = field(default_factory=dict)
    feedback: str | None = None


class Share(NamedTuple):
    """A word's part in a score.

    Attributes:
        start, end: The word is `text[start:end]`.
        share: The word's part in the logit of an attribute; a positive share raises the attribute.
    """

    start: int
    end: int
    share: float


def shares(found: Any, text: str) -> list[Share] | None:
    """Shares of words, in the order of the text; words that overlap become one word with the sum of their shares.

    Args:
        found: Triples `(start, end, share)`, in any order.

    Returns:
        None if `found` is something else, or if a word lies outside the text or has no characters.
    """
    try:
        words = sorted(Share(operator.index(start), operator.index(end), number(share)) for start, end, share in found)
    except (TypeError, ValueError):
        return None
    if not all(0 <= word.start < word.end <= len(text) and abs(word.share) <= LARGEST for word in words):
        return None
    apart: list[Share] = []
    for word in words:
        if apart and word.start < apart[-1].end:
            last = apart.pop()
            word = Share(last.start, max(last.end, word.end), last.share + word.share)
        apart.append(word)
    return apart


class Place(NamedTuple):
    """Where a beginning of a completion ends: after so many characters of its text, and so many of its tokens."""

    characters: int
    tokens: int


class Reward:
    """A reward function or scorer object, with its name, its version and the way to call it.

    Attributes:
        function: The function or object as given.
        name, version: The scorer object's name and version; for a function its name, and None.
        spec: The name or dotted path that the reward was found by; None for an object given from Python.
        label: What rollouts record: `name@version`, or the name of a function without a version.
        remote: The scorer asks another machine; in distributed training only the first process calls it.
        returns_judgements: The scorer has a `judge` method, which is called in place of the function.
        none_is_worst: In training, None counts as the worst reward seen.
        explains: The scorer has an `explain` method.
        prefixes: The reward can score beginnings of completions.

    Raises:
        UserError: the function cannot be called, or is a model.
    """

    def __init__(self, function: Callable, name: str | None = None, spec: str | None = None):
        if not callable(function):
            raise UserError(f"reward {name or shown(function)} cannot be called; expected a function of completions")
        self.function, self.spec = function, spec
        self.name = name or _name(function)
        if hasattr(function, "forward") and hasattr(function, "config"):
            raise UserError(
                f"reward {self.name!r} is a model, which reads token ids; expected a function of completions; save the "
                f"model with its tokenizer, and name the folder or hub id: hf:{getattr(function, 'name_or_path', '') or 'MODEL'}"
            )
        self.version = getattr(function, "version", None)
        self.remote = bool(getattr(function, "remote", False))
        self.none_is_worst = bool(getattr(function, "none_is_worst", False))
        self.prefixes = bool(getattr(function, "prefixes", False))
        judge = getattr(function, "judge", None)
        self.returns_judgements = callable(judge)
        self._explain: Any = getattr(function, "explain", None)
        self.explains = callable(self._explain)
        self.called: Callable = judge if callable(judge) else function
        self.is_async = any(map(inspect.iscoroutinefunction, (self.called, type(self.called).__call__)))
        self.label = self.name if self.version is None else f"{self.name}@{self.version}"

    def __call__(self, /, prompts: Sequence, completions: Sequence, completion_ids: Sequence, **columns) -> list:
        keywords = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids} | columns
        returned = _call([self], keywords, {})[0]
        if not self.returns_judgements:
            return returned
        return [judgement.reward for judgement in _judgements(self, returned)]

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays `(len(texts),)` of a scorer object's attributes, NaN = unknown; empty for a plain function.

        Raises:
            UserError: the scorer returned something else.
        """
        measure = getattr(self.function, "attributes", None)
        if not callable(measure):
            return {}
        with _naming(self):
            found = measure(list(texts))
        if not isinstance(found, Mapping):
            raise UserError(
                f"reward {self.name!r}: attributes returned {shown(found)}; expected {{name: one number per text}}"
            )
        return {str(name): attribute_values(f"reward {self.name!r}", str(name), found[name], texts) for name in found}

    def prefix_rewards(
        self,
        prompts: Sequence,
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        places: Sequence[Sequence[Place]],
        columns: Mapping[str, Sequence],
        context: Mapping[str, Any] | None = None,
    ) -> list[np.ndarray]:
        """The rewards `(len(places[i]),)` of beginnings of N completions; NaN = cannot be scored.

        Args:
            texts, completion_ids: The N whole completions.
            places: Where the beginnings of each completion end, from short to long.
            prompts, columns, context: As in `score`, with N values.

        Raises:
            UserError: the reward returned something else than a number for each beginning.
        """
        cut = [[text[: place.characters] for place in own] for text, own in zip(texts, places, strict=True)]
        at_once = getattr(self.function, "prefix_rewards", None)
        if callable(at_once):
            return self._at_once(at_once, texts, places, cut)
        found = [np.full(len(own), np.nan) for own in places]
        for k in range(max(map(len, places), default=0)):  # at most N completions a call, as in `score`
            rows = [i for i, own in enumerate(places) if len(own) > k]
            keywords = {name: [values[i] for i in rows] for name, values in columns.items() if name not in RESERVED}
            keywords |= {
                "prompts": [prompts[i] for i in rows],
                "completions": [as_completion(prompts[i], cut[i][k]) for i in rows],
                "completion_ids": [completion_ids[i][: places[i][k].tokens] for i in rows],
            }
            returned = _call([self], keywords, context or {})[0]
            if self.returns_judgements:
                returned = [judgement.reward for judgement in _judgements(self, returned)]
            values = checked(f"reward {self.name!r}, called with beginnings,", returned, [cut[i][k] for i in rows])
            for i, value in zip(rows, values, strict=True):
                found[i][k] = value
        return found

    def _at_once(
        self,
        method: Callable,
        texts: Sequence[str],
        places: Sequence[Sequence[Place]],
        cut: Sequence[Sequence[str]],
    ) -> list[np.ndarray]:
        """What the scorer's own method says of the beginnings `cut` of each text."""
        with _naming(self):
            returned = method(list(texts), [[place.characters for place in own] for own in places])
            if inspect.isawaitable(returned):
                returned = _awaited(returned)
        who = f"reward {self.name!r}: prefix_rewards"
        rows = None if isinstance(returned, (Mapping, Set, str, bytes)) else listed(returned)
        if rows is None or len(rows) != len(texts):
            raise UserError(f"{who} returned {shown(returned)} for {len(texts)} texts; expected one array for each")
        return [numbers(f"{who}, text {i},", own, each) for i, (own, each) in enumerate(zip(rows, cut, strict=True))]

    def explain(self, text: str) -> list[Share]:
        """The shares of a text's words, in the order of the text; for rewards that explain (`explains`).

        Raises:
            UserError: the scorer returned something else.
        """
        with _naming(self):
            found = self._explain(text)
        words = shares(found, text)
        if words is None:
            raise UserError(
                f"reward {self.name!r}: explain returned {shown(found)} for {text[:40]!r}; expected a list of (start, end, "
                "share), with text[start:end] a word and share a finite number"
            )
        return words

    @property
    def explained(self) -> str:
        """What the shares of `explain` are parts of: the default of its argument `attribute`, else "the score"."""
        attribute = inspect.signature(self._explain).parameters.get("attribute")
        default = attribute.default if attribute else None
        return default if isinstance(default, str) else "the score"


@dataclass(frozen=True)
class Scores:
    """Rewards of N completions.

    Attributes:
        reward: `(N,)` weighted sums, NaN = not scored.
        per_function: `(N,)` for each reward, by `reward_names`.
        attributes: `(N,)` for each attribute.
        scorer: The labels of all rewards, joined by commas.
        feedback: For each completion, the sentence of the first judge that wrote one.
    """

    reward: np.ndarray
    per_function: dict[str, np.ndarray]
    attributes: dict[str, np.ndarray]
    scorer: str
    feedback: list[str | None]


def score(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    completions: Sequence,
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence],
    context: Mapping[str, Any] | None = None,
) -> Scores:
    """Call all rewards and add them up by `nlf.method.quantize.total`: None adds nothing, and the sum is NaN if all
    rewards are None.

    Args:
        weights: One weight per reward; None = 1 for all.
        prompts: N texts or conversations.
        completions: N texts; for a conversation `[{"role": "assistant", "content": …}]`.
        completion_ids: N lists of token ids.
        columns: Other columns of the data set, with N values; they are passed to rewards as arguments of these names.
        context: Further arguments for rewards that take them, such as TRL's `trainer_state`.

    Raises:
        UserError: the number of weights is wrong, or a reward returned too few values or a value that is not a finite
            number.
    """
    check_weights(rewards, weights)
    keywords = {name: values for name, values in columns.items() if name not in RESERVED}
    keywords |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    texts = [completion_text(completion) for completion in completions]
    called = zip(reward_names(rewards), rewards, _call(rewards, keywords, context or {}), strict=True)
    found = {name: _scores(reward, name, returned, texts) for name, reward, returned in called}
    per_function = {name: scores.reward for name, scores in found.items()}
    return Scores(
        reward=total(list(per_function.values()), weights),
        per_function=per_function,
        attributes={name: values for scores in found.values() for name, values in scores.attributes.items()},
        scorer=",".join(scores.scorer for scores in found.values()),
        feedback=[next(filter(None, said), None) for said in zip(*(s.feedback for s in found.values()), strict=True)],
    )


def _scores(reward: Reward, name: str, returned: list, texts: Sequence[str]) -> Scores:
    """The checked values of one reward."""
    who = f"reward {name!r}"
    if not reward.returns_judgements:
        values = checked(who, returned, texts)
        return Scores(values, {name: values}, reward.attributes(texts), reward.label, [None] * len(texts))
    judgements = _judgements(reward, returned)
    values = checked(who, [judgement.reward for judgement in judgements], texts)
    known = dict.fromkeys(attribute for judgement in judgements for attribute in judgement.attributes)
    attributes = {
        attribute: attribute_values(who, attribute, [each.attributes.get(attribute) for each in judgements], texts)
        for attribute in known
    }
    return Scores(values, {name: values}, attributes, reward.label, [each.feedback for each in judgements])


def check_calls(rewards: Sequence[Reward], columns: Iterable[str], context: Iterable[str] = ()) -> None:
    """Check before any work that each reward can be called with the columns of a data set.

    Args:
        context: Names of the further arguments of `score`.

    Raises:
        UserError: a function does not take an argument that it is called with, or needs another one.
    """
    given = dict.fromkeys(["prompts", "completions", "completion_ids", *(set(columns) - RESERVED)])
    for reward in rewards:
        _check_signature(reward, {**given, **_taken(reward, dict.fromkeys(context))})


def check_weights(rewards: Sequence[Reward], weights: Sequence[float] | None) -> None:
    """Raise UserError unless there is a reward, and `weights` is None or has one weight for each reward."""
    if not rewards or (weights is not None and len(weights) != len(rewards)):
        raise UserError(
            f"{len(rewards)} reward functions and weights {weights}; "
            "expected at least one reward function, and one weight for each"
        )
    if not all(abs(number(weight)) <= LARGEST for weight in weights or ()):
        raise UserError(f"reward weights {weights}: expected numbers from {-LARGEST:g} to {LARGEST:g}")


def reward_names(rewards: Sequence[Reward]) -> list[str]:
    """A unique name for each reward: the second reward with the same name is called `name_2`."""
    names: list[str] = []
    for reward in rewards:
        free = (reward.name if n == 1 else f"{reward.name}_{n}" for n in itertools.count(1))
        names.append(next(name for name in free if name not in names))
    return names


def as_completion(prompt: str | Sequence[Mapping], text: str) -> str | list[dict[str, str]]:
    """The completion of a prompt as rewards get it: a text; for a conversation, a message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def completion_text(completion: str | Sequence[Mapping]) -> str:
    """A completion's text; for a conversation the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _name(function: Callable) -> str:
    """A scorer's `name`, else the name of the function inside `functools.partial`, else the name of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "name", None)
    return name if isinstance(name, str) else getattr(function, "__name__", type(function).__name__)


def _call(rewards: Sequence[Reward], keywords: Mapping[str, Any], context: Mapping[str, Any]) -> list[list]:
    """The values of each reward. Sync rewards are called first, then async rewards run concurrently, as in TRL.

    Values are read at once: the next reward may return the same list or array with other contents.
    """
    returned: list[Any] = [None] * len(rewards)
    for i in sorted(range(len(rewards)), key=lambda i: rewards[i].is_async):
        given = {**_copied(keywords), **_taken(rewards[i], context)}
        _check_signature(rewards[i], given)
        with _naming(rewards[i]):
            value = rewards[i].called(**given)
            returned[i] = value if inspect.isawaitable(value) else _as_list(rewards[i], value)
    waiting = [i for i, value in enumerate(returned) if inspect.isawaitable(value)]
    for i, value in zip(waiting, _wait([(rewards[i], returned[i]) for i in waiting]), strict=True):
        returned[i] = value
    return returned


def _copied(value: Any) -> Any:
    """A copy that shares nothing that a reward could change."""
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    if type(value) is list:
        return [_copied(each) for each in value]
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    with suppress(TypeError, copy.Error):  # an open file, for example, cannot be copied
        return copy.deepcopy(value)
    return value


@contextmanager
def _naming(reward: Reward) -> Iterator[None]:
    """Add the reward's name to an exception of the user's code."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while calling the reward {reward.name!r}")
        raise


def _taken(reward: Reward, context: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the context that a function takes, by name or by **kwargs."""
    parameters = getattr(_signature(reward), "parameters", {})
    everything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in context.items() if everything or name in parameters}


def _signature(reward: Reward) -> inspect.Signature | None:
    try:
        return inspect.signature(reward.called)
    except (TypeError, ValueError):  # some builtins have no signature
        return None


def _check_signature(reward: Reward, keywords: Mapping[str, Any]) -> None:
    if (signature := _signature(reward)) is None:
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(
            f"reward {reward.name!r} cannot be called: {error}; it is called with {', '.join(keywords)}; "
            "expected a function such as f(completions, **kwargs), with **kwargs taking the arguments it does not use"
        ) from error


def _wait(calls: Sequence[tuple[Reward, Awaitable]]) -> list:
    """The results of async rewards, awaited together in the loop of `services.run`."""
    from nlf.services import run  # here, because httpx2 takes time to load

    async def named(reward: Reward, awaitable: Awaitable):
        with _naming(reward):
            return _as_list(reward, await awaitable)

    async def together() -> list:
        return await asyncio.gather(*[named(*call) for call in calls])

    return run(together()) if calls else []


def _awaited(awaitable: Awaitable) -> Any:
    """The result of one async call, in the loop of `services.run`."""
    from nlf.services import run  # here, because httpx2 takes time to load

    async def result() -> Any:
        return await awaitable

    return run(result())


def _as_list(reward: Reward, returned: Any) -> list:
    """The values that a reward returned: a list, a tuple, a generator, or an array or tensor `(N,)` or `(N, 1)`."""
    shape = tuple(getattr(returned, "shape", ()))
    if len(shape) == 2 and shape[1] == 1 and hasattr(returned, "reshape"):
        returned, shape = returned.reshape(-1), shape[:1]
    if hasattr(returned, "tolist"):  # a copy of an array
        returned = returned.tolist()
    unordered = isinstance(returned, (Mapping, Set, str, bytes, bytearray)) or len(shape) > 1
    try:
        values = None if unordered else iter(returned)
    except TypeError:
        values = None
    if values is None:
        each = "Judgement" if reward.returns_judgements else "number (or None)"
        raise UserError(
            f"reward {reward.name!r} returned {shown(returned)}; expected a list with one {each} per completion"
        )
    return list(values)


def _judgements(reward: Reward, returned: list) -> list[Judgement]:
    for i, judgement in enumerate(returned):
        if not isinstance(judgement, Judgement):
            raise UserError(
                f"reward {reward.name!r} returned {shown(judgement)} for completion {i}; "
                "expected nlf.rewards.Judgement(reward, attributes, feedback)"
            )
    return returned
