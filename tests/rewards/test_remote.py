"""Remote scorers against a local server that fails as services do."""

import asyncio
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path

import httpx2
import pytest
from faulty_server import FAULTS, KEY, FaultyServer, value
from hypothesis import given
from hypothesis import strategies as st

from nlf import rewards
from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.rewards import Judgement, Reward, remote
from nlf.rewards.perspective import Perspective
from nlf.rewards.remote import Ask, Refused, RemoteScorer
from nlf.services import Retry, pause, retry_after, retrying

FAST = {"rate_limit": 2000.0}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache, a rate limit and a key for each test."""
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setattr(RemoteScorer, "backoff", 0.002)
    monkeypatch.setattr(remote, "_options", RemoteOptions(**FAST))
    return tmp_path


def ask(scorer, texts):
    return asyncio.run(scorer.judge(["p"] * len(texts), texts, [[0]] * len(texts)))


def rewards_of(scorer, texts):
    return [judgement.reward for judgement in ask(scorer, texts)]


def right(text):
    return 1 - value(text, "TOXICITY")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; the sleeps so far, as a list."""
    now, slept, real = [1000.0], [], asyncio.sleep

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr("nlf.rewards.cache.time.time", lambda: now[0])
    return slept


class Scripted(RemoteScorer):
    """A scorer whose script says what each try of a text returns or raises; the default answer is the text's length."""

    name = "scripted"

    def __init__(self, script=None, **options):
        super().__init__(RemoteOptions(**FAST | options))
        self.script, self.asked = {text: iter(tries) for text, tries in (script or {}).items()}, []

    def requests(self, prompts, completions, **columns):
        return [Ask(text, {"text": text}) for text in completions]

    async def ask(self, client, ask):
        text = ask.body["text"]
        self.asked.append(text)
        found = next(self.script.get(text, iter(())), len(text))
        if callable(found):
            return await found()
        if isinstance(found, Exception):
            raise found
        return found

    def read(self, answer):
        return Judgement(float(answer), {"size": float(answer) / 100})


# ---- the whole of it ------------------------------------------------------------------------------------------------


def test_a_server_with_every_fault_loses_nothing(caplog):
    texts = [f"text {i}" for i in range(400)]
    with FaultyServer(0.3, seed=3) as server:
        found = ask(Perspective(base_url=server.url), texts)
        assert {request.fault for request in server.requests} == {None, *FAULTS}
        asked, missing = server.asked(), {r.text for r in server.requests if r.fault == "missing"}
        assert set(asked) == set(texts)  # some texts more than once
        for text, judgement in zip(texts, found, strict=True):
            assert judgement.reward == (None if text in missing else right(text))
            assert judgement.attributes["insult"] == value(text, "INSULT")
        assert f"400 texts, {len(missing)} without a score; no TOXICITY in the answer: {len(missing)}" in caplog.text
        again = ask(Perspective(base_url=server.url), texts)
        assert again == found and server.asked() == asked  # the second call uses the cache only


def test_identical_texts_are_asked_about_once_and_conversations_by_their_last_message():
    scorer = Scripted()
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "aa"}]
    assert rewards_of(scorer, ["aa", "b", chat, "aa"]) == [2.0, 1.0, 2.0, 2.0]
    assert sorted(scorer.asked) == ["aa", "b"]
    assert rewards_of(scorer, []) == []


def test_it_is_a_reward_of_trl_and_of_this_package():
    scorer = Scripted()
    assert asyncio.run(scorer(prompts=["p"], completions=["abc"], completion_ids=[[1]], trainer_state=None)) == [3.0]
    assert Reward(scorer).is_async and Reward(scorer).remote and Reward(scorer).label == "scripted@1"
    found = rewards.score([Reward(scorer)], None, ["p"] * 2, ["abc", "ab"], [[1]] * 2, {"other": [1, 2]})
    assert found.reward.tolist() == [3.0, 2.0] and found.attributes["size"].tolist() == [0.03, 0.02]
    for _ in range(2):  # each call has its own loop
        assert rewards_of(scorer, ["xyz"]) == [3.0]


def test_one_client_for_each_loop(monkeypatch):
    seen = []

    async def twice(scorer):
        for text in ("a", "b"):
            await scorer.judge(["p"], [text], [[0]])

    async def note(self, client, ask):
        seen.append(client)
        return 1

    monkeypatch.setattr(Scripted, "ask", note)
    asyncio.run(twice(Scripted()))
    asyncio.run(Scripted().judge(["p"], ["c"], [[0]]))
    assert seen[0] is seen[1] is not seen[2]
    assert len(remote._loops) <= 2  # closed loops are forgotten


def test_concurrency_is_bounded_and_used():
    running, most, full = 0, 0, asyncio.Event()

    async def slow():
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        if running == 4:
            full.set()
        await full.wait()  # for ever, if there are fewer at a time
        await asyncio.sleep(0)
        running -= 1
        return 1

    ask(Scripted({str(i): [slow] for i in range(30)}, max_concurrency=4, rate_limit=None), [str(i) for i in range(30)])
    assert most == 4


def test_rewards_of_one_service_ask_once():
    texts = [f"text {i}" for i in range(20)]
    with FaultyServer() as server:
        pair = [Reward(Perspective(base_url=server.url)), Reward(Perspective("insult", base_url=server.url))]
        found = rewards.score(pair, None, ["p"] * 20, texts, [[0]] * 20, {})
        assert found.per_function["perspective:INSULT"].tolist() == [1 - value(text, "INSULT") for text in texts]
        assert max(server.asked().values()) == 1


# ---- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "429 after", "500", "503", "reset", "truncated", "invalid"])
def test_what_may_pass_is_tried_again(fault):
    with FaultyServer([fault, fault]) as server:
        assert rewards_of(Perspective(base_url=server.url), ["a"]) == [right("a")]
        assert server.asked() == {"a": 3}


def test_a_request_without_an_answer_is_given_up_and_tried_again():
    async def never():
        await asyncio.Event().wait()

    scorer = Scripted({"a": [never, never]}, request_timeout=0.01)
    assert rewards_of(scorer, ["a"]) == [1.0] and scorer.asked == ["a"] * 3
    with FaultyServer(most=0) as server:
        down = Perspective(base_url=server.url, options=RemoteOptions(**FAST, request_timeout=0.05, max_tries=2))
        with pytest.raises(UserError, match="1 of 1 texts have no answer .*TimeoutError: 4"):
            ask(down, ["a"])


@pytest.mark.parametrize(("fault", "seconds"), [("429 after", 0.5), ("429 date", 1.0)])
def test_retry_after_is_waited_for(fault, seconds, clock):
    with FaultyServer([fault], after="0.5") as server:
        assert rewards_of(Perspective(base_url=server.url), ["a"]) == [right("a")]
        assert seconds in clock and max(clock) == seconds


@pytest.mark.parametrize("after", ["99999999999", "3601", "1e300", "Fri, 06 Nov 9999 08:49:37 GMT"])
def test_a_service_that_asks_to_wait_for_ever_is_given_up(after, clock):
    with FaultyServer(["429 after"], after=after) as server:
        with pytest.raises(
            UserError, match=r"perspective: the service asks to wait .* seconds \(HTTP 429\), more than"
        ) as e:
            ask(Perspective(base_url=server.url), ["a"])
        assert len(server.requests) == 1 and max(clock, default=0) < 1
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


def test_a_long_wait_is_said_once_for_all_requests(clock, caplog):
    with FaultyServer(["429 after"] * 5, after="1800") as server:
        assert len(rewards_of(Perspective(base_url=server.url), list("abcde"))) == 5
    told = [record.getMessage() for record in caplog.records]
    assert told == ["perspective: the service asks to wait 1,800 seconds (HTTP 429); waiting"]


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("7", None, 7.0),
        ("0", None, 0.0),
        ("0.5", None, 0.5),
        ("-3", None, 0.0),
        (DATE, "Sun, 06 Nov 1994 08:49:30 GMT", 7.0),
        (DATE, DATE, 0.0),
        (DATE, None, 0.0),  # long ago
        (None, DATE, None),
        ("soon", DATE, None),
        ("inf", None, None),
        ("nan", None, None),
        ("", None, None),
        ("-1e9", None, 0.0),
        ("9" * 400, None, None),
        ("Sun, 06 Nov 99999999999 08:49:37 GMT", DATE, None),
        ("Sun, 06 Nov 1994 08:49:37 +99999999999999", DATE, None),
        (DATE, "Sun, 06 Nov 99999999999 08:49:37 GMT", 0.0),
    ],
)
def test_both_forms_of_retry_after(value, date, seconds):
    assert retry_after(value, date) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_header_is_read(value, date):
    found = retry_after(value, date)
    assert found is None or found >= 0


def test_the_pause_doubles_and_is_bounded():
    assert [pause(tries, 1.0, 1.0) for tries in (1, 2, 3, 7, 2000)] == [1, 2, 4, 60, 60]
    assert pause(3, 0.5, 0.75) == 1.5


def test_the_hooks_and_pauses_of_retrying(clock):
    """No pause follows the last try, and a pause is as long as the service asks for, if that is longer."""
    failed, waited, jitters = [], [], []
    errors = [Retry("a"), Retry("b", 0.03), Retry("c", 9.0)]

    def uniform(low, high):
        jitters.append((low, high))
        return low

    async def attempt():
        raise errors[len(failed)]

    tries = retrying(3, 0.002, uniform, failed=failed.append, waits=waited.append)
    with pytest.raises(Retry, match="c"):
        asyncio.run(tries(attempt))
    assert failed == errors and waited == errors[:2] and clock == [0.001, 0.03]
    assert set(jitters) == {(0.5, 1.0)}


@pytest.mark.parametrize("error", [httpx2.ReadTimeout("x"), httpx2.ConnectError("x"), TimeoutError(), Retry("x")])
def test_errors_of_transport_are_tried_again(error):
    scorer = Scripted({"a": [error, error]})
    assert rewards_of(scorer, ["a"]) == [1.0] and scorer.asked == ["a"] * 3


def test_other_errors_are_raised_as_they_are_and_what_was_answered_is_kept():
    scorer = Scripted({"c": [ZeroDivisionError("mine")]}, max_concurrency=1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        ask(scorer, ["a", "b", "c", "d"])
    assert rewards_of(scorer, ["a", "b", "c", "d"]) == [1.0] * 4
    assert scorer.asked == ["a", "b", "c", "c", "d"]


def test_a_text_out_of_tries_is_tried_again_at_the_end():
    scorer = Scripted({"a": [Retry("HTTP 500")] * 3}, max_tries=3, max_concurrency=1)
    assert rewards_of(scorer, ["a", "b"]) == [1.0, 1.0]
    assert scorer.asked == ["a", "a", "a", "b", "a"]


def test_a_text_that_fails_even_then_stops_the_run_and_keeps_the_others(folder):
    scorer = Scripted({"a": [Retry("HTTP 500")] * 6}, max_tries=3, max_concurrency=1)
    message = (
        "scripted: 1 of 3 texts have no answer after twice all tries (failed tries: HTTP 500: 6); "
        f"2 new answers are kept in {folder}/cache/scores.sqlite: run again to continue"
    )
    with pytest.raises(UserError) as caught:
        ask(scorer, ["a", "b", "c"])
    assert str(caught.value) == message
    assert rewards_of(scorer, ["a", "b", "c"]) == [1.0] * 3
    assert scorer.asked == ["a"] * 3 + ["b", "c"] + ["a"] * 4


def test_so_many_texts_in_a_row_open_the_circuit():
    down = {str(i): [Retry("HTTP 503")] * 99 for i in (1, 2, 4, 5, 6)}
    scorer = Scripted(down, max_tries=2, max_failures_in_a_row=3, max_concurrency=1)
    with pytest.raises(UserError, match="3 texts in a row have no answer after 2 tries .*HTTP 503: 10.*; 2 new answ"):
        ask(scorer, [str(i) for i in range(20)])
    assert scorer.asked == ["0", *"1122", "3", *"445566"]  # the answer to 3 ends the row; 7 is never asked


def test_a_server_that_is_down_stops_the_run():
    with FaultyServer(["503"] * 1000) as server:
        scorer = Perspective(base_url=server.url, options=RemoteOptions(**FAST, max_tries=3))
        with pytest.raises(UserError, match=f"5 texts in a row .* at {server.url}: HTTP 503: ") as caught:
            ask(scorer, [f"{i}" for i in range(100)])
        assert len(server.requests) < 100 and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ConnectError"):
        ask(scorer, ["nobody listens"])


def test_a_refused_text_has_no_score_is_counted_and_is_not_asked_about_again(caplog):
    scorer = Scripted({"a": [Refused("TOO_ODD")]})
    for _ in range(2):
        assert [j.reward for j in ask(scorer, ["a", "bb", "a"])] == [None, 2.0, None]
        assert "scripted: 3 texts, 2 without a score; TOO_ODD: 2" in caplog.text
        caplog.clear()
    assert sorted(scorer.asked) == ["a", "bb"]


# ---- cache ----------------------------------------------------------------------------------------------------------


def test_the_key_is_scorer_version_settings_and_text(monkeypatch):
    scorer = Scripted()
    for name, other in [("name", "other"), ("version", "2"), ("base_url", "http://x"), ("backoff", 1)]:
        ask(scorer, ["a"])
        monkeypatch.setattr(scorer, name, other)
    ask(scorer, ["a"])
    assert scorer.asked == ["a"] * 4  # backoff is not part of the key


def test_replay_asks_nobody(folder):
    with FaultyServer() as server:
        found = ask(Perspective(base_url=server.url), ["a", "b"])
        url = server.url
    scorer = Perspective(base_url=url, options=RemoteOptions(replay=True))
    assert ask(scorer, ["b", "a"]) == found[::-1]
    with pytest.raises(UserError, match="perspective: 2 of 3 texts have no answer in .*scores.sqlite; .*--replay"):
        ask(scorer, ["a", "c", "d", "c"])


def test_answers_move_to_another_machine(folder):
    ask(Scripted(), ["a", "bb"])
    assert remote.export_cache(folder / "out.jsonl") == 2
    remote.configure(RemoteOptions(cache_dir=str(folder / "elsewhere"), replay=True))
    assert remote.import_cache(folder / "out.jsonl") == 2
    scorer = Scripted()
    scorer.options = None  # those of configure
    assert rewards_of(scorer, ["bb", "a"]) == [2.0, 1.0] and not scorer.asked


def test_where_the_cache_is(monkeypatch, folder):
    assert remote.cache_path(RemoteOptions(cache_dir="x")) == Path("x/scores.sqlite")
    assert remote.cache_path(RemoteOptions()) == folder / "cache/scores.sqlite"
    monkeypatch.delenv("NLF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert remote.cache_path(RemoteOptions()) == Path.home() / ".cache/nlf/scores.sqlite"


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_asked(folder):
    (folder / "file").write_text("")
    scorer = Scripted(cache_dir=str(folder / "file"))
    with pytest.raises(UserError, match="file/scores.sqlite: cannot keep answers"):
        ask(scorer, ["a"])
    assert not scorer.asked


def test_what_another_one_finds_meanwhile_is_not_asked_about(monkeypatch):
    """While this process waits for its turn, another one writes all answers."""
    texts, scorer, real = [str(i) for i in range(10)], Scripted(rate_limit=1.0, max_concurrency=1), asyncio.sleep

    async def other_process(seconds):
        with remote.Cache(remote.cache_path(RemoteOptions())) as cache:
            for text in texts:
                key = remote.digest([scorer.service, scorer.version, scorer.settings(), text])
                cache.put(key, "scripted", {"answer": 7})
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", other_process)
    assert rewards_of(scorer, texts) == [1.0] + [7.0] * 9 and scorer.asked == ["0"]


def test_a_damaged_answer_is_asked_for_again(caplog):
    scorer = Scripted()
    assert rewards_of(scorer, ["a", "bb"]) == [1.0, 2.0]
    with remote.Cache(remote.cache_path(RemoteOptions())) as cache:
        cache.connection.execute("UPDATE answers SET found = 'x'")
    assert rewards_of(scorer, ["a", "bb"]) == [1.0, 2.0] and sorted(scorer.asked) == ["a", "a", "bb", "bb"]
    assert "2 answers are damaged" in caplog.text


def test_an_answer_of_another_type_is_asked_for_again():
    scorer = Scripted()
    assert rewards_of(scorer, ["a"]) == [1.0]
    scorer.answer_type = str
    with pytest.raises(ValueError, match="could not convert"):
        scorer.script["a"] = iter(["b"])
        ask(scorer, ["a"])
    assert scorer.asked == ["a", "a"]


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    monkeypatch.delenv("NLF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match="no home folder; set NLF_CACHE"):
        remote.cache_path(RemoteOptions())


def test_secrets_of_a_scorer_are_masked_in_answers_and_refusals(folder, caplog):
    class Echo(Scripted):
        def secrets(self):
            return ["my-own-secret-1234"]

        def read(self, answer):
            return Judgement(None, feedback=answer)

    scorer = Echo({"a": ["it is my-own-secret-1234"], "b": [Refused("MY-OWN-SECRET-1234 is wrong")]})
    assert [each.feedback for each in ask(scorer, ["a", "b"])] == ["it is [key]", None]
    assert "[key] is wrong: 1" in caplog.text
    for path in (folder / "cache").iterdir():
        assert b"secret-1234" not in path.read_bytes().lower()


# ---- rate and progress ----------------------------------------------------------------------------------------------


def busiest(times, seconds=1.0) -> int:
    """The largest number of times in any half-open window of this length in seconds."""
    times = sorted(times)
    return max(bisect_left(times, start + seconds) - i for i, start in enumerate(times))


def test_the_rate_holds_for_every_request_also_those_made_again(clock):
    times, failures = [], [Retry("HTTP 500"), Retry("invalid JSON")]

    class Timed(Scripted):
        async def ask(self, client, ask):
            times.append(1000.0 + sum(clock))
            return await super().ask(client, ask)

    texts = [str(i) for i in range(30)]
    ask(Timed(dict.fromkeys(texts[:10], failures), rate_limit=40), texts)
    assert len(times) == 50 and 36 <= busiest(times) <= 40


def test_a_long_call_is_told_beforehand(caplog):
    caplog.set_level(logging.INFO, "nlf")
    scorer = Scripted({"0": [KeyError("stop")]}, rate_limit=1.0)
    with pytest.raises(KeyError):
        ask(scorer, [str(i) for i in range(7200)])
    assert "scripted: 7,200 requests, at least 2.2 hours at 1 a second" in caplog.text
    caplog.clear()
    ask(Scripted(rate_limit=10.0), ["a"])
    assert not caplog.text


RUN = """
import asyncio, os, sys
from nlf.config import RemoteOptions
from nlf.rewards import cache
from nlf.rewards.perspective import Perspective
from nlf.rewards.remote import RemoteScorer
url, rate, first, last = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
slot = cache.slot
def told(last, now, rate):
    wait, last = slot(last, now, rate)
    if not wait:
        print(now, file=starts, flush=True)
    return wait, last
cache.slot, starts = told, open(f"starts-{os.getpid()}", "w")
RemoteScorer.backoff = 0.05
texts = [f"text {i}" for i in range(first, last)]
scorer = Perspective(base_url=url, options=RemoteOptions(rate_limit=rate, request_timeout=600.0))
found = asyncio.run(scorer.judge(texts, texts))
print(*(judgement.reward for judgement in found))
"""


def start(folder, url, rate, first, last):
    """Start a process that scores the texts with these numbers, and notes in a file when each request may start."""
    path = os.pathsep.join(path for path in sys.path if path)
    environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, url, str(rate), str(first), str(last)]
    return subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def starts(folder) -> list[float]:
    """When the requests of all processes were allowed to start."""
    return [float(line) for path in folder.glob("starts-*") for line in path.read_text().split()]


def written(folder) -> int:
    try:
        with sqlite3.connect(f"file:{folder}/cache/scores.sqlite?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_processes_share_rate_and_cache(folder):
    with FaultyServer() as server:
        pair = [start(folder, server.url, 50, 0, 80), start(folder, server.url, 50, 40, 120)]
        outs = [process.communicate(timeout=600) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], outs
        for (out, _), texts in zip(outs, [range(80), range(40, 120)], strict=True):
            assert [float(word) for word in out.split()] == [right(f"text {i}") for i in texts]
        assert len(server.asked()) == 120 and busiest(starts(folder)) <= 50
        assert written(folder) == 120


def kept(folder, server, count) -> set[str]:
    """The texts that have an answer on disk."""
    scorer = Perspective(base_url=server.url)
    origin = [scorer.service, scorer.version, scorer.settings()]
    keys = {remote.digest([*origin, f"text {i}"]): f"text {i}" for i in range(count)}
    with remote.Cache(folder / "cache" / "scores.sqlite") as cache:
        return {keys[row["key"]] for row in cache.rows()}


def killed_and_run_again(folder, server, rate, count) -> tuple[list[float | None], str]:
    """The rewards of `count` texts and the output, if the first run is killed while the server leaves it waiting."""
    process = start(folder, server.url, rate, 0, count)
    while len(server.requests) <= server.most:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    known, before, server.most = kept(folder, server, count), len(server.requests), float("inf")
    assert 0 < len(known) < count
    process = start(folder, server.url, rate, 0, count)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert not known & {request.text for request in server.requests[before:]}
    return [None if word == "None" else float(word) for word in out.split()], out + error


def test_a_killed_run_never_pays_twice(folder):
    with FaultyServer(most=50) as server:
        found, _ = killed_and_run_again(folder, server, 200, 150)
        assert found == [right(f"text {i}") for i in range(150)]


def no_key_in(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes() and b"AIza" not in path.read_bytes(), path


@pytest.mark.extended
def test_ten_thousand_texts_through_a_faulty_server_killed_in_the_middle(folder):
    texts, rate = [f"text {i}" for i in range(10_000)], 250
    with FaultyServer(0.3, seed=1, most=3000) as server:
        found, said = killed_and_run_again(folder, server, rate, len(texts))
    missing = {request.text for request in server.requests if request.fault == "missing"}
    assert len(found) == len(texts) and set(server.asked()) == set(texts)
    assert all(r == right(t) or (r is None and t in missing) for t, r in zip(texts, found, strict=True))
    assert {request.fault for request in server.requests} == {None, "hang", *FAULTS}
    assert busiest(starts(folder)) <= rate
    assert "AIza" not in said
    no_key_in(folder)


def test_nothing_that_is_written_or_said_has_the_key(folder, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with FaultyServer(list(FAULTS)) as server, FaultyServer(key="another") as other:
        ask(Perspective(base_url=server.url), ["a", "b", "c", ""])
        with pytest.raises(UserError, match="HTTP 403: key not valid: another .*key=\\[key\\]") as caught:
            ask(Perspective(base_url=other.url), ["a"])
    remote.export_cache(folder / "out.jsonl")
    said = str(caught.value) + caplog.text + "".join(capsys.readouterr())
    assert "HTTP Request: POST" in caplog.text and "send_request_headers.started" in caplog.text
    assert "AIza" not in said and "secret" not in said
    assert json.loads((folder / "out.jsonl").read_text().splitlines()[0])["scorer"] == "perspective"
    no_key_in(folder)
