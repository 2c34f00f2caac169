"""`nlf evaluate` on tiny models: every system, every file, every key; killed anywhere it ends the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from runs import locked_by_another

from nlf.cli.main import main
from nlf.data import generations
from nlf.data.generations import read
from nlf.evaluation import evaluate, metrics
from nlf.evaluation.evaluate import cell, comparison, systems_of
from nlf.evaluation.systems import tag_slug
from nlf.method.tags import TagScheme
from nlf.models.policy import load_policy, prepare_policy, save_policy

REWARD = "local@1"  # `local@2` has no score for the gibberish of a tiny model
FLAGS = [
    "--num_generations",
    "3",
    "--max_completion_length",
    "4",
    "--prompts_per_part",
    "8",
    "--guidance_scale",
    "0.5",
    "1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, a tagged Llama made of it, and prompts."""
    path = tmp_path_factory.mktemp("evaluate")
    tiny.save(path / "base", "llama")
    save_policy(prepare_policy(tiny.model("llama", seed=1), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    return path


@pytest.fixture
def words(folder, tmp_path):
    """The command's first words."""
    found = ["evaluate", "--model", folder / "run", "--base_model", folder / "base"]
    found += [
        "--prompts",
        folder / "prompts.jsonl",
        "--output_dir",
        tmp_path / "out",
        "--reward_funcs",
        REWARD,
        *FLAGS,
    ]
    return [str(word) for word in found]


def results(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


def test_base_tag_guidance_and_other_tags(words, tmp_path, capsys):
    assert main([*words, "--sweep_tags", "--sweep_prompts", "2"]) == 0
    found = results(tmp_path / "out")
    systems = {system["id"]: system for system in found["systems"]}
    assert list(systems) == [
        *("base", "best-tag", "best-tag-guidance-0-5", "best-tag-guidance-1", "tag-low-moderate-toxicity"),
        *("tag-moderate-toxicity", "tag-high-moderate-toxicity", "tag-maximum-toxicity"),
    ]
    assert [s["n_samples"]["effective"] for s in found["systems"]] == [20, 20, 20, 20, 2, 2, 2, 2]
    assert systems["base"]["metrics"]["kl"] == pytest.approx(0, abs=1e-6)
    assert systems["best-tag"]["metrics"]["kl"] > 0
    guided = systems["best-tag-guidance-1"]
    assert (guided["tag"], guided["negative_tag"], guided["guidance_scale"]) == (
        "Lowest Toxicity",
        "Maximum Toxicity",
        1,
    )
    for system in found["systems"]:
        lines = list(read(tmp_path / "out" / system["generations"]))
        assert len(lines) == system["n_samples"]["effective"]
        assert {line["feedback"] for line in lines} == {system["tag"]}
    table = capsys.readouterr().out.splitlines()
    assert table[0] == (
        "| system | prompts | toxicity probability | expected max | mean toxicity | unscored | perplexity | dist-2 |"
    )
    assert [line.split(" | ")[0] for line in table[2:]][:3] == [
        *("| base", "| best tag: Lowest Toxicity", "| best tag, guidance 0.5: Lowest Toxicity")
    ]


def test_tags_without_letters_have_a_file_each(words, folder, tmp_path):
    scheme = TagScheme(("⭐⭐⭐", "⭐⭐", "⭐"))
    save_policy(prepare_policy(tiny.model("llama", seed=1), tiny.tokenizer(), scheme), tmp_path / "run")
    words[2] = str(tmp_path / "run")
    assert main([*words, "--sweep_tags", "--sweep_prompts", "2"]) == 0
    ids = [system["id"] for system in results(tmp_path / "out")["systems"]]
    assert ids[-2:] == ["tag-quantile-1", "tag-quantile-2"]
    found = {name: {row["feedback"] for row in read(tmp_path / "out" / f"generations-{name}.jsonl")} for name in ids}
    assert found["tag-quantile-1"] == {"⭐⭐"} and found["tag-quantile-2"] == {"⭐"}


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        (("Lowest Toxicity", "High-Moderate Toxicity!"), ["lowest-toxicity", "high-moderate-toxicity"]),
        (("so good", "so-good"), ["quantile-0", "quantile-1"]),
        (("Good", "good", "bad"), ["quantile-0", "quantile-1", "quantile-2"]),
        (("a/low", "b/low"), ["a-low", "b-low"]),
        (("word " * 60, "bad"), ["quantile-0", "quantile-1"]),
    ],
)
def test_no_two_tags_share_a_file_name(tags, names):
    policy = SimpleNamespace(scheme=TagScheme(tags))
    assert [tag_slug(tag, policy) for tag in tags] == names


def test_prompts_with_nan_and_half_a_character_in_other_columns_are_evaluated(words, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "good day", "x": NaN, "y": "\\ud800"}\n')
    words[words.index("--prompts") + 1] = str(prompts)
    for _ in range(2):  # sampled and scored, then read again
        assert main(words) == 0
    rows = [*read(tmp_path / "out" / "generations-base.jsonl")]
    assert rows[0]["columns"] == {"x": None, "y": "\ud800"} and rows[0]["scores"]


def test_results_are_what_the_files_say(words, tmp_path):
    assert main(words) == 0
    found = results(tmp_path / "out")
    for system in found["systems"]:
        lines = list(read(tmp_path / "out" / system["generations"]))
        scores = [line["scores"]["local@1"]["attributes"]["toxicity"] for line in lines]
        highest = [max(each) for each in scores]
        values = system["metrics"]
        assert values["expected_max_toxicity@3"] == pytest.approx(sum(highest) / 20)
        low, high = values["expected_max_toxicity@3_ci95"]
        assert low <= values["expected_max_toxicity@3"] <= high and values["expected_max_toxicity@3_stderr"] > 0
        (likelihoods,) = [line["likelihoods"] for line in lines[:1]]
        (name,) = likelihoods
        nll = sum(sum(line["likelihoods"][name]["nll"]) for line in lines)
        tokens = sum(len(ids) for line in lines for ids in line["completion_ids"])
        assert values["perplexity"] == pytest.approx(math.exp(nll / tokens))
        assert values["completion_length"] == pytest.approx(tokens / 60)


def test_every_key_of_the_schema_is_there_and_documented(words, tmp_path):
    assert main(words) == 0
    found, page = results(tmp_path / "out"), (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    for key in [
        *found,
        *found["systems"][0],
        *generations.REQUIRED,
        *next(read(tmp_path / "out/generations-base.jsonl")),
    ]:
        assert f"`{key}`" in page, key
    assert found["schema_version"] == 1 and found["scorers"] == ["local@1"] and found["seeds"]["sampling"] == 0
    assert set(found["models"]) == {"policy", "base", "eval"} and found["config"]["top_p"] == 0.9
    names = evaluate.metric_names(found["systems"])
    assert set(found["higher_is_better"]) == set(names)
    for name in names:
        plain = name.partition("@")[0].partition(">")[0]
        assert plain not in metrics.METRICS or f"`{plain}" in page, name
    assert [each["against"] for each in found["differences"]] == ["base"] * 3
    for each in found["differences"]:
        assert 0 < each["metrics"]["perplexity"]["p_value"] <= 1
    assert any("sweep_tags" in note for note in found["skipped"])


class Killed(BaseException):
    """As SIGKILL: nothing may catch it."""


@pytest.mark.parametrize("after", [1, 4, 9, 15])
def test_killed_at_any_write_it_ends_the_same(words, tmp_path, monkeypatch, after):
    """Nothing is sampled, scored or read by a model twice, and the files are the same to the byte."""
    whole = tmp_path / "whole"
    assert main([*words, "--output_dir", str(whole)]) == 0
    appended, original = [], generations.append

    def counted(path, rows):
        appended.extend((path.name, json.dumps(row, sort_keys=True)) for row in rows)
        original(path, rows)
        if len(appended) >= after * 8 and not killed:
            killed.append(True)
            with open(path, "a") as file:
                file.write('{"cut off')
            raise Killed

    killed = []
    monkeypatch.setattr(generations, "append", counted)
    monkeypatch.setattr("nlf.evaluation.sample.append", counted)
    with pytest.raises(Killed):
        main(words)
    assert main(words) == 0
    new, old = results(tmp_path / "out"), results(whole)
    for each in (new, old):
        each.pop("date")
        each["config"].pop("output_dir")
    assert new == old
    for path in whole.glob("generations*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in whole.iterdir()}
    per_file = {name: [row for n, row in appended if n == name] for name, _ in appended}
    for name, rows in per_file.items():  # a part whose last line was cut off is sampled again, and only that
        assert len(rows) - len(set(rows)) <= 8, name


def test_a_second_scorer_is_added_and_the_first_not_asked_again(words, tmp_path, monkeypatch):
    assert main(words) == 0
    from nlf.rewards.convolution import LocalToxicity1

    calls = []
    original = LocalToxicity1.attributes
    monkeypatch.setattr(
        LocalToxicity1, "attributes", lambda self, texts: calls.append(len(texts)) or original(self, texts)
    )
    assert main(words) == 0 and calls == []
    assert main([*words, "--reward_funcs", REWARD, "tiny:vowels", "--reward_weights", "1", "2"]) == 0 and calls == []
    values = results(tmp_path / "out")["systems"][0]["metrics"]
    assert values["reward/sum"] == pytest.approx(values["reward/local@1"] + 2 * values["reward/vowels"])


def test_divergence_is_to_the_base_of_this_comparison(words, folder, tmp_path):
    """An earlier base's stays in the file and must not be read for another, or for none."""
    other = tiny.save(tmp_path / "other", "llama", seed=7)
    asked = [*words, "--max_prompts", "3", "--guidance_scale", "0", "--eval_model", str(folder / "base")]
    assert main(asked) == 0
    first = results(tmp_path / "out")["systems"][1]["metrics"]["kl"]
    for path in (tmp_path / "out").glob("generations-base*"):
        path.unlink()  # the base's own samples are of its weights
    assert main([*asked, "--base_model", other]) == 0
    second = results(tmp_path / "out")["systems"][1]["metrics"]["kl"]
    assert abs(first - second) > 1e-9
    for path in (tmp_path / "out").glob("generations-base*"):
        path.unlink()
    assert main(asked) == 0
    assert results(tmp_path / "out")["systems"][1]["metrics"]["kl"] == first


def test_more_prompts_later(words, tmp_path):
    assert main([*words, "--max_prompts", "5"]) == 0
    few = results(tmp_path / "out")
    assert main(words) == 0
    assert main([*words, "--max_prompts", "5"]) == 0
    again = results(tmp_path / "out")
    assert again["systems"] == few["systems"] and len(list(read(tmp_path / "out/generations-base.jsonl"))) == 20


def test_sentiment_turns_the_tags_round(words, tmp_path):
    one, two = tmp_path / "negative.txt", tmp_path / "neutral.txt"
    one.write_text("the film was\nit is\n")
    two.write_text("on monday\n")
    words.remove("--reward_funcs"), words.remove(REWARD)
    flags = ["--task", "sentiment", "--prompts", str(one), str(two), "--reverse_prompts", str(two)]
    assert main([*words, *flags]) == 0
    found = results(tmp_path / "out")
    assert found["task"] == "sentiment" and found["scorers"] == ["sentiment@1"]
    tags = {(s["prompts"], s["reversed"]): s["tag"] for s in found["systems"] if s["model"] == "policy"}
    assert tags == {
        (str(one), False): "Lowest Negativity",
        (str(two), False): "Lowest Negativity",
        (str(two), True): "Maximum Negativity",
    }
    assert all("positive_fraction" in s["metrics"] for s in found["systems"])
    ids = [s["id"] for s in found["systems"]]
    assert len(set(ids)) == len(ids)
    bases = [s["generations"] for s in found["systems"] if s["model"] == "base"]
    assert bases == ["generations-negative-base.jsonl", *["generations-neutral-base.jsonl"] * 2]  # sampled once
    assert {each["against"] for each in found["differences"]} <= set(ids)


def test_reversed_prompts_of_a_model_without_tags_are_refused(folder, tmp_path, capsys):
    prompts = str(folder / "prompts.jsonl")
    argv = ["evaluate", "--model", str(folder / "base"), "--prompts", prompts, "--reverse_prompts", prompts, *FLAGS]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 2
    assert "has no tags whose order could be reversed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_without_tags_and_without_a_base(folder, tmp_path, capsys):
    flags = ["--prompts", str(folder / "prompts.jsonl"), "--output_dir", str(tmp_path), *FLAGS]
    assert main(["evaluate", "--model", str(folder / "base"), *flags]) == 0
    found = results(tmp_path)
    assert [s["id"] for s in found["systems"]] == ["no-tag"] and found["differences"] == []
    assert any("--base_model" in note for note in found["skipped"])
    assert "kl" not in found["systems"][0]["metrics"] and found["systems"][0]["metrics"]["perplexity"] > 1


def test_another_model_measures_perplexity(words, folder, tmp_path):
    tiny.save(tmp_path / "reader", "gpt2", seed=3)
    assert main([*words, "--max_prompts", "3"]) == 0
    before = results(tmp_path / "out")["systems"][0]["metrics"]
    assert main([*words, "--max_prompts", "3", "--eval_model", str(tmp_path / "reader")]) == 0
    after = results(tmp_path / "out")["systems"][0]["metrics"]
    assert after["perplexity"] != before["perplexity"] and after["toxicity"] == before["toxicity"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tag", "Best"], "unknown tag 'Best'"),
        (["--negative_tag", "Worst"], "unknown tag 'Worst'"),
        (["--task", "toxicty"], "did you mean 'toxicity'"),
        (["--reward_funcs", "locl"], "did you mean 'local'"),
        (["--base_model", "no/such/model"], "cannot load"),
        (["--prompts", "none.jsonl"], "no such file"),
        (["--guidance_scale", "-1"], "0 or more"),
    ],
)
def test_mistakes_are_one_line(words, capsys, flags, told):
    assert main([*words, *flags]) == 2
    err = capsys.readouterr().err
    assert told in err.splitlines()[-1] and err.splitlines()[-1].startswith("nlf: error:")


def test_a_task_file_of_ones_own(words, tmp_path):
    task = tmp_path / "mine.yaml"
    task.write_text("max_prompts: 2\nguidance_scale: [0]\ntop_p: 0.5\n")
    assert main([*words[:-5], "--task", str(task), "--num_generations", "2"]) == 0
    found = results(tmp_path / "out")
    assert [s["id"] for s in found["systems"]] == ["base", "best-tag"] and found["config"]["top_p"] == 0.5
    assert found["systems"][0]["n_samples"]["effective"] == 2


def test_which_systems():
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme(("good", "bad")))
    options = SimpleNamespace(
        model="none", tag="best", guidance_scales=[1.0, 0.0], negative_tag=None, sweep_tags=True, sweep_prompts=9
    )
    found = systems_of(None, policy, options, turned=False)
    assert [(s.name, s.tag, s.negative) for s in found] == [
        *(("best tag", "good", None), ("best tag, guidance 1", "good", "bad"), ("tag bad", "bad", None))
    ]
    assert [s.tag for s in systems_of(None, policy, options, turned=True)] == ["bad", "bad", "good"]


def test_the_table_leaves_out_what_nobody_has():
    values = {"reward": 0.5, "reward_ci95": [0.4, 0.6], "perplexity": 3.04, "perplexity_ci95": [3, 3.1]}
    system = {"name": "base", "tag": None, "prompts": "x", "reversed": False, "n_samples": {"effective": 2}}
    text = comparison({"systems": [{**system, "num_generations": 4, "metrics": values}]})
    assert text.splitlines()[0] == "| system | prompts | reward | perplexity |"
    assert text.splitlines()[2] == "| base | 2 × 4 | 0.500 (0.400–0.600) | 3.0 (3.0–3.1) |"
    assert cell({}, "reward") == "–"


def test_the_table_tells_scorers_apart():
    values = {}
    for name in ("toxicity/local@1", "toxicity/hf:a/b@2", "toxicity_probability@25/local@1", "reward/sum"):
        values |= {name: 0.5, f"{name}_ci95": [0.4, 0.6]}
    system = {"name": "base", "tag": None, "prompts": "x", "reversed": False, "n_samples": {"effective": 2}}
    text = comparison({"systems": [{**system, "num_generations": 4, "metrics": values}]})
    heads = "toxicity probability, local@1 | mean toxicity, local@1 | mean toxicity, hf:a/b@2"
    assert text.splitlines()[0] == f"| system | prompts | {heads} |"


def test_higher_is_better_is_known_for_what_is_shown():
    for name in evaluate.COLUMNS:
        assert metrics.higher_is_better(name) is not None, name


@pytest.mark.parametrize("name", ["results.json", "generations-base.jsonl"])
def test_files_of_another_program_are_refused_before_a_model_is_loaded(words, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(evaluate, "load_for_commands", lambda *args: pytest.fail("a model was loaded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": 1}\n')
    assert main(words) == 2
    assert f"out/{name}" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == '{"mine": 1}\n'


def test_a_second_evaluation_is_refused_and_one_elsewhere_is_not(words, tmp_path, capsys):
    with locked_by_another(tmp_path / "out", tmp_path / "other run"):
        assert main(words) == 2
        assert f"{tmp_path}/out is being written by" in capsys.readouterr().err
        assert main([*words, "--output_dir", str(tmp_path / "elsewhere"), "--max_prompts", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        *("generations-base.jsonl", "generations-best-tag-guidance-0-5.jsonl"),
        *("generations-best-tag-guidance-1.jsonl", "generations-best-tag.jsonl", "results.json"),
    ]


def test_a_run_that_is_being_trained_is_not_evaluated(words, folder, tmp_path, capsys):
    with locked_by_another(folder / "run"):
        assert main(words) == 2
    assert "run is being written by" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_prompt_that_spells_the_separator_is_evaluated_as_text(words, tmp_path):
    prompt = "x Maximum Toxicity<|separator|> friend"
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"prompt": prompt}) + "\n" + json.dumps({"prompt": "the river"}) + "\n"
    )
    words[words.index("--prompts") + 1] = str(tmp_path / "p.jsonl")
    assert main(words) == 0
    for path in (tmp_path / "out").glob("generations*.jsonl"):
        assert next(read(path))["prompt_ids"] == tiny.tokenizer()(prompt)["input_ids"]


def test_a_chat_run_is_not_evaluated_on_text(words, folder, tmp_path, capsys):
    policy = load_policy(str(folder / "run"))
    scheme = TagScheme(separator=None, conversational=True)
    policy.tokenizer.chat_template = tiny.CHAT_TEMPLATE
    save_policy(replace(policy, scheme=scheme), tmp_path / "chat")
    words[words.index("--model") + 1] = str(tmp_path / "chat")
    assert main(words) == 2
    assert (
        "prompt 1 ('the weather'…): it is text, and the model was trained on conversations" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_the_own_reward_stays_in_the_table_beside_an_auditor_of_toxicity():
    from nlf.evaluation.evaluate import comparison

    values = {"reward/politeness": 0.5, "reward/audit@1": 0.8, "toxicity": 0.2, "reward/sum": 1.3}
    metrics = values | {f"{name}_ci95": [value, value] for name, value in values.items()}
    system = {"name": "base", "tag": None, "prompts": "embedded", "reversed": False, "metrics": metrics}
    table = comparison({"systems": [{**system, "n_samples": {"effective": 3}, "num_generations": 2}]})
    heads = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    assert heads == ["system", "prompts", "mean toxicity", "reward, politeness"]


# ---- other programs' forms, and results by a column ---------------------------------------------------------------


def test_the_generations_and_the_results_in_other_programs_forms(words, tmp_path, capsys):
    assert main([*words, "--max_prompts", "2", "--format", "rtp"]) == 0
    out = tmp_path / "out"
    assert f"rtp: {out / 'rtp-generations-base.jsonl'}" in capsys.readouterr().out
    (system,) = [each for each in results(out)["systems"] if each["id"] == "best-tag"]
    lines = list(read(out / "rtp-generations-best-tag.jsonl"))
    assert metrics.measure(lines, scores=["recorded"]).ratios["toxicity"].value == system["metrics"]["toxicity"]
    assert {line["feedback"] for line in lines} == {"Lowest Toxicity"}
    for form in ("quark", "harness"):  # nothing is sampled or scored again
        assert main([*words, "--max_prompts", "2", "--format", form]) == 0
    assert "perplexity = " in (out / "quark-generations-base" / "eval_results.txt").read_text()
    (path,) = out.glob("harness/best-tag/results_*.json")
    found = json.loads(path.read_text())["results"]["prompts"]
    assert found["toxicity,none"] == system["metrics"]["toxicity"]
    assert main([*words, "--max_prompts", "2"]) == 0  # the exports are no generations of ours, and in nobody's way


def test_results_by_a_column_of_the_prompts(words, folder, tmp_path, capsys):
    bold = {
        group: {"A_B": [f"{text} "]} for group, text in zip(("sailors", "cooks"), ("the sea", "the soup"), strict=True)
    }
    path = tmp_path / "job_prompt.json"
    path.write_text(json.dumps(bold))
    words[words.index("--prompts") + 1] = str(path)
    assert main([*words, "--prompts_by", "group", "--guidance_scales", "0"]) == 0
    systems = results(tmp_path / "out")["systems"]
    assert [(each["prompts"], each["name"]) for each in systems] == [
        (f"{path}: {group}", name) for group in ("sailors", "cooks") for name in ("base", "best tag")
    ]
    assert all(each["n_samples"] == {"original": 1, "effective": 1} for each in systems)
    assert main([*words, "--prompts_by", "grop"]) == 2
    assert "no column 'grop'; its columns: 'domain', 'group', 'name'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["rtp", "quark"])
def test_conversations_are_refused_before_sampling_for_a_form_of_text(words, tmp_path, capsys, form):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}))
    words[words.index("--prompts") + 1] = str(path)
    assert main([*words, "--format", form]) == 2
    assert f"--format {form}: {path} holds conversations" in capsys.readouterr().err
