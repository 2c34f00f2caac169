"""Choose the prompts of an iteration, and number equal prompts."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class NumberedRow(NamedTuple):
    """A row of the prompts, and the number of earlier rows with the same prompt."""

    row: int
    occurrence: int


def choose_prompts(num_prompts: int, count: int | None, seed: int, iteration: int) -> list[int]:
    """The rows of this iteration's prompts: the next `count` rows of endless permutations.

    Args:
        num_prompts: Rows to choose from.
        count: Number of rows to choose; None = every row, in order.
        seed: Fixes the permutations.
        iteration: Earlier iterations have taken the first `iteration * count` rows.
    """
    if count is None:
        return list(range(num_prompts))
    first = iteration * count
    chosen: list[int] = []
    while len(chosen) < count:
        turn, offset = divmod(first + len(chosen), num_prompts)
        order = np.random.default_rng([seed, turn]).permutation(num_prompts)
        chosen += order[offset : offset + count - len(chosen)].tolist()
    return chosen


def number_occurrences(rows: Sequence[int], prompt_ids: Sequence[str]) -> list[NumberedRow]:
    """Number the rows that have equal prompts, so that their completions get different random numbers.

    Args:
        rows: Indices into `prompt_ids`.
        prompt_ids: One id per prompt; equal prompts have equal ids.
    """
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        numbered.append(NumberedRow(row, seen[prompt_ids[row]]))
        seen[prompt_ids[row]] += 1
    return numbered
