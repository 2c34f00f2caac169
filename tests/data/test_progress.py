"""Progress: bars on a terminal only, plain lines elsewhere, and text that always has a line of its own."""

import io
import logging
import sys

import pytest

from nlf.data import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch) -> io.StringIO:
    """Make a terminal of stderr."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return sys.stderr


def test_a_bar_is_drawn_on_a_terminal_and_leaves_nothing_behind(monkeypatch):
    terminal = on_terminal(monkeypatch)
    advance = progress.progress_bar("sampling", 4)
    advance(4)
    shown = terminal.getvalue()
    assert "sampling:" in shown and "\n" not in shown and shown.endswith("\r")


@pytest.mark.parametrize("name", ["pipe", "TQDM_DISABLE", "quiet"])
def test_a_hidden_bar_writes_nothing(monkeypatch, name):
    on_terminal(monkeypatch)
    if name == "pipe":
        monkeypatch.setattr(sys, "stderr", io.StringIO())
    elif name == "TQDM_DISABLE":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    else:
        monkeypatch.setattr(logging.getLogger("nlf"), "level", logging.ERROR)
        logging.getLogger("nlf").manager._clear_cache()
    advance = progress.progress_bar("sampling", 4)
    for _ in range(4):
        advance(1)
    assert sys.stderr.getvalue() == ""


def test_a_long_task_in_a_file_tells_how_far_it_is_in_whole_lines(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "EVERY", -1)
    caplog.set_level(logging.INFO, "nlf")
    advance = progress.progress_bar("sampling", 4000, done=1000)
    advance(1500)
    advance(1500)
    assert caplog.messages == ["sampling: 2,500 of 4,000 completions"] and sys.stderr.getvalue() == ""


def test_text_above_a_bar_starts_on_its_own_line(monkeypatch):
    terminal = on_terminal(monkeypatch)
    bar = progress.open_bar("training", 10, unit="step")
    progress.say("half")
    progress.close_bars()
    before, _, after = terminal.getvalue().partition("half\n")
    assert before.endswith("\r") and after.endswith("\r") and "half" not in before + after
    assert bar.disable  # closed


def test_times_have_the_unit_that_suits_them():
    assert [progress.duration(s) for s in (0.2, 99.4, 100, 5999, 36000)] == [
        "0 s",
        "99 s",
        "2 min",
        "100 min",
        "10.0 h",
    ]
