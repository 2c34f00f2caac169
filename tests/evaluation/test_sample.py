"""`nlf sample`: what is in a line, resuming to the same samples, refusing to mix, tags of one's own, guidance."""

import json
import shutil

import pytest
import tiny
from runs import locked_by_another, sample_words

from nlf.cli.main import main
from nlf.config import SamplingOptions
from nlf.data.generations import FILE, read, read_lines
from nlf.errors import UserError
from nlf.evaluation import sample
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.systems import chosen_tag, negative_tag, slug, with_tags
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy, save_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tagged tiny Llama and a file of prompts."""
    path = tmp_path_factory.mktemp("sample")
    save_policy(prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "prompts.jsonl").write_text("".join(json.dumps({**row, "topic": "x"}) + "\n" for row in tiny.PROMPTS))
    return path


@pytest.fixture
def words(folder, tmp_path):
    """The command's first words."""
    return [
        *sample_words(folder, tmp_path / "out"),
        "--num_generations",
        "3",
        "--max_completion_length",
        "4",
        "--prompts_per_part",
        "8",
    ]


def test_a_line_holds_what_was_sampled_and_how(words, tmp_path, capsys):
    assert main(words) == 0
    assert "3 completions of each prompt, after 'Lowest Toxicity'" in capsys.readouterr().out
    lines = list(read_lines(tmp_path / "out/generations.jsonl"))
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in tiny.PROMPTS]
    for line in lines:
        assert len(line["completions"]) == len(line["completion_ids"]) == len(line["ended"]) == 3
        assert line["feedback"] == "Lowest Toxicity" and line["columns"] == {"topic": "x"}
        tokenizer = tiny.tokenizer()
        assert tokenizer("", add_special_tokens=False)["input_ids"] == []
        assert line["completions"] == tokenizer.batch_decode(line["completion_ids"], skip_special_tokens=True)
        assert [ids[-1] == 0 for ids in line["completion_ids"]] == line["ended"]
    settings = lines[0]["settings"]
    assert settings["top_p"] == 0.9 and settings["seed"] == 0 and settings["negative_tag"] is None
    assert settings["template"] == "{feedback}<|separator|>{prompt}" and len(settings["model_revision"]) == 16


def test_killed_and_resumed_it_is_the_same_file(words, tmp_path, monkeypatch):
    assert main(words) == 0
    path = tmp_path / "out/generations.jsonl"
    whole = path.read_bytes()
    calls = []
    original = sample.sample_lines
    monkeypatch.setattr(sample, "sample_lines", lambda *a, **k: calls.append(len(a[1])) or original(*a, **k))
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut, sampled in [
        (0, [8, 8, 4]),
        (ends[7], [8, 4]),
        (ends[10] + 5, [8, 4]),
        (ends[18] + 1, [4]),
        (len(whole), []),
    ]:
        path.write_bytes(whole[:cut])
        calls.clear()
        assert main(words) == 0
        assert path.read_bytes() == whole
        assert calls == sampled


def test_more_prompts_go_on_where_it_ended(words, tmp_path):
    path = tmp_path / "out/generations.jsonl"
    assert main([*words, "--max_prompts", "10"]) == 0
    assert len(list(read_lines(path))) == 10
    assert main(words) == 0
    longer = path.read_bytes()
    path.unlink()
    assert main(words) == 0
    assert path.read_bytes() == longer
    assert main([*words, "--max_prompts", "10"]) == 0  # there already; nothing is lost
    assert path.read_bytes() == longer


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed", "1"], "seed=0, now it is 1"),
        (["--top_p", "1"], "top_p=0.9, now it is 1"),
        (["--tag", "none"], "feedback='Lowest Toxicity', now it is None"),
        (["--guidance_scale", "1"], "now it is"),
        (["--prompts", "embedded"], "prompt="),
    ],
)
def test_other_settings_are_never_mixed_in(words, tmp_path, capsys, flags, told):
    assert main([*words, "--max_prompts", "2"]) == 0
    before = (tmp_path / "out/generations.jsonl").read_bytes()
    assert main([*words, "--max_prompts", "2", *flags]) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "out/generations.jsonl").read_bytes() == before


def test_other_weights_are_refused(words, tmp_path, capsys):
    assert main([*words, "--max_prompts", "2"]) == 0
    save_policy(prepare_policy(tiny.model("llama", seed=5), tiny.tokenizer(), TagScheme()), tmp_path / "other")
    assert main([*words, "--max_prompts", "2", "--model", str(tmp_path / "other")]) == 2
    assert "model_revision=" in capsys.readouterr().err


def test_tags_of_ones_own(folder, words, tmp_path):
    scheme = TagScheme(("Lowest Negativity", "Maximum Negativity"))
    (tmp_path / "tags.json").write_text(scheme.to_json())
    assert main([*words, "--max_prompts", "1", "--tags", str(tmp_path / "tags.json")]) == 0
    (line,) = read_lines(tmp_path / "out/generations.jsonl")
    assert line["feedback"] == "Lowest Negativity"
    again = [*words[:-1], "1", "--output_dir", str(tmp_path / "two"), "--max_prompts", "1", "--tags", *scheme.tags]
    assert (
        main([*again, "--tag", "Maximum Negativity", "--guidance_scale", "2", "--negative_tag", "Lowest Negativity"])
        == 0
    )
    (line,) = read_lines(tmp_path / "two/generations.jsonl")
    assert line["feedback"] == "Maximum Negativity" and line["settings"]["negative_tag"] == "Lowest Negativity"


def test_several_sources_have_a_file_each(words, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("a calm day\n")
    assert main([*words, "--prompts", str(one), "embedded:test", "--max_prompts", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "generations-one.jsonl",
        "generations-test.jsonl",
    ]


def test_a_model_without_tags_is_sampled_bare(tmp_path, capsys):
    base = tiny.save(tmp_path / "base")
    words = [
        "sample",
        "--model",
        base,
        "--max_prompts",
        "1",
        "--max_completion_length",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    assert main([*words, "--guidance_scale", "1"]) == 2 and "this model has no tags" in capsys.readouterr().err
    assert main([*words, "--tag", "Lowest Toxicity"]) == 2 and "no tags.json" in capsys.readouterr().err
    assert main(words) == 0
    assert "without a tag" in capsys.readouterr().out


def test_which_words_a_tag_is():
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    assert chosen_tag(policy, "best") == "Lowest Toxicity" and chosen_tag(policy, "none") is None
    assert chosen_tag(policy, "Moderate Toxicity") == chosen_tag(policy, "middle") == "Moderate Toxicity"
    assert chosen_tag(with_tags(policy, ["good", "fair", "poor", "bad"]), "middle") == "fair"
    assert negative_tag(policy, None) == "Maximum Toxicity"
    with pytest.raises(UserError, match="unknown tag 'Best'"):
        chosen_tag(policy, "Best")
    assert with_tags(policy, ["good", "bad"]).scheme.tags == ("good", "bad")


def test_names_of_sources():
    assert slug("data/rtp test.jsonl.gz") == "rtp-test" and slug("embedded:sentiment-neutral") == "sentiment-neutral"
    assert slug("best tag, guidance 0.5") == "best-tag-guidance-0-5" and slug("owner/prompts") == "prompts"


def test_a_prompt_that_does_not_fit_says_so_and_keeps_what_is_done(tmp_path):
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    rows = [{"prompt": "short", "prompt_id": "a"}, {"prompt": "long " * 90, "prompt_id": "b"}]
    with (
        prompt_sampler(policy, SamplingOptions(max_completion_length=4)) as sampler,
        pytest.raises(UserError, match="over the model's context of 96"),
    ):
        sample_file(tmp_path / "x.jsonl", sampler, rows, None, part=1)
    assert len(list(read_lines(tmp_path / "x.jsonl"))) == 1


def no_model(monkeypatch):
    """Make loading a model fail, to show that a mistake is found before."""
    monkeypatch.setattr(sample, "load_for_commands", lambda *args: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    "content", ['{"prompt_text": "mine"}', '{"prompt_text": "mine"}\n', "my notes", '{"prompt": "a"}\n', "\x00\n"]
)
def test_a_file_of_another_program_stays_though_its_last_line_has_no_end(
    words, tmp_path, capsys, monkeypatch, content
):
    no_model(monkeypatch)
    path = tmp_path / "out/generations.jsonl"
    path.parent.mkdir()
    path.write_text(content)
    assert main(words) == 2
    assert "out/generations.jsonl:1" in capsys.readouterr().err
    assert path.read_text() == content and list(path.parent.iterdir()) == [path]


def test_a_second_command_in_the_folder_is_refused_before_it_loads_a_model(words, tmp_path, capsys, monkeypatch):
    no_model(monkeypatch)
    with locked_by_another(tmp_path / "out"):
        assert main(words) == 2
    assert f"{tmp_path}/out is being written by" in capsys.readouterr().err


def chat_run(folder) -> str:
    """A tagged tiny model that was trained on conversations."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    scheme = TagScheme(separator=None, conversational=True)
    save_policy(prepare_policy(tiny.model("llama"), tokenizer, scheme), folder)
    return str(folder)


def test_a_chat_run_is_not_sampled_on_text_nor_a_text_run_on_messages(words, tmp_path, capsys):
    words[words.index("--model") + 1] = chat_run(tmp_path / "chat")
    assert main(words) == 2
    assert "trained on conversations, with the tag in the system message" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    talks = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.PROMPTS]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    words[words.index("--prompts") + 1] = str(tmp_path / "talks.jsonl")
    assert main(words) == 0
    assert next(read(tmp_path / "out" / FILE))["feedback"] == "Lowest Toxicity"


def test_messages_for_a_text_run_are_one_line(words, tmp_path, capsys):
    (tmp_path / "talks.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}) + "\n")
    words[words.index("--prompts") + 1] = str(tmp_path / "talks.jsonl")
    assert main(words) == 2
    assert "prompt 1" in (told := capsys.readouterr().err) and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_run_that_lost_its_tags_is_not_sampled_from_bare_prompts(tmp_path, words, folder, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run/run.json").write_text('{"train_prompts": "abc"}')
    (tmp_path / "run/tags.json").unlink()
    words[words.index("--model") + 1] = str(tmp_path / "run")
    assert main(words) == 2 and "holds a run without its tags.json; copy the file" in capsys.readouterr().err
