"""What a run records about its inputs: the words, the rewards and the data sets, from Python as from the command line."""

import itertools
import json

import numpy as np
import pytest
import tiny
import yaml
from runs import lines, make, settings

from nlf.cli.main import main
from nlf.data.generations import read
from nlf.data.prompts import load_prompts
from nlf.data.run_folder import run_settings
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, TagScheme
from nlf.rewards.registry import SHIPPED
from nlf.training.distill import distill
from nlf.training.trainer import ALTTrainer

SHORT = {"num_train_epochs": 1, "steps_per_iteration": 1}


def politeness(completions, **kwargs):
    return [float(len(text) % 7) for text in completions]


def start(folder, reward=politeness, **changes) -> ALTTrainer:
    """A trainer whose data sets come from Python."""
    rows = [{**row, "topic": f"topic {i}", "vector": np.arange(2)} for i, row in enumerate(tiny.PROMPTS)]
    return make(folder, reward=reward, prompts=rows, **(SHORT | changes))


# ---- words --------------------------------------------------------------------------------------------------------


def test_the_words_come_from_the_reward_and_a_line_says_so(tmp_path, caplog):
    trainer = start(tmp_path)
    assert trainer.args.tags[0] == "Maximum Politeness" == trainer.scheme.best
    assert "tags, best first: Maximum Politeness, " in caplog.text
    assert "made from the name of the reward 'politeness'" in caplog.text


def test_given_tags_win_without_a_line(tmp_path, caplog):
    trainer = start(tmp_path, tags=["good", "bad"], quantile_weights=[1.0, 1.0])
    assert trainer.scheme.tags == ("good", "bad") and not caplog.text


def test_the_words_are_recorded_and_a_resumed_run_keeps_those_of_its_folder(tmp_path):
    """A run of an older version was trained under other words than its reward has today."""
    start(tmp_path, tags=list(DEFAULT_TAGS)).train()
    assert start(tmp_path).scheme.tags == DEFAULT_TAGS
    start(tmp_path).train(resume_from_checkpoint=True)
    assert run_settings(tmp_path)["tags"] == list(DEFAULT_TAGS)
    assert TagScheme.load(tmp_path).tags == DEFAULT_TAGS


def test_toxicity_words_from_python_and_from_flags(tmp_path):
    assert start(tmp_path / "python", reward="local").scheme.tags == DEFAULT_TAGS
    tiny.save(tmp_path / "start")
    short = "--steps_per_iteration 1 --num_train_epochs 1 --prompts_per_iteration 4 --num_generations 2 --use_cpu true"
    words = (
        f"train --model_name_or_path {tmp_path / 'start'} --output_dir {tmp_path / 'flags'} {short} --eval_strategy no"
    )
    assert main([*words.split(), "--reward_funcs", "length", "--max_completion_length", "3"]) == 0
    assert TagScheme.load(tmp_path / "flags").best == "Maximum Length"
    assert yaml.safe_load((tmp_path / "flags/config.yaml").read_text())["tags"][4] == "Lowest Length"
    assert not list((tmp_path / "flags").glob("*-prompts.jsonl"))  # it records where it read them


# ---- data sets and rewards ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was started from Python, with `distill`."""
    folder = tmp_path_factory.mktemp("python") / "run"
    tiny.save(folder.parent / "start")
    rows = [{**row, "topic": f"topic {i}", "open": object()} for i, row in enumerate(tiny.PROMPTS)]
    values = dict(SHORT, per_device_train_batch_size=4, distill=True)
    trainer = ALTTrainer(
        str(folder.parent / "start"), politeness, settings(folder, **values), rows, rows[:3], max_prompt_length=50
    )
    with pytest.MonkeyPatch.context() as patch:
        short = {"num_prompts": 3, "max_steps": 1, "per_device_train_batch_size": 2}
        patch.setattr("nlf.training.stages.distill", lambda **knobs: distill(**knobs, **short))
        trainer.train()
    return folder


def test_data_sets_from_python_are_recorded(run):
    """The trap: `nlf distill` teaches such a run on the embedded prompts."""
    found = run_settings(run)
    assert (found["dataset_name"], found["eval_dataset"]) == (
        str(run / "train-prompts.jsonl"),
        str(run / "eval-prompts.jsonl"),
    )
    assert found["max_prompt_length"] == 50 and found["model_name_or_path"] == str(run.parent / "start")
    rows = load_prompts(found["dataset_name"])
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in tiny.PROMPTS]
    assert rows[3]["topic"] == "topic 3" and "open" not in rows[3]
    assert len(load_prompts(found["eval_dataset"])) == 3


def test_a_moved_run_still_finds_its_data_sets(run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.yaml", "run.json", "train-prompts.jsonl"):
        (moved / name).write_bytes((run / name).read_bytes())
    assert run_settings(moved)["dataset_name"] == str(moved / "train-prompts.jsonl")


def test_distill_of_the_settings_works_from_python(run):
    """The trap: the setting does nothing."""
    facts = json.loads((run / "distilled/run.json").read_text())
    assert facts["distilled_from"] == str(run)
    taught = [line["prompt"] for path in (run / "distilled/samples").iterdir() for line in read(path)]
    assert len(taught) == 3 and {*taught} <= {row["prompt"] for row in tiny.PROMPTS}


def test_a_model_without_files_cannot_be_distilled_and_that_is_said_before_training(tmp_path):
    with pytest.raises(UserError, match="distill: the student starts from the model's files, and this model has none"):
        start(tmp_path, distill=True)


def test_distill_and_evaluate_use_what_a_python_run_recorded(run, tmp_path, capsys):
    words = ["--max_completion_length", "3", "--output_dir", str(tmp_path / "evaluation")]
    assert main(["evaluate", "--model", str(run), "--num_generations", "2", "--guidance_scales", "0", *words]) == 0
    found = json.loads((tmp_path / "evaluation/results.json").read_text())
    audit = SHIPPED["audit"].newest
    assert found["scorers"] == ["politeness", audit] and found["auditors"] == [audit]
    assert {system["prompts"] for system in found["systems"]} == {str(run / "eval-prompts.jsonl")}
    assert {"reward", f"reward/{audit}", f"toxicity/{audit}"} <= found["systems"][0]["metrics"].keys()
    head = capsys.readouterr().out.splitlines()[0]
    assert "| reward |" in head and f"| mean toxicity, {audit} |" in head and "reward, audit" not in head


def test_a_run_resumes_though_an_older_version_recorded_its_reward_by_name_alone(tmp_path):
    start(tmp_path).train()
    config = tmp_path / "config.yaml"
    assert f"- {__name__}:politeness" in config.read_text()
    config.write_text(config.read_text().replace(f"- {__name__}:politeness", "- politeness"))
    start(tmp_path).train(resume_from_checkpoint=True)
    config.write_text(config.read_text().replace(f"- {__name__}:politeness", "- courtesy"))
    with pytest.raises(UserError, match="was started with reward_funcs="):
        start(tmp_path).train(resume_from_checkpoint=True)


def test_a_file_of_prompts_that_is_not_the_runs_own_is_not_taken_for_it(tmp_path):
    (tmp_path / "train-prompts.jsonl").write_text('{"prompt": "not ours"}\n')
    with pytest.raises(UserError, match=r"train-prompts\.jsonl is there already and would be overwritten"):
        start(tmp_path).train()
    assert "not ours" in (tmp_path / "train-prompts.jsonl").read_text()


def test_a_reward_that_lacks_an_argument_is_found_before_sampling(tmp_path):
    def strict(completions):
        return [0.0] * len(completions)

    with pytest.raises(UserError, match=r"'strict' cannot be called: got an unexpected keyword argument"):
        start(tmp_path, reward=strict)


# ---- the first iteration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (
            lambda completions, **kwargs: [float("e" in text) for text in completions],
            "equal rewards share a tag, and the reward has 2 different values; give fewer tags, or set quantile_rule levels",
        ),
        (
            lambda completions, **kwargs: [0.5] * len(completions),
            "is 0.5 for all 20 completions, so there is nothing to learn",
        ),
    ],
)
def test_tags_that_ties_leave_empty_are_told_once(tmp_path, caplog, reward, told):
    make(tmp_path, reward=reward, steps_per_iteration=1, eval_strategy="no").train()
    assert caplog.text.count("warning: reward '<lambda>'") == 1 and told in caplog.text


def test_tags_that_are_full_are_not_spoken_of(tmp_path, caplog):
    numbers = itertools.count()
    make(
        tmp_path,
        reward=lambda completions, **kwargs: [next(numbers) for _ in completions],
        eval_strategy="no",
        **SHORT,
    ).train()
    assert "warning" not in caplog.text


def test_attributes_are_told_apart(tmp_path, caplog):
    attributes = [
        {"name": "even", "reward": "length", "tags": ["long", "short"]},
        {"name": "flat", "reward": "regex:no such text", "tags": ["there", "not there"]},
    ]
    changes = SHORT | {"quantile_weights": [1.0, 1.0], "attributes": attributes, "eval_strategy": "no"}
    make(tmp_path, reward=None, **changes).train()
    told = [record.message for record in caplog.records if record.message.startswith("warning")]
    assert len(told) == 1 and "reward 'regex:no such text' is 0 for all 20 completions" in told[0]


def test_the_share_of_ended_completions_is_logged(tmp_path):
    import pyarrow.parquet as pq

    make(tmp_path, eval_strategy="no", **SHORT).train()
    logged = next(row for row in lines(tmp_path) if "pool/size" in row)
    ended = [value for path in tmp_path.glob("rollouts/*/*") for value in pq.read_table(path)["ended"].to_pylist()]
    assert logged["completions/ended_ratio"] == pytest.approx(np.mean(ended)) and len(ended) == 20
