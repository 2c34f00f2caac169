"""One iteration: prompts are chosen, rollouts collected, and the pool of all rollouts labelled."""

import numpy as np
from collecting import SCHEME, Recorder

from nlf.data.pool import Pool
from nlf.training.iteration import run_iteration


def run(made: Recorder, prompts_per_iteration=None, pool_keep=None):
    return run_iteration(made.collector, seed=0, prompts_per_iteration=prompts_per_iteration, pool_keep=pool_keep)


def test_an_iteration(tmp_path):
    made = Recorder(tmp_path)
    pool, quantiles, words = run(made)
    assert made.sampled == made.scored == [[0, 1], [2, 3], [4, 5]]
    assert len(pool) == 18 and np.bincount(quantiles).tolist() == [4, 3, 4, 3, 4]
    best = int(pool.rewards.argmax())
    assert quantiles[best] == 0 and words(best, 0) == (SCHEME.best, SCHEME.worst)


def test_the_pool_holds_all_iterations_and_later_ones_sample_under_the_best_tag(tmp_path):
    run(Recorder(tmp_path))
    pool, quantiles, _ = run(Recorder(tmp_path, iteration=1))
    assert len(pool) == len(quantiles) == 36 and pool.iteration.tolist() == [0] * 18 + [1] * 18
    assert {pool.feedback(i) for i in range(18)} == {None} and {pool.feedback(i) for i in range(18, 36)} == {
        SCHEME.best
    }


def test_a_pool_may_forget(tmp_path):
    run(Recorder(tmp_path))
    pool, _, _ = run(Recorder(tmp_path, iteration=1), pool_keep=1)
    assert pool.iteration.tolist() == [1] * 18


def test_an_iteration_samples_the_next_prompts(tmp_path):
    first, second = Recorder(tmp_path), Recorder(tmp_path, iteration=1)
    run(first, prompts_per_iteration=3)
    run(second, prompts_per_iteration=3)
    rows = [row for made in (first, second) for part in made.sampled for row in part]
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]


def test_the_past_is_read_only_where_words_depend_on_it(tmp_path, monkeypatch):
    """Tags do not: a run that keeps one iteration goes on without the rollouts of the iteration before."""
    loaded = []
    load = Pool.load
    monkeypatch.setattr(
        Pool, "load", lambda run_dir, up_to, keep=None, since=0: loaded.append(up_to) or load(run_dir, up_to, keep)
    )
    run(Recorder(tmp_path, iteration=1), pool_keep=1)
    assert loaded == [1]
