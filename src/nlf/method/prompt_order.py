"""Which prompts an iteration samples, and how equal prompts are told apart."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def choose_prompts(num_prompts: int, count: int | None, seed: int, iteration: int) -> list[int]:
    """Rows of this iteration's prompts: the next `count` of endless permutations, or all of them in order."""
    if count is None:
        return list(range(num_prompts))
    first = iteration * count
    chosen: list[int] = []
    while len(chosen) < count:
        turn, offset = divmod(first + len(chosen), num_prompts)
        order = np.random.default_rng([seed, turn]).permutation(num_prompts)
        chosen += order[offset : offset + count - len(chosen)].tolist()
    return chosen


def number_occurrences(rows: Sequence[int], prompt_ids: Sequence[str]) -> list[tuple[int, int]]:
    """(row, how often its prompt has come before): equal prompts get different random numbers."""
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        numbered.append((row, seen[prompt_ids[row]]))
        seen[prompt_ids[row]] += 1
    return numbered
