"""Sampling by offline vLLM, in real processes, with a stand-in for vLLM in them: it cannot be installed everywhere."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import get_args, get_type_hints

import pytest
import tiny
from runs import alive, wait_for_end

from nlf.cli.main import main
from nlf.config import SamplerOptions, SamplingOptions
from nlf.data.generations import read_lines
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.policy import load_policy, prepare_policy, save_policy
from nlf.sampling import Request, Vocabulary, request_key, seed_of
from nlf.sampling.factory import SAMPLERS, sampler_of
from nlf.sampling.vllm import Engine, VLLMSampler

ASKED = [Request((5, 6, i), request_key(str(i), 0)) for i in range(1, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tagged model and prompts."""
    path = tmp_path_factory.mktemp("vllm")
    save_policy(prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    return path


@pytest.fixture
def vllm(folder, stand_in):
    """Makes samplers over the model, and closes them."""
    made = []

    def make(model=None, banned=(), context=float("inf"), copies=1, device=None, **engine) -> VLLMSampler:
        engine = Engine(model or str(folder / "run"), **engine)
        made.append(VLLMSampler(engine, Vocabulary((0,), banned, context), copies=copies, device=device))
        return made[-1]

    yield make
    for each in made:
        each.close()


def sample(drawing, asked=ASKED, *, seed=3, iteration=-1, progress=None, **options):
    options = SamplingOptions(**{"num_generations": 3, "max_completion_length": 6} | options)
    return drawing.sample(asked, options, seed=seed, iteration=iteration, progress=progress)


def expected(asked=ASKED, n=3, seed=3):
    from vllm import SamplingParams, completion

    return [
        [
            list(completion(r.input_ids, SamplingParams(seed=seed_of(seed, -1, r.key, 0), max_tokens=6, stop_token_ids=[0]), j).token_ids)
            for j in range(n)
        ]
        for r in asked
    ]  # fmt: skip


def test_one_process_gets_everything_and_gives_the_ids(vllm, stand_in, capfd):
    told = []
    drawing = vllm(dtype="bfloat16", banned=(300,), tensor_parallel_size=2, gpu_memory_utilization=0.5)
    found = sample(drawing, top_k=7, top_p=0.9, min_completion_length=2, temperature=0.5, progress=told.append)
    assert found == expected() and sum(told) == 21
    assert (
        found == sample(drawing) and found[::-1] == sample(drawing, ASKED[::-1]) and found != sample(drawing, seed=4)
    )
    asked = stand_in()
    first, params = asked[0], asked[0]["params"][0]
    assert first["pid"] != os.getpid() and [each["pid"] for each in asked] == [first["pid"]] * 4  # it is loaded once
    assert (first["tensor"], first["dtype"], first["memory"], first["trust"]) == (2, "bfloat16", 0.5, False)
    assert (params["n"], params["temperature"], params["top_p"], params["top_k"]) == (3, 0.5, 0.9, 7)
    assert (params["max_tokens"], params["min_tokens"], params["stop_token_ids"]) == (6, 2, [0])
    assert params["logit_bias"] == {"300": -100.0} and params["detokenize"] is False
    assert asked[1]["params"][0]["top_k"] == -1
    assert "stdout" not in capfd.readouterr().out  # what vLLM prints is no output of ours


def test_what_it_holds_is_given_back(vllm, stand_in):
    """vLLM's main process starts others, and those hold the memory."""
    drawing = vllm()
    found, first = sample(drawing), stand_in()[0]
    assert alive(first["pid"]) and alive(first["core"])
    drawing.close()
    assert not alive(first["pid"])
    wait_for_end(first["core"])
    assert sample(drawing) == found and stand_in()[1]["pid"] != first["pid"]  # another is started


def test_it_ends_with_the_process_that_started_it(folder, stand_in):
    code = """
import os, sys
from nlf.config import SamplingOptions
from nlf.sampling import Request, Vocabulary
from nlf.sampling.vllm import Engine, VLLMSampler
drawing = VLLMSampler(Engine(sys.argv[1]), Vocabulary((0,)))
drawing.sample([Request((5,), 1)], SamplingOptions(), seed=0, iteration=0)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(folder / "run")]).returncode == 9
    told = stand_in()[0]
    wait_for_end(told["pid"])
    os.kill(told["core"], signal.SIGKILL)  # the stand-in does not look after its own


def test_room_is_made_for_the_longest_prompt_only(vllm, stand_in):
    drawing, of = vllm(context=5000), lambda *lengths: [Request((5,) * n, request_key("p", n)) for n in lengths]
    assert [len(sample(drawing, of(*lengths))) for lengths in ((3, 10), (2040,), (2043,), (4994,))] == [2, 1, 1, 1]
    assert [told["room"] for told in stand_in()] == [2048, 2048, 4096, 5000]
    assert sample(vllm(context=96), of(3)) and stand_in()[-1]["room"] == 96
    assert sample(vllm(), of(3)) and stand_in()[-1]["room"] is None  # vLLM knows better


def test_the_likeliest_token_is_asked_for_once(vllm, stand_in):
    """vLLM refuses n > 1 at temperature 0."""
    found = sample(vllm(), temperature=0.0)
    assert {len(each) for each in found} == {3} and all(len(set(map(tuple, each))) == 1 for each in found)
    assert stand_in()[0]["params"][0]["n"] == 1


def test_copies_of_the_model_share_the_prompts(vllm, stand_in, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5,7")
    two = {"copies": 2, "tensor_parallel_size": 2}
    assert sample(vllm(**two)) == expected()
    assert Counter((each["devices"], each["prompts"]) for each in stand_in()) == {("0,1", 4): 1, ("4,5", 3): 1}
    assert sample(vllm(**two), ASKED[:1]) == expected(ASKED[:1])
    assert len(stand_in()) == 3  # one without prompts is not started
    with pytest.raises(UserError, match="data_parallel_size 3 x tensor_parallel_size 2: 6 GPUs are needed, 5 are"):
        vllm(copies=3, tensor_parallel_size=2)
    assert vllm(device=2, tensor_parallel_size=2).devices == ["4,5"] and vllm(device=0).devices == ["0"]
    with pytest.raises(UserError, match="tensor_parallel_size 2: 2 GPUs are needed, 1 are visible from GPU 4 on"):
        vllm(device=4, tensor_parallel_size=2)


def test_mistakes_are_named_in_one_line(vllm, stand_in, capfd, tmp_path):
    drawing = vllm(context=8)
    with pytest.raises(UserError, match="sampler vllm cannot be guided"):
        sample(drawing, guidance_scale=1.0)
    with pytest.raises(UserError, match="over the model's context of 8"):
        sample(drawing)
    assert sample(drawing, []) == [] and not (tmp_path / "log").exists()
    with pytest.raises(UserError, match=r"vLLM failed \(exit status 1\) on /nowhere: its messages are above"):
        sample(vllm("/nowhere"))
    assert "Invalid repository ID" in capfd.readouterr().err
    drawing = vllm()
    with pytest.raises(UserError, match="vLLM failed"):
        sample(drawing, temperature=3.0)
    with pytest.raises(UserError, match="vLLM failed"):  # it has ended: nobody waits for an answer
        sample(drawing)


def test_without_vllm_it_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    words = ["sample", "--model", str(folder / "run"), "--output_dir", "out", "--sampler", "vllm"]
    assert main(words) == 2
    assert "pip install vllm" in capsys.readouterr().err


def test_nlf_sample_loads_it_once_and_goes_on_where_it_stopped(folder, stand_in, tmp_path, capsys):
    words = ["sample", "--model", str(folder / "run"), "--prompts", str(folder / "prompts.jsonl"), "--sampler", "vllm"]
    words += ["--output_dir", str(tmp_path / "out"), "--num_generations", "2", "--prompts_per_part", "4"]
    words += ["--max_completion_length", "20"]
    assert main([*words, "--max_prompts", "5"]) == 0
    path = tmp_path / "out/generations.jsonl"
    part = path.read_bytes()
    assert main(words) == 0
    assert path.read_bytes().startswith(part) and [each["prompts"] for each in stand_in()] == [4, 1, 3, 4, 4, 4]
    assert list(Counter(each["pid"] for each in stand_in()).values()) == [2, 4]
    for each in stand_in():
        wait_for_end(each["pid"])
        wait_for_end(each["core"])
    first = stand_in()[0]
    assert (first["model"], first["revision"], first["dtype"]) == (str(folder / "run"), None, "float32")
    assert first["params"][0]["logit_bias"] == {"300": -100.0}  # the separator
    lines = list(read_lines(path))
    assert len(lines) == 20 and {line["settings"]["sampler"] for line in lines} == {"vllm"}
    assert main([*words, "--sampler", "hf"]) == 2
    assert "sampled with sampler='vllm', now it is 'hf'" in capsys.readouterr().err


def test_lines_from_before_there_was_a_choice_are_of_this_process(folder, tmp_path):
    words = ["sample", "--model", str(folder / "run"), "--prompts", str(folder / "prompts.jsonl")]
    words += ["--output_dir", str(tmp_path), "--max_prompts", "2", "--num_generations", "2"]
    assert main(words) == 0
    path = tmp_path / "generations.jsonl"
    whole = path.read_text()
    path.write_text(whole.splitlines(keepends=True)[0].replace('"sampler": "hf", ', ""))
    assert main(words) == 0
    assert [line["completion_ids"] for line in read_lines(path)] == [
        json.loads(line)["completion_ids"] for line in whole.splitlines()
    ]


def test_every_sampler_of_the_options_is_made(folder, stand_in):
    policy = load_policy(str(folder / "run"))
    labels = {
        name: sampler_of(policy, SamplerOptions(sampler=name, sampler_url="http://localhost:1")).label
        for name in SAMPLERS
    }
    assert labels == {"hf": "hf", "vllm": "vllm", "server": f"server:{folder / 'run'}"}
    assert get_args(get_type_hints(SamplerOptions)["sampler"]) == tuple(SAMPLERS)
