"""Prompts come up equally often, and equal prompts are numbered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nlf.method.prompt_order import choose_prompts, number_occurrences


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 5))
def test_prompts_come_round_evenly(num_prompts, count, last):
    """After any number of iterations no prompt is drawn two times more often than another."""
    drawn = [row for i in range(last + 1) for row in choose_prompts(num_prompts, count, 7, i)]
    assert len(drawn) == count * (last + 1)
    times = np.bincount(drawn, minlength=num_prompts)
    assert times.max() - times.min() <= 1


def test_without_a_count_every_prompt_is_chosen_in_order():
    assert choose_prompts(4, None, 7, 3) == [0, 1, 2, 3]


def test_equal_prompts_are_told_apart():
    assert number_occurrences([0, 1, 2, 0], ["a", "b", "a"]) == [(0, 0), (1, 0), (2, 1), (0, 2)]
