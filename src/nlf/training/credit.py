"""The credit of an iteration's rollouts: read the scores of their prefixes, fit the values, and keep the result on disk.

`method.credit` has the arithmetic. Credit is a function of the rollouts of the last iterations and of the scale of the first
one, so a resumed run finds the same; `credit.parquet` beside an iteration's parts is for reports and other programs. Its
rows are those of the parts, in order. The parts are read again, beside the pool: that takes 10 ms for 1,024 rollouts, and
the pool has other columns and may keep fewer iterations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nlf.data.files import replacing
from nlf.data.pool import read_iteration
from nlf.data.rollouts import by_name, iteration_dir, lists_by_name
from nlf.errors import UserError
from nlf.method import credit
from nlf.method.quantize import normalize, total, worst_for_none
from nlf.rewards import Reward, reward_names

FILE = "credit.parquet"
COLUMNS = (
    *("prompt_id", "feedback", "completion_ids", "ended", "rewards"),
    *("prefix_tokens", "prefix_rewards"),
)
FITTED = 4  # iterations whose rollouts teach the values


@dataclass(frozen=True)
class CreditRules:
    """How rewards become credit.

    Attributes:
        weights: The weight of each reward in the sum, by its name in the rollouts.
        worst: Names of the rewards whose None counts as the worst reward of the iterations that are read.
        by_prefix: Names of the rewards whose prefixes are scored; another reward gives all tokens the same credit.
        decay: λ.
        most_tokens: `max_completion_length`.
        normalization: "zscore" = each reward counts in standard deviations, over the iterations that are read. "rank" = the
            credit of all tokens is that of the summed ranks, so `by_prefix` is empty. "none" = rewards as they are.
    """

    weights: Mapping[str, float]
    worst: Sequence[str]
    by_prefix: Sequence[str]
    decay: float
    most_tokens: int
    normalization: str = "none"


@dataclass(frozen=True)
class Credited:
    """The credit of the n rollouts of an iteration.

    Attributes:
        tokens: For each rollout, the credit of each token, float32; it is divided by `scale`.
        scale: What the run's credit is divided by; None = no rollout has credit yet.
        logs: Figures for the log.
    """

    tokens: list[np.ndarray]
    scale: float | None
    logs: dict[str, float]


# ---- before the run ---------------------------------------------------------------------------------------------------


def by_prefix(how: str, normalization: str, rewards: Sequence[Reward]) -> list[str]:
    """Names in the rollouts of the rewards whose prefixes are scored.

    Args:
        how: The knob `credit`; normalization: the knob `reward_normalization`.

    Raises:
        UserError: `credit` is prefix, and a reward cannot score prefixes.
    """
    named = [*zip(reward_names(rewards), rewards, strict=True)]
    unable = [name for name, reward in named if not reward.prefixes]
    if how == "prefix" and unable:
        raise UserError(
            f"credit prefix: the reward {unable[0]!r} cannot score beginnings of completions; set `prefixes = True` on it if "
            "it can (docs/rewards.md), or credit auto"
        )
    if how == "prefix" and normalization == "rank":
        raise UserError("credit prefix: ranks are of whole completions; set reward_normalization none or zscore")
    return [] if how == "completion" or normalization == "rank" else [n for n, reward in named if reward.prefixes]


def credit_lines(how: str, normalization: str, rewards: Sequence[Reward], completions: int) -> list[str]:
    """A line for each way in which rewards become the credit of tokens.

    Args:
        completions: Of a prompt in an iteration.

    Raises:
        UserError: see `by_prefix`.
    """
    able = by_prefix(how, normalization, rewards)
    names = [name for name in reward_names(rewards) if name not in able]
    labels = [each.label for name, each in zip(reward_names(rewards), rewards, strict=True) if name in able]
    lines = [f"credit: {', '.join(labels)} by prefixes"] if labels else []
    if not names:
        return lines
    why = "it cannot score beginnings; set `prefixes = True` on it if it can (docs/rewards.md)"
    if len(names) > 1:
        why = "they cannot score beginnings; set `prefixes = True` on those that can (docs/rewards.md)"
    if normalization == "rank":
        why = "reward_normalization rank ranks whole completions"
    elif how == "completion":
        why = "credit is completion"
    line = f"credit: {', '.join(names)}: every token of a completion has the same credit, because {why}"
    if completions == 1:
        line += "; it is the reward less the mean of all completions, because num_generations is 1"
    return [*lines, line]


# ---- in each iteration ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rollouts:
    """N rollouts of the last iterations, as flat arrays.

    Attributes:
        iteration, prompts: `(N,)` numbers.
        together: `(N,)` the same number for completions of one prompt under the same feedback in one iteration.
        lengths: `(N,)` tokens, EOS included; own: `(N,)` tokens without EOS.
        rewards: `(N,)` for each reward by its name, NaN = not scored.
        counts: `(N,)` the number of places of each completion; -1 = the part records none.
        places: `(M,)` tokens up to each place.
        scores: For each reward by its name, `(N,)` whether the rollout has scores of its prefixes, and `(M,)` these.
    """

    iteration: np.ndarray
    prompts: np.ndarray
    together: np.ndarray
    lengths: np.ndarray
    own: np.ndarray
    rewards: dict[str, np.ndarray]
    counts: np.ndarray
    places: np.ndarray
    scores: dict[str, tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.lengths)


def credit_of(run_dir: Path, iteration: int, rules: CreditRules, scale: float | None, write: bool = True) -> Credited:
    """The credit of an iteration's rollouts; a rollout that is not scored gets none.

    Args:
        scale: Of the run's first iteration that had credit; None = there is none before this one.
        write: Keep the result in the iteration's folder.

    Raises:
        UserError: rollouts are missing or broken, or lack the scores of prefixes.
    """
    rollouts = _read(run_dir, iteration)
    credits, scored, logs = _summed(rollouts, rules, run_dir)
    new = rollouts.iteration == iteration
    lengths, tokens = rollouts.lengths[new], credits[np.repeat(new, rollouts.lengths)]
    trained = credit.first_tokens(lengths, np.where(scored, rollouts.own, 0)[new])
    size = credit.scale_of([tokens[trained]])
    if scale is None and size > credit.LEAST_SCALE:
        scale = size
    tokens = (tokens / (scale or 1.0)).astype(np.float32)
    ends = np.cumsum(lengths)
    if write:
        _write(iteration_dir(run_dir, iteration) / FILE, tokens, ends)
    logs["credit/size"] = credit.scale_of([tokens[trained]])
    return Credited(np.split(tokens, ends[:-1]), scale, logs)


def _summed(rollouts: _Rollouts, rules: CreditRules, run_dir: Path) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The weighted sum of the rewards' credits for all tokens, which rollouts are scored `(N,)`, and figures for the log."""
    if rules.normalization == "rank":
        summed = _ranks(rollouts, rules)
        return _by_completion(rollouts, summed), ~np.isnan(summed), {}
    credits, scored = np.zeros(int(rollouts.lengths.sum())), np.zeros(len(rollouts), bool)
    logs: dict[str, float] = {}
    for name, weight in rules.weights.items():
        rewards, unit = _rewards(rollouts, name, rules)
        scored |= ~np.isnan(rewards)
        if name in rules.by_prefix:
            own, r2 = _by_prefix(rollouts, name, rewards, rules, run_dir)
            logs |= {f"credit/r2/{name}": r2} if np.isfinite(r2) else {}
        else:
            own = _by_completion(rollouts, rewards)
        credits += weight * unit * own
    return credits, scored, logs


def _read(run_dir: Path, iteration: int) -> _Rollouts:
    """The rollouts of an iteration and those before it that teach the values."""
    numbers = range(max(0, iteration + 1 - FITTED), iteration + 1)
    tables = [read_iteration(run_dir, i, COLUMNS) for i in numbers]
    when = np.repeat(numbers, [len(table) for table in tables])
    table = pa.concat_tables(tables).combine_chunks()
    prompts, feedback = _codes(table["prompt_id"]), _codes(table["feedback"])
    groups = (when * (prompts.max() + 1) + prompts) * (feedback.max() + 1) + feedback
    lengths = _counts(table["completion_ids"])
    places = table["prefix_tokens"].combine_chunks()
    counts = _counts(table["prefix_tokens"])
    return _Rollouts(
        when, prompts, np.unique(groups, return_inverse=True)[1],
        lengths, lengths - table["ended"].to_numpy().astype(bool),
        by_name(table["rewards"].combine_chunks()),
        np.where(places.is_null().to_numpy(zero_copy_only=False), -1, counts),
        places.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        lists_by_name(table["prefix_rewards"].combine_chunks(), counts),
    )  # fmt: skip


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each text, the same for equal texts, in the order in which texts first appear."""
    return column.combine_chunks().dictionary_encode("encode").indices.to_numpy().astype(np.int64)


def _counts(column: pa.ChunkedArray) -> np.ndarray:
    """The number of values in each list of a column; 0 for null."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)


def _rewards(rollouts: _Rollouts, name: str, rules: CreditRules) -> tuple[np.ndarray, float]:
    """A reward of each rollout `(N,)`, NaN = not scored, and what one unit of it counts."""
    found = rollouts.rewards.get(name, np.full(len(rollouts), np.nan))
    scored = found[~np.isnan(found)]
    unit = 1.0
    if rules.normalization == "zscore" and len(scored):
        unit = 1 / max(float(scored.std()), credit.LEAST_SCALE)
    return (worst_for_none(found, rules.weights[name]) if name in rules.worst else found), unit


def _by_prefix(
    rollouts: _Rollouts, name: str, rewards: np.ndarray, rules: CreditRules, run_dir: Path
) -> tuple[np.ndarray, float]:
    """The credit of all tokens by one reward, and how well the values predict it.

    Raises:
        UserError: rollouts lack the scores of their prefixes.
    """
    known, scores = rollouts.scores.get(name, (np.zeros(len(rollouts), bool), np.zeros(len(rollouts.places))))
    lacking = ~np.isnan(rewards) & (rollouts.counts != 0) & ~known
    if lacking.any():
        folder = iteration_dir(run_dir, int(rollouts.iteration[lacking][0]))
        raise UserError(
            f"{folder}: no rewards of prefixes by {name!r}; the rollouts were made by an earlier version of nlf, or before "
            f"{name!r} could score prefixes; start the run again in a new folder"
        )
    rows = ~np.isnan(rewards) & (rollouts.counts > 0)
    if not rows.any():
        return np.zeros(int(rollouts.lengths.sum())), np.nan
    counts, chosen = rollouts.counts[rows], np.repeat(rows, np.maximum(rollouts.counts, 0))
    ends = rollouts.places[chosen]
    prefixes = credit.Prefixes(
        counts, ends, scores[chosen], rewards[rows], rollouts.prompts[rows], rollouts.together[rows]
    )
    start, values, r2 = credit.prefix_values(prefixes, rules.most_tokens)
    of_places = credit.advantages(start, values, counts, rules.decay)
    return credit.of_tokens(of_places, ends, np.where(rows, rollouts.counts, 0), rollouts.lengths), r2


def _by_completion(rollouts: _Rollouts, rewards: np.ndarray) -> np.ndarray:
    """The credit of all tokens by a reward whose prefixes have no score: the same for all of a completion but EOS."""
    rows = ~np.isnan(rewards)
    if not rows.any():
        return np.zeros(int(rollouts.lengths.sum()))
    of_completions = credit.completion_credit(rewards[rows], rollouts.together[rows])
    return credit.of_tokens(of_completions, rollouts.own[rows], rows.astype(int), rollouts.lengths)


def _ranks(rollouts: _Rollouts, rules: CreditRules) -> np.ndarray:
    """`(N,)` the weighted sum of the rewards' ranks; NaN = not scored."""
    ranks = []
    for name, weight in rules.weights.items():
        rank = normalize(rollouts.rewards.get(name, np.full(len(rollouts), np.nan)), "rank")
        ranks.append(worst_for_none(rank, weight) if name in rules.worst else rank)
    return total(ranks, [*rules.weights.values()])


def _write(path: Path, tokens: np.ndarray, ends: np.ndarray) -> None:
    """Write the credit of each token, as a list for each rollout."""
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    with replacing(path) as file:
        pq.write_table(pa.table({"credit": pa.ListArray.from_arrays(offsets, pa.array(tokens, pa.float32()))}), file)
