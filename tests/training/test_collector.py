"""The loop page: parts are done once, by one rank, and belong to what they were made from."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.data.pool import Pool
from nlf.data.rollouts import SCHEMA, part_path, samples_path
from nlf.method.prompt_order import choose_prompts, number_occurrences
from nlf.method.quantize import quantize
from nlf.training import iteration
from nlf.training.iteration import Loop, run_iteration


class Recorder:
    """A loop over six prompts that notes what it was asked to do."""

    def __init__(self, folder, **changes):
        self.sampled, self.scored, self.fail_at = [], [], None
        self.loop = Loop(
            folder, [f"p{i}" for i in range(6)], None, 2, 3, 0, self.sample, self.score,
            lambda pool: quantize(pool.rewards, 5), lambda what, total, done: lambda n: None,
        )  # fmt: skip
        self.loop = dataclasses.replace(self.loop, **changes)

    def sample(self, rows, iteration, advance):
        if self.fail_at == ("sample", len(self.sampled)):
            raise KeyboardInterrupt
        self.sampled.append([row for row, _ in rows])
        each = [row for row, _ in rows for _ in range(3)]
        columns = {
            "prompt_id": [f"p{row}" for row in each],
            "prompt_ids": [[row] for row in each],
            "completion_ids": [[iteration, row, n] for row, _ in rows for n in range(3)],
        }
        n = len(each)
        return pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA}, schema=SCHEMA)

    def score(self, table, rows):
        if self.fail_at == ("score", len(self.scored)):
            raise KeyboardInterrupt
        self.scored.append([row for row, _ in rows])
        rewards = [float(ids[1] + ids[2] / 10) for ids in table["completion_ids"].to_pylist()]
        return table.set_column(table.schema.get_field_index("reward"), "reward", pa.array(rewards))


def test_an_iteration(tmp_path):
    made = Recorder(tmp_path)
    pool, quantiles = run_iteration(0, made.loop, {"step": 0})
    assert made.sampled == made.scored == [[0, 1], [2, 3], [4, 5]]
    assert len(pool) == 18 and np.bincount(quantiles).tolist() == [4, 3, 4, 3, 4]
    assert quantiles[pool.rewards.argmax()] == 0
    pool, _ = run_iteration(1, made.loop, {"step": 1})
    assert len(pool) == 36 and pool.iteration.tolist() == [0] * 18 + [1] * 18


def test_nothing_finished_is_done_again(tmp_path):
    first = Recorder(tmp_path)
    first.fail_at = ("score", 1)
    with pytest.raises(KeyboardInterrupt):
        run_iteration(0, first.loop, {"step": 0})
    assert part_path(tmp_path, 0, 0).exists() and samples_path(tmp_path, 0, 1).exists()
    second = Recorder(tmp_path)
    pool, _ = run_iteration(0, second.loop, {"step": 0})
    assert second.sampled == [] and second.scored == [[2, 3], [4, 5]]
    whole, _ = run_iteration(0, Recorder(tmp_path / "whole").loop, {"step": 0})
    assert pool.rewards.tolist() == whole.rewards.tolist()


def test_a_part_of_other_weights_is_done_again(tmp_path):
    run_iteration(0, Recorder(tmp_path).loop, {"policy": "a"})
    again = Recorder(tmp_path)
    run_iteration(0, again.loop, {"policy": "b"})
    assert again.sampled == [[0, 1], [2, 3], [4, 5]]


def test_a_broken_part_is_done_again(tmp_path):
    run_iteration(0, Recorder(tmp_path).loop, {})
    path = part_path(tmp_path, 0, 1)
    path.write_bytes(path.read_bytes()[:100])
    again = Recorder(tmp_path)
    run_iteration(0, again.loop, {})
    assert again.sampled == [[2, 3]]


def test_ranks_share_the_parts(tmp_path):
    """Rank 1 goes first here; with a real barrier both would wait for each other before the pool is read."""
    ranks = [Recorder(tmp_path, rank=r, world_size=2) for r in (1, 0)]
    pools = [run_iteration(0, made.loop, {})[0] for made in ranks]
    assert [made.sampled for made in ranks] == [[[2, 3]], [[0, 1], [4, 5]]]
    assert pools[1].rewards.tolist() == run_iteration(0, Recorder(tmp_path / "one").loop, {})[0].rewards.tolist()


def together(folder, stamp, **changes) -> list[Recorder]:
    """Two ranks at once, of which the first scores."""
    barrier = threading.Barrier(2, timeout=60)
    made = [
        Recorder(folder, rank=r, world_size=2, first_scores=True, wait=lambda: barrier.wait() and None) for r in (0, 1)
    ]
    with ThreadPoolExecutor(2) as both:
        pools = list(both.map(lambda each: run_iteration(0, each.loop, stamp)[0], made))
    assert pools[0].rewards.tolist() == pools[1].rewards.tolist()
    return made


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(iteration, "POLL", 0.01)


def test_the_first_rank_scores_for_all(tmp_path, quick):
    first, second = together(tmp_path, {})
    assert (first.sampled, second.sampled) == ([[0, 1], [4, 5]], [[2, 3]])
    assert (first.scored, second.scored) == ([[0, 1], [2, 3], [4, 5]], [])
    assert not list(tmp_path.glob("rollouts/*/samples-*"))
    alone = run_iteration(0, Recorder(tmp_path / "one").loop, {})[0]
    assert Pool.load(tmp_path, 0).rewards.tolist() == alone.rewards.tolist()


def test_what_another_rank_has_sampled_is_not_sampled_again(tmp_path, quick):
    """Sampled before the run was killed, scored by the first rank before the second looks for it."""
    killed = Recorder(tmp_path)
    killed.fail_at = ("score", 1)
    with pytest.raises(KeyboardInterrupt):
        run_iteration(0, killed.loop, {"step": 0})
    first, second = together(tmp_path, {"step": 0})
    assert first.sampled == second.sampled == [] and first.scored == [[2, 3], [4, 5]]
    assert not list(tmp_path.glob("rollouts/*/samples-*"))
    first, second = together(tmp_path, {"step": 1})  # other weights
    assert first.scored == [[0, 1], [2, 3], [4, 5]] and second.sampled == [[2, 3]]


def test_a_rank_that_waits_can_be_stopped(tmp_path, quick):
    def stop():
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_iteration(0, Recorder(tmp_path, rank=1, world_size=2, first_scores=True, check=stop).loop, {})


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 5))
def test_prompts_come_round_evenly(num_prompts, count, last):
    """After any number of iterations no prompt has been drawn twice more than another."""
    drawn = [row for i in range(last + 1) for row in choose_prompts(num_prompts, count, 7, i)]
    assert len(drawn) == count * (last + 1)
    times = np.bincount(drawn, minlength=num_prompts)
    assert times.max() - times.min() <= 1


def test_equal_prompts_are_told_apart():
    assert number_occurrences([0, 1, 2, 0], ["a", "b", "a"]) == [(0, 0), (1, 0), (2, 1), (0, 2)]
