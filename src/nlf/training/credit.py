"""The credit of an iteration's rollouts: read the scores of their prefixes, fit the values, and keep the result on disk.

`method.credit` has the arithmetic. Credit is a function of the rollouts of the last iterations and of the scale of the first
one, so a resumed run finds the same; `credit.parquet` beside an iteration's parts is for reports and other programs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nlf.data.files import replacing
from nlf.data.pool import read_iteration
from nlf.data.rollouts import by_name, iteration_dir
from nlf.method import credit
from nlf.method.quantize import worst_for_none

FILE = "credit.parquet"
COLUMNS = ("prompt_id", "feedback", "completion_ids", "rewards", "prefix_tokens", "prefix_rewards")
FITTED = 4  # iterations whose rollouts teach the values


@dataclass(frozen=True)
class CreditRules:
    """How rewards become credit.

    Attributes:
        weights: The weight of each reward in the sum, by its name in the rollouts.
        worst: Names of the rewards whose None counts as the worst reward.
        by_prefix: Names of the rewards whose prefixes are scored; another reward gives all tokens the same credit.
        decay: λ.
        most_tokens: `max_completion_length`.
        zscore: Each reward counts in standard deviations.
    """

    weights: Mapping[str, float]
    worst: Sequence[str]
    by_prefix: Sequence[str]
    decay: float
    most_tokens: int
    zscore: bool = False


@dataclass(frozen=True)
class Credited:
    """The credit of the n rollouts of an iteration.

    Attributes:
        tokens: For each rollout, the credit of each token, float32; it is divided by `scale`.
        scale: What the run's credit is divided by.
        logs: Figures for the log.
    """

    tokens: list[np.ndarray]
    scale: float
    logs: dict[str, float]


def credit_of(run_dir: Path, iteration: int, rules: CreditRules, scale: float | None) -> Credited:
    """The credit of an iteration's rollouts; a rollout that is not scored gets none.

    Args:
        scale: Of the run's first iteration; None = this is the first.
    """
    first = max(0, iteration + 1 - FITTED)
    table = pa.concat_tables([read_iteration(run_dir, i, COLUMNS) for i in range(first, iteration + 1)])
    when = np.repeat(
        np.arange(first, iteration + 1),
        [read_iteration(run_dir, i, ("prompt_id",)).num_rows for i in range(first, iteration + 1)],
    )
    prompts = _numbers(table["prompt_id"].to_pylist())
    together = _numbers([*zip(when.tolist(), prompts.tolist(), table["feedback"].to_pylist(), strict=True)])
    lengths = [len(ids) for ids in table["completion_ids"].to_pylist()]
    tokens = [np.zeros(length, np.float32) for length in lengths]
    given, logs = by_name(table["rewards"].combine_chunks()), {}
    ends, scored = table["prefix_tokens"].to_pylist(), [dict(row or ()) for row in table["prefix_rewards"].to_pylist()]
    for name, weight in rules.weights.items():
        rewards = given.get(name, np.full(len(table), np.nan))
        rewards = worst_for_none(rewards, weight) if name in rules.worst else rewards
        rows = np.flatnonzero(~np.isnan(rewards))
        if not len(rows):
            continue
        unit = weight / max(float(rewards[rows].std()), credit.LEAST_SCALE) if rules.zscore else weight
        if name in rules.by_prefix:
            rows = rows[[bool(ends[i]) for i in rows]]
            own, logs[f"credit/r2/{name}"] = _by_prefix(
                [ends[i] for i in rows],
                [scored[i][name] for i in rows],
                rewards[rows],
                prompts[rows],
                together[rows],
                rules,
            )
        else:
            flat = credit.completion_credit(rewards[rows], together[rows])
            own = [np.full(lengths[i], value) for i, value in zip(rows, flat, strict=True)]
        for i, values in zip(rows, own, strict=True):
            tokens[i][: len(values)] += (unit * values).astype(np.float32)
    new = [tokens[i] for i in np.flatnonzero(when == iteration)]
    scale = credit.scale_of([each for each in new if len(each)]) if scale is None else scale
    found = [each / np.float32(scale) for each in new]
    logs["credit/size"] = credit.scale_of(found)
    _write(iteration_dir(run_dir, iteration) / FILE, found)
    return Credited(found, scale, logs)


def _by_prefix(
    ends: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float | None]],
    rewards: np.ndarray,
    prompts: np.ndarray,
    together: np.ndarray,
    rules: CreditRules,
) -> tuple[list[np.ndarray], float]:
    """The credit of the tokens of each completion by one reward, and how well values predict the reward."""
    counts = np.array([len(each) for each in ends], dtype=np.int64)
    prefixes = credit.Prefixes(
        counts,
        np.concatenate([np.asarray(each, float) for each in ends]),
        np.array([np.nan if value is None else value for each in scores for value in each], dtype=float),
        rewards,
        prompts,
        together,
    )
    start, values, r2 = credit.prefix_values(prefixes, rules.most_tokens)
    found = np.split(credit.advantages(start, values, counts, rules.decay), np.cumsum(counts)[:-1])
    return [credit.of_tokens(own, each, each[-1]) for own, each in zip(found, ends, strict=True)], r2


def _numbers(keys: Sequence) -> np.ndarray:
    """A number for each key, the same for equal keys, in the order in which keys first appear."""
    known: dict = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _write(path: Path, tokens: Sequence[np.ndarray]) -> None:
    with replacing(path) as file:
        pq.write_table(
            pa.table({"credit": pa.array([each.tolist() for each in tokens], pa.list_(pa.float32()))}), file
        )
