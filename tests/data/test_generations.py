"""Generations files are appended, cut and annotated. After a kill nothing is measured twice and nothing is stale."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.data import generations
from nlf.data.generations import annotate, append, files_of, keep_lines, measured, mend, read, read_lines, write_lines
from nlf.errors import UserError


def rows(*texts: str) -> list[dict]:
    return [{"completions": [text, text + "!"]} for text in texts]


class Lengths:
    """A measurement that records the measured texts, and can be killed."""

    def __init__(self, killed_at: int | None = None):
        self.texts, self.calls, self.killed_at = [], 0, killed_at

    def __call__(self, lines: list[dict]) -> list[dict]:
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.texts += [text for line in lines for text in line["completions"]]
        return [{"lengths": [len(text) for text in line["completions"]]} for line in lines]


def found(path: Path) -> list:
    return [line["scores"]["length@1"]["lengths"] for line in read_lines(path)]


def test_annotating_adds_what_is_missing_and_only_that(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, rows("a", "bb", "ccc"))
    first = Lengths()
    assert annotate(path, "scores", "length@1", first, block=2) == 3
    assert found(path) == [[1, 2], [2, 3], [3, 4]] and first.calls == 2
    again = Lengths()
    assert annotate(path, "scores", "length@1", again, block=2) == 0 and again.texts == []
    annotate(path, "scores", "length@2", again, block=2)  # another version of the scorer measures again
    assert len(again.texts) == 6 and found(path) == [[1, 2], [2, 3], [3, 4]]
    assert list(tmp_path.iterdir()) == [path]


def test_a_score_never_stands_beside_text_it_was_not_made_for(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, rows("a", "bb"))
    annotate(path, "scores", "length@1", Lengths())
    lines = list(read_lines(path))
    lines[1]["completions"][0] = "changed"
    assert measured(lines[1], "scores", "length@1", lines[1]["completions"]) is None
    write_lines(path, lines)
    again = Lengths()
    annotate(path, "scores", "length@1", again)
    assert again.texts == ["changed", "bb!"] and found(path) == [[1, 2], [7, 3]]


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
@pytest.mark.parametrize("torn", [False, True])
def test_killed_while_annotating(tmp_path, killed_at, torn):
    path = tmp_path / "generations.jsonl"
    texts = [str(i) * i for i in range(1, 9)]
    write_lines(path, rows(*texts))
    first, second, done = Lengths(killed_at), Lengths(), []
    with pytest.raises(KeyboardInterrupt):
        annotate(path, "scores", "length@1", first, block=2)
    assert list(read_lines(path)) == rows(*texts)  # the file is unchanged
    for journal in tmp_path.glob(".*.journal") if torn else ():
        journal.write_bytes(journal.read_bytes()[:-3])  # the last entry is cut off, so its line is measured again
    annotate(path, "scores", "length@1", second, block=2, progress=done.append)
    assert found(path) == [[i, i + 1] for i in range(1, 9)] and sum(done) == 16
    extra = 2 if torn and killed_at > 1 else 0
    assert len(first.texts) + len(second.texts) == 16 + extra
    assert list(tmp_path.iterdir()) == [path]


def test_what_changed_after_a_kill_is_measured_as_it_is_now(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, rows("a", "bb", "ccc"))
    with pytest.raises(KeyboardInterrupt):
        annotate(path, "scores", "length@1", Lengths(killed_at=3), block=1)
    write_lines(path, rows("a", "other", "ccc"))
    annotate(path, "scores", "length@1", Lengths(), block=1)
    assert found(path) == [[1, 2], [5, 6], [3, 4]]


@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.text(max_size=20), max_size=6), cut=st.integers(0, 40))
def test_mending_keeps_whole_lines(tmp_path_factory, lines, cut):
    path = tmp_path_factory.mktemp("mend") / "x.jsonl"
    append(path, [{"text": line} for line in lines])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    left = path.read_bytes()
    torn = mend(path)
    assert torn == (not left.endswith(b"\n") and left != b"")
    kept = list(read_lines(path))
    assert kept == [{"text": line} for line in lines][: len(kept)]
    append(path, [{"text": "next"}])
    assert len(list(read_lines(path))) == len(kept) + 1


def test_mending_a_line_longer_than_what_is_read_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    append(path, [{"text": "short"}, {"text": "long" * 50_000}])
    path.write_bytes(path.read_bytes()[:-2])
    assert mend(path) and list(read_lines(path)) == [{"text": "short"}]
    assert not mend(path) and not mend(tmp_path / "none.jsonl")


def test_keeping_the_first_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    append(path, rows("a", "b", "c"))
    keep_lines(path, 1)
    assert list(read_lines(path)) == rows("a")


def test_lines_may_hold_any_character(tmp_path):
    path = tmp_path / "x.jsonl"
    text = "two\u2028lines, a\nbreak, \x85, \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    append(path, [{"text": text}])
    assert list(read_lines(path)) == [{"text": text}]


def test_files_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="no generations"):
        files_of(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        files_of(tmp_path / "none")
    for name in (
        "evaluation/generations-base.jsonl",
        "evaluation/generations-best-tag.jsonl",
        "evaluation/other.jsonl",
    ):
        append(tmp_path / name, rows("a"))
    assert [p.name for p in files_of(tmp_path)] == ["generations-base.jsonl", "generations-best-tag.jsonl"]
    append(tmp_path / "generations.jsonl", rows("a"))
    assert files_of(tmp_path) == [tmp_path / "generations.jsonl"]
    assert files_of(tmp_path / "generations.jsonl") == [tmp_path / "generations.jsonl"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": 1}\n', "x.jsonl:1: no field 'prompt_id'"),
        ("{}\n[1]\n", "x.jsonl:1"),
        ("nonsense\n", "x.jsonl:1: broken JSON"),
        ("[1]\n", "x.jsonl:1: expected an object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, words):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        list(read(tmp_path / "x.jsonl"))


def test_not_utf8(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        list(read(tmp_path / "x.jsonl"))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "generations.jsonl"
    write_lines(path, rows("a"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generations.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_lines(path, rows("b"))
    monkeypatch.undo()
    assert list(read_lines(path)) == rows("a") and list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text()) == rows("a")[0]


def test_a_whole_last_line_that_lacks_its_end_is_kept(tmp_path):
    """Editors save files in this way."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}')
    assert mend(path) and not mend(path)
    append(path, [{"text": "three"}])
    assert [row["text"] for row in read_lines(path)] == ["one", "two", "three"]
