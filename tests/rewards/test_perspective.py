"""The Perspective API's protocol, its limits and its end."""

import asyncio
import logging
from datetime import date

import pyarrow.parquet as pq
import pytest
import runs
from faulty_server import KEY, FaultyServer, value
from hypothesis import given
from hypothesis import strategies as st

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.rewards import Judgement, perspective, remote
from nlf.rewards.perspective import LIMIT, OFFICIAL, PRODUCTION, Perspective, cut, error_type, summary


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.delenv("PERSPECTIVE_BASE_URL", raising=False)
    monkeypatch.setattr(remote, "_options", RemoteOptions(rate_limit=2000))
    return tmp_path


@pytest.fixture
def server():
    with FaultyServer() as running:
        yield running


def ask(scorer, *texts):
    return asyncio.run(scorer.judge(["p"] * len(texts), texts, [[0]] * len(texts)))


def test_the_request_and_what_comes_of_it(server, monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_BASE_URL", f"{server.url}/")
    [judgement] = ask(Perspective(), "some text")
    [request] = server.requests
    assert request.path == "/v1alpha1/comments:analyze?key=AIza-secret%2Fkey%2B1"
    assert request.body == {
        "comment": {"text": "some text"},
        "requestedAttributes": {name: {} for name in PRODUCTION},
        "languages": ["en"],
        "doNotStore": True,
        "spanAnnotations": False,
    }
    attributes = {name.lower(): value("some text", name) for name in PRODUCTION}
    assert judgement == Judgement(1 - value("some text", "TOXICITY"), attributes)


def test_any_attribute_by_its_name(server):
    threat, flirt = Perspective(" threat", base_url=server.url), Perspective("Flirtation", base_url=server.url)
    assert (threat.name, flirt.name, Perspective("toxicity").name) == (
        "perspective:THREAT", "perspective:FLIRTATION", "perspective",
    )  # fmt: skip
    assert ask(threat, "x")[0].reward == 1 - value("x", "THREAT")
    [judgement] = ask(flirt, "x")
    assert judgement.reward == 1 - judgement.attributes["flirtation"] == 1 - value("x", "FLIRTATION")
    assert len(judgement.attributes) == 7
    assert threat.rate_limit == 1.0  # requests a second, the free quota


@pytest.mark.parametrize("name", ["", "threat!", "a b", "1"])
def test_what_is_no_attribute(name):
    with pytest.raises(UserError, match="expected an attribute: TOXICITY, SEVERE_TOXICITY"):
        Perspective(name)


def test_an_attribute_that_the_service_does_not_know_stops_the_run(server):
    with pytest.raises(
        UserError, match="HTTP 400: Attribute CHARM not supported; check PERSPECTIVE_API_KEY and the a"
    ):
        ask(Perspective("charm", base_url=server.url), "x")


def test_texts_that_cannot_be_scored_are_counted(server, caplog):
    with caplog.at_level(logging.WARNING, "nlf"):
        found = ask(Perspective(base_url=server.url), "", "bonjour", " \n", "fine", "bonjour")
    assert [judgement.reward is None for judgement in found] == [True, True, True, False, True]
    assert found[1] == Judgement(None)
    assert caplog.messages == [
        "perspective: 5 texts, 4 without a score; COMMENT_EMPTY: 2, LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE: 2"
    ]
    assert server.asked() == {"bonjour": 1, "fine": 1}


def test_a_long_text_is_cut_at_a_character_and_counted(server, caplog):
    text = "x" + "é" * 20_000  # 40,001 bytes
    [judgement] = ask(Perspective(base_url=server.url), text)
    [sent] = server.asked()
    assert sent == "x" + "é" * 10_239 and len(sent.encode()) == LIMIT - 1
    assert judgement.reward == 1 - value(sent, "TOXICITY")
    assert "perspective: 1 texts, 0 without a score; cut to 20,480 bytes: 1" in caplog.text


@given(st.text(), st.integers(0, 30))
def test_the_cut_is_the_longest_beginning_that_fits(text, limit):
    found = cut(text, limit)
    assert text.startswith(found) and len(found.encode()) <= limit
    assert found == text or len(text[: len(found) + 1].encode()) > limit


def test_half_a_character_is_sent_as_a_question_mark(server):
    assert cut("a\ud83d", 10) == "a?"
    ask(Perspective(base_url=server.url), "a\ud83d")
    assert server.asked() == {"a?": 1}


def test_answers_without_what_was_asked_for(caplog):
    scorer = Perspective()
    assert scorer.read({"TOXICITY": 0.25, "INSULT": 2, "THREAT": "x"}) == Judgement(
        0.75, dict.fromkeys(map(str.lower, PRODUCTION)) | {"toxicity": 0.25}
    )
    assert scorer.read([]).reward is None and scorer.read({"TOXICITY": True}).reward is None
    assert scorer.counts["no TOXICITY in the answer"] == 2 and scorer.counts["no INSULT in the answer"] == 3


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"error": {"details": [{"errorType": "COMMENT_TOO_LONG"}]}}, "COMMENT_TOO_LONG"),
        ({"error": {"details": [1, {"errorType": "UNKNOWN"}, {"errorType": "COMMENT_EMPTY"}]}}, "COMMENT_EMPTY"),
        ({"error": {"details": [{"errorType": "UNKNOWN"}]}}, None),
        ({"error": {"details": [{"errorType": ["COMMENT_EMPTY"]}]}}, None),
        ({"error": {"details": "x"}}, None),
        ({"error": {"details": 3}}, None),
        ({"error": "COMMENT_EMPTY"}, None),
        ({}, None),
    ],
)
def test_reasons_in_googles_errors(payload, found):
    assert error_type(payload) == found


@pytest.mark.parametrize("score", [None, 3, {}, {"summaryScore": 1}, {"summaryScore": {}}])
def test_scores_without_a_summary(score):
    assert summary(score) is None


def test_the_key_and_where_it_is_read(server, monkeypatch, folder):
    scorer = Perspective(base_url=server.url)
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    with pytest.raises(
        UserError, match="perspective: no key; set PERSPECTIVE_API_KEY to it, or PERSPECTIVE_API_KEY_FI"
    ):
        ask(scorer, "a")
    monkeypatch.setenv("PERSPECTIVE_API_KEY_FILE", str(folder / "key"))
    with pytest.raises(UserError, match="cannot read .*/key, which PERSPECTIVE_API_KEY_FILE names: No such file"):
        ask(scorer, "a")
    (folder / "key").write_text("two words\n")
    with pytest.raises(UserError, match="expected a key") as caught:
        ask(scorer, "a")
    assert "two" not in str(caught.value)
    (folder / "key").write_text(f"{KEY}\n")
    assert ask(scorer, "a")[0].reward is not None
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "wrong")
    assert ask(scorer, "a")[0].reward is not None  # a cached answer needs no key
    with pytest.raises(UserError, match="HTTP 403: key not valid: .*; check PERSPECTIVE_API_KEY"):
        ask(scorer, "b")
    assert len(server.asked()) == 2  # "b" is sent once, without further tries
    assert max(server.asked().values()) == 1


def test_a_wrong_address(server):
    with pytest.raises(UserError, match="HTTP 404: no such path"):
        ask(Perspective(base_url=f"{server.url}/elsewhere"), "a")
    for url in ("localhost:80", "ftp://x", "http://", "http://user:pass@host", "http://host?key=1", "http://a b"):
        with pytest.raises(UserError, match="PERSPECTIVE_BASE_URL: expected http"):
            Perspective(base_url=url)


def test_the_service_ends_and_its_answers_do_not(server, monkeypatch, folder):
    monkeypatch.setattr(perspective, "today", lambda: date(2026, 12, 31))
    assert Perspective().ready() is None and Perspective().base_url == OFFICIAL
    monkeypatch.setattr(perspective, "today", lambda: date(2027, 1, 1))
    with pytest.raises(UserError, match="ended the Perspective API on 2026-12-31; score with local or hf:.*--replay"):
        ask(Perspective(), "a")
    assert Perspective(base_url=server.url).ready() is None  # not Google's server

    scorer = Perspective()
    key = remote.digest([scorer.service, scorer.version, scorer.settings(), "a"])
    with remote.Cache(remote.cache_path(RemoteOptions())) as cache:
        cache.put(key, "perspective", {"answer": {"TOXICITY": 0.25}})
    scorer.options = RemoteOptions(replay=True)
    assert ask(scorer, "a")[0].reward == 0.75


def test_a_run_on_perspective(server, monkeypatch, tmp_path):
    """A run records the service's scores and asks about each text once; a second run asks about none."""
    monkeypatch.setenv("PERSPECTIVE_BASE_URL", server.url)
    for run in ("first", "again"):
        trainer = runs.make(tmp_path / run, reward="perspective", rate_limit=2000.0)
        trainer.train()
        for path in (tmp_path / run / "rollouts").rglob("part-*.parquet"):
            for row in pq.read_table(path).to_pylist():
                asked = row["completion"].strip()
                assert row["reward"] == (1 - value(row["completion"], "TOXICITY") if asked else None)
                assert row["scorer"] == "perspective@v1alpha1"
    assert len(server.requests) == len(server.asked())
