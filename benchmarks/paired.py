"""Alternate two ways to do the same work in one process, and compare their speeds: a table and a line of ratios.

A side is a function of the number of the pair (0 is the warm-up). It does the work and returns its amount: tokens or
completions. A side may have a method `prepare`, which is called before it and not timed. Every other pair starts with
the other side. CPU seconds stand beside wall-clock seconds: where they differ, other work ran on the machine.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from nlf.data.markdown import markdown_table

Side = Callable[[int], float]


class Taken(NamedTuple):
    """The time of one call of a side, and the amount of work it did."""

    seconds: float
    cpu: float  # seconds
    amount: float


def timed(side: Side, number: int) -> Taken:
    """Prepare a side, then time one call of it."""
    getattr(side, "prepare", lambda: None)()
    start, cpu = time.perf_counter(), time.process_time()
    amount = side(number)
    return Taken(time.perf_counter() - start, time.process_time() - cpu, amount)


def alternate(sides: dict[str, Side], repeats: int) -> dict[str, list[Taken]]:
    """Time each side in `repeats` pairs after a warm-up."""
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            taken[name].append(timed(sides[name], number))
    return {name: rows[1:] for name, rows in taken.items()}


def table(taken: dict[str, list[Taken]], unit: str, digits: int = 0) -> str:
    """A Markdown table of the speeds of each side, in `unit` a second."""
    rows = []
    for name, runs in taken.items():
        speeds, cpu = [r.amount / r.seconds for r in runs], [r.amount / r.cpu for r in runs]
        figures = [statistics.median(speeds), min(speeds), max(speeds), statistics.median(cpu)]
        rows.append([name, *(f"{figure:,.{digits}f}" for figure in figures)])
    return markdown_table(["side", f"{unit}/s, median", "least", "most", f"{unit}/CPU s, median"], rows)


def ratios(taken: dict[str, list[Taken]]) -> tuple[list[float], list[float]]:
    """The speed of the first side over that of the second in each pair: by wall-clock and by CPU seconds."""
    pairs = list(zip(*taken.values(), strict=True))
    by_clock = [a.amount / a.seconds / (b.amount / b.seconds) for a, b in pairs]
    return by_clock, [a.amount / a.cpu / (b.amount / b.cpu) for a, b in pairs]


def ratio_line(taken: dict[str, list[Taken]]) -> str:
    """One line with the median ratios and their ranges."""
    first, second = taken
    clock, cpu = ratios(taken)
    return (
        f"{first} / {second}: {statistics.median(clock):.2f} × (median of {len(clock)} pairs, {min(clock):.2f} to "
        f"{max(clock):.2f}); by CPU seconds {statistics.median(cpu):.2f} × ({min(cpu):.2f} to {max(cpu):.2f})"
    )
