"""Rewards of rollouts: score a table of sampled completions, or lists of completions, as training does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nlf.data.prompts import PromptRow, other_columns
from nlf.data.rollouts import SCHEMA, by_name
from nlf.errors import UserError
from nlf.method.quantize import total
from nlf.rewards.contract import Place, Reward, Scores, as_completion, check_weights, reward_names, score


def score_table(
    table: pa.Table,
    rows: Sequence[PromptRow],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    allowed: Sequence[Reward] | None = None,
    sentence: Callable[[str], str | None] = str,
    context: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Fill in the reward columns of a table of N sampled completions.

    Args:
        rows: The prompt rows that the completions were sampled from; N is a multiple of their number. The other columns
            of these rows are passed to rewards.
        allowed: The rewards that may be called now; None = all. A reward whose values are already in the table is not
            called again. The weighted sum is filled in once all rewards are known.
        sentence: Cuts a judge's sentence to the length that fits; returns None if nothing is left.
        context: See `score`.

    Raises:
        UserError: a reward function returned the wrong number of values, or a value that is not a finite number.
    """
    check_weights(rewards, weights)
    names = reward_names(rewards)
    known = by_name(table["rewards"].combine_chunks())
    todo = {
        name: reward
        for name, reward in zip(names, rewards, strict=True)
        if name not in known and (allowed is None or reward in allowed)
    }
    if not todo:
        return table
    scores = _score_rollouts(table, rows, list(todo.values()), context)
    table = _with_prefixes(table, rows, todo, scores.per_function, context)
    known |= dict(zip(todo, scores.per_function.values(), strict=True))
    return _filled(table, {name: known[name] for name in names if name in known}, rewards, weights, scores, sentence)


def _score_rollouts(
    table: pa.Table, rows: Sequence[PromptRow], rewards: Sequence[Reward], context: Mapping[str, Any] | None
) -> Scores:
    repeated = _repeated(table, rows)
    return score_completions(
        rewards, None, [row["prompt"] for row in repeated], table["completion"].to_pylist(),
        table["completion_ids"].to_pylist(), [other_columns(row) for row in repeated], context,
    )  # fmt: skip


def _repeated(table: pa.Table, rows: Sequence[PromptRow]) -> list[PromptRow]:
    """The prompt row of each completion."""
    copies, rest = divmod(table.num_rows, len(rows))
    if rest:
        raise UserError(
            f"{table.num_rows} completions do not belong to {len(rows)} prompts; remove this part and resume"
        )
    return [row for row in rows for _ in range(copies)]


def _with_prefixes(
    table: pa.Table,
    rows: Sequence[PromptRow],
    rewards: Mapping[str, Reward],
    whole: Mapping[str, np.ndarray],
    context: Mapping[str, Any] | None,
) -> pa.Table:
    """The table with the rewards of prefixes, by those of the rewards that can score them, if it records prefixes.

    Args:
        whole: The rewards `(N,)` of the whole completions, which are the last prefixes and not scored again.
    """
    able = {name: reward for name, reward in rewards.items() if reward.prefixes}
    if not able or table["prefix_ends"].null_count:
        return table
    repeated = _repeated(table, rows)
    prompts, columns = [row["prompt"] for row in repeated], columns_of([other_columns(row) for row in repeated])
    texts, ids = table["completion"].to_pylist(), table["completion_ids"].to_pylist()
    ends, tokens = table["prefix_ends"].to_pylist(), table["prefix_tokens"].to_pylist()
    places = [[*map(Place, *own)][:-1] for own in zip(ends, tokens, strict=True)]
    if context and "log_metric" in context:  # a mean over completions, of which beginnings are no part
        context = {**context, "log_metric": lambda name, value: None}
    values: list[dict] = [dict(row or ()) for row in table["prefix_rewards"].to_pylist()]
    for name, reward in able.items():
        found = reward.prefix_rewards(prompts, texts, ids, places, columns, context)
        for row, own, before, last in zip(values, ends, found, nulls(whole[name]), strict=True):
            row[name] = [*nulls(before), last] if own else []
    field = SCHEMA.field("prefix_rewards")
    column = pa.array([[*row.items()] for row in values], field.type)
    return table.set_column(SCHEMA.get_field_index(field.name), field, column)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence]:
    """The values of each column of N rows; None where a row lacks the column."""
    return {name: [row.get(name) for row in rows] for name in sorted({name for row in rows for name in row})}


def _filled(
    table: pa.Table,
    known: Mapping[str, np.ndarray],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    scores: Scores,
    sentence: Callable[[str], str | None],
) -> pa.Table:
    """The table with new values in its reward columns; `known` has `(N,)` values of every reward called so far."""
    attributes = by_name(table["attributes"].combine_chunks()) | scores.attributes
    judged = zip(table["judged"].to_pylist(), scores.feedback, strict=True)
    complete = len(known) == len(rewards)
    columns: dict[str, list] = {
        "reward": nulls(total(list(known.values()), weights)) if complete else [None] * len(table),
        "rewards": _pairs(known, len(table)),
        "attributes": _pairs(attributes, len(table)),
        "scorer": [",".join(reward.label for reward in rewards)] * len(table),
        "judged": [old or (new and sentence(new)) or None for old, new in judged],
    }
    for name, values in columns.items():
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    return table


def score_completions(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None = None,
) -> Scores:
    """Call rewards as training does: a completion of a conversation becomes a message, other columns are arguments.

    Args:
        prompts, texts, completion_ids: N of each.
        columns: The other columns of N prompt rows; a column that a row lacks is None.
        weights, context: See `score`.

    Raises:
        UserError: see `score`.
    """
    completions = [as_completion(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return score(rewards, weights, prompts, completions, completion_ids, columns_of(columns), context)


def _pairs(columns: Mapping[str, np.ndarray], length: int) -> list[list[tuple[str, float | None]]]:
    """For each row a list of (name, value) pairs, which Arrow reads as a map."""
    values = {name: nulls(array) for name, array in columns.items()}
    return [[(name, column[i]) for name, column in values.items()] for i in range(length)]


def nulls(values: np.ndarray) -> list[float | None]:
    """Numbers for a file: None in place of NaN."""
    return [None if value != value else value for value in values.tolist()]
