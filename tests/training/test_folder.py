"""The run's folder: files of other programs stay, one run at a time, and a full disk loses nothing."""

import errno
import stat

import pytest
import tiny
import torch
from runs import lines, locked_by_another, make, same, settings, weights
from safetensors import SafetensorError

from nlf.cli import train as train_command
from nlf.cli.main import main
from nlf.data.run_folder import check_free
from nlf.errors import UserError
from nlf.training.trainer import ALTTrainer

SHORT = {"num_train_epochs": 1, "steps_per_iteration": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    make(folder, **SHORT).train()
    return folder


@pytest.fixture
def no_training(monkeypatch):
    """Make a training fail, to show that a mistake is found before a model is loaded."""
    monkeypatch.setattr(train_command, "train_from_config", lambda *args: pytest.fail("training began"))


FOREIGN = [
    "config.yaml --resume_from_checkpoint true",
    "README.md",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "config.json",
    "tokenizer.json",
]
FOREIGN += ["config.yaml", "run.json", "metrics.jsonl", "report.html", "rollouts/mine", "checkpoint-3/model.bin"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_training_would_overwrite_is_refused_before_a_model_is_loaded(no_training, tmp_path, capsys, name):
    name, *resume = name.split()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("a: 1\n")
    assert main(["train", "--use_cpu", "--output_dir", str(tmp_path), *resume]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/{name.split('/')[0]} is there already and would be overwritten" in err and err.count("\n") == 1
    assert path.read_text() == "a: 1\n" and len([*tmp_path.iterdir()]) == 1


def test_a_file_in_the_way_is_refused_in_python_before_a_model_is_loaded(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="README.md is there already and would be overwritten"):
        ALTTrainer("./no-model", tiny.vowels, settings(tmp_path), tiny.PROMPTS)


def test_unrelated_files_stay_beside_a_run(tmp_path):
    notes = {name: tmp_path / name for name in ("slurm-12.out", "notes.md", "run.sh", "data.jsonl")}
    for path in notes.values():
        path.write_text("mine")
    (tmp_path / "rollouts").mkdir()
    make(tmp_path, **SHORT).train()
    assert all(path.read_text() == "mine" for path in notes.values())


def test_a_student_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("teacher: abc\n")
    (tmp_path / "run.json").write_text('{"distilled_from": "runs/demo"}')
    with pytest.raises(UserError, match="config.yaml is there already"):
        check_free(tmp_path, resume=True)


def test_a_run_that_was_killed_at_its_start_may_start_again(tmp_path):
    (tmp_path / "run.json").write_text('{"train_prompts": "abc"}')  # written before config.yaml
    check_free(tmp_path, resume=False)


def test_a_run_that_lost_its_settings_keeps_its_rollouts(tmp_path):
    (tmp_path / "run.json").write_text('{"train_prompts": "abc"}')
    (tmp_path / "rollouts/iteration-0000").mkdir(parents=True)
    (tmp_path / "README.md").write_text("the card of the run, which is not in the way")
    with pytest.raises(UserError, match=r"holds a run, but its config.yaml is missing or damaged; restore the file"):
        check_free(tmp_path, resume=True)


@pytest.mark.parametrize("facts", [None, "{}", "null"])
def test_a_run_that_lost_its_facts_says_so(tmp_path, facts):
    (tmp_path / "config.yaml").write_text("reward_funcs: [local]\n")
    (tmp_path / "rollouts/iteration-0000").mkdir(parents=True)
    if facts is not None:
        (tmp_path / "run.json").write_text(facts)
    with pytest.raises(UserError, match=r"run.json"):
        check_free(tmp_path, resume=True)


def test_an_evaluation_before_training_leaves_the_folder_free(tmp_path):
    trainer = make(tmp_path, **SHORT)
    trainer.evaluate()
    trainer.train()
    assert "eval_reward" not in lines(tmp_path)[0]


def test_a_second_training_in_the_folder_is_refused(no_training, tmp_path, capsys):
    trainer = make(tmp_path / "run")
    with locked_by_another(tmp_path / "run") as pid:
        assert main(["train", "--use_cpu", "--output_dir", f"{tmp_path}/run", "--resume_from_checkpoint", "true"]) == 2
        assert f"{tmp_path}/run is being written by" in (err := capsys.readouterr().err) and f"process {pid} on" in err
        with pytest.raises(UserError, match="run is being written by"):
            trainer.train()


FULL = {  # what torch, safetensors and Python raise
    "optimizer": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    "weights": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "log": OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("failing", FULL)
def test_a_disk_that_is_full_while_a_checkpoint_is_written(tmp_path, finished, monkeypatch, failing):
    trainer, original = make(tmp_path, **SHORT), open

    def fail(*args, **kwargs):
        raise FULL[failing]

    if failing == "optimizer":
        monkeypatch.setattr(torch, "save", fail)
    elif failing == "weights":
        monkeypatch.setattr(trainer.policy.model, "save_pretrained", fail)
    else:
        monkeypatch.setattr("builtins.open", lambda path, *args, **kwargs: (
            fail() if str(path).endswith("metrics.jsonl") else original(path, *args, **kwargs)
        ))  # fmt: skip
    with pytest.raises(UserError, match="cannot write .*; free some space and run again"):
        trainer.train()
    monkeypatch.undo()
    make(tmp_path, **SHORT).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(finished))


def test_weights_and_checkpoints_follow_the_umask(finished, tmp_path):
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in finished.rglob("*") if path.is_file()}
    assert set(found.values()) == {usual}, found
    assert not [path for path in found if "lock" in path.name]
