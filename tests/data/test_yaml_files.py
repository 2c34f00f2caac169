"""YAML files: plain names and values, or one line for the person."""

import os
import threading
from pathlib import Path

import pytest

from nlf.cli.launch import accelerate_settings
from nlf.data.run_folder import settings_in
from nlf.data.yaml_files import LARGEST_FILE, read_entries, read_mapping
from nlf.errors import UserError
from nlf.rewards.templates import read_template

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
BAD = {
    "a constructor": (
        b"a: 1\nb: !!python/object/apply:os.system ['true']",
        ":2: the tag 'python/object/apply:os.system'",
    ),
    "a tag of the file's own": (b"a: !mine 5", ":1: the tag '!mine'"),
    "a list that holds itself": (b"a: &a [x, *a]", "part of itself"),
    "a mapping that holds itself": (b"a: &a {b: *a}", "part of itself"),
    "a billion laughs": (LAUGHS.encode(), "more than 20,000 values"),
    "deep nesting": (b"a: " + b"[" * 600 + b"]" * 600, "nested too deeply"),
    "nesting over the limit": (b"a: " + b"[" * 40 + b"]" * 40, "nested more than 30 levels"),
    "a name twice": (b"a: 1\nb: 2\na: 3", ":3: a is given twice"),
    "a name twice further in": (b"a:\n  b: 1\n  b: 2", ":3: b is given twice"),
    "a number as a name": (b"5: 1", ":1: a name that is not text"),
    "a list as a name": (b"? [a]\n: 1", ":1: a name that is not text"),
    "a list at the top": (b"- a", ":1: one `name: value` a line was expected"),
    "a text at the top": (b"hello", ":1: one `name: value` a line was expected"),
    "a tab": (b"a: 1\n\tb: 2", ":2: not YAML"),
    "two documents": (b"a: 1\n---\na: 2", ":2: not YAML"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8 text"),
    "Latin-1": (b"a: gr\xfcn", "not UTF-8 text"),
    "bytes of no text": (b"a: \x00\x01", "not YAML"),
    "a tag that its text does not fit": (b"a: !!int five", "not of the type that its tag names"),
    "a number of 5,000 digits": (b"a: " + b"9" * 5000, "not of the type that its tag names"),
    "a bad alias": (b"a: *b", ":1: not YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_wherever_yaml_is_read(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    for read in (read_mapping, settings_in, accelerate_settings, lambda path: read_template(str(path))):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert "bad.yaml" in message and words in message and "\n" not in message


def test_plain_values_come_with_their_lines(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_bytes(b"\xef\xbb\xbf# a byte order mark\r\nx: &x [1, 2.5]\r\ny: {z: *x, w: null}\r\n")
    assert read_entries(path) == {"x": ([1, 2.5], 2), "y": ({"z": [1, 2.5], "w": None}, 3)}
    path.write_text("", encoding="utf-8")
    assert read_mapping(path) == {}


def test_no_is_a_text_so_that_eval_strategy_no_means_no(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("eval_strategy: no\ntags: [yes, off]\nrun_name: 2024-02-31\nbf16: true\n", encoding="utf-8")
    expected = {"eval_strategy": "no", "tags": ["yes", "off"], "run_name": "2024-02-31", "bf16": True}
    assert read_mapping(path) == expected


def test_what_is_no_file_of_ordinary_size_is_one_line(tmp_path):
    large = tmp_path / "large.yaml"
    with open(large, "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    for path, words in (
        (large, "over 10 MB"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "null"),
        (Path("/dev/zero"), "over 10 MB"),
    ):
        with pytest.raises(UserError, match=words):
            read_mapping(path)


def test_a_pipe_can_be_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a: 1",))
    writer.start()
    assert read_mapping(pipe) == {"a": 1}
    writer.join()
