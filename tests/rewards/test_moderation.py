"""OpenAI's moderation endpoint, at any base URL."""

import asyncio

import pytest
from faulty_server import CATEGORIES, KEY, FaultyServer, value

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.rewards import Judgement, Reward, remote
from nlf.rewards.moderation import Moderation
from nlf.services import OPENAI


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(remote.RemoteScorer, "backoff", 0.002)
    monkeypatch.setattr(remote, "_options", RemoteOptions())


def ask(scorer, *texts):
    return asyncio.run(scorer.judge(["p"] * len(texts), texts, [[0]] * len(texts)))


def scores(text):
    return {name: value(text, name) for name in CATEGORIES}


def test_the_request_and_what_comes_of_it(monkeypatch):
    with FaultyServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1/")
        whole, hate = Moderation(), Moderation("hate/threatening")
        assert ask(whole, "a b") == [Judgement(1 - max(scores("a b").values()), scores("a b"))]
        assert ask(hate, "a b") == [Judgement(1 - scores("a b")["hate/threatening"], scores("a b"))]
        [request] = server.requests  # the second one is known
        assert request.path == "/v1/moderations"
        assert request.body == {"model": "omni-moderation-latest", "input": "a b"}
        ask(Moderation(model="text-moderation-stable"), "a b")
        assert len(server.requests) == 2
    labels = [Reward(scorer).label for scorer in (whole, hate)]
    assert labels == [f"openai-moderation{name}@omni-moderation-latest" for name in ("", ":hate/threatening")]


def test_a_faulty_server_loses_nothing():
    texts = [f"text {i}" for i in range(150)]
    with FaultyServer(0.3, seed=5) as server:
        found = ask(Moderation(base_url=server.url), *texts)
        missing = {request.text for request in server.requests if request.fault == "missing"}
        for text, judgement in zip(texts, found, strict=True):
            said = Judgement(1 - max(scores(text).values()), scores(text))
            assert judgement == (Judgement(None) if text in missing else said)


def test_what_cannot_be_scored(caplog):
    with FaultyServer() as server:
        found = ask(Moderation("violence", base_url=server.url), "x" * 40_000, " ", "x")
    assert [judgement.reward for judgement in found] == [None, None, 1 - value("x", "violence")]
    assert "3 texts, 2 without a score" in caplog.text
    assert "text too long: 1" in caplog.text and "empty text: 1" in caplog.text


def test_answers_without_the_category():
    scorer = Moderation("charm")
    assert scorer.read({"hate": 0.25}) == Judgement(None, {"hate": 0.25})
    assert Moderation().read({"hate": 0.25, "x": "y", "z": None}) == Judgement(0.75, {"hate": 0.25})
    assert Moderation().read({}) == Moderation().read(None) == Judgement(None)
    assert scorer.counts == {"no charm in the answer": 1}


def test_the_key_is_needed_by_openai_only_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with FaultyServer() as server, pytest.raises(UserError) as caught:
        ask(Moderation(base_url=server.url), "a")
    assert "HTTP 401: Incorrect API key: Bearer [key]; check OPENAI_API_KEY, OPENAI_BASE_URL and" in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Moderation().base_url == OPENAI and Moderation(base_url="http://host").base_url == "http://host/v1"
    with pytest.raises(UserError, match="openai-moderation: no key; set OPENAI_API_KEY, or OPENAI_BASE_URL"):
        ask(Moderation(), "a")
    assert Moderation(base_url="http://127.0.0.1:1/api").ready() is None
