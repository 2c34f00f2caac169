"""Rewards: one contract for every judge of a completion.

A reward function is TRL's: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or
async, higher is better, None = could not be scored. A scorer object is callable like one and besides has a `name`, a
`version` and `attributes(texts) -> {name: array in [0, 1]}`. Either is named by `--reward_funcs`: a known name, or a
dotted path.
"""

import asyncio
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nlf.errors import UserError

REWARDS = {"local": "nlf.rewards.local:LocalToxicity"}  # name → the class that is made when it is asked for


class Reward:
    """A reward function or scorer object with its name and version.

    `remote` scorers are called from one rank only; `label` is what rollouts record, `local@1` say.
    """

    def __init__(self, function: Callable, name: str | None = None):
        self.function = function
        self.name = name or getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)
        self.version = getattr(function, "version", None)
        self.remote = bool(getattr(function, "remote", False))
        self.label = self.name if self.version is None else f"{self.name}@{self.version}"

    def __call__(self, prompts: Sequence, completions: Sequence, completion_ids: Sequence, **columns) -> list:
        try:
            result = self.function(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            return list(asyncio.run(result) if inspect.isawaitable(result) else result)
        except Exception as error:
            error.add_note(f"while calling the reward {self.name!r}")
            raise

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What a scorer object says beyond its reward; nothing for a plain function."""
        return self.function.attributes(texts) if hasattr(self.function, "attributes") else {}


@dataclass(frozen=True)
class Scores:
    """Rewards of N completions: the weighted sum `(N,)` with NaN = not scored, each function's own, and attributes."""

    reward: np.ndarray
    per_function: dict[str, np.ndarray]
    attributes: dict[str, np.ndarray]
    scorer: str


def resolve_reward(spec: str | Callable | Reward) -> Reward:
    """A reward from its name, dotted path (`package.module:function`, `my_rewards.py:function`) or the thing itself.

    Raises:
        UserError: nothing of that name; the message lists what there is.
    """
    if isinstance(spec, Reward):
        return spec
    if not isinstance(spec, str):
        return Reward(spec)
    if spec in REWARDS:
        return Reward(_import(REWARDS[spec])())
    if ":" in spec or "." in spec:
        found = _import(spec)
        return Reward(found() if inspect.isclass(found) else found)
    near = difflib.get_close_matches(spec, REWARDS)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"unknown reward {spec!r}; {hint}known: {', '.join(REWARDS)}; or a dotted path, my_module:my_reward"
    )


def _import(path: str) -> Callable:
    """The object that a dotted path or `file.py:name` names; modules in the current directory count."""
    module_name, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    try:
        if module_name.endswith(".py"):
            module = _import_file(Path(module_name))
        else:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(module_name)
        return getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there; what it imports is not
        raise UserError(
            f"reward {path!r}: no module {module_name!r} here or installed; known names: {', '.join(REWARDS)}"
        ) from error
    except AttributeError as error:
        raise UserError(f"reward {path!r}: {module_name} has no {name!r}") from error


def _import_file(path: Path):
    if not path.is_file():
        raise UserError(f"reward file {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def score(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    completions: Sequence,
    completion_ids: Sequence[Sequence[int]],
    columns: dict[str, Sequence],
) -> Scores:
    """Call every reward and add them up; None counts as nothing, and a completion that none scored is NaN (TRL's
    rule).

    Raises:
        UserError: a reward returned too few values, or one that is no finite number.
    """
    per_function = {}
    for reward in rewards:
        returned = reward(prompts, completions, completion_ids, **columns)
        per_function[_free(reward.name, per_function)] = _checked(reward.name, returned, len(completions))
    stacked = np.stack(list(per_function.values()))  # (functions, N)
    weighted = stacked * np.asarray(weights if weights is not None else [1.0] * len(rewards))[:, None]
    total = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, 0))
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    attributes: dict[str, np.ndarray] = {}
    for reward in rewards:
        attributes |= reward.attributes(texts)
    return Scores(total, per_function, attributes, ",".join(r.label for r in rewards))


def _free(name: str, taken: dict) -> str:
    """Two rewards of one name stay apart."""
    return name if name not in taken else next(f"{name}_{i}" for i in range(2, 99) if f"{name}_{i}" not in taken)


def _checked(name: str, returned: list, expected: int) -> np.ndarray:
    if len(returned) != expected:
        raise UserError(
            f"reward {name!r} returned {len(returned)} values for {expected} completions; expected one for each"
        )
    values = np.full(expected, np.nan)
    for i, value in enumerate(returned):
        if value is None:
            continue
        try:
            values[i] = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"reward {name!r} returned {value!r} for completion {i}; expected a number or None"
            ) from error
        if not np.isfinite(values[i]):
            raise UserError(
                f"reward {name!r} returned {value!r} for completion {i}; expected a finite number, or None where it cannot score"
            )
    return values
