"""Sampling by a server: every dialect, every fault, `transformers serve`, and what is refused."""

import asyncio
import json
import logging

import pytest
import tiny
from completions_server import EOS, MODEL, CompletionsServer, written
from serve import serving

from nlf.cli.main import main
from nlf.config import SamplingOptions
from nlf.data.generations import read_lines
from nlf.errors import UserError
from nlf.evaluation.sample import EVALUATION
from nlf.method.tags import TagScheme
from nlf.models.policy import load_policy, prepare_policy, save_policy
from nlf.sampling import Request, Vocabulary, request_key, seed_of
from nlf.sampling import server as module
from nlf.sampling.factory import sampler_of
from nlf.sampling.server import Form, ServerSampler

TOKENIZER = tiny.tokenizer()
PROMPTS = [tuple(TOKENIZER(row["prompt"])["input_ids"]) for row in tiny.PROMPTS[:6]]
ASKED = [Request(ids, request_key(str(i), 0)) for i, ids in enumerate(PROMPTS)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short pauses, and no key of the person's own."""
    monkeypatch.setattr(module, "BACKOFF", 0.002)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def sampler(url, model=MODEL, timeout=600.0, **options):
    known = {"banned": options.pop("banned_token_ids", ()), "context": options.pop("context", float("inf"))}
    known["size"] = options.pop("size", float("inf"))
    return ServerSampler(url, model, TOKENIZER, Vocabulary((EOS,), **known), timeout=timeout, **options)


def sample(drawing, asked=ASKED, *, seed=3, iteration=-1, progress=None, **options):
    options = SamplingOptions(**{"num_generations": 3, "max_completion_length": 6} | options)
    return drawing.sample(asked, options, seed=seed, iteration=iteration, progress=progress)


def expected(seed=3, n=3):
    return [[written(r.input_ids, seed_of(seed, -1, r.key, j), 6) for j in range(n)] for r in ASKED]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def tokenized_again(ids):
    text = TOKENIZER.decode(ids, skip_special_tokens=True)
    return TOKENIZER(text)["input_ids"] + [EOS] * (ids[-1] == EOS)


# ---- dialects -------------------------------------------------------------------------------------------------------


def test_token_ids_go_and_come_as_they_are(caplog):
    told = []
    with CompletionsServer() as server:
        drawing = sampler(server.url, banned_token_ids=(299,))
        found = sample(drawing, top_k=7, top_p=0.9, temperature=0.5, min_completion_length=2, progress=told.append)
        assert found == expected() and sum(told) == 18
        assert [body["seed"] for body in sorted(server.bodies, key=lambda b: b["seed"])] == sorted(
            seed_of(3, -1, r.key, j) for r in ASKED for j in range(3)
        )
        body = next(body for body in server.bodies if body["prompt"] == list(PROMPTS[0]))
    assert {**body, "seed": 0} == {
        **{"model": MODEL, "prompt": list(PROMPTS[0]), "max_tokens": 6, "temperature": 0.5, "top_p": 0.9, "seed": 0},
        **{"top_k": 7, "min_tokens": 2, "stop_token_ids": [EOS], "logit_bias": {"299": -100}},
        "return_token_ids": True,
    }
    assert {EOS} & {ids[-1] for each in found for ids in each} and not warnings(caplog)


@pytest.mark.parametrize(
    ("dialect", "form", "probes"),
    [("text", Form(False, "vllm"), 2), ("misread", Form(False, "vllm"), 2), ("openai", Form(True, ""), 4)],
)
def test_text_is_tokenised_again_and_says_so_once(dialect, form, probes, caplog):
    with CompletionsServer(dialect) as server:
        drawing = sampler(server.url, banned_token_ids=(299,))
        found = sample(drawing)
        assert found == [[tokenized_again(ids) for ids in each] for each in expected()]
        assert found == sample(drawing) and drawing.form == form
        assert len(server.requests) == probes + 2 * 18  # one probe for both calls
        assert isinstance(server.bodies[0]["prompt"], list if form.ids else str)
        assert all(body["logit_bias"] == {"299": -100} for body in server.bodies)
    assert warnings(caplog) == [f"{server.url}/v1/completions: {module.TEXT_ALONE}"]


def test_a_filter_that_the_server_does_not_know_is_not_left_out():
    with CompletionsServer("openai") as server:
        for options in ({"top_k": 5}, {"min_completion_length": 1}):
            with pytest.raises(
                UserError, match="none of the request forms.*Unrecognized argument.*top_k and min_completion"
            ):
                sample(sampler(server.url), **options)


def test_other_seeds_iterations_and_indices_are_other_completions():
    with CompletionsServer() as server:
        drawing = sampler(server.url, concurrency=2)
        found = sample(drawing)
        assert found == sample(drawing) and found[::-1] == sample(drawing, ASKED[::-1])
        assert found != sample(drawing, seed=4) and found != sample(drawing, iteration=0)
        assert all(each[0] != each[1] for each in found)
    seeds = {seed_of(seed, i, key, j) for seed in (0, 1) for i in (-1, 0, 1) for key in (5, 2**64 - 1) for j in (0, 1)}
    assert len(seeds) == 24 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_tokenizer_that_adds_bos_itself_gets_the_text_without():
    class WithBOS:
        bos_token_id = 0
        decode = TOKENIZER.decode

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [0, *TOKENIZER(text)["input_ids"]]}

    drawing = sampler("http://localhost:1")
    drawing.tokenizer = WithBOS()
    assert drawing._text((0, *PROMPTS[0])) == tiny.PROMPTS[0]["prompt"]
    assert not drawing.told
    assert drawing._text(PROMPTS[0]) == tiny.PROMPTS[0]["prompt"] and drawing.told == {module.OTHER_TOKENS}


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_every_fault_is_tried_again(caplog):
    with CompletionsServer(faults=0.3, seed=5) as server:
        assert sample(sampler(server.url), num_generations=25) == expected(n=25)
        assert len({request.fault for request in server.requests}) > 8
    assert not warnings(caplog)


def test_a_server_that_never_answers_stops_it():
    with (
        CompletionsServer(faults=[None] + ["500"] * 500) as server,
        pytest.raises(UserError, match=r"no answer after 8 tries \(HTTP 500: 8\).*'tagged'.*run again to continue"),
    ):
        sample(sampler(server.url))
    with CompletionsServer(faults=1.0) as server, pytest.raises(UserError, match="no answer after 8 tries"):
        sample(sampler(server.url))
    with CompletionsServer(most=0) as server, pytest.raises(UserError, match=r"8 tries \(TimeoutError: 8\)"):
        sample(sampler(server.url, timeout=0.05))


def test_mistakes_are_named_in_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"sampler_url: expected http\(s\)://host"):
        sampler("localhost:8000")
    with pytest.raises(UserError, match="cannot be reached: is the server running"):
        sample(sampler("http://127.0.0.1:9/v1"))
    with CompletionsServer(key="right") as server:
        with pytest.raises(UserError, match="model 'other': HTTP 401: wrong key.*sampler_model and OPENAI_API_KEY"):
            sample(sampler(server.url, "other"))
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        with pytest.raises(UserError, match=r"wrong key Bearer \[key\]"):
            sample(sampler(server.url))
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        with pytest.raises(UserError, match="'other': HTTP 404: The model `other` does not exist"):
            sample(sampler(server.url, "other"))
        with pytest.raises(UserError, match="HTTP 404: no such path /elsewhere/completions"):
            sample(sampler(f"{server.url}/elsewhere"))
        assert sample(sampler(f"{server.url}/v1/")) == expected()
        asked = len(server.requests)
        with pytest.raises(UserError, match="sampler server cannot be guided.*guidance_scale 0, or sampler hf"):
            sample(sampler(server.url), guidance_scale=1.0)
        with pytest.raises(UserError, match="prompt 2 of 2 has no tokens"):
            sample(sampler(server.url), [ASKED[0], Request((), 1)])
        with pytest.raises(UserError, match="over the model's context of 8"):
            sample(sampler(server.url, context=8))
        assert sample(sampler(server.url), []) == [] and len(server.requests) == asked


CHOICES = [5, [], {"token_ids": "x"}, {"token_ids": [1.5]}, {"token_ids": [True]}, {"token_ids": [-1]}, {"token_ids": [300]},
           {"token_ids": [2**70]}, {"text": 5}]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_that_is_no_completion_is_tried_again(choice, monkeypatch):
    answers = iter([{"choices": [choice]}] * 2)

    async def post(*_):
        return next(answers, {"choices": [{"token_ids": [1, 2]}]})

    monkeypatch.setattr(module, "post", post)
    assert sample(sampler("http://host", size=300), ASKED[:1], num_generations=1) == [[[1, 2]]]


@pytest.mark.parametrize("ids", [True, False])
def test_a_server_that_echoes_the_key_gets_it_into_no_completion(monkeypatch, ids):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    async def post(*_):
        return {
            "choices": [
                {"text": f"it is {key}"} | ({"token_ids": TOKENIZER(f"it is {key}")["input_ids"]} if ids else {})
            ]
        }

    monkeypatch.setattr(module, "post", post)
    [[found]] = sample(sampler("http://host"), ASKED[:1], num_generations=1)
    assert TOKENIZER.decode(found) == "it is [key]"


def test_a_server_that_asks_to_wait_for_ever_is_given_up(monkeypatch):
    with CompletionsServer(faults=["429 after"], after="99999999999") as server:
        with pytest.raises(UserError, match="the service asks to wait 99,999,999,999 seconds .*run again later"):
            sample(sampler(server.url))
        assert len(server.requests) == 1


def test_a_long_wait_is_said(monkeypatch, caplog):
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real(0))
    with CompletionsServer(faults=["429 after"], after="120") as server:
        assert sample(sampler(server.url)) == expected()
    assert warnings(caplog) == [
        f"{server.url}/v1/completions: the service asks to wait 120 seconds (HTTP 429); waiting"
    ]


# ---- transformers serve ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a tagged model and prompts."""
    path = tmp_path_factory.mktemp("served")
    tiny.save(path / "base", "llama", seed=1)
    save_policy(prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS[:3]))
    return path


@pytest.fixture(scope="module")
def served():
    with serving() as url:
        yield url


def test_transformers_serve_samples_as_this_process_does(folder, served, caplog):
    """Greedy, its texts are those of our own loop; sampled, seeds repeat and differ: without generation_config it would
    stay greedy.
    """
    policy = load_policy(str(folder / "run"))
    vocabulary = Vocabulary(policy.eos_token_ids, policy.banned_token_ids)
    drawing = ServerSampler(served, str(folder / "run"), policy.tokenizer, vocabulary, concurrency=1)

    def texts(found):
        return [policy.tokenizer.batch_decode(each, skip_special_tokens=True) for each in found]

    here = sampler_of(policy)
    tagged = policy.tokenizer(f"{policy.scheme.best}<|separator|>the weather")["input_ids"]
    asked = [*ASKED[:3], Request(tuple(tagged), 7)]
    assert texts(sample(drawing, asked, temperature=0)) == texts(sample(here, asked, temperature=0))
    assert drawing.form == Form(False, "transformers")
    found = sample(drawing, asked, num_generations=4)
    assert found == sample(drawing, asked, num_generations=4)
    assert all(len(set(map(tuple, each))) > 1 for each in found)
    assert sample(drawing, asked, top_k=1, num_generations=2) == sample(
        drawing, asked, temperature=0, num_generations=2
    )
    assert warnings(caplog) == [f"{drawing.url}: {module.TEXT_ALONE}"]


def test_nlf_sample_and_evaluate_by_a_server(folder, served, tmp_path, capsys):
    words = ["--model", str(folder / "run"), "--prompts", str(folder / "prompts.jsonl"), "--num_generations", "2"]
    words += ["--max_completion_length", "4", "--sampler", "server", "--sampler_url", served]
    out = tmp_path / "out"
    assert main(["sample", *words, "--output_dir", str(out)]) == 0
    lines = list(read_lines(out / "generations.jsonl"))
    assert [line["settings"]["sampler"] for line in lines] == [f"server:{folder / 'run'}"] * 3
    assert {len(line["completions"]) for line in lines} == {2}
    assert main(["sample", *words, "--output_dir", str(out), "--sampler", "hf"]) == 2
    assert "sampled with sampler='server:" in capsys.readouterr().err
    assert main(["evaluate", *words, "--base_model", str(folder / "base"), "--output_dir", str(out / "e")]) == 2
    assert "sampler server cannot be guided" in capsys.readouterr().err
    words += ["--guidance_scale", "0", "--base_model", str(folder / "base"), "--output_dir", str(out / "e")]
    assert main(["evaluate", *words]) == 0
    found = {path.name: next(iter(read_lines(path)))["settings"]["sampler"] for path in (out / "e").glob("*.jsonl")}
    assert found == {
        "generations-base.jsonl": f"server:{folder / 'base'}",
        "generations-best-tag.jsonl": f"server:{folder / 'run'}",
    }


def test_sampler_model_names_the_model_and_no_other(folder, tmp_path, capsys):
    words = [
        "evaluate",
        "--model",
        str(folder / "run"),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--sampler",
        "server",
    ]
    words += [
        "--num_generations",
        "2",
        "--max_completion_length",
        "4",
        "--guidance_scale",
        "0",
        "--sampler_model",
        MODEL,
    ]
    words += ["--output_dir", str(tmp_path)]
    with CompletionsServer() as server:
        words += ["--sampler_url", server.url]
        assert main(words) == 0
        assert main([*words, "--base_model", str(folder / "base")]) == 2
    assert f"model '{folder / 'base'}': HTTP 404" in capsys.readouterr().err
    (line, *_) = read_lines(tmp_path / "generations-best-tag.jsonl")
    assert line["settings"]["sampler"] == f"server:{MODEL}"
    seed = seed_of(0, EVALUATION, request_key(line["prompt_id"], 0), 0)
    (prompt,) = [body["prompt"] for body in server.bodies if body["seed"] == seed]
    assert prompt[-len(line["prompt_ids"]) :] == line["prompt_ids"]
    assert line["completion_ids"][0] == written(prompt, seed, 4)


def test_a_model_that_transformers_serve_does_not_have(served):
    with pytest.raises(UserError, match=r"no answer after 8 tries \(HTTP 500: \d.*\); does it serve '/nowhere'"):
        sample(sampler(served, "/nowhere"))


# ---- options --------------------------------------------------------------------------------------------------------


def test_flags_are_checked_before_anything_is_loaded(folder, capsys):
    words = ["sample", "--model", str(folder / "run"), "--output_dir", "out"]
    for flags, told in [
        (["--sampler", "sglang"], "one of hf, vllm, server"),
        (["--sampler", "server"], "sampler_url is missing"),
        (["--sampler", "server", "--sampler_url", "http://x", "--guidance_scale", "1"], "cannot be guided"),
        (["--sampler", "server", "--sampler_url", "x"], "sampler_url: expected http(s)://"),
        (["--sampler", "server", "--sampler_url", "http://localhost:99999"], "a port from 1 to 65535"),
        (["--gpu_memory_utilization", "2"], "a number above 0, 1 at most"),
        (["--tensor_parallel_size", "0"], "a number above 0"),
    ]:
        assert main([*words, *flags]) == 2
        assert told in capsys.readouterr().err, flags


def test_the_log_names_the_form(caplog):
    with CompletionsServer() as server, caplog.at_level(logging.INFO, logger="nlf"):
        sample(sampler(server.url))
    assert [r.getMessage() for r in caplog.records] == [
        f"{server.url}/v1/completions: prompts as token ids, vllm's fields"
    ]
