"""`nlf score --serve` as clients see it: answers, errors and limits over HTTP, and what a log never holds."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Letters, analyze, ask, service, serving

from nlf.cli.main import main
from nlf.config import RemoteOptions
from nlf.rewards import remote
from nlf.rewards.perspective import Perspective
from nlf.serving import http, multipart, scoring, server
from nlf.serving import perspective as served
from nlf.serving.protocol import Refused, error_type
from nlf.serving.scoring import AttributeScorer, Batcher

ANALYZE = "/v1alpha1/comments:analyze"
KEY = "AIza-secret/key+1"


@pytest.fixture(scope="module")
def url():
    with serving() as running:
        yield running


def toxicity(payload: dict) -> float:
    return payload["attributeScores"]["TOXICITY"]["summaryScore"]["value"]


# ---- answers ------------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer(url):
    status, payload, headers = ask(url, f"{ANALYZE}?key={KEY}&alt=json", analyze("tent", clientToken="7"))
    assert (status, toxicity(payload), payload["clientToken"]) == (200, 0.5, "7")
    assert headers["content-type"] == "application/json; charset=UTF-8"
    assert "access-control-allow-origin" not in {name.lower() for name in headers}


def test_the_colon_may_be_escaped(url):
    assert ask(url, ANALYZE.replace(":", "%3A"), analyze("tent"))[0] == 200


def test_suggested_scores_get_thanks_and_leave_no_text(url, caplog):
    request = {"comment": {"text": "a secret"}, "attributeScores": {"TOXICITY": {"summaryScore": {"value": 1}}}}
    with caplog.at_level(logging.DEBUG):
        assert ask(url, "/v1alpha1/comments:suggestscore", {**request, "clientToken": "7"})[1] == {"clientToken": "7"}
    assert "thanks for a suggested score; it is not stored" in caplog.messages
    assert "secret" not in caplog.text


def test_a_list_of_requests_is_answered_in_order(url):
    requests = [analyze("tent"), analyze(""), 3, analyze("the"), analyze("bonjour")]
    status, found, _ = ask(url, "/v1alpha1/comments:batchAnalyze", requests)
    assert status == 200 and toxicity(found[0]) == 0.5 and toxicity(found[3]) == 1 / 3
    assert [error_type(each) for each in (found[1], found[4])] == [
        "COMMENT_EMPTY",
        "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
    ]
    assert found[2]["error"]["status"] == "INVALID_ARGUMENT"
    for wrong in ({}, [analyze("a")] * 1001):
        assert ask(url, "/v1alpha1/comments:batchAnalyze", wrong)[0] == 400


def test_the_health_of_the_server(url):
    status, found, _ = ask(url, "/healthz", method="GET")
    assert (status, found) == (200, {"status": "ok", "scorer": "letters@1", "attributes": ["TOXICITY", "INSULT"]})


@pytest.mark.parametrize(
    "path", ["/$discovery/rest?version=v1alpha1", "/discovery/v1/apis/commentanalyzer/v1alpha1/rest"]
)
def test_the_discovery_document_names_the_address_that_the_client_used(url, path):
    found = ask(url, path, method="GET")[1]
    assert found["rootUrl"] == found["baseUrl"] == f"{url}/" and found["batchPath"] == "batch"
    found = ask(url, path, method="GET", Host="scores.example:8443")[1]
    assert found["rootUrl"] == "http://scores.example:8443/"


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", [ANALYZE, "/", "/v1alpha1/comments:rate", "/batch", "/healthz/", "/docs", "/openapi.json"]
)
def test_other_paths_and_methods_are_not_found_in_googles_words(url, path, method):
    status, found, _ = ask(url, path, method=method)
    assert (status, found["error"]["code"], found["error"]["status"]) == (404, 404, "NOT_FOUND")
    assert "Expected POST /v1alpha1/comments:analyze" in found["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"comment": NaN}', b"[" * 100_000, b"null", b"3", b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_object(url, body):
    status, found, _ = ask(url, ANALYZE, body)
    assert (status, found["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert found["error"]["message"].startswith("Invalid JSON payload received.")


def test_too_large_a_body(url, monkeypatch):
    monkeypatch.setattr(served, "MOST_BYTES", 1000)
    status, found, _ = ask(url, ANALYZE, b"x" * 1001)
    assert (status, found["error"]["message"]) == (400, "Request payload size exceeds the limit: 1000 bytes.")


def test_a_slow_client_blocks_nobody_and_is_cut_off(url, monkeypatch):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1alpha1/comments:analyze HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert ask(url, ANALYZE, analyze("tent"))[0] == 200
    monkeypatch.setattr(http, "MOST_SECONDS", 0.01)
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1alpha1/comments:analyze HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_a_bug_of_the_scorer_fails_its_own_request_and_is_logged_without_the_text(caplog):
    with caplog.at_level(logging.DEBUG), serving() as url:
        found = ask(url, "/v1alpha1/comments:batchAnalyze", [analyze("tent"), analyze("boom of Tom"), analyze("the")])[
            1
        ]
        status, alone, _ = ask(url, ANALYZE, analyze("boom"))
    assert [toxicity(found[0]), toxicity(found[2])] == [0.5, 1 / 3]
    assert found[1] == alone and status == 500
    assert alone == {"error": {"code": 500, "message": "Internal error encountered.", "status": "INTERNAL"}}
    assert "the scorer failed on 1 texts (RuntimeError)" in caplog.messages
    assert "boom" not in caplog.text


@settings(max_examples=20)
@given(
    st.lists(st.dictionaries(st.sampled_from(["comment", "requestedAttributes", "languages"]), st.text() | st.none()))
)
def test_any_list_gets_as_many_answers(requests):
    found = asyncio.run(service().listed(requests, ""))
    assert len(found) == len(requests) and all(each["error"]["code"] == 400 for each in found)


# ---- keys and limits ----------------------------------------------------------------------------------------------


def test_no_key_is_needed_and_none_is_logged(caplog):
    with caplog.at_level(logging.DEBUG), serving() as url:
        assert ask(url, f"{ANALYZE}?key=AIzaOfTheClient", analyze("my private text"))[0] == 200
        assert ask(url, "/nowhere?key=AIzaOfTheClient", analyze("my private text"))[0] == 404
        assert ask(url, f"{ANALYZE}?key=AIzaOfTheClient", analyze("bonjour private text"))[0] == 400
    assert "AIza" not in caplog.text and "private" not in caplog.text


def test_a_server_with_a_key():
    with serving(key=KEY) as url:
        for path, headers in ((ANALYZE, {}), (f"{ANALYZE}?key=wrong", {}), (ANALYZE, {"X-Goog-Api-Key": "é"})):
            status, found, _ = ask(url, path, analyze("tent"), **headers)
            assert (status, found["error"]["status"]) == (403, "PERMISSION_DENIED")
        assert ask(url, f"{ANALYZE}?key=AIza-secret%2Fkey%2B1", analyze("tent"))[0] == 200
        assert ask(url, ANALYZE, analyze("tent"), **{"X-Goog-Api-Key": KEY})[0] == 200
        assert ask(url, "/v1alpha1/comments:batchAnalyze", [analyze("tent")])[0] == 403
        assert ask(url, "/$discovery/rest", method="GET")[0] == ask(url, "/healthz", method="GET")[0] == 200


def test_queries_per_second_with_bursts_of_one_second():
    now = [0.0]
    limit = served.Limit(2.0, lambda: now[0])

    def taken() -> bool:
        try:
            limit.take()
        except Refused as error:
            assert (error.code, error.payload["error"]["status"], error.after) == (429, "RESOURCE_EXHAUSTED", 1)
            return False
        return True

    assert [taken() for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [taken() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [taken() for _ in range(3)] == [True, True, False]
    assert [served.Limit(None).take() for _ in range(100)] == [None] * 100


def test_a_client_over_the_limit_is_told_when_to_come_again():
    with serving(limit=served.Limit(0.2, lambda: 0.0)) as url:
        assert ask(url, ANALYZE, analyze("tent"))[0] == 200
        status, found, headers = ask(url, ANALYZE, analyze("tent"))
        assert (status, found["error"]["status"], headers["retry-after"]) == (429, "RESOURCE_EXHAUSTED", "5")
        listed = ask(url, "/v1alpha1/comments:batchAnalyze", [analyze("tent")])[1]
        assert listed[0]["error"]["code"] == 429


# ---- scoring together ---------------------------------------------------------------------------------------------


def test_requests_that_wait_are_scored_in_one_call():
    """The first call blocks until all others wait; they are then one call."""
    calls, release = [], threading.Event()

    def scorer(texts):
        calls.append(list(texts))
        assert release.wait(30)
        return [{"TOXICITY": float(text)} for text in texts]

    async def scored():
        batcher = Batcher(scorer)
        first = asyncio.create_task(batcher(["0"]))
        while not calls:
            await asyncio.sleep(0)
        others = [asyncio.create_task(batcher([str(i), str(-i)])) for i in range(1, 10)]
        while len(batcher.waiting) < 9:
            await asyncio.sleep(0)
        release.set()
        return [await each for each in (first, *others)]

    found = asyncio.run(scored())
    assert found == [[{"TOXICITY": 0.0}], *([{"TOXICITY": i}, {"TOXICITY": -i}] for i in range(1, 10))]
    assert [len(call) for call in calls] == [1, 18]


class Explaining(Letters):
    """Says that each t of a word adds .2 to its share."""

    def explain(self, text, attribute="toxicity"):
        return [(*word.span(), 0.2 * word[0].count("t")) for word in re.finditer(r"\w+", text)]


@pytest.mark.parametrize(
    ("text", "spans"),
    [("the tent totter", [(4, 8, 0.5), (9, 15, 0.5)]), ("😀 tent", [(3, 7, 0.5)]), ("the", [(0, 3, 1 / 3)])],
)
def test_the_spans_of_a_scorer_that_explains_are_the_words_that_raise_the_score(text, spans):
    found = asyncio.run(service(Explaining()).analyze(analyze(text, spanAnnotations=True)))
    found = found["attributeScores"]["TOXICITY"]["spanScores"]
    assert [(span["begin"], span["end"], span["score"]["value"]) for span in found] == spans


def test_of_very_many_words_those_that_raise_the_score_most_are_spans(monkeypatch):
    monkeypatch.setattr(scoring, "MOST_SPANS", 2)
    assert service(Explaining()).scorer.cut("tt ttt tttt tt") == [(3, 6), (7, 11)]


def test_an_explanation_that_fails_fails_its_own_request_only(caplog):
    """The trap: one text took the answers of its whole batch along."""

    class Failing(Explaining):
        def explain(self, text, attribute="toxicity"):
            raise ValueError(text)

    requests = [analyze("a secret", spanAnnotations=True), analyze("tent"), analyze("", span_annotations=True)]
    found = asyncio.run(service(Failing()).listed(requests, ""))
    assert found[0]["error"]["code"] == 500 and toxicity(found[1]) == 0.5 and error_type(found[2]) == "COMMENT_EMPTY"
    assert "secret" not in caplog.text


def test_a_call_holds_a_bounded_number_of_texts(monkeypatch):
    monkeypatch.setattr(scoring, "MOST_TEXTS", 3)
    letters = Letters()
    running = service(letters)
    asyncio.run(running.listed([analyze("tent")] * 7 + [analyze("t. " * 5, spanAnnotations=True)], ""))
    assert [len(call) for call in letters.calls] == [1, 3, 3, 1, 6]  # the first is the trial; a request stays whole


def test_a_server_with_too_much_to_do_says_so(monkeypatch):
    monkeypatch.setattr(scoring, "MOST_WAITING", 3)
    found = asyncio.run(service().listed([analyze("tent")] * 6, ""))
    assert [each.get("error", {}).get("status") for each in found] == [*[None] * 4, "UNAVAILABLE", "UNAVAILABLE"]


# ---- Google's batch form ------------------------------------------------------------------------------------------


def test_a_batch_of_other_clients():
    """Parts in UTF-8, with whole addresses, other line ends, no Content-ID, and one that is no method."""
    body = json.dumps(analyze("tént"), ensure_ascii=False).encode()
    part = b"--b\r\nContent-Type: application/http\r\n%s\r\n%s\r\n"
    parts = [
        part
        % (b"Content-ID: <item1>\r\n", b"POST http://x/v1alpha1/comments:analyze HTTP/1.1\r\nA: b\r\n\r\n" + body),
        part % (b"Content-ID: <item2>\r\n", b"POST /v1alpha1/comments%3Aanalyze?key=k\n\n" + body),
        part % (b"", b"GET /v1alpha1/comments:analyze HTTP/1.1\r\n\r\n"),
    ]
    found = multipart.calls_of("multipart/mixed; boundary=b", b"".join(parts) + b"--b--\r\n")
    assert [(call.method, call.path, call.key, call.content_id) for call in found] == [
        ("POST", ANALYZE, "", "<item1>"),
        ("POST", ANALYZE, "k", "<item2>"),
        ("GET", ANALYZE, "", ""),
    ]
    answers = asyncio.run(service().batch(found, ""))
    assert [status for status, _ in answers] == [200, 200, 404] and toxicity(answers[0][1]) == 0.5
    kind, written = multipart.batch_of([("<a\r\nSet-Cookie: b>", 200, b"{}")])
    assert b"Content-ID: <response-aSet-Cookie: b>\r\n" in written and "boundary=batch_" in kind


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/mixed", b"--b\r\n"),
        ("multipart/mixed; boundary=b", b"--b\r\n\r\nx\r\n--b--"),
    ],
)
def test_what_is_no_batch(url, kind, body):
    status, found, _ = ask(url, "/batch", body, **{"Content-Type": kind})
    assert status == 400 and "Failed to parse batch request" in found["error"]["message"]


# ---- our own client -----------------------------------------------------------------------------------------------


def test_the_reward_perspective_asks_this_server(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NLF_CACHE", str(tmp_path))
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setattr(remote, "_options", RemoteOptions(rate_limit=2000))
    local = service(served.scorer_of(["local"]).reward.function)
    with serving(local) as url:
        monkeypatch.setenv("PERSPECTIVE_BASE_URL", url)
        texts = ["You are kind.", "", "You are stupid.", "x" * 30_000]
        found = asyncio.run(Perspective("SEXUALLY_EXPLICIT").judge([""] * 4, texts, [[]] * 4))
    (kind,) = AttributeScorer(local.scorer.reward)([texts[0]])
    assert found[0].attributes == {name.lower(): value for name, value in kind.items()}
    assert found[0].reward == 1 - kind["SEXUALLY_EXPLICIT"]
    assert found[1].reward is None and None not in (found[2].reward, found[3].reward)


# ---- the command --------------------------------------------------------------------------------------------------


def fails(capsys, *argv: str) -> str:
    assert main(["score", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nlf: error: ") and err.count("\n") == 1
    return err


def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    assert "so the file does not go with it" in fails(capsys, str(tmp_path / "texts.jsonl"), "--serve")
    assert "name one scorer" in fails(capsys, "--serve", "--reward_funcs", "local", "audit")
    assert "'sentiment@1' has the attributes positive; expected" in fails(
        capsys, "--serve", "--reward_funcs", "sentiment"
    )
    assert "has the attributes none" in fails(capsys, "--serve", "--reward_funcs", "length")
    assert "no such host" in fails(capsys, "--serve", "--host", "nowhere.invalid")
    assert "no such host" in fails(capsys, "--serve", "--host", "a" * 300)
    assert "port: 70000 where 0 or more, 65535 at most" in fails(capsys, "--serve", "--port", "70000")
    assert "--queries_per_second limits what" in fails(capsys, "--serve", "--rate_limit", "3")
    monkeypatch.setenv("NLF_SERVE_KEY", "two words")
    assert "NLF_SERVE_KEY: expected a key" in fails(capsys, "--serve")
    monkeypatch.delenv("NLF_SERVE_KEY")
    with server.listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        assert f"127.0.0.1, port {port}: the port is in use; end the other server" in fails(
            capsys, "--serve", "--port", port
        )
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    assert "nlf score --serve needs fastapi and uvicorn: run `pip install '.[serve]'` in the source" in fails(
        capsys, "--serve"
    )


def test_the_command_serves_until_ctrl_c():
    command = [sys.executable, "-m", "nlf", "score", "--serve", "--port", "0", "--reward_funcs", "audit"]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        line = running.stderr.readline()
        assert line.startswith("audit@"), line
        url = re.search("http://127.0.0.1:[0-9]+", line)[0]
        status, found, _ = ask(url, ANALYZE, analyze("A fine day."))
        assert status == 200 and list(found["attributeScores"]) == ["TOXICITY"]
        assert ask(url, ANALYZE, analyze("A fine day.", "INSULT"))[0] == 400  # audit has toxicity only
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, out, err) == (0, "1 comments scored\n", "")
