"""`nlf serve` as clients see it: the `openai` client, curl's view of errors, hostile requests, limits, stopping."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
from openai_server import LENGTH, make_run, running
from running import ask

import nlf
from nlf.cli.main import main
from nlf.serving import completions

PROMPT = "the weather is"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(run):
    with running(run) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def url(served):
    return served[0]


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def writer(run):
    return nlf.load(run, device="cpu")


def settled(service) -> None:
    """Wait until no completion is decoded or waits."""
    while service.engine.live or service.engine.waiting or service.engine.jobs:
        time.sleep(0.01)


def one_line_of(text: str) -> str:
    """The text, which must be one line."""
    assert text.strip() and "\n" not in text.strip()
    return text


# ---- the openai client --------------------------------------------------------------------------------------------


def test_the_models_of_a_run_and_their_tags(client, run):
    found = {model.id: model for model in client.models.list().data}
    assert list(found) == ["tagged", "plain", "base"] and found["tagged"].root == run
    assert found["tagged"].tags[0] == "Lowest Toxicity" and found["base"].tags == []
    assert client.models.retrieve("plain").max_model_len == 96
    with pytest.raises(openai.NotFoundError, match="'other' does not exist; this server has tagged, plain, base"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"n": 3, "seed": 5}, {}),
        ({"n": 2, "seed": 1, "temperature": 0.7, "top_p": 0.8}, {"tag": "Moderate Toxicity", "top_k": 9}),
        ({"n": 2, "seed": 1, "temperature": 0}, {"guidance_scale": 2, "negative_tag": "Low-Moderate Toxicity"}),
        ({"seed": 0, "max_tokens": 3}, {"feedback": "be brief"}),
        ({"seed": 0, "max_tokens": 3}, {"tag": "none", "min_tokens": 3}),
    ],
)
def test_completions_are_those_of_write_and_so_of_sample(client, writer, fields, own):
    found = client.completions.create(model="tagged", prompt=PROMPT, extra_body=own, **fields)
    rule = {name: value for name, value in {**fields, **own}.items() if name not in ("max_tokens", "min_tokens")}
    rule |= {
        "max_completion_length": fields.get("max_tokens", LENGTH),
        "min_completion_length": own.get("min_tokens", 0),
    }
    assert [choice.text for choice in found.choices] == writer.write(PROMPT, **rule)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.seed == fields["seed"] and found.id.startswith("cmpl-")


def test_the_base_and_the_plain_model_answer_under_their_names(client, run):
    texts = {
        name: client.completions.create(model=name, prompt=PROMPT, seed=0).choices[0].text
        for name in ("base", "plain")
    }
    assert texts["plain"] == nlf.load(f"{run}/plain", device="cpu").write(PROMPT, max_completion_length=LENGTH)[0]
    assert texts["base"] != texts["plain"]
    with pytest.raises(openai.BadRequestError, match="this model has no tags"):
        client.completions.create(model="base", prompt=PROMPT, extra_body={"tag": "Lowest Toxicity"})


def test_a_stream_brings_the_text_of_the_whole(client):
    given = {"model": "tagged", "prompt": [PROMPT, "she said"], "n": 2, "seed": 4}
    whole = client.completions.create(**given)
    pieces, reasons, usage = {}, {}, None
    for event in client.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        usage = event.usage
        for choice in event.choices:
            pieces[choice.index] = pieces.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
    assert [pieces[i] for i in range(4)] == [choice.text for choice in whole.choices]
    assert [reasons[i] for i in range(4)] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_stop_ends_the_text_before_it(client):
    text = client.completions.create(model="tagged", prompt=PROMPT, seed=2, n=1).choices[0].text
    for stream in (False, True):
        found = client.completions.create(model="tagged", prompt=PROMPT, seed=2, stop=[text[2:4]], stream=stream)
        choices = [event.choices[0] for event in found] if stream else found.choices
        assert "".join(choice.text for choice in choices) == text[: text.index(text[2:4])]
        assert choices[-1].finish_reason == "stop"


def test_log_probabilities_of_tokens(client):
    given = {"model": "plain", "prompt": PROMPT, "temperature": 0, "logprobs": 3, "max_tokens": 4}
    told = client.completions.create(**given).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 4
    assert all(p == max(best.values()) for p, best in zip(told.token_logprobs, told.top_logprobs, strict=True))
    streamed = [event.choices[0].logprobs for event in client.completions.create(**given, stream=True)]
    assert [p for each in streamed if each for p in each.token_logprobs] == told.token_logprobs


def test_a_random_seed_is_told_so_that_the_answer_can_be_repeated(client):
    first = client.completions.create(model="tagged", prompt=PROMPT)
    again = client.completions.create(model="tagged", prompt=PROMPT, seed=first.seed)
    assert first.choices[0].text == again.choices[0].text


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("chat"), conversational=True)
    with running(run, models=["tagged"]) as (url, _):
        yield run, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_conversations(chatting):
    run, client = chatting
    messages = [{"role": "user", "content": "the weather"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "weather"}]}]
    given = {"model": "tagged", "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 1, "max_completion_tokens": 5}
    found = client.chat.completions.create(messages=messages, **given, extra_body={"guidance_scale": 1})
    assert [choice.message.content for choice in found.choices] == nlf.load(run, device="cpu").write(
        messages, seed=3, n=2, guidance_scale=1, max_completion_length=5
    )
    assert len(found.choices[0].logprobs.content) == 5 and found.choices[0].message.role == "assistant"
    deltas = {0: "", 1: ""}
    for event in client.chat.completions.create(
        messages=parts, **given, stream=True, extra_body={"guidance_scale": 1}
    ):
        for choice in event.choices:
            deltas[choice.index] += choice.delta.content or ""
    assert list(deltas.values()) == [choice.message.content for choice in found.choices]
    with pytest.raises(openai.BadRequestError, match="trained on conversations"):
        client.completions.create(model="tagged", prompt=PROMPT)


# ---- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"tag": "polite"}, 400, "unknown tag 'polite'; this model's tags are 'Lowest Toxicity'"),
        ({"tag": ["a", "b"]}, 400, "2 words, and this model's tags are of one reward"),
        ({"guidance_scale": 1, "negative_tag": "x"}, 400, "unknown tag 'x'"),
        ({"tag": "none", "feedback": "be brief"}, 400, "leave one of the two out"),
        ({"feedback": " "}, 400, "nothing is left"),
        ({"model": "gpt-4"}, 404, "does not exist; this server has tagged, plain, base"),
        ({"temprature": 1}, 400, "did you mean 'temperature'?"),
        ({"zzz": 1}, 400, "the known fields are feedback, guidance_scale"),
        ({"n": 0}, 400, "n: 0 where"),
        ({"n": 1000}, 400, "128 at most"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"max_tokens": 2000}, 400, "max_tokens: 2000 is over this server's limit of 1024"),
        ({"max_tokens": 95}, 400, "over the model's context of 96"),
        ({"max_tokens": 2, "min_tokens": 3}, 400, "min_tokens: 3 is above max_tokens 2"),
        ({"prompt": ""}, 400, "is empty"),
        ({"prompt": None}, 400, "prompt: expected a text"),
        ({"prompt": [[1, 2]]}, 400, "token ids are not read"),
        ({"prompt": ["a"] * 129}, 400, "at most 128 texts"),
        ({"prompt": "\ud800"}, 400, "half a character"),
        ({"stop": [""]}, 400, "none of them empty"),
        ({"stop": list("abcde")}, 400, "at most 4 texts"),
        ({"logprobs": 50}, 400, "20 at most"),
        ({"seed": -1}, 400, "seed"),
        ({"echo": True}, 400, "echo: this server does not support it"),
        ({"logit_bias": {"1": 2}}, 400, "logit_bias: this server does not support it"),
        ({"messages": []}, 400, "Unknown field 'messages'"),
    ],
)
def test_a_mistake_is_told_in_the_protocols_form(url, fields, status, message):
    found = ask(url, COMPLETIONS, {"prompt": PROMPT, **fields})
    error = found[1]["error"]
    assert (found[0], error["type"]) == (status, "not_found_error" if status == 404 else "invalid_request_error")
    assert message in error["message"] and set(error) == {"message", "type", "param", "code"}
    one_line_of(error["message"])


def test_neutral_values_and_fields_without_effect_are_taken(url):
    fields = {
        "user": "me",
        "metadata": {},
        "echo": False,
        "frequency_penalty": 0,
        "best_of": 1,
        "suffix": None,
        "tools": [],
    }
    assert ask(url, COMPLETIONS, {"prompt": PROMPT, **fields})[0] == 200


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "hi",
        [],
        ["hi"],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": "hi"}],
    ],
)
def test_conversations_that_cannot_be_read(url, messages):
    status, found, _ = ask(url, CHAT, {"messages": messages})
    assert status == 400 and one_line_of(found["error"]["message"])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"null", b"3", b"[" * 100_000, b'{"n": NaN}', b'{"seed": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_object(url, path, body):
    status, found, _ = ask(url, path, body)
    assert status == 400 and found["error"]["type"] == "invalid_request_error"


def test_too_large_a_body(url):
    status, found, _ = ask(url, COMPLETIONS, b"x" * (completions.MOST_BYTES + 1))
    assert status == 413 and "exceeds the limit: 1048576 bytes" in found["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [COMPLETIONS, "/v1", "/docs", "/openapi.json", "/health/"])
def test_other_paths_and_methods_are_not_found(url, path, method):
    status, found, _ = ask(url, path, method=method)
    assert status == 404 and "Expected POST /v1/completions" in found["error"]["message"]


# ---- who may use it -----------------------------------------------------------------------------------------------


def test_the_key_is_asked_for_and_health_is_open(run):
    with running(run, key="sk-secret", models=["plain"]) as (url, _):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="sk-secret").models.list().data[0].id == "plain"
        assert ask(url, "/v1/models", method="GET")[0] == 401 and ask(url, "/health", method="GET")[0] == 200


def test_pages_of_other_sites_are_kept_out(run, url):
    body = {"prompt": PROMPT, "max_tokens": 1}
    assert ask(url, COMPLETIONS, body, Origin="https://evil.example")[0] == 403
    assert ask(url, COMPLETIONS, body, Origin=url)[0] == 200
    answer = ask(url, COMPLETIONS, body)
    assert "access-control-allow-origin" not in {name.lower() for name in answer[2]}
    with running(run, hosts=completions.LOCAL, models=["plain"]) as (local, _):
        connection = http.client.HTTPConnection(local.removeprefix("http://"))
        connection.request("GET", "/health", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 400
        assert ask(local, "/health", method="GET")[0] == 200


def test_the_page_runs_nothing_from_elsewhere(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200 and b"/v1/completions" in answer.read()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


# ---- load ---------------------------------------------------------------------------------------------------------


def test_requests_of_other_settings_share_the_batch_and_change_nothing(client, writer, served):
    kinds = [{}, {"tag": "Maximum Toxicity"}, {"guidance_scale": 1.5}, {"feedback": "be kind"}, {"top_k": 3}]
    asked = [(f"the river {i}", 1 + i % 3, kinds[i % 5]) for i in range(30)]

    def text(prompt, n, own):
        found = client.completions.create(model="tagged", prompt=prompt, n=n, seed=7, extra_body=own)
        return [choice.text for choice in found.choices]

    with concurrent.futures.ThreadPoolExecutor(15) as threads:
        found = list(threads.map(lambda each: text(*each), asked))
    assert found == [writer.write(p, n=n, seed=7, max_completion_length=LENGTH, **own) for p, n, own in asked]


def test_a_full_queue_turns_requests_away_and_says_when_to_come_back(run):
    with running(run, models=["plain"], max_batch=1, max_waiting=2) as (url, service):
        connections = []
        body = json.dumps({"prompt": PROMPT, "max_tokens": 80, "min_tokens": 80, "n": 2, "stream": True}).encode()
        statuses = []
        for _ in range(6):
            connections.append(http.client.HTTPConnection(url.removeprefix("http://")))
            connections[-1].request("POST", COMPLETIONS, body)
            answer = connections[-1].getresponse()
            statuses.append(answer.status)
            if answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                assert json.load(answer)["error"]["code"] == "rate_limit_exceeded"
        assert statuses[0] == 200 and 429 in statuses
        for connection in connections:
            connection.close()
        settled(service)
        assert ask(url, COMPLETIONS, {"prompt": PROMPT})[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_completions_of_a_client_that_goes_are_given_up(served, stream):
    url, service = served
    settled(service)
    before = service.engine.generated
    body = json.dumps({"prompt": PROMPT, "max_tokens": 60, "min_tokens": 60, "n": 20, "stream": stream}).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", COMPLETIONS, body)
    while service.engine.generated == before:
        time.sleep(0.001)
    connection.close()
    connection.sock = None
    settled(service)
    assert service.engine.generated - before < 20 * 60


def test_many_hostile_requests_leave_no_trace(served, caplog):
    """Cut connections, half requests, wrong JSON and unknown tags among good requests: each good one is answered."""
    url, service = served
    host, port = url.removeprefix("http://").split(":")
    good = json.dumps({"prompt": PROMPT, "max_tokens": 3}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: "

    def cut_connection(sent: bytes) -> None:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)

    bad = [
        lambda: cut_connection(f"{head}{len(good)}\r\n\r\n".encode() + good),
        lambda: cut_connection(f"{head}{len(good)}\r\n\r\n".encode() + good[:9]),
        lambda: cut_connection(b"\x16\x03\x01" + bytes(200)),
        lambda: ask(url, COMPLETIONS, b"{"),
        lambda: ask(url, COMPLETIONS, {"prompt": PROMPT, "tag": "polite"}),
    ]

    def each(i: int) -> int:
        if i % 2:
            with contextlib.suppress(OSError):
                bad[i % len(bad)]()
            return 0
        return ask(url, COMPLETIONS, good)[0]

    with caplog.at_level(logging.WARNING), concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(each, range(100)))
    assert found == [200, 0] * 50
    settled(service)
    assert "Traceback" not in caplog.text and PROMPT not in caplog.text


def test_a_model_that_fails_is_told_and_the_server_goes_on(served, monkeypatch, caplog):
    url, service = served
    decoder = service.engine.decoders["tagged"]

    def broken(tokens, live):
        raise RuntimeError(f"a bug that quotes {PROMPT}")

    monkeypatch.setattr(decoder.slots, "step", broken)
    body = {"prompt": PROMPT, "max_tokens": 9, "min_tokens": 9}
    status, found, _ = ask(url, COMPLETIONS, body)
    assert (status, found["error"]["message"]) == (500, "the model failed")
    assert ask(url, COMPLETIONS, body)[0] == 200 and not service.engine.jobs


def test_the_metrics(run):
    with running(run, models=["plain"]) as (url, _):
        ask(url, COMPLETIONS, {"prompt": PROMPT, "n": 2, "max_tokens": 3, "min_tokens": 3})
        ask(url, COMPLETIONS, {"prompt": PROMPT, "n": 0})
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    assert 'nlf_requests_total{path="/v1/completions",status="200"} 1' in text
    assert 'nlf_requests_total{path="/v1/completions",status="400"} 1' in text
    assert 'nlf_tokens_total{kind="completion"} 6' in text
    assert 'nlf_time_to_first_token_seconds_bucket{le="+Inf"} 1' in text and "nlf_request_seconds_count 1" in text
    assert re.search(r"^nlf_completions_running 0$", text, re.M)


# ---- the command --------------------------------------------------------------------------------------------------


def start(run: str, *words: str) -> tuple[subprocess.Popen, str]:
    """The command in a process of its own, and its URL."""
    command = [sys.executable, "-m", "nlf", "serve", "--model", run, "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
    for line in process.stderr:
        if found := re.search(r"(.*) at (http://\S+)/v1; Ctrl-C ends it", line):
            return process, found[2]
    raise AssertionError("the server has ended")


def test_ctrl_c_lets_the_command_answer_what_runs_and_ends_it(run):
    process, url = start(run, "--models", "plain")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x").completions.create(
        model="plain", prompt=PROMPT, max_tokens=60, stream=True, extra_body={"min_tokens": 60}
    ) as events:
        next(iter(events))
        process.send_signal(signal.SIGINT)
        last = [event.choices[0].finish_reason for event in events][-1]
    out, err = process.communicate(timeout=60)
    assert last == "length" and "Traceback" not in err
    assert "1 completions, 60 tokens" in out and process.returncode == 0


def test_mistakes_of_the_command_are_one_line(run, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, message in [
            (
                ["--model", run, "--models", "tagd"],
                "models: .* has no model 'tagd' did you mean 'tagged'\\?; there is tagged, plain, base",
            ),
            (["--model", run, "--port", port], "the port is in use"),
            (["--model", "/nowhere"], "/nowhere"),
            (["--model", run, "--max_batch", "0"], "max_batch: 0 where"),
            ([], "--model is missing"),
        ]:
            assert main(["serve", *words]) == 2
            assert re.search(message, one_line_of(capsys.readouterr().err))
    monkeypatch.setattr(completions.server, "EXTRA", ("fastapi", "not_there"))
    assert main(["serve", "--model", run]) == 2 and "nlf serve needs not_there" in capsys.readouterr().err


def test_a_run_whose_base_has_gone_is_served_without_it(tmp_path, caplog):
    from nlf.config import ServeOptions
    from nlf.serving.served import folders_of

    run = make_run(tmp_path)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert list(folders_of(ServeOptions(model=run))) == ["tagged", "plain"]
    assert "is served without its base" in caplog.text
    assert list(folders_of(ServeOptions(model=str(tmp_path / "elsewhere")))) == ["elsewhere"]


def test_the_events_of_a_stream_are_server_sent_events(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", COMPLETIONS, json.dumps({"prompt": PROMPT, "stream": True}).encode())
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: {") for line in lines[:-2])


def test_many_streams_at_once_with_the_asynchronous_client(url, writer):
    async def text(client, i: int) -> str:
        events = await client.completions.create(model="tagged", prompt=f"river {i}", seed=1, stream=True)
        return "".join([event.choices[0].text async for event in events])

    async def all_texts() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(text(client, i) for i in range(20)))

    assert asyncio.run(all_texts()) == [
        writer.write(f"river {i}", seed=1, max_completion_length=LENGTH)[0] for i in range(20)
    ]
