"""Which checkpoints a run writes and keeps, and that a run with few of them ends with the same bits after a kill."""

from types import SimpleNamespace

import pytest
from runs import fork, make, on_call, same, weights

from nlf.cli.dry_run import num_checkpoints
from nlf.training.trainer import ALTTrainer

CREDIT = {"reward": "length", "plain": "only", "credit_coef": 1.0, "contrast_coef": 0.0, "eval_strategy": "no"}
FEW = CREDIT | {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 6}


def saved(folder) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def test_a_run_with_a_checkpoint_every_other_iteration_ends_with_the_same_bits_after_a_kill(tmp_path):
    """It dies in the fourth of its iterations of 3 steps. What the third and the fourth sampled is used again."""
    make(tmp_path / "whole", **FEW).train()
    assert saved(tmp_path / "whole/plain") == [6, 12]

    def run():
        on_call(ALTTrainer, "compute_loss", 11)
        make(tmp_path / "killed", **FEW).train()

    process = fork.Process(target=run)
    process.start()
    process.join(120)
    folder = tmp_path / "killed/plain"
    assert process.exitcode == -9 and saved(folder) == [6]
    parts = sorted(folder.glob("rollouts/*/part-*"))
    times = [path.stat().st_mtime_ns for path in parts]
    assert {path.parent.name for path in parts} == {f"iteration-000{i}" for i in range(4)}
    resumed = make(tmp_path / "killed", **FEW)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.started_at == 6 and saved(folder) == [6, 12]
    assert [path.stat().st_mtime_ns for path in parts] == times
    assert same(weights(folder), weights(tmp_path / "whole/plain"))


def test_the_last_step_is_saved_whatever_save_steps_says(tmp_path):
    make(tmp_path, **FEW | {"num_train_epochs": 1}).train()
    assert saved(tmp_path / "plain") == [3]


@pytest.mark.parametrize(("changes", "kept"), [({}, [6, 9]), ({"save_total_limit": None}, [3, 6, 9])])
def test_a_run_by_credit_keeps_two_checkpoints_where_no_limit_is_given(tmp_path, changes, kept):
    make(tmp_path, **CREDIT, num_train_epochs=3, **changes).train()
    assert saved(tmp_path / "plain") == kept


def test_any_other_run_keeps_all(tmp_path):
    assert make(tmp_path, eval_strategy="no").args.save_total_limit is None


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [("epoch", 500, 4), ("no", 500, 4), ("steps", 6, 2), ("steps", 0.2, 4), ("steps", 500, 1)],
)
def test_a_dry_run_counts_the_checkpoints(strategy, every, expected):
    schedule = SimpleNamespace(save_strategy=strategy, save_steps=every)
    assert num_checkpoints(schedule, SimpleNamespace(steps=12, iterations=4)) == expected
