"""A distilled folder is an ordinary model: transformers runs and serves it in processes that cannot import nlf."""

import json
import subprocess
import sys

import pytest
import tiny
from serve import ALONE, post, serving

from nlf.method.tags import TagScheme
from nlf.models.policy import load_policy, prepare_policy, save_policy
from nlf.training.distill import distill

FLAGS = {"num_prompts": 8, "num_generations": 2, "max_steps": 3, "per_device_train_batch_size": 4}


def student(path, template=None) -> str:
    """A distilled model, of text or of conversations."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tiny.model("llama").save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} if template else row for row in tiny.PROMPTS]
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scheme = TagScheme(separator=None) if template else TagScheme()
    tagged = prepare_policy(tiny.model("llama", seed=1), tokenizer, scheme)
    save_policy(tagged, path / "run")
    knobs = {"base_model": str(path / "base"), "prompts": [str(path / "prompts.jsonl")], "max_completion_length": 4}
    return str(distill(model=str(path / "run"), **knobs, **FLAGS))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return student(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return student(tmp_path_factory.mktemp("chat"), tiny.CHAT_TEMPLATE)


def alone(code: str) -> list[str]:
    """The lines that a process without nlf prints."""
    done = subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_of_tags_is_left(plain):
    found = load_policy(plain)
    assert found.scheme is None and found.added_token_ids == ()
    assert found.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert found.model.num_parameters() == tiny.model("llama").num_parameters()
    assert found.model.config.use_cache


def test_generate_and_pipeline(plain, chat):
    """The texts equal those of the model loaded by nlf."""
    lines = alone(f"""
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
model, tokenizer = (kind.from_pretrained({plain!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))
ids = model.generate(**tokenizer("the weather", return_tensors="pt"), max_new_tokens=4, do_sample=False)
print(ids[0].tolist())
print(ascii(pipeline("text-generation", {plain!r})("the weather", max_new_tokens=4, do_sample=False)[0]["generated_text"]))
said = pipeline("text-generation", {chat!r})([{{"role": "user", "content": "the weather"}}], max_new_tokens=4)
print(said[0]["generated_text"][-1]["role"])
""")
    found = load_policy(plain)
    inputs = found.tokenizer("the weather", return_tensors="pt")
    ids = found.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
    assert lines == [str(ids.tolist()), ascii(found.tokenizer.decode(ids, skip_special_tokens=True)), "assistant"]


def test_transformers_serve(plain, chat):
    """Text through /v1/completions; conversations through /v1/chat/completions, if the model has a chat template."""
    found = load_policy(plain)
    inputs = found.tokenizer("the weather", return_tensors="pt")
    ids = found.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs.input_ids.shape[1] :]
    with serving() as url:
        body = {"model": plain, "prompt": "the weather", "max_tokens": 4, "temperature": 0}
        status, answer = post(url, "/v1/completions", body)
        assert status == 200 and answer["usage"]["completion_tokens"] == len(ids)
        assert answer["choices"][0]["text"] == found.tokenizer.decode(ids, skip_special_tokens=True)
        messages = [{"role": "user", "content": "the weather"}]
        status, answer = post(url, "/v1/chat/completions", {"model": chat, "messages": messages, "max_tokens": 4})
        assert status == 200 and answer["choices"][0]["message"]["role"] == "assistant"
        assert post(url, "/v1/chat/completions", {"model": plain, "messages": messages, "max_tokens": 4})[0] != 200
