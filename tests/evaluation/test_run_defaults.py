"""Commands take prompts and scorers from the run's record, and ask for what it does not hold; they never take others."""

import json

import pytest
import yaml

from nlf.config import EvaluateOptions, SampleOptions
from nlf.data.run_folder import trained_run
from nlf.errors import UserError
from nlf.evaluation.run_defaults import recorded_base, recorded_prompts, scorers_of, with_prompts
from nlf.evaluation.systems import load_for_commands
from nlf.rewards.registry import SHIPPED

RECORD = {
    "reward_funcs": ["local"],
    "dataset": "train.jsonl",
    "eval_dataset": "test.jsonl",
    "dataset_prompt_column": "text",
    "max_prompts": 7,
}


def run_of(folder, facts=(), **settings) -> str:
    """A folder with a run's record."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "run.json").write_text(json.dumps(dict(facts)))
    return str(folder)


def labels(model: str, **options) -> list[str]:
    return [reward.label for reward in scorers_of(EvaluateOptions(model=model, **options), model).all]


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_prompts_are_the_runs_evaluation_prompts_in_its_column(tmp_path):
    found = with_prompts(SampleOptions(), run_of(tmp_path, **RECORD))
    assert (found.prompts, found.dataset_prompt_column, found.max_prompts) == (["test.jsonl"], "text", None)


def test_a_run_without_evaluation_prompts_is_sampled_on_its_training_prompts_with_a_line(tmp_path, caplog):
    found = with_prompts(SampleOptions(max_prompts=9), run_of(tmp_path, **RECORD | {"eval_dataset": None}))
    assert (found.prompts, found.dataset_test_split, found.max_prompts) == (["train.jsonl"], "train", 7)
    assert "has no evaluation prompts: its training prompts are sampled" in caplog.text


def test_named_prompts_win(tmp_path):
    options = SampleOptions(prompts=["mine.jsonl"])
    assert with_prompts(options, run_of(tmp_path, **RECORD)) is options


def test_a_model_that_is_no_run_is_sampled_on_the_embedded_prompts(tmp_path):
    assert with_prompts(SampleOptions(), str(tmp_path)).prompts == ["embedded"]
    assert labels(str(tmp_path)) == [SHIPPED["local"].newest]


def test_a_run_that_does_not_record_its_prompts_asks_for_them(tmp_path):
    """The trap: a run whose prompts are not known is distilled on the embedded prompts."""
    model = run_of(tmp_path, reward_funcs=["local"])
    with pytest.raises(
        UserError, match="does not record the prompts that it was trained on; name prompts with --prompts"
    ):
        with_prompts(SampleOptions(), model)
    with pytest.raises(UserError, match="name prompts with --prompts"):
        recorded_prompts({}, "dataset_name", model)


# ---- scorers ------------------------------------------------------------------------------------------------------


def test_scorers_are_the_runs_rewards_and_the_auditor(tmp_path):
    """The trap: a run that was trained on politeness is judged by `local`."""
    model = run_of(
        tmp_path,
        {"rewards": ["sentiment@1", "length@1"]},
        reward_funcs=["sentiment", "length"],
        reward_weights=[1, 0.5],
    )
    found = scorers_of(EvaluateOptions(), model)
    assert [reward.label for reward in found.rewards] == ["sentiment@1", "length@1"] and found.weights == [1, 0.5]
    assert [reward.label for reward in found.auditors] == [SHIPPED["audit"].newest]


def test_named_scorers_win_and_bring_no_auditor(tmp_path):
    assert labels(run_of(tmp_path, reward_funcs=["sentiment"]), reward_funcs=["length"]) == ["length@1"]


def test_a_run_that_trained_on_the_auditor_has_none(tmp_path):
    assert labels(run_of(tmp_path, reward_funcs=["audit"])) == [SHIPPED["audit"].newest]


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("python:politeness", "politeness"),  # a function of a script
        ("politeness", "politeness"),  # recorded by an older version
        ("gone.py:politeness", "politeness"),
        ("length", "length"),  # a function of this name in an older version; the rule of this name is length@1
    ],
)
def test_a_reward_that_cannot_be_loaded_is_asked_for(tmp_path, spec, label):
    with pytest.raises(UserError, match="--reward_funcs") as caught:
        labels(run_of(tmp_path, {"rewards": [label]}, reward_funcs=[spec]))
    assert "\n" not in str(caught.value)


# ---- students and checkpoints -------------------------------------------------------------------------------------


def test_a_student_and_a_checkpoint_belong_to_their_run(tmp_path):
    run = run_of(tmp_path / "run", **RECORD)
    run_of(tmp_path / "run/distilled", {"distilled_from": run}, teacher="x")
    run_of(tmp_path / "elsewhere", {"distilled_from": run}, teacher="x")
    for model in ("run", "run/distilled", "elsewhere", "run/checkpoint-3"):
        assert trained_run(tmp_path / model)["dataset_name"] == "train.jsonl"
    assert trained_run(tmp_path / "checkpoint-3") == {}
    orphan = run_of(tmp_path / "orphan", {"distilled_from": "gone"}, teacher="x")
    with pytest.raises(UserError, match="does not record its rewards; name them with --reward_funcs"):
        labels(orphan)


def test_the_model_of_a_run_that_has_not_ended_is_its_newest_checkpoint(tmp_path):
    run = run_of(tmp_path / "run", {"train_prompts": "abc"})
    with pytest.raises(
        UserError, match=r"run that has not ended.*: resume the run with --resume_from_checkpoint true$"
    ):
        load_for_commands(run, SampleOptions())
    for step, marked in ((2, True), (10, True), (12, False)):
        (tmp_path / f"run/checkpoint-{step}").mkdir()
        if marked:
            (tmp_path / f"run/checkpoint-{step}/nlf.json").touch()
    with pytest.raises(UserError, match=r"or name its newest checkpoint, .*run/checkpoint-10$"):
        load_for_commands(run, SampleOptions())


# ---- the base -----------------------------------------------------------------------------------------------------


def test_a_base_whose_folder_is_gone_is_asked_for_by_its_flag(tmp_path):
    run = {"model_name_or_path": str(tmp_path / "base")}
    with pytest.raises(UserError, match="was trained from .*base, which is not there now; .* with --base_model"):
        recorded_base(run, "run")
    (tmp_path / "base").mkdir()
    assert recorded_base(run, "run") == run["model_name_or_path"]
    assert recorded_base({"model_name_or_path": "gpt2"}, "run") == "gpt2" and recorded_base({}, "run") is None
