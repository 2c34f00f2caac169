"""The loop: sample → score → pool → quantize → tag. One call per iteration; training on the result is the Trainer's.

    iteration 0    x ~ reference(· | prompt)                  no feedback yet
    iteration k    x ~ policy(· | best words, prompt)
                   pool ← pool ∪ (prompt, x, reward(x));  quantile ← rank in the whole pool;  words ← `feedback.py`

Work is cut into parts of a fixed list of prompts before it starts. A part is sampled, then scored, by one rank; once
written it is never done again, unless its stamp (weights, settings) is not this iteration's. With a remote reward the
first rank scores every part. The others look for its files: a collective would time out while it waits for a service.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nlf.data.pool import Pool
from nlf.data.rollouts import is_written, part_path, read_part, samples_path, write_part
from nlf.method.prompt_order import choose_prompts, number_occurrences

POLL = 0.5  # seconds between two looks for another rank's file
Progress = Callable[[str, int, int], Callable[[int], None]]  # (what, total, already done) → advance(n)


@dataclass(frozen=True)
class Loop:
    """What one iteration needs; the Trainer fills it in, a test can as well."""

    run_dir: Path
    prompt_ids: Sequence[str]
    prompts_per_iteration: int | None
    prompts_per_part: int
    num_generations: int
    seed: int
    sample: Callable[
        [Sequence[tuple[int, int]], int, Callable], pa.Table
    ]  # (row, occurrence)s, iteration, advance → rollouts
    score: Callable[[pa.Table, Sequence[tuple[int, int]]], pa.Table]  # the same with rewards
    quantize: Callable[[Pool], np.ndarray]
    progress: Progress
    rank: int = 0  # -1 = it has no parts, others sample and score them
    world_size: int = 1  # ranks that have parts
    wait: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None  # called between parts; raises when the run is asked to stop
    end_sampling: Callable[[], None] = lambda: None  # when this rank has sampled its parts, before it scores
    pool_keep: int | None = None
    first_scores: bool = False  # the first rank scores the parts of all


def run_iteration(iteration: int, loop: Loop, stamp: dict) -> tuple[Pool, np.ndarray]:
    """Sample and score what is missing of this iteration; return the pool so far and each rollout's quantile."""
    rows = choose_prompts(len(loop.prompt_ids), loop.prompts_per_iteration, loop.seed, iteration)
    prompts = number_occurrences(rows, loop.prompt_ids)
    parts = [prompts[i : i + loop.prompts_per_part] for i in range(0, len(prompts), loop.prompts_per_part)]
    mine = [(n, rows) for n, rows in enumerate(parts) if n % loop.world_size == loop.rank]
    todo = [(n, rows) for n, rows in mine if read_part(part_path(loop.run_dir, iteration, n), stamp) is None]
    unsampled = [(n, rows) for n, rows in todo if read_part(samples_path(loop.run_dir, iteration, n), stamp) is None]
    loop.wait()  # nobody writes or removes what another has yet to look at
    sampled = bar(loop, "sampling", mine, unsampled)
    for n, rows in unsampled:
        loop.check()
        write_part(samples_path(loop.run_dir, iteration, n), loop.sample(rows, iteration, sampled), stamp)
    loop.end_sampling()
    if loop.first_scores:
        mine = list(enumerate(parts)) if loop.rank == 0 else []
        todo = [(n, rows) for n, rows in mine if not is_written(part_path(loop.run_dir, iteration, n), stamp)]
    scored = bar(loop, "scoring", mine, todo)
    for n, rows in todo:
        path = samples_path(loop.run_dir, iteration, n)
        wait_for(lambda path=path: is_written(path, stamp), loop.check)
        table = loop.score(read_part(path, stamp), rows)
        write_part(part_path(loop.run_dir, iteration, n), table, stamp)
        path.unlink()
        scored(table.num_rows)
    for n in range(len(parts) if loop.first_scores or loop.rank < 0 else 0):
        wait_for(lambda n=n: is_written(part_path(loop.run_dir, iteration, n), stamp), loop.check)
    loop.wait()
    pool = Pool.load(loop.run_dir, iteration, keep=loop.pool_keep)
    return pool, loop.quantize(pool)


def bar(loop: Loop, what: str, mine: list, todo: list) -> Callable[[int], None]:
    """The progress of this rank's parts, of which some are done."""
    total, left = (sum(len(rows) for _, rows in parts) * loop.num_generations for parts in (mine, todo))
    return loop.progress(what, total, total - left)


def wait_for(done: Callable[[], bool], check: Callable[[], None]) -> None:
    """Until another rank has done it; `check` raises when the run is asked to stop."""
    check()
    while not done():
        time.sleep(POLL)
        check()
