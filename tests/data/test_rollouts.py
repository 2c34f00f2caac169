"""Rollouts on disk are whole or absent and match their stamp. The pool does not depend on how it was put together."""

import errno
import multiprocessing
import os
import resource
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.data.files import digest
from nlf.data.pool import Pool
from nlf.data.rollouts import (
    SCHEMA,
    by_name,
    is_written,
    lists_by_name,
    part_path,
    read_part,
    samples_path,
    write_part,
)
from nlf.errors import UserError

STAMP = {"iteration": 3, "policy": "abc", "settings": ["x", 1.5, None]}


def table(rows) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def row(n: int = 0, **changes) -> dict:
    return {
        **{"prompt_id": f"p{n % 3}", "prompt": "the “river”", "prompt_ids": [n % 3, 5], "completion": " is calm"},
        **{"completion_ids": [n, 7, 0][: n % 3 + 1], "generation": n, "ended": n % 2 == 0, "feedback": None},
        **{"reward": n / 10, "rewards": [("vowels", n / 10), ("other", None)], "attributes": [], "scorer": "vowels"},
        **changes,
    }


def contents(pool: Pool) -> list[tuple]:
    return [
        (int(pool.iteration[i]), pool.prompt_key(i), int(pool.prompt_group[i]), pool.feedback(i), str(pool.rewards[i]),
         pool.prompt_ids(i).tolist(), pool.completion_ids(i).tolist(), int(pool.completion_lengths[i]))
        for i in range(len(pool))
    ]  # fmt: skip


def test_paths(tmp_path):
    assert part_path(tmp_path, 3, 7) == tmp_path / "rollouts" / "iteration-0003" / "part-00007.parquet"
    assert samples_path(tmp_path, 3, 7) == tmp_path / "rollouts" / "iteration-0003" / "samples-00007.parquet"


def test_a_part_comes_back_as_it_was(tmp_path):
    path = part_path(tmp_path, 0, 0)
    written = table([row(0), row(1, reward=None, feedback="Lowest Toxicity")])
    write_part(path, written, STAMP)
    assert read_part(path, STAMP).equals(written)
    assert pq.read_table(path).schema.equals(SCHEMA)
    assert [p.name for p in path.parent.iterdir()] == ["part-00000.parquet"]


def test_a_part_of_an_earlier_version_has_todays_columns_in_todays_order(tmp_path):
    path, old = samples_path(tmp_path, 0, 0), [name for name in SCHEMA.names if not name.startswith("prefix_")]
    write_part(path, table([row(0, judged="kind")]).select(old), STAMP)
    found = read_part(path, STAMP)
    assert found.schema.equals(SCHEMA) and found["judged"].to_pylist() == ["kind"]
    assert all(found[name].null_count == 1 for name in SCHEMA.names if name not in old)


def test_lists_by_name_by_hand():
    maps = [[("a", [1.0, None])], None, [("b", []), ("a", [])], [("b", [3.0]), ("a", [4.0])]]
    column = pa.array(maps, SCHEMA.field("prefix_rewards").type)
    found = lists_by_name(column, np.array([2, 1, 0, 1]))
    assert found["a"][0].tolist() == [True, False, True, True] and found["b"][0].tolist() == [False, False, True, True]
    assert (
        str(found["a"][1].tolist()) == "[1.0, nan, nan, 4.0]" and str(found["b"][1].tolist()) == "[nan, nan, nan, 3.0]"
    )
    assert lists_by_name(column.slice(3), np.array([1]))["a"][1].tolist() == [4.0]


def test_a_part_that_is_not_there(tmp_path):
    assert read_part(part_path(tmp_path, 0, 0), STAMP) is None


@pytest.mark.parametrize("other", [{}, {**STAMP, "policy": "abd"}, {**STAMP, "more": 1}])
def test_a_part_of_another_stamp_is_removed(tmp_path, other):
    path = part_path(tmp_path, 0, 0)
    write_part(path, table([row()]), other)
    assert read_part(path, STAMP) is None and not path.exists()


def test_a_file_without_stamp_is_removed(tmp_path):
    path = tmp_path / "part-00000.parquet"
    pq.write_table(table([row()]), path)
    assert read_part(path, STAMP) is None and not path.exists()


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"x" * 99])
def test_a_broken_part_is_removed(tmp_path, spoil):
    path = part_path(tmp_path, 0, 0)
    write_part(path, table([row()]), STAMP)
    path.write_bytes(spoil(path.read_bytes()))
    assert read_part(path, STAMP) is None and not path.exists()


def test_a_part_the_system_does_not_give_is_kept(tmp_path, monkeypatch):
    """A disk or permission that fails for a moment must not cost the samples."""
    path = part_path(tmp_path, 0, 0)
    write_part(path, table([row()]), STAMP)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot read .*part-00000.parquet: Permission denied"):
        read_part(path, STAMP)
    assert path.exists()


def test_looking_at_a_part_leaves_it_alone(tmp_path):
    path = part_path(tmp_path, 0, 0)
    assert not is_written(path, STAMP)
    write_part(path, table([row()]), STAMP)
    assert is_written(path, STAMP) and not is_written(path, {**STAMP, "policy": "abd"}) and path.exists()
    path.write_bytes(path.read_bytes()[:100])
    assert not is_written(path, STAMP) and path.exists()


def test_columns_that_an_earlier_version_did_not_write(tmp_path):
    path = part_path(tmp_path, 0, 0)
    pq.write_table(table([row(0), row(1)]).drop_columns(["judged"]), path.parent.mkdir(parents=True) or path)
    write_part(part_path(tmp_path, 1, 0), table([row(2, judged="Well said.")]), STAMP)
    pool = Pool.load(tmp_path, 1)
    assert [pool.judged(i) for i in range(3)] == [None, None, "Well said."]
    assert pool.has_sentence.tolist() == [False, False, True]
    write_part(path, table([row(0)]).drop_columns(["judged"]), STAMP)
    assert read_part(path, STAMP).schema.equals(SCHEMA)


def test_what_each_function_gave():
    maps = [[("a", 1.0)], None, [], [("b", None), ("a", 2.0)], [("b", 3.0)]]
    column = pa.array(maps, SCHEMA.field("rewards").type)
    np.testing.assert_equal(by_name(column), {"a": [1, np.nan, np.nan, 2, np.nan], "b": [np.nan] * 4 + [3]})
    np.testing.assert_equal(by_name(column[3:]), {"a": [2, np.nan], "b": [np.nan, 3]})
    assert by_name(column[1:2]) == by_name(column[:0]) == {}
    pool = Pool()
    pool.add(table([row(1), row(2)]), 0)
    pool.add(table([row(3, rewards=[("new", 7.0)])]), 1)
    np.testing.assert_equal(
        pool.by_function, {"vowels": [0.1, 0.2, np.nan], "other": [np.nan] * 3, "new": [np.nan, np.nan, 7]}
    )


def test_the_only_reward_is_kept_once_until_it_is_no_longer_the_sum():
    pool = Pool()
    for n in (1, 2):
        pool.add(table([row(n, rewards=[("vowels", n / 10)])]), 0)
    assert pool.by_function["vowels"] is pool.rewards
    pool.add(table([row(3, reward=0.6, rewards=[("vowels", 0.3), ("new", 0.3)])]), 1)
    np.testing.assert_equal(pool.by_function, {"vowels": [0.1, 0.2, 0.3], "new": [np.nan, np.nan, 0.3]})
    assert pool.rewards.tolist() == [0.1, 0.2, 0.6]


def test_a_prompt_is_kept_once_whenever_it_comes_back():
    pool = Pool()
    pool.add(table([row(0), row(1), row(3)]), 0)
    pool.add(table([row(4), row(2), row(5)]), 1)  # prompts 1, 2, 2
    assert [pool.prompt_ids(i).tolist() for i in range(6)] == [[n, 5] for n in (0, 1, 0, 1, 2, 2)]
    assert pool.prompt_ids(0).base is pool.prompt_ids(2).base and pool.prompt_group.tolist() == [0, 1, 0, 1, 2, 2]


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path):
    path = part_path(tmp_path, 0, 0)
    path.parent.mkdir(parents=True)
    leftover = path.with_name(f".{path.name}.4194305.tmp")
    leftover.write_bytes(b"PAR1 half")
    other = path.with_name(".part-00001.parquet.4194305.tmp")
    other.write_bytes(b"another part's")
    assert read_part(path, STAMP) is None
    write_part(path, table([row()]), STAMP)
    assert len(Pool.load(tmp_path, 0)) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == [other.name, path.name]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_part_and_nothing_else(tmp_path, monkeypatch, failing):
    path = part_path(tmp_path, 0, 0)
    write_part(path, table([row(1)]), STAMP)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(UserError, match="cannot write .*part-00000.parquet: No space left on device; free some space"):
        write_part(path, table([row(2)]), STAMP)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert read_part(path, STAMP)["generation"].to_pylist() == [1]


def test_a_disk_that_fills_up_within_a_file(tmp_path):
    """A limit on file size stands in for a full disk: the write fails half-way."""
    path = part_path(tmp_path, 0, 0)

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(UserError, match="cannot write .*part-00000.parquet"):
            write_part(path, table([row(n, completion=os.urandom(50).hex()) for n in range(200)]), STAMP)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and not list(path.parent.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "rollouts").write_text("a file")
    with pytest.raises(
        UserError, match="cannot write .*: Not a directory; move away what is there, or choose another"
    ):
        write_part(part_path(tmp_path, 0, 0), table([row()]), STAMP)


def test_digests():
    assert (
        digest({"a": 1, "b": [None, 2.5]}) == digest({"b": [None, 2.5], "a": 1}) != digest({"a": 1, "b": [2.5, None]})
    )
    with pytest.raises(TypeError):
        digest({"a": object()})  # its text holds an address, so its digest would differ between processes


def test_the_pool_by_hand(tmp_path):
    write_part(part_path(tmp_path, 0, 0), table([row(0), row(1, reward=None)]), STAMP)
    write_part(part_path(tmp_path, 1, 0), table([row(3, feedback="Lowest Toxicity", completion_ids=[])]), STAMP)
    write_part(samples_path(tmp_path, 1, 1), table([row(9)]), STAMP)  # unscored samples are not in the pool
    pool = Pool.load(tmp_path, 1)
    assert contents(pool) == [
        (0, "p0", 0, None, "0.0", [0, 5], [0], 1),
        (0, "p1", 1, None, "nan", [1, 5], [1, 7], 2),
        (1, "p0", 0, "Lowest Toxicity", "0.3", [0, 5], [], 0),
    ]
    assert pool.prompt_ids(0).dtype == pool.completion_ids(0).dtype == pool.iteration.dtype == np.int32
    assert pool.rewards.dtype == np.float64


@pytest.mark.parametrize(("keep", "expected"), [(None, [0, 1, 2]), (1, [2]), (2, [1, 2]), (9, [0, 1, 2])])
def test_old_iterations_can_be_dropped(tmp_path, keep, expected):
    for iteration in range(4):
        write_part(part_path(tmp_path, iteration, 0), table([row(iteration)]), STAMP)
    assert Pool.load(tmp_path, 2, keep).iteration.tolist() == expected


def test_the_order_is_iteration_part_row_whoever_wrote_first(tmp_path):
    for iteration, part in [(1, 0), (0, 100_000), (0, 2), (0, 10), (0, 99_999), (0, 0)]:
        write_part(part_path(tmp_path, iteration, part), table([row(part, completion_ids=[part]), row(1)]), STAMP)
    pool = Pool.load(tmp_path, 1)
    assert [int(pool.completion_ids(i)[0]) for i in range(0, len(pool), 2)] == [0, 2, 10, 99_999, 100_000, 0]
    assert pool.iteration.tolist() == [0] * 10 + [1] * 2


@settings(deadline=None)  # every part is flushed to disk
@given(st.lists(st.lists(st.integers(0, 20), max_size=6), min_size=1, max_size=5), st.integers(0, 5))
def test_adding_equals_loading(tmp_path_factory, iterations, loaded):
    folder = tmp_path_factory.mktemp("pool")
    tables = [table([row(n, feedback=[None, "a", "b"][n % 3]) for n in each]) for each in iterations]
    for iteration, each in enumerate(tables):
        for part, cut in enumerate((each.slice(0, 2), each.slice(2))):
            write_part(part_path(folder, iteration, part), cut, STAMP)
    whole = Pool.load(folder, len(tables) - 1)
    grown = Pool.load(folder, loaded - 1) if 0 < loaded <= len(tables) else Pool()
    for iteration in range(int(grown.iteration.max(initial=-1)) + 1 if len(grown) else 0, len(tables)):
        grown.add(tables[iteration], iteration)
    assert contents(grown) == contents(whole) and len(whole) == sum(map(len, iterations))


def test_a_missing_or_broken_iteration_is_said(tmp_path):
    write_part(part_path(tmp_path, 1, 0), table([row()]), STAMP)
    with pytest.raises(UserError, match="iteration-0000: no rollouts; expected the rollouts of iteration 0"):
        Pool.load(tmp_path, 1)
    part_path(tmp_path, 1, 0).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="part-00000.parquet: broken; expected the rollouts of iteration 1"):
        Pool.load(tmp_path, 1, keep=1)
    assert part_path(tmp_path, 1, 0).exists()


def test_ids_of_any_length_stay_apart():
    pool = Pool()
    lengths = [0, 3, 0, 1, 70_000]
    made = table([row(completion_ids=list(range(n)), prompt_id=str(n), prompt_ids=[n] * 2) for n in lengths])
    pool.add(pa.concat_tables([made.slice(0, 2), made.slice(2)]), 0)  # chunks and offsets that do not start at 0
    assert pool.completion_lengths.tolist() == lengths
    assert all((pool.completion_ids(i) == np.arange(n)).all() for i, n in enumerate(lengths))
    assert [pool.prompt_ids(i).tolist() for i in range(5)] == [[n, n] for n in lengths]
