"""Rewards: one contract for every judge of a completion.

A reward function is TRL's: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or
async, higher is better, None = could not be scored. A scorer object is callable like one and besides has a `name`, a
`version` and `attributes(texts) -> {name: array in [0, 1]}`; or instead of the latter `judge`, called like a reward
function, which says all at once: a `Judgement` a completion. Either is named by `--reward_funcs`: a known name, or a
dotted path. What a function raises is raised; it is never a reward of 0.
"""

import asyncio
import functools
import inspect
import itertools
import reprlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from nlf.errors import UserError
from nlf.method.quantize import total

OURS = {
    "prompt",
    "prompts",
    "completion",
    "completions",
    "completion_ids",
}  # never filled from the data set, as in TRL


@dataclass(frozen=True)
class Judgement:
    """What a scorer says of one completion.

    Attributes:
        reward: Higher is better; None = it could not be scored.
        attributes: What else it says, by name, in [0, 1]; None = could not be had.
        feedback: A judge's own sentence, put before the prompt in training.
    """

    reward: float | None
    attributes: dict[str, float | None] = field(default_factory=dict)
    feedback: str | None = None


class Reward:
    """A reward function or scorer object with its name and version.

    `remote` scorers are called from one rank only; `label` is what rollouts record, `local@1` say; `judges` = the
    function has a `judge`, which is called in its place.

    Raises:
        UserError: it cannot be called.
    """

    def __init__(self, function: Callable, name: str | None = None):
        if not callable(function):
            raise UserError(f"reward {name or _brief(function)} cannot be called; expected a function of completions")
        self.function = function
        self.name = name or _name(function)
        self.version = getattr(function, "version", None)
        self.remote = bool(getattr(function, "remote", False))
        self.judges = callable(getattr(function, "judge", None))
        self.called = function.judge if self.judges else function
        self.is_async = any(map(inspect.iscoroutinefunction, (self.called, type(self.called).__call__)))
        self.label = self.name if self.version is None else f"{self.name}@{self.version}"

    def __call__(self, /, prompts: Sequence, completions: Sequence, completion_ids: Sequence, **columns) -> list:
        keywords = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids} | columns
        returned = _call([self], keywords, {})[0]
        return [judgement.reward for judgement in _judgements(self, returned)] if self.judges else returned

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What a scorer object says beyond its reward; nothing for a plain function."""
        return self.function.attributes(texts) if hasattr(self.function, "attributes") else {}


def _name(function: Callable) -> str:
    """A scorer's `name`, else the function's own, also inside `functools.partial`, else the class's."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "name", None)
    return name if isinstance(name, str) else getattr(function, "__name__", type(function).__name__)


def _call(rewards: Sequence[Reward], keywords: dict, context: dict) -> list[list]:
    """What each reward returns; the async ones run side by side, as in TRL."""
    returned = [None] * len(rewards)
    for i in sorted(range(len(rewards)), key=lambda i: rewards[i].is_async):
        given = keywords | _taken(rewards[i], context)
        _check_signature(rewards[i], given)
        with _naming(rewards[i]):
            returned[i] = rewards[i].called(**given)
    waiting = [i for i, value in enumerate(returned) if inspect.isawaitable(value)]
    for i, value in zip(waiting, _wait([(rewards[i], returned[i]) for i in waiting]), strict=True):
        returned[i] = value
    return [_as_list(reward, value) for reward, value in zip(rewards, returned, strict=True)]


@contextmanager
def _naming(reward: Reward):
    """Say which reward it was when the user's code fails; the exception itself is theirs."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while calling the reward {reward.name!r}")
        raise


def _taken(reward: Reward, context: dict) -> dict:
    """What of the context a function asks for, by name or by **kwargs."""
    parameters = getattr(_signature(reward), "parameters", {})
    everything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in context.items() if everything or name in parameters}


def _signature(reward: Reward) -> inspect.Signature | None:
    try:
        return inspect.signature(reward.called)
    except (TypeError, ValueError):  # some builtins have none to look at
        return None


def _check_signature(reward: Reward, keywords: dict) -> None:
    if (signature := _signature(reward)) is None:
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(
            f"reward {reward.name!r} cannot be called: {error}; it is called with {', '.join(keywords)}; "
            "expected f(completions, **kwargs) or the like, with **kwargs taking what it does not use"
        ) from error


def _wait(awaitables: Sequence[tuple[Reward, object]]) -> list:
    """Results of async rewards, in the loop of `http.run`."""
    from nlf.services import run

    async def named(reward: Reward, awaitable):
        with _naming(reward):
            return await awaitable

    async def together():
        return await asyncio.gather(*[named(*each) for each in awaitables])

    if not awaitables:
        return []
    return run(together())


def _as_list(reward: Reward, returned) -> list:
    try:
        return list(returned)
    except TypeError as error:
        each = "Judgement" if reward.judges else "number (or None)"
        raise UserError(
            f"reward {reward.name!r} returned {_brief(returned)}; expected a list with one {each} per completion"
        ) from error


def _judgements(reward: Reward, returned: list) -> list[Judgement]:
    for i, judgement in enumerate(returned):
        if not isinstance(judgement, Judgement):
            raise UserError(
                f"reward {reward.name!r} returned {_brief(judgement)} for completion {i}; "
                "expected nlf.rewards.Judgement(reward, attributes, feedback)"
            )
    return returned


@dataclass(frozen=True)
class Scores:
    """Rewards of N completions: the weighted sum `(N,)` with NaN = not scored, each function's own, attributes, and the
    sentence of the first judge that wrote one.
    """

    reward: np.ndarray
    per_function: dict[str, np.ndarray]
    attributes: dict[str, np.ndarray]
    scorer: str
    feedback: list[str | None]


def reward_names(rewards: Sequence[Reward]) -> list[str]:
    """Under which name each one's values stand: two of one name stay apart."""
    names: list[str] = []
    for reward in rewards:
        free = (reward.name if n == 1 else f"{reward.name}_{n}" for n in itertools.count(1))
        names.append(next(name for name in free if name not in names))
    return names


def _brief(value) -> str:
    """A value as one short line."""
    return reprlib.repr(value).replace("\n", " ")


def score(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    completions: Sequence,
    completion_ids: Sequence[Sequence[int]],
    columns: dict[str, Sequence],
    context: dict | None = None,
) -> Scores:
    """Call every reward and add them up; None counts as nothing, and a completion that none scored is NaN (TRL's
    rule).

    Args:
        weights: One per reward; None = 1 each.
        prompts: N texts or conversations; completions: N texts, or for a conversation
            `[{"role": "assistant", "content": …}]`.
        columns: Other columns of the data set, N values each, passed by name.
        context: What else TRL's functions may ask for, such as `trainer_state`; kept from those that do not take it.

    Raises:
        UserError: a reward returned too few values, or one that is no finite number; or the weights are not as many.
    """
    check_weights(rewards, weights)
    keywords = {name: values for name, values in columns.items() if name not in OURS}
    keywords |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    names = reward_names(rewards)
    per_function: dict[str, np.ndarray] = {}
    attributes: dict[str, np.ndarray] = {}
    feedback: list[str | None] = [None] * len(texts)
    for name, reward, returned in zip(names, rewards, _call(rewards, keywords, context or {}), strict=True):
        judged = _judgements(reward, returned) if reward.judges else None
        values = returned if judged is None else [judgement.reward for judgement in judged]
        per_function[name] = _checked(f"reward {name!r}", values, texts)
        if judged is None:
            with _naming(reward):
                attributes |= reward.attributes(texts)
        else:
            attributes |= _judged_attributes(name, judged, texts)
            feedback = [known or judgement.feedback for known, judgement in zip(feedback, judged, strict=True)]
    summed = total(list(per_function.values()), weights)
    return Scores(summed, per_function, attributes, ",".join(r.label for r in rewards), feedback)


def check_weights(rewards: Sequence[Reward], weights: Sequence[float] | None) -> None:
    """Raise UserError where there is no reward, or not a weight for each."""
    if not rewards or (weights is not None and len(weights) != len(rewards)):
        raise UserError(
            f"{len(rewards)} reward functions and weights {weights}; expected at least one, and one weight each"
        )


def _judged_attributes(name: str, judged: Sequence[Judgement], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Every attribute that some judgement has, NaN where one has it not."""
    known = dict.fromkeys(attribute for judgement in judged for attribute in judgement.attributes)
    return {
        attribute: _checked(
            f"reward {name!r}, attribute {attribute!r},", [each.attributes.get(attribute) for each in judged], texts
        )
        for attribute in known
    }


def _checked(who: str, returned: list, texts: Sequence[str]) -> np.ndarray:
    """The values as floats, None as NaN."""
    if len(returned) != len(texts):
        raise UserError(f"{who} returned {len(returned)} values for {len(texts)} completions; expected one for each")
    values = np.full(len(texts), np.nan)
    for i, value in enumerate(returned):
        if value is None:
            continue
        try:
            values[i] = np.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):
            values[i] = np.nan
        if not np.isfinite(values[i]):
            raise UserError(
                f"{who} returned {_brief(value)} for completion {i} ({texts[i][:40]!r}); "
                "expected a finite number, or None where it cannot score"
            )
    return values
