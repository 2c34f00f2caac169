"""The pool against plain Python: add a million rollouts, cut them into quantiles, draw a run's steps from them.

    python benchmarks/pool.py [--rollouts 1000000] [--iterations 16]

The other side keeps a list of dicts, sorts it by reward each time and deep-copies it, which is how the published code
holds its pool. Both run here, each in a process of its own, on the same rollouts (12 + 20 tokens, 5 quantiles, 2,000
steps of 32). The plain side is handed its dicts ready made, so its `add` is a list that grows.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from processes import in_fresh_process, peak_megabytes

from nlf.quantize import Draws, quantize
from nlf.rollouts import SCHEMA, Pool, part_path, write_part

PROMPT, COMPLETION, QUANTILES, STEPS, BATCH = 12, 20, 5, 2_000, 32
PART = 4_096  # rollouts a file


def made(iteration: int, count: int) -> pa.Table:
    """One iteration's rollouts: random ids and rewards, each prompt four times."""
    random = np.random.default_rng(iteration)
    keys = np.arange(count) // 4

    def lists(width: int) -> pa.Array:
        ids = random.integers(0, 50_257, count * width, dtype=np.int32)
        return pa.ListArray.from_arrays(np.arange(0, count * width + 1, width, dtype=np.int32), ids)

    columns = {
        "prompt_id": pa.array([f"{key:016x}" for key in keys]),
        "prompt_ids": lists(PROMPT),
        "completion_ids": lists(COMPLETION),
        "reward": pa.array(random.random(count)),
        "feedback": pa.array([None if iteration == 0 else "Lowest Toxicity"] * count, pa.string()),
    }
    return pa.table({f.name: columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA}, schema=SCHEMA)


def tables(rollouts: int, iterations: int) -> Iterator[pa.Table]:
    """Each iteration's rollouts, made when asked for; the last one gets the remainder."""
    each = rollouts // iterations
    for i in range(iterations):
        yield made(i, each if i < iterations - 1 else rollouts - each * i)


def ours(given: Iterator[pa.Table], clock: "Clock") -> None:
    pool = Pool()
    for iteration, table in enumerate(given):
        with clock("add"):
            pool.add(table, iteration)
    with clock("quantize"):
        quantiles = quantize(pool.rewards, QUANTILES)
    with clock("draw"):
        draws = Draws(quantiles, batch_size=BATCH, weights=None, seed=0, iteration=1)
        rows = [draws[i] for i in range(STEPS * BATCH)]
        sum(len(pool.prompt_ids(i)) + len(pool.completion_ids(i)) for i in rows)


def plain(given: Iterator[pa.Table], clock: "Clock") -> None:
    pool: list[dict] = []
    for table in given:
        rows = table.select(["prompt_ids", "completion_ids", "reward"]).to_pylist()
        with clock("add"):
            pool.extend(rows)
    with clock("quantize"):
        pool.sort(key=lambda row: -row["reward"])
        for place, row in enumerate(pool):
            row["quantile"] = place * QUANTILES // len(pool)
        drawable = copy.deepcopy(pool)
    with clock("draw"):
        rows = np.random.default_rng(0).permutation(len(drawable))[: STEPS * BATCH]
        sum(len(drawable[i]["prompt_ids"]) + len(drawable[i]["completion_ids"]) for i in rows)


def load(folder: Path, clock: "Clock") -> None:
    with clock("load"):
        Pool.load(folder, len(list((folder / "rollouts").iterdir())) - 1)


class Clock:
    """Seconds spent in each named stretch, summed."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str):
        self.name, self.start = name, None
        return self

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start


def measured(side: str, rollouts: int, iterations: int, folder: Path, results) -> None:
    """Run one side in this (fresh) process; making its input is not timed. Memory: the highest, less what was there."""
    clock = Clock()
    before = peak_megabytes()
    if side == "load":
        load(folder, clock)
    else:
        {"ours": ours, "plain": plain}[side](tables(rollouts, iterations), clock)
    grown = peak_megabytes() - before
    results.put((clock.seconds, grown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for iteration, table in enumerate(tables(options.rollouts, options.iterations)):
            for part, start in enumerate(range(0, len(table), PART)):
                write_part(part_path(folder, iteration, part), table.slice(start, PART), {})
        sides = {
            side: in_fresh_process(measured, side, options.rollouts, options.iterations, folder)
            for side in ("ours", "plain", "load")
        }
    (mine, my_memory), (other, other_memory), (loaded, load_memory) = sides.values()
    rows = [(name, mine[name], other[name], "s") for name in mine]
    rows.append(("all three", sum(mine.values()), sum(other.values()), "s"))
    rows.append(("memory", my_memory, other_memory, "MB"))
    print(f"{options.rollouts:,} rollouts, {options.iterations} iterations")
    print(f"{'':14}{'nlf':>9}{'plain':>13}{'ratio':>13}")
    for name, a, b, unit in rows:
        print(f"{name:14}{a:>9.3f} {unit:3}{b:>9.3f} {unit:3}{b / a if a else float('nan'):>8.2f}×")
    print(f"reading it back from Parquet: {loaded['load']:.2f} s, {load_memory:.0f} MB at its highest")


if __name__ == "__main__":
    main()
