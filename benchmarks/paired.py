"""Two ways to do the same work, alternating in one process: what each took, as a table and a line of ratios.

A side is a function of a number (which pair it is, 0 the warm-up) that does the work and returns how much there was of
it: tokens, completions. Its `prepare`, if it has one, is called before and not timed. Every other pair begins with the
other side. Seconds of the processor stand beside those of the clock: where they differ, other work ran on the machine.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Side = Callable[[int], float]


class Taken(NamedTuple):
    seconds: float
    cpu: float
    amount: float


def timed(side: Side, number: int) -> Taken:
    getattr(side, "prepare", lambda: None)()
    start, cpu = time.perf_counter(), time.process_time()
    amount = side(number)
    return Taken(time.perf_counter() - start, time.process_time() - cpu, amount)


def alternate(sides: dict[str, Side], repeats: int) -> dict[str, list[Taken]]:
    """What each side took in each of the pairs after the warm-up."""
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            taken[name].append(timed(sides[name], number))
    return {name: rows[1:] for name, rows in taken.items()}


def table(taken: dict[str, list[Taken]], unit: str, digits: int = 0) -> str:
    """Markdown: how much of the `unit` each side does in a second, of the clock and of the processor."""
    lines = [f"| side | {unit}/s, median | least | most | {unit}/CPU s, median |", "| --- | --- | --- | --- | --- |"]
    for name, rows in taken.items():
        speeds, cpu = [r.amount / r.seconds for r in rows], [r.amount / r.cpu for r in rows]
        cells = [statistics.median(speeds), min(speeds), max(speeds), statistics.median(cpu)]
        lines.append(f"| {name} | " + " | ".join(f"{cell:,.{digits}f}" for cell in cells) + " |")
    return "\n".join(lines)


def ratios(taken: dict[str, list[Taken]]) -> tuple[list[float], list[float]]:
    """How many times as fast as the second side the first is in each pair: by the clock, by the processor."""
    pairs = list(zip(*taken.values(), strict=True))
    by_clock = [a.amount / a.seconds / (b.amount / b.seconds) for a, b in pairs]
    return by_clock, [a.amount / a.cpu / (b.amount / b.cpu) for a, b in pairs]


def ratio_line(taken: dict[str, list[Taken]]) -> str:
    first, second = taken
    clock, cpu = ratios(taken)
    return (
        f"{first} / {second}: {statistics.median(clock):.2f} × (median of {len(clock)} pairs, {min(clock):.2f} to "
        f"{max(clock):.2f}); by CPU seconds {statistics.median(cpu):.2f} × ({min(cpu):.2f} to {max(cpu):.2f})"
    )
