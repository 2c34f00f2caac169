"""Rewards of tables of rollouts."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from nlf.data.rollouts import SCHEMA, by_name
from nlf.errors import UserError
from nlf.method.quantize import total
from nlf.rewards import Reward, Scores, check_weights, reward_names, score


def score_table(
    table: pa.Table,
    rows: Sequence[dict],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    *,
    allowed: Sequence[Reward] | None = None,
    sentence: Callable[[str], str | None] = str,
    context: dict | None = None,
) -> pa.Table:
    """The table with its rewards; `rows` are the prompt rows it was sampled from, whose other columns the rewards see.

    Args:
        allowed: Those of `rewards` that may be called now; None = all. One whose values are in the table is not called
            again, and the weighted sum is there once all are.
        sentence: How a judge's sentence is kept, None = not at all.
        context: As of `rewards.score`.

    Raises:
        UserError: a reward function returned the wrong number of values, or one that is no finite number.
    """
    check_weights(rewards, weights)
    names = reward_names(rewards)
    each = by_name(table["rewards"].combine_chunks())  # where others were called before
    todo = {
        name: reward
        for name, reward in zip(names, rewards, strict=True)
        if name not in each and (allowed is None or reward in allowed)
    }
    if not todo:
        return table
    copies, rest = divmod(table.num_rows, len(rows))
    if rest:
        raise UserError(
            f"{table.num_rows} completions do not belong to {len(rows)} prompts; remove this part and resume"
        )
    repeated = [row for row in rows for _ in range(copies)]
    scores = score_completions(
        list(todo.values()), None, [row["prompt"] for row in repeated], table["completion"].to_pylist(),
        table["completion_ids"].to_pylist(), [other_columns(row) for row in repeated], context,
    )  # fmt: skip
    each |= dict(zip(todo, scores.per_function.values(), strict=True))
    each = {name: each[name] for name in names if name in each}
    attributes = by_name(table["attributes"].combine_chunks()) | scores.attributes
    judged = zip(table["judged"].to_pylist(), scores.feedback, strict=True)
    filled = {
        "reward": nulls(total(list(each.values()), weights)) if len(each) == len(names) else [None] * len(table),
        "rewards": _pairs(each, len(table)),
        "attributes": _pairs(attributes, len(table)),
        "scorer": [",".join(reward.label for reward in rewards)] * len(table),
        "judged": [old or (new and sentence(new)) or None for old, new in judged],
    }
    for name, values in filled.items():
        table = table.set_column(
            SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )
    return table


def score_completions(
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Sequence[dict],
    context: dict | None = None,
) -> Scores:
    """Call rewards as training does: completions of conversations as messages, the other columns by name.

    Args:
        columns: The other columns of each completion's prompt row; one that a row lacks is None.
        context: As of `rewards.score`.

    Raises:
        UserError: as `rewards.score`.
    """
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    names = sorted({name for row in columns for name in row})
    others = {name: [row.get(name) for row in columns] for name in names}
    return score(rewards, weights, prompts, completions, completion_ids, others, context)


def other_columns(row: dict) -> dict:
    """What a prompt row holds beside the prompt."""
    return {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}


def _pairs(columns: dict, length: int) -> list[list[tuple[str, float | None]]]:
    """Arrays by name as one list of (name, value) pairs a row, which is how Arrow takes maps."""
    values = {name: nulls(array) for name, array in columns.items()}
    return [[(name, column[i]) for name, column in values.items()] for i in range(length)]


def nulls(values: np.ndarray) -> list[float | None]:
    """Numbers as files hold them: None where one is NaN."""
    return [None if value != value else value for value in values.tolist()]
