"""The rollouts of an iteration, read back as logged feedback, are the same pool, and give the same dial."""

import sys
from pathlib import Path

import numpy as np
import pytest

from nlf.data.pool import Pool

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import logged


def test_rollouts_read_back_are_the_pool_that_they_were(tmp_path):
    """In a small form. Some texts are tokenized differently from how they were sampled; rewards, prompts and draws are equal."""
    logged.train(tmp_path, 0, steps=2, prompts=16, flags=["--per_device_train_batch_size", 8, "--use_cpu"])
    one, other = Pool.load(tmp_path / logged.SAMPLED, 0), Pool.load(tmp_path / logged.LOGGED, 0, since=1)
    scored = np.flatnonzero(~np.isnan(one.rewards))
    assert 56 < len(scored) == len(other) and other.logged.all()
    assert np.array_equal(one.rewards[scored], other.rewards)
    assert all(np.array_equal(one.prompt_ids(row), other.prompt_ids(i)) for i, row in enumerate(scored))
    equal = [np.array_equal(one.completion_ids(row), other.completion_ids(i)) for i, row in enumerate(scored)]
    assert np.mean(equal) > 0.8
    found = logged.dial(tmp_path / logged.LOGGED, 2, 2)
    assert found.best.shape == found.worst.shape == (2,)


@pytest.mark.extended
def test_the_dial_is_that_of_the_iteration(tmp_path):
    """Means over 100 prompts under the best and the worst tag, within .01."""
    logged.train(tmp_path, 0, steps=40, prompts=512, flags=["--use_cpu"])
    one, other = (logged.dial(tmp_path / name, 100, 25) for name in (logged.SAMPLED, logged.LOGGED))
    assert np.abs(one.best.mean() - other.best.mean()) < 0.01
    assert np.abs(one.worst.mean() - other.worst.mean()) < 0.01
