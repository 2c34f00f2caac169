"""The pool against plain Python: add a million rollouts, cut them into quantiles, draw a run's steps from them.

    python benchmarks/pool.py [--rollouts 1000000] [--iterations 16]

Like the published code, the plain side keeps a list of dicts, sorts it by reward each time and deep-copies it. Each side
runs in a fresh process on the same rollouts (12 + 20 tokens, 5 quantiles, 2,000 steps of 32). The plain side gets its
dicts ready made, so its `add` only extends a list.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from processes import in_fresh_process, peak_megabytes

from nlf.data.markdown import markdown_table
from nlf.data.pool import Pool
from nlf.data.rollouts import SCHEMA, part_path, write_part
from nlf.method.quantize import Draws, quantize

PROMPT, COMPLETION, EACH, QUANTILES, STEPS, BATCH = 12, 20, 4, 5, 2_000, 32
PART = 4_096  # rollouts of a file


def made(iteration: int, count: int) -> pa.Table:
    """Make the rollouts of one iteration: random ids and rewards of one scorer, each prompt four times."""
    random = np.random.default_rng(iteration)
    keys = np.arange(count) // EACH
    prompts = ids(np.random.default_rng(0), keys[-1] + 1, PROMPT)  # the same in every iteration
    rewards = pa.array(random.random(count))
    one = pa.array(np.zeros(count, np.int32))
    columns = {
        "prompt_id": pc.utf8_lpad(pa.array(keys).cast(pa.string()), 16, "0"),
        "prompt_ids": lists(prompts[keys]),
        "completion_ids": lists(ids(random, count, COMPLETION)),
        "reward": rewards,
        "rewards": pa.MapArray.from_arrays(
            pa.array(np.arange(count + 1, dtype=np.int32)), pa.array(["local"]).take(one), rewards
        ),
        "feedback": pa.array([None if iteration == 0 else "Lowest Toxicity"]).cast(pa.string()).take(one),
    }
    return pa.table({f.name: columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA}, schema=SCHEMA)


def ids(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return random.integers(0, 50_257, (rows, width), dtype=np.int32)


def lists(ids: np.ndarray) -> pa.Array:
    """Turn (N, T) ids into N lists."""
    return pa.ListArray.from_arrays(np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32), ids.ravel())


def tables(rollouts: int, iterations: int) -> Iterator[pa.Table]:
    """Make the rollouts of each iteration one after another; the last iteration gets the remainder."""
    each = rollouts // iterations
    for i in range(iterations):
        yield made(i, each if i < iterations - 1 else rollouts - each * i)


def ours(given: Iterator[pa.Table], clock: "Clock") -> None:
    pool = Pool()
    for iteration, table in enumerate(given):
        with clock("add"):
            pool.add(table, iteration)
        del table  # frees the memory before the next table is made
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
        del table, rows
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
    """Sums the seconds of each named stretch of work, and the CPU seconds of all stretches."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.cpu = 0.0

    def __call__(self, name: str):
        self.name, self.start = name, None
        return self

    def __enter__(self):
        self.start, self.cpu = time.perf_counter(), self.cpu - time.process_time()

    def __exit__(self, *_):
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start
        self.cpu += time.process_time()


def measured(side: str, rollouts: int, iterations: int, folder: Path, results) -> None:
    """Run one side in this (fresh) process and report its seconds, CPU seconds and memory.

    Making the input is not timed. Memory is the peak above that after a few rollouts. It includes the iteration being
    added: 14 MB of Arrow for 62,500 rollouts.
    """
    clock, run = Clock(), {"ours": ours, "plain": plain, "load": ours}[side]
    run(tables(1_000, 2), Clock())
    before = peak_megabytes()
    if side == "load":
        load(folder, clock)
    else:
        run(tables(rollouts, iterations), clock)
    grown = peak_megabytes() - before
    results.put((clock.seconds, clock.cpu, grown))


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
    (mine, my_cpu, my_memory), (other, other_cpu, other_memory), (loaded, load_cpu, load_memory) = sides.values()
    figures = [(f"{name}, s", mine[name], other[name]) for name in mine]
    figures.append(("all three, s", sum(mine.values()), sum(other.values())))
    figures.append(("all three, CPU s", my_cpu, other_cpu))
    figures.append(("memory, MB", my_memory, other_memory))
    rows = [(name, f"{a:.2f}", f"{b:.2f}", f"{b / a if a else float('nan'):.2f}") for name, a, b in figures]
    print(f"{options.rollouts:,} rollouts, {options.iterations} iterations\n")
    print(markdown_table(["step", "nlf", "plain", "ratio"], rows))
    print(
        f"\nreading the rollouts from disk: {loaded['load']:.2f} s ({load_cpu:.2f} CPU s), {load_memory:.0f} MB at the peak"
    )


if __name__ == "__main__":
    main()
