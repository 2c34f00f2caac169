"""A resumed run goes on from the newest whole checkpoint, says what it skips, and ends with the same bits."""

import contextlib
import json
import logging
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from runs import lines, make, same, weights
from transformers import EarlyStoppingCallback, TrainerCallback

from nlf.data.checkpoints import MARKER, NotWhole, clear_checkpoint
from nlf.data.rollouts import iteration_dir, part_path
from nlf.data.run_folder import METRICS
from nlf.errors import UserError
from nlf.training.resuming import choose_checkpoint

EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "eval_strategy": "no"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(trainer, folder) of a run of six steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make(folder, **EACH_STEP)
    trainer.train()
    return trainer, folder


@pytest.fixture
def record(run, tmp_path):
    """The record of a copy of the run, whose last checkpoint is removed."""
    folder = tmp_path / "copy"
    shutil.copytree(run[1], folder)
    clear_checkpoint(folder / "checkpoint-6")
    return replace(run[0].record(), run_dir=folder)


def chosen(record, asked=True) -> tuple[str | None, list[str]]:
    """The name of the checkpoint that is chosen, and the lines that are told."""
    told: list[str] = []
    found = choose_checkpoint(asked, record, looks=True, tell=told.append)
    return found and found.name, told


def cut(path, left=1000) -> None:
    path.write_bytes(path.read_bytes()[:left])


def test_the_newest_checkpoint_is_taken_without_a_line(record):
    assert chosen(record) == ("checkpoint-5", [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt", MARKER])
def test_the_newest_whole_checkpoint_is_taken_and_the_torn_one_named(record, name):
    cut(record.run_dir / "checkpoint-5" / name, 300)
    taken, told = chosen(record)
    assert taken == "checkpoint-4" and len(told) == 2
    assert "checkpoint-5 is skipped: " in told[0] and name in told[0]
    assert told[1].endswith("checkpoint-4; later work is done again")


def test_a_torn_checkpoint_given_by_path_is_refused_naming_the_newest_whole_one(record):
    cut(record.run_dir / "checkpoint-4" / "optimizer.pt")
    asked = str(record.run_dir / "checkpoint-4")
    with pytest.raises(
        UserError, match=r"checkpoint-4 cannot be resumed: optimizer.pt has .* is \S+checkpoint-5: give"
    ):
        chosen(record, asked)
    assert chosen(record, str(record.run_dir / "checkpoint-3")) == ("checkpoint-3", [])
    with pytest.raises(UserError, match=r"it has no nlf.json"):
        chosen(record, str(record.run_dir))


def test_a_checkpoint_of_another_run_is_found_out(record, run):
    marker = record.run_dir / "checkpoint-5" / MARKER
    state = json.loads(marker.read_text())
    marker.write_text(json.dumps(state | {"settings": state["settings"] | {"learning_rate": 0.5}}))
    taken, told = chosen(record)
    assert taken == "checkpoint-4"
    assert "checkpoint-5 is skipped: it is of a run with learning_rate=0.5, here it is 0.01" in told[0]


def test_a_checkpoint_of_other_weights_than_the_rollouts_is_found_out(record):
    marker = record.run_dir / "checkpoint-5" / MARKER
    state = json.loads(marker.read_text())
    marker.write_text(json.dumps(state | {"rollout_digests": ["other", *state["rollout_digests"][1:]]}))
    taken, told = chosen(record)
    assert taken == "checkpoint-4" and "part-00000.parquet holds rollouts of other weights or settings" in told[0]


def test_a_missing_part_of_a_past_iteration_is_found_before_training(record):
    part_path(record.run_dir, 0, 1).unlink()
    taken, told = chosen(record)
    assert taken == "checkpoint-2"  # within iteration 0, whose rollouts come from the reference
    assert "checkpoint-5 is skipped: " in told[0] and "part-00001.parquet is missing, and training has" in told[0]


def test_a_torn_part_of_a_past_iteration_is_found_before_training(record):
    cut(part_path(record.run_dir, 0, 2), -1)
    assert "part-00002.parquet is torn" in chosen(record)[1][0]


def test_a_page_of_zeros_in_a_part_is_found(record):
    path = part_path(record.run_dir, 0, 0)
    content = bytearray(path.read_bytes())
    content[200:264] = bytes(64)
    path.write_bytes(content)
    assert "part-00000.parquet is torn" in chosen(record)[1][0]


def test_a_part_of_another_iteration_in_the_place_of_a_past_one_is_found(record):
    shutil.copy(part_path(record.run_dir, 1, 0), part_path(record.run_dir, 0, 0))
    assert "part-00000.parquet holds rollouts of other weights or settings" in chosen(record)[1][0]


def test_a_part_that_the_run_did_not_write_is_refused(record, run):
    shutil.copy(part_path(record.run_dir, 0, 0), part_path(record.run_dir, 0, 3))
    with pytest.raises(UserError, match=r"part-00003.parquet: not of this run, whose iterations have 3 parts; move"):
        chosen(record)


def test_within_an_iteration_its_own_parts_are_needed_and_before_it_they_are_not(record):
    part_path(record.run_dir, 1, 1).unlink()
    taken, told = chosen(record)
    assert taken == "checkpoint-3" and len(told) == 3


def test_a_finished_run_needs_no_rollouts(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "rollouts")
    assert chosen(replace(run[0].record(), run_dir=tmp_path / "copy")) == ("checkpoint-6", [])


def test_rollouts_that_the_pool_no_longer_keeps_are_not_needed(record):
    shutil.rmtree(iteration_dir(record.run_dir, 0))
    assert chosen(replace(record, keep=1)) == ("checkpoint-5", [])


def test_without_checkpoint_and_rollouts_there_is_nothing_to_go_on_from(record):
    shutil.rmtree(record.run_dir / "rollouts")
    for path in record.run_dir.glob("checkpoint-*"):
        cut(path / "optimizer.pt", 0)
    with pytest.raises(UserError, match="no checkpoint is whole, and .*iteration-0000 holds no rollouts"):
        chosen(record)
    for path in record.run_dir.glob("checkpoint-*"):
        clear_checkpoint(path)
    assert chosen(record) == (None, [])  # killed before the first checkpoint


def test_the_best_checkpoint_must_be_whole_where_it_is_the_result(record):
    folder = record.run_dir / "checkpoint-5"
    state = json.loads((folder / "trainer_state.json").read_text()) | {"best_global_step": 3}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / MARKER).write_text(json.dumps({"step": 5, "world_size": 1, "coefficients": {}}))  # an older marker
    (record.run_dir / "checkpoint-3" / "optimizer.pt").unlink()
    assert chosen(record)[0] == "checkpoint-5"
    with pytest.raises(NotWhole, match="checkpoint-3, the best so far, is not whole: it holds no optimizer"):
        replace(record, keeps_best=True).check(folder)


# ---- to the end of training -----------------------------------------------------------------------------------------


def resumed(folder, caplog, **changes) -> list[str]:
    """Resume a run, whose global random state is another one; returns the lines that were said."""
    caplog.clear()
    torch.manual_seed(99)
    with caplog.at_level(logging.WARNING, "nlf"):
        make(folder, **changes).train(resume_from_checkpoint=True)
    told = [entry.getMessage() for entry in caplog.records if entry.name.startswith("nlf")]
    usual = ("tags with few", "reach max_completion_length")  # equal rewards share a tag; completions are short
    return [line for line in told if not any(each in line for each in usual)]


def test_resumed_from_older_whole_checkpoints_or_from_none_it_ends_with_the_same_bits(record, run, caplog):
    (record.run_dir / "checkpoint-5" / "optimizer.pt").unlink()
    (record.run_dir / "model.safetensors").unlink()
    told = resumed(record.run_dir, caplog, **EACH_STEP)
    assert "checkpoint-5 is skipped: it holds no optimizer" in told[0]
    assert same(weights(record.run_dir), weights(run[1]))
    for path in record.run_dir.glob("checkpoint-*"):
        (path / "scheduler.pt").unlink()
    part_path(record.run_dir, 0, 1).unlink()
    told = resumed(record.run_dir, caplog, **EACH_STEP)
    assert told[-1].startswith("no checkpoint is whole: the run starts over")
    assert same(weights(record.run_dir), weights(run[1]))


def test_torn_parts_are_made_again_with_a_line(tmp_path, run, caplog):
    """Of the iteration that is being sampled, in a run that has no checkpoint yet."""
    for name in ("rollouts", "config.yaml", "run.json"):
        copy = shutil.copytree if (run[1] / name).is_dir() else shutil.copy
        copy(run[1] / name, tmp_path / name)
    cut(part_path(tmp_path, 0, 1), 500)
    told = resumed(tmp_path, caplog, **EACH_STEP)
    assert told == [f"{part_path(tmp_path, 0, 1)}: torn, or of other weights or settings; it is made again"]
    assert same(weights(tmp_path), weights(run[1]))


class Cut(Exception):
    """The run is cut off."""


class CutAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Cut


def cut_and_resumed(folder, caplog, callbacks=list, step=4, **changes) -> tuple[list[str], dict]:
    """The lines said, and the weights, of a run that is cut off at a step and resumed."""
    trainer = make(folder, **changes)
    for callback in [*callbacks(), CutAt(step)]:
        trainer.add_callback(callback)
    with contextlib.suppress(Cut):
        trainer.train()
    caplog.clear()
    torch.manual_seed(99)
    trainer = make(folder, **changes)
    for callback in callbacks():
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=True)
    return [entry.getMessage() for entry in caplog.records if entry.name.startswith("nlf")], weights(folder)


def test_checkpoints_without_optimizer_are_not_resumed_from(tmp_path, run, caplog):
    told, ended = cut_and_resumed(tmp_path, caplog, save_only_model=True, eval_strategy="no")
    assert "save_only_model: the run cannot be resumed from its checkpoints; once stopped, it starts over" in told[0]
    assert "checkpoint-3 is skipped: it holds no optimizer, expected optimizer.pt (save_only_model" in told[1]
    assert same(ended, weights(run[1]))


def seeding(prompts, completions, completion_ids, **kwargs) -> list[float]:
    """A reward that changes the global random state."""
    torch.manual_seed(len(completions[0]))
    return tiny.vowels(prompts, completions, completion_ids)


@pytest.mark.parametrize(
    "changes",
    [{"neftune_noise_alpha": 5.0}, {"disable_dropout": False, "reward": seeding}],
    ids=["neftune", "dropout"],
)
def test_noise_goes_on_where_it_stopped(tmp_path, caplog, changes):
    """Neither the trial passes of the first step nor rewards draw from the generator of NEFTune and dropout."""
    changes = changes | {"eval_strategy": "no"}
    make(tmp_path / "whole", **changes).train()
    _, ended = cut_and_resumed(tmp_path / "cut", caplog, **changes)
    assert same(ended, weights(tmp_path / "whole"))


def test_a_callback_goes_on_counting_and_what_it_ended_stays_ended(tmp_path, caplog):
    best = {"metric_for_best_model": "reward", "greater_is_better": True, "load_best_model_at_end": True}
    changes = {"num_train_epochs": 5, "steps_per_iteration": 1, "learning_rate": 0.0, **best}

    def callbacks():
        return [EarlyStoppingCallback(early_stopping_patience=2)]

    cut_and_resumed(tmp_path, caplog, callbacks, step=2, **changes)
    assert [row["step"] for row in lines(tmp_path) if "eval_reward" in row] == [1, 2, 3]
    told = resumed(tmp_path, caplog, **changes)
    assert told == [f"a callback ended the run at {tmp_path / 'checkpoint-3'}; give this folder to train on"]
    assert max(row["step"] for row in lines(tmp_path)) == 3


def test_a_stop_at_the_end_of_an_iteration_neither_loses_nor_repeats_lines_of_the_log(tmp_path):
    trainer = make(tmp_path, eval_on_start=True)

    class StopAt3(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.stop.asked |= state.global_step == 3

    trainer.callback_handler.callbacks.insert(0, StopAt3())
    with pytest.raises(SystemExit):
        trainer.train()
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'12\n{"loss": 1}\n\xff{"step": 9, "lo')  # no lines of ours, and one that is torn
    make(tmp_path, eval_on_start=True).train(resume_from_checkpoint=True)
    logged = lines(tmp_path)
    assert [row["step"] for row in logged if "eval_reward" in row] == [0, 3, 6]
    assert [row["step"] for row in logged if "pool/size" in row] == [0, 3]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_a_moved_run_still_loads_its_best_checkpoint(tmp_path):
    best = {"metric_for_best_model": "reward", "greater_is_better": True, "load_best_model_at_end": True}
    make(tmp_path / "here", **best, learning_rate=0.0, num_train_epochs=1).train()
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = make(tmp_path / "there", **best, learning_rate=0.0)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-3")
