"""The page of `nlf serve` without a browser: its files, its policy, and the scores that it asks for."""

import http.client
import json
from importlib.resources import files

import pytest
from openai_server import LENGTH, running
from running import ask

from nlf.evaluation.run_defaults import Scorers
from nlf.rewards import Reward

SCORE = "/nlf/score"


class Short:
    """reward = 1 - length / 20, also of beginnings."""

    name, prefixes = "short", True

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [1 - len(text) / 20 for text in completions]


@pytest.fixture(scope="module")
def url(run):
    with running(run) as (found, service):
        service.rater._scorers = Scorers([Reward(Short()), Reward(Short())], [1.0, 2.0])
        yield found


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_files_of_the_page_allow_no_code_in_line(url, path, kind):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Content-Type"].startswith(kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    content = answer.read()
    assert b"innerHTML" not in content and b"https://" not in content and b"style=" not in content


def test_the_settings_name_models_and_limits(url):
    status, found, _ = ask(url, "/nlf/settings", method="GET")
    assert status == 200 and [model["id"] for model in found["models"]] == ["tagged", "plain", "base"]
    assert found["max_completion_length"] == LENGTH and found["models"][0]["conversational"] is False


def test_scores_of_completions_and_of_their_beginnings(url):
    about = ask(url, SCORE, method="GET")[1]
    assert about == {"scorers": ["short", "short"], "low": 0.0, "high": 1.0, "beginnings": True}
    body = {"prompt": "the", "completions": ["0123456789", ""], "ends": [[2, 4, 10], []]}
    status, found, _ = ask(url, SCORE, body)
    assert status == 200 and found["rewards"] == pytest.approx([1.5, 3.0])
    assert found["beginnings"][0] == pytest.approx([2.7, 2.4, 1.5]) and found["beginnings"][1] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "Expected an object"),
        ({"prompt": "a", "completions": ["b"], "tag": "c"}, "Expected an object"),
        ({"completions": ["b"]}, "prompt: expected a text"),
        ({"prompt": ["a", "b"], "completions": ["b"]}, "prompt: expected one text"),
        ({"prompt": "a"}, "completions: expected a list of 1 to 128 texts"),
        ({"prompt": "a", "completions": [1]}, "completions: expected texts"),
        ({"prompt": "a", "completions": ["b"], "ends": [[2]]}, "ends: expected"),
        ({"prompt": "a", "completions": ["bc"], "ends": [[2, 1]]}, "ends: expected"),
        ({"prompt": "a", "completions": ["b"], "ends": [[True]]}, "ends: expected"),
        ({"prompt": "a", "completions": ["b"] * 2, "ends": [[]]}, "ends: expected"),
        ({"prompt": "a", "completions": ["b"], "ends": [[0] * 5000]}, "ends: expected"),
        ({"prompt": "a", "completions": ["b" * 10_000], "ends": [[10_000] * 500]}, "ends: expected"),
    ],
)
def test_a_wrong_request_for_scores_is_told(url, body, message):
    status, found, _ = ask(url, SCORE, body)
    assert status == 400 and found["error"]["message"].startswith(message)


def test_a_scorer_that_fails_is_an_error_without_the_text(run, caplog):
    def broken(completions, **columns):
        raise RuntimeError(f"a bug that quotes {completions}")

    with running(run, models=["plain"]) as (url, service):
        service.rater._scorers = Scorers([Reward(broken)])
        status, found, _ = ask(url, SCORE, {"prompt": "a", "completions": ["secret"]})
        assert status == 500 and "secret" not in json.dumps(found) + caplog.text
        service.rater._scorers = None
        assert ask(url, SCORE, method="GET")[1]["scorers"] == []
        assert ask(url, SCORE, {"prompt": "a", "completions": ["b"]})[0] == 404


def test_scores_ask_for_the_key_and_the_page_does_not(run):
    with running(run, key="sk-secret", models=["plain"]) as (url, _):
        assert ask(url, SCORE, {"prompt": "a", "completions": ["b"]})[0] == 401
        assert ask(url, "/nlf/settings", method="GET")[0] == 401
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/page.js")
        assert connection.getresponse().status == 200


def test_the_runs_own_reward_scores_unless_it_asks_another_machine(run, monkeypatch):
    from nlf.serving import rating

    assert [reward.label for reward in rating.Rater(run, None)._scorers.rewards] == ["local@2"]
    far = Reward(Short())
    far.remote = True
    monkeypatch.setattr(rating, "scorers_of", lambda options, model: Scorers([far]))
    assert rating.Rater(run, None)._scorers is None


def test_the_examples_are_mild_prompts_of_the_embedded_test_set():
    from nlf.rewards.registry import resolve_reward

    page = files("nlf").joinpath("serving/page.html").read_text(encoding="utf-8")
    listed = page.partition('id="examples"')[2].partition("</ul>")[0]
    shown = [line.partition("</button>")[0].partition('type="button">')[2] for line in listed.split("<li>")[1:]]
    known = files("nlf").joinpath("assets/prompts/test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(shown) == 5 and set(shown) <= {json.loads(line)["prompt"] for line in known}
    assert resolve_reward("local").attributes(shown)["toxicity"].max() < 0.15


@pytest.mark.parametrize(("display", "opened"), [(":0", ["http://127.0.0.1:8000"]), ("", [])])
def test_the_page_is_opened_where_there_are_windows(monkeypatch, display, opened):
    from nlf.serving import completions

    found = []
    monkeypatch.setattr(completions.webbrowser, "open", found.append)
    monkeypatch.setattr(completions.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    completions.open_page("http://127.0.0.1:8000")
    assert found == opened
