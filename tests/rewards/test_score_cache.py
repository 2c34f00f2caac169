"""The cache of answers, its export to JSON Lines, and the arithmetic of the rate limit."""

import json
import multiprocessing
import os
import sqlite3
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.rewards.cache import CATCH_UP, Cache, Pace, digest, gap, slot


def test_what_is_put_is_there_in_another_connection(tmp_path):
    path = tmp_path / "new" / "scores.sqlite"
    with Cache(path) as one, Cache(path) as other:
        one.put("a", "s", {"answer": {"x": 0.1, "word": "é\ud83d"}})
        assert other.get(["a", "b"]) == {"a": {"answer": {"x": 0.1, "word": "é\ud83d"}}}
        other.put("a", "s", {"refused": "later"})  # the first answer stays
        assert one.get(["a"])["a"]["answer"]["x"] == 0.1
        assert one.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_keys_differ_by_all_that_matters_and_not_by_order():
    origin = ["scorer", "1", {"a": 1, "b": 2}]
    keys = [[*origin, "text"], [*origin, "text "], ["other", *origin[1:], "text"], [*origin[:2], {"a": 1}, "text"]]
    assert len(set(map(digest, keys))) == 4
    assert digest(["scorer", "1", {"b": 2, "a": 1}, "text"]) == digest(keys[0])
    assert digest(["x", "ab", "c"]) != digest(["x", "a", "bc"])


def _fill(path, who, barrier):
    barrier.wait()
    with Cache(path) as cache:
        for i in range(100):
            cache.put(f"{who} {i}", "s", {"answer": i})
            cache.put(f"all {i}", "s", {"answer": who})


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_fill, args=(tmp_path / "c", who, barrier)) for who in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Cache(tmp_path / "c") as cache:
        rows = list(cache.rows())
    assert len(rows) == 500 and len({row["key"] for row in rows}) == 500


def test_export_and_import(tmp_path):
    with Cache(tmp_path / "a") as a:
        a.put("1", "s", {"answer": {"x": 0.5}})
        a.put("2", "s", {"refused": "COMMENT_EMPTY"})
        a.put("3", "s", {"answer": "half \ud83d"})
        assert a.export(tmp_path / "out.jsonl") == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[:2] == [
        {"key": "1", "scorer": "s", "answer": {"x": 0.5}},
        {"key": "2", "scorer": "s", "refused": "COMMENT_EMPTY"},
    ]
    with Cache(tmp_path / "b") as b:
        b.put("1", "s", {"answer": "mine"})
        assert b.take(tmp_path / "out.jsonl") == 2 and b.take(tmp_path / "out.jsonl") == 0
        assert b.get("123") == {
            "1": {"answer": "mine"}, "2": {"refused": "COMMENT_EMPTY"}, "3": {"answer": "half \ud83d"},
        }  # fmt: skip


GOOD = '{"key": "1", "scorer": "s", "answer": null}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"key": "2", "scor', "in.jsonl:2: broken JSON"),
        ("[]", "in.jsonl:2: expected an object"),
        ('{"key": "2", "scorer": "s"}', "in.jsonl:2: expected lines of nlf score --export_cache"),
        ('{"key": "2", "scorer": "s", "answer": 1, "refused": "x"}', "in.jsonl:2: expected lines"),
        ('{"key": 2, "scorer": "s", "answer": 1}', "in.jsonl:2: expected lines"),
        ('{"key": "2", "scorer": "s", "refused": 1}', "in.jsonl:2: expected lines"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, words):
    (tmp_path / "in.jsonl").write_text(GOOD + line + "\n")
    with Cache(tmp_path / "c") as cache, pytest.raises(UserError, match=words) as caught:
        cache.take(tmp_path / "in.jsonl")
    assert "\n" not in str(caught.value)


def test_import_takes_more_than_one_batch_and_counts_only_new_ones(tmp_path):
    rows = [{"key": str(i % 2400), "scorer": "s", "answer": i} for i in range(2500)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Cache(tmp_path / "c") as cache:
        assert cache.take(tmp_path / "in.jsonl") == 2400
        assert cache.get(["0", "2399"]) == {"0": {"answer": 0}, "2399": {"answer": 2399}}


def test_a_file_that_is_no_database_or_no_file_is_one_line(tmp_path):
    (tmp_path / "text").write_text("not a database, " * 100)
    (tmp_path / "folder" / "scores.sqlite").mkdir(parents=True)
    for path, reason in [
        (tmp_path / "text", "file is not a database"),
        (tmp_path / "folder" / "scores.sqlite", "Is a directory"),
        (tmp_path / "text" / "scores.sqlite", "File exists|Not a directory"),
    ]:
        with pytest.raises(UserError, match=f"{path}: .*({reason}).*--cache_dir") as caught:
            Cache(path).__enter__()
        assert "\n" not in str(caught.value)


def test_an_older_table_of_that_name_is_said_so(tmp_path):
    with sqlite3.connect(tmp_path / "c") as other:
        other.execute("CREATE TABLE answers (something)")
    with Cache(tmp_path / "c") as cache, pytest.raises(UserError, match="no such column"):
        cache.get(["a"])


@pytest.mark.parametrize(
    "row",
    [
        b"x",
        b"",
        b"[1]",
        b"null",
        b"{}",
        b'{"answer": 1, "refused": "x"}',
        b'{"refused": 1}',
        b'{"answer": 5}',
        b"\xff",
        7,
        b"[" * 99_999,
    ],
)
def test_a_damaged_row_is_asked_for_again_with_a_line(tmp_path, caplog, row):
    path = tmp_path / "c"
    with Cache(path) as cache:
        for key in "ab":
            cache.put(key, "s", {"answer": {"x": 1}})
        cache.connection.execute("UPDATE answers SET found = ? WHERE key = 'a'", (row,))
        if row != b'{"answer": 5}':
            assert [each["key"] for each in cache.rows()] == ["b"]
            assert f"{path}: 1 answers are damaged and left out" in caplog.text
        assert cache.get("ab", dict) == {"b": {"answer": {"x": 1}}}
        assert f"{path}: 1 answers are damaged; they count as not yet asked for" in caplog.text
        cache.put("a", "s", {"answer": {"x": 2}})
        assert cache.get("a", dict) == {"a": {"answer": {"x": 2}}}


def test_new_files_are_for_their_owner_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        with Cache(tmp_path / "cache" / "scores.sqlite") as cache:
            cache.put("a", "s", {"answer": 1})
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()}
    finally:
        os.umask(old)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert len(modes) == 3 and set(modes.values()) == {0o600}


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_a_symbolic_link_that_another_user_planted_is_not_followed(tmp_path, suffix):
    (tmp_path / f"pace.sqlite{suffix}").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"pace.sqlite{suffix} is a symbolic link.*NLF_CACHE"), Pace(tmp_path):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_file_of_another_user_in_a_folder_for_everyone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "scores.sqlite").touch()
    tmp_path.chmod(0o777)
    monkeypatch.setattr("nlf.rewards.cache.os.getuid", lambda: 12345)
    with pytest.raises(UserError, match="another user owns it"), Cache(tmp_path / "scores.sqlite"):
        pass


def test_a_pipe_in_the_place_of_the_cache_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "c")
    with pytest.raises(UserError, match="it is not a file"), Cache(tmp_path / "c"):
        pass


# ---- pace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "seconds"), [(1.0, 1.1), (10, 0.11), (2.5, 0.55), (0.5, 2.2), (0.01, 110.0)])
def test_the_gap_between_starts(rate, seconds):
    assert gap(rate) == pytest.approx(seconds)


def test_slots_by_hand():
    assert slot(None, 5.0, 10) == (0.0, 5.0)
    assert slot(5.0, 5.1, 10) == (pytest.approx(0.01), 5.0)  # 10 ms too early
    assert slot(5.0, 5.11, 10) == (0.0, pytest.approx(5.11))
    assert slot(5.0, 5.12, 10) == (0.0, pytest.approx(5.11))  # a delay of 10 ms is made up for
    assert slot(5.0, 9.0, 10) == (0.0, 9.0 - CATCH_UP)  # no burst after a long rest
    assert slot(5000.0, 1.0, 10) == (pytest.approx(0.11), 1.0)  # after a restart of the machine: one gap, not 5,000 s


@given(
    st.floats(0.05, 300),
    st.lists(st.one_of(st.floats(0, 0.1), st.floats(0, 5), st.just(0.0)), min_size=1, max_size=300),
)
def test_no_second_holds_more_than_the_rate(rate, delays):
    """The limit holds however late a process wakes up after its wait."""
    now, last, starts = 100.0, None, []
    for delay in delays:
        now += delay
        wait, last = slot(last, now, rate)
        if wait:
            now += wait
            wait, last = slot(last, now + 1e-9, rate)
        assert not wait
        starts.append(now)
    window = max(1.0, 1 / rate)
    busiest = max(bisect_left(starts, start + window) - i for i, start in enumerate(starts))
    assert busiest <= max(rate, 1)


def test_services_have_a_pace_each_and_processes_share_it(monkeypatch, tmp_path):
    monkeypatch.setattr("nlf.rewards.cache.time.time", lambda: 1000.0)
    with Pace(tmp_path) as one, Pace(tmp_path) as other:
        assert one.start("a", 2) == 0
        assert other.start("a", 2) == pytest.approx(gap(2))
        assert other.start("b", 2) == 0


def test_a_damaged_or_future_pace_costs_one_pause_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr("nlf.rewards.cache.time.time", lambda: 1000.0)
    with Pace(tmp_path) as pace:
        for last, wait in [("soon", 0), (None, 0), (1e300, gap(2)), (-1e300, 0)]:
            pace.connection.execute("DROP TABLE pace")
            pace.connection.execute("CREATE TABLE pace (service TEXT PRIMARY KEY, last REAL)")
            pace.connection.execute("INSERT INTO pace VALUES ('a', ?)", (last,))
            assert pace.start("a", 2) == pytest.approx(wait)
