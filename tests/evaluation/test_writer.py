"""`nlf.load(RUN).write(…)`: the completions of `nlf sample`, tags of several attributes, words of one's own, mistakes."""

import json
from dataclasses import replace

import pytest
import tiny
import yaml
from runs import sample_words

import nlf
from nlf.cli.main import main
from nlf.config import SamplingOptions
from nlf.config.objective import LENGTHS
from nlf.data.generations import read_lines
from nlf.errors import UserError
from nlf.method.tags import TagScheme, diagonal
from nlf.models.policy import prepare_policy, save_policy

SHORT = {"max_completion_length": 6}
ATTRIBUTES = [
    {"name": "toxicity", "reward": "local", "tags": ["kind", "rude"]},
    {"name": "mood", "reward": "sentiment", "tags": ["glad", "calm", "sad"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tagged tiny Llama and a file of prompts."""
    path = tmp_path_factory.mktemp("writer")
    save_policy(prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS[:3]))
    return path


@pytest.fixture(scope="module")
def writer(folder):
    return nlf.load(str(folder / "run"), device="cpu")


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A run of two attributes, which its settings name."""
    path = tmp_path_factory.mktemp("attributes")
    scheme = TagScheme(tuple(diagonal([each["tags"] for each in ATTRIBUTES], ", and ")))
    save_policy(prepare_policy(tiny.model("gpt2"), tiny.tokenizer(), scheme), path)
    settings = {"reward_funcs": ["local", "sentiment"], "attributes": ATTRIBUTES, "attribute_template": ", and "}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "run.json").write_text(json.dumps({"train_prompts": "0"}))
    return nlf.load(str(path), device="cpu")


def sampled(folder, tmp_path, *flags: str) -> list[list[str]]:
    words = sample_words(folder, tmp_path / "out")
    assert main([*words, "--max_completion_length", "6", "--num_generations", "3", *flags]) == 0
    return [line["completions"] for line in read_lines(tmp_path / "out/generations.jsonl")]


def test_completions_are_those_of_sample_with_the_same_seed(folder, writer, tmp_path):
    found = [writer.write(row["prompt"], n=3, seed=5, **SHORT) for row in tiny.PROMPTS[:3]]
    assert found == sampled(folder, tmp_path, "--seed", "5")
    assert len({text for texts in found for text in texts}) > 3


def test_guided_completions_are_those_of_sample_too(folder, writer, tmp_path):
    tags = {"tag": "Moderate Toxicity", "negative_tag": "Low-Moderate Toxicity", "guidance_scale": 2.0}
    found = [writer.write(row["prompt"], n=3, temperature=0.8, **tags, **SHORT) for row in tiny.PROMPTS[:3]]
    flags = [word for name, value in tags.items() for word in (f"--{name}", str(value))]
    assert found == sampled(folder, tmp_path, *flags, "--temperature", "0.8")


def test_an_unknown_tag_is_answered_with_the_known_ones(writer):
    for wrong in ({"tag": "polite"}, {"tag": ["polite"]}, {"negative_tag": "polite", "guidance_scale": 1}):
        with pytest.raises(UserError, match="unknown tag 'polite'.*'Lowest Toxicity'.*'Maximum Toxicity'"):
            writer.write("a", **wrong)
    with pytest.raises(UserError, match="2 words, and this model's tags are of one reward; give one for each"):
        writer.write("a", tag=["Lowest Toxicity", "kind"])


def test_several_attributes_take_one_tag_each(steered):
    assert steered.words() == "kind, and glad"
    assert (
        steered.words(["rude", "glad"]) == steered.words("rude, and glad") == "rude, and glad"
    )  # not on the diagonal
    assert steered.guided(SamplingOptions(guidance_scale=1.0), ["rude", "calm"]).negative_tag == "rude, and calm"
    with pytest.raises(
        UserError, match="unknown tag 'gladd' did you mean 'glad'\\?; the tags of mood: 'glad', 'calm', 'sad'"
    ):
        steered.words(["rude", "gladd"])
    with pytest.raises(UserError, match="1 words, and this model's tags are of toxicity, mood; give one for each"):
        steered.words(["rude"])


def test_feedback_is_words_of_ones_own_on_one_line(writer):
    assert writer.words(feedback="be  brief<|separator|>\nand kind") == "be brief and kind"
    assert writer.write("the weather", feedback="be brief", **SHORT) != writer.write("the weather", **SHORT)
    with pytest.raises(UserError, match="nothing is left"):
        writer.words(feedback="<|separator|> ")


def test_a_model_without_tags_writes_bare_prompts(tmp_path):
    plain = nlf.load(tiny.save(tmp_path), device="cpu")
    assert plain.words() is None and plain.tags == ()
    assert plain.write("the weather", **SHORT) == plain.write("the weather", tag="none", **SHORT)
    for wrong in ({"feedback": "be brief"}, {"tag": "kind"}, {"guidance_scale": 1.0}):
        with pytest.raises(UserError, match="this model has no tags"):
            plain.write("the weather", **wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "is empty"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "no chat template"),
        ({"prompt": "a", "n": 0}, "num_generations"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "max_completion_length": 1000}, "context of 96"),
    ],
)
def test_mistakes_are_one_line(writer, given, message):
    with pytest.raises(UserError, match=message):
        writer.write(**given)


def test_the_length_is_the_runs_or_that_of_the_prompts(writer, steered):
    rows = writer.prompts(["the weather"])
    assert writer.usual_length(rows) == LENGTHS["text"]
    assert replace(steered, length=5).usual_length(rows) == 5
    assert len(replace(writer, length=5).write("the weather", min_completion_length=5)) == 1
