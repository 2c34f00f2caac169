"""`nlf chat` in a terminal: completions as they come, commands, mistakes, Ctrl-C and Ctrl-D."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time

import pytest
from openai_server import make_run

import nlf
from nlf.cli.main import main
from nlf.config import TerminalOptions
from nlf.errors import UserError
from nlf.serving import chat
from nlf.serving.chat import Talk

LINE = "the weather is"


@pytest.fixture
def said(run, capsys):
    """What each line shows, in one talk."""

    def talk(*lines: str, model: str = run, **options) -> list[str]:
        chosen = TerminalOptions(model=model, max_completion_length=6, **options)
        running, shown = Talk(nlf.load(model, device="cpu"), chosen), []
        for line in lines:
            capsys.readouterr()
            with chat.told():
                running.take(line)
            shown.append(capsys.readouterr().out.rstrip("\n"))
        return shown

    return talk


def printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def test_completions_are_those_of_write(said, run):
    writer = nlf.load(run, device="cpu")
    found = said(LINE, "/tag Maximum Toxicity", LINE, "/guidance 1.5", LINE, "/tag none", LINE)
    rules = [{}, {"tag": "Maximum Toxicity"}, {"tag": "Maximum Toxicity", "guidance_scale": 1.5}, {"tag": "none"}]
    for shown, rule, seed in zip(found[::2], rules, range(4), strict=True):
        assert shown == printable(writer.write(LINE, seed=seed, max_completion_length=6, **rule)[0]).rstrip("\n")
    assert found[1].endswith("after 'Maximum Toxicity'") and "Lowest Toxicity, Low-Moderate" in found[1]
    assert found[3] == "after 'Maximum Toxicity', guidance 1.5"


def test_the_base_and_the_scores(said, run):
    base = nlf.load(f"{run}/../base", device="cpu")
    found = said(LINE, "/base")
    assert found[1] == printable(base.write(LINE, seed=1, max_completion_length=6)[0]).rstrip("\n")


def test_the_scores_of_the_last_completion(run, capsys):
    running = Talk(nlf.load(run, device="cpu"), TerminalOptions(model=run))
    for text, line in [("and the river is calm", r"^toxicity  0\.\d{3}$"), ("\x01", r"^toxicity  not scored$")]:
        running.prompt, running.completion = LINE, text
        running.take("/score")
        assert re.search(line, capsys.readouterr().out, re.M)


def test_mistakes_are_a_line_and_the_talk_goes_on(said):
    found = said("/score", "/base", "/tag polite", "/guidance much", "/taq x", "word " * 90, "", LINE)
    assert found[0].startswith("/score scores the last completion") and found[1].startswith("/base completes the last")
    assert found[2].startswith("unknown tag 'polite'; this model's tags are 'Lowest Toxicity'")
    assert "guidance_scale: 'much'" in found[3] and found[4].startswith("unknown command /taq did you mean 'tag'?")
    assert "context of 96" in found[5] and found[6] == "" and found[7]


def test_a_model_of_conversations_remembers_the_turns(said, tmp_path):
    run = make_run(tmp_path, conversational=True)
    writer = nlf.load(run, device="cpu")
    found = said("hi", "why", "/new", "hi", model=run)
    first = {"role": "user", "content": "hi"}
    answer = writer.write([first], max_completion_length=6)[0]
    turns = [first, {"role": "assistant", "content": answer}, {"role": "user", "content": "why"}]
    assert found[1] == printable(writer.write(turns, seed=1, max_completion_length=6)[0]).rstrip("\n")
    assert found[3] == printable(writer.write([first], seed=2, max_completion_length=6)[0]).rstrip("\n")


def test_guidance_without_tags_is_refused_before_the_first_prompt(run):
    with pytest.raises(UserError, match="this model has no tags"):
        Talk(nlf.load(f"{run}/plain", device="cpu"), TerminalOptions(model=f"{run}/plain", guidance_scale=1))
    assert main(["chat", "--model", "/nowhere"]) == 2


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *words: str):
        self.child, self.side = pty.fork()
        if not self.child:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # a shell's background jobs ignore it, and so would the program
            os.execv(sys.executable, [sys.executable, "-m", "nlf", "chat", *words])
        self.seen = ""

    def until(self, pattern: str, key: str = "") -> str:
        """Wait until the terminal shows a pattern, and return what came before it. A key is pressed each second until then."""
        end = time.monotonic() + 240
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come after {self.seen!r}"
            if select.select([self.side], [], [], 1)[0]:
                with contextlib.suppress(OSError):  # the program has ended
                    self.seen += os.read(self.side, 4096).decode(errors="replace")
            else:
                self.type(key)
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())


def test_in_a_terminal_ctrl_c_stops_the_completion_and_ctrl_d_the_program(run):
    terminal = Terminal("--model", f"{run}/plain", "--max_completion_length", "80", "--min_completion_length", "80")
    terminal.until("without a tag; /help lists the commands, Ctrl-D ends")
    terminal.until("> ")
    terminal.type("a line that is discarded")
    terminal.until("discarded")
    # CPython sees a Ctrl-C that comes while readline reads a key only at the next one.
    terminal.until("> ", key="\x03")
    terminal.type(f"{LINE}\n")
    terminal.until(f"{LINE}\r?\n")
    terminal.until("[^\x1b\r\n]")  # the first characters of the completion
    os.kill(terminal.child, signal.SIGINT)
    terminal.until("> ")
    terminal.type("/help\n")
    terminal.until("/guidance")
    terminal.until("> ")
    terminal.type("\x04")
    terminal.until("1 completions")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.child, 0)[1]) == 0
