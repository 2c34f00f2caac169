"""Completions as tables: Parquet beside the run with metrics and intervals, and tables in trackers."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import tiny

from nlf.training.completions import evaluation_file, iteration_table, read_metrics, show_table


@pytest.fixture
def tracker(monkeypatch):
    """Make a stand-in for a tracker; returns what it is given to log."""

    def make(name, run=None):
        logged, module = [], ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.run, module.log, module.Table = run, logged.append, lambda columns, data: (columns, data)
        monkeypatch.setitem(sys.modules, name, module)
        return logged

    return make


def test_each_evaluation_leaves_its_completions_and_its_metrics_beside_the_run(tmp_path):
    """3 prompts × 2 completions, with the reward and the auditor; the mean of the column is the metric that is logged."""
    run = tmp_path / "run"
    trainer = runs.make(run, eval_strategy="epoch", audit_funcs=["audit"])
    trainer.evaluate()
    assert not (run / "evaluation").exists(), "before training there is no run to be written beside"
    trainer.train()
    assert [path.name for path in sorted((run / "evaluation").iterdir())] == [
        "eval-000003.parquet",
        "eval-000006.parquet",
    ]
    rows, (auditor,) = pq.read_table(evaluation_file(run, "eval", 6)).to_pylist(), trainer.inputs.auditor_labels
    assert len(rows) == 6 and {row["step"] for row in rows} == {6}
    assert rows[0]["prompt"] == tiny.PROMPTS[0]["prompt"] and rows[0]["feedback"] == trainer.scheme.best
    assert rows[0]["vowels"] == tiny.vowels(["x"], [rows[0]["completion"]], [[]])[0]
    assert {"ended", "tokens", "nll", "kl", "entropy", auditor, f"{auditor}/toxicity"} <= rows[0].keys()
    logged = [line for line in runs.lines(run) if "eval_reward" in line][-1]
    found = read_metrics(evaluation_file(run, "eval", 6))
    assert found["reward"]["value"] == logged["eval_reward"] == pytest.approx(sum(r["vowels"] for r in rows) / 6)
    low, high = found["reward"]["ci95"]
    assert low <= found["reward"]["value"] <= high and found["reward"]["stderr"] >= 0
    assert read_metrics(run / "nowhere.parquet") == {}


def test_another_evaluation_has_its_own_file(tmp_path):
    run = tmp_path / "run"
    trainer = runs.make(run, num_train_epochs=1, eval_strategy="no")
    trainer.train()
    trainer.evaluate([{"prompt": "another"}], metric_key_prefix="held out")
    rows = pq.read_table(run / "evaluation" / "held-out-000003.parquet").to_pylist()
    assert {row["prompt"] for row in rows} == {"another"}


def test_trackers_with_tables_get_each_iteration_and_each_evaluation(tmp_path, tracker):
    wandb, trackio = tracker("wandb", run="x"), tracker("trackio")
    trainer = runs.make(tmp_path / "run", eval_strategy="epoch", log_completions=True)
    trainer.args.report_to = ["wandb", "trackio"]  # their callbacks would start a run
    trainer.train()
    assert [next(iter(each)) for each in wandb] == ["completions", "eval_completions"] * 2
    assert wandb == trackio
    columns, rows = wandb[0]["completions"]
    assert columns == ["step", "prompt", "feedback", "completion", "ended", "reward"] and len(rows) == 20
    table = iteration_table(tmp_path / "run", 1, 3)
    assert table.num_rows == 20 and set(table["step"].to_pylist()) == {3}


def test_nothing_leaves_the_machine_unasked(tmp_path, tracker):
    wandb = tracker("wandb", run="x")
    trainer = runs.make(tmp_path / "run", num_train_epochs=1, eval_strategy="epoch")
    trainer.args.report_to = ["wandb"]
    trainer.train()
    assert wandb == []


def test_wandb_without_a_run_gets_nothing(tracker):
    wandb = tracker("wandb")
    show_table("completions", pa.table({"a": [1]}), 0, ["wandb"], [])
    assert wandb == []


def test_tensorboard_shows_the_first_rows_as_text(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = runs.make(
        tmp_path / "run", num_train_epochs=1, eval_strategy="no", log_completions=True, report_to=["tensorboard"]
    )
    trainer.train()
    (event, *_) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(event.parent), size_guidance={"tensors": 0}).Reload()
    (told,) = events.Tensors("completions/text_summary")
    lines = told.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0].startswith("| step | prompt | feedback | completion |") and len(lines) == 2 + 20


def test_the_cells_of_a_text_table_keep_their_columns(tmp_path):
    from transformers.integrations import TensorBoardCallback

    written = []
    callback = TensorBoardCallback(SimpleNamespace(add_text=lambda *call: written.append(call)))
    show_table("completions", pa.table({"a": ["x|y\nz"] * 200}), 7, [], [callback])
    ((name, text, step),) = written
    assert (name, step) == ("completions", 7)
    assert text.splitlines()[2] == "| x\\|y z |" and len(text.splitlines()) == 102
