"""Efficiency of given models: how a row is named, the seconds of its training, and its table."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import efficiency
import frontier_measuring as measuring
import frontier_training as training

from nlf.errors import UserError
from nlf.evaluation import intervals
from nlf.method.tags import TagScheme


def test_seconds_of_a_run_and_of_its_checkpoints(tmp_path):
    lines = [{"step": 5, "loss": 1.0}, {"step": 40, "train_runtime": 80.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert efficiency.seconds_of(tmp_path) == 80
    assert efficiency.seconds_of(tmp_path / "checkpoint-10") == 20  # a quarter of the steps
    assert efficiency.seconds_of(Path("embedded")) is None
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert efficiency.seconds_of(tmp_path) is None  # it has not ended


def test_a_run_that_trained_only_a_plain_model_stands_for_it(tmp_path):
    (tmp_path / "plain").mkdir()
    assert efficiency.plain_within(str(tmp_path)) == str(tmp_path)
    (tmp_path / "plain/config.json").write_text("{}")
    assert efficiency.plain_within(str(tmp_path)) == str(tmp_path / "plain")
    (tmp_path / "config.json").write_text("{}")  # a tagged model stands beside it
    assert efficiency.plain_within(str(tmp_path)) == str(tmp_path)
    assert efficiency.plain_within("embedded") == "embedded"


def test_rows_are_named_for_weights_tag_and_guidance(monkeypatch):
    tags = SimpleNamespace(scheme=None, revision="0123456789abcdef")
    monkeypatch.setattr(efficiency, "load", lambda _: tags)
    assert efficiency.setting_of("runs/a", "none", 0.0).id == "a-0123456789"
    with pytest.raises(UserError, match="give --tag, for a model with tags; runs/a has none"):
        efficiency.setting_of("runs/a", "none", 1.0)
    tags.scheme = TagScheme(("good", "so so", "bad"))
    found = efficiency.setting_of("runs/a", "best", 1.5)
    assert (found.id, found.quantile, found.guidance) == ("a-0123456789-tag0-g1.5", 0, 1.5)
    assert [efficiency.setting_of("a", tag, 0.0).quantile for tag in ("none", "middle", "worst", "bad")] == [
        *(None, 1, 2, 2)
    ]


def test_the_table_has_a_dash_where_nothing_is_known_and_no_minus_zero():
    metrics = {"toxicity": 0.25, "kl_per_completion": -1e-9, "kl_per_completion_stderr": 0.125, "efficiency": None}
    lines = efficiency.table([{"label": "base", "seconds": None, "metrics": metrics}]).splitlines()
    assert lines[0] == "| system | mean | KL | efficiency | seconds |"
    assert lines[2] == "| base | 0.250 | 0.00 ± 0.12 | – | – |"


def test_efficiency_of_ratios_over_prompts():
    best = np.tile(np.array([0.5, 2 / 3, 3 / 4, 4 / 5]), (2, 1))
    reward = intervals.Ratio(np.array([1.5, 1.5]), np.array([2.0, 2.0]))  # .75: best of 3
    found = measuring.efficiency(best, reward, intervals.Ratio(np.array([4.0, 4.0]), np.array([2.0, 2.0])))
    assert found["efficiency"] == pytest.approx((np.log(3) - 2 / 3) / 2)
    assert found["efficiency_ci95"] == pytest.approx([found["efficiency"]] * 2)
    beyond = measuring.efficiency(best, intervals.Ratio(np.ones(2), np.ones(2)), reward)
    assert beyond == {"efficiency": None, "efficiency_stderr": None, "efficiency_ci95": [None, None]}


def test_checkpoints_become_the_stops_of_a_plain_model(tmp_path, monkeypatch):
    """Wherever the run leaves them; the other checkpoints go."""

    def train(folder: Path, seed: int, **shared) -> None:
        for step in (4, 8, 12):
            checkpoint = folder / f"plain/checkpoint-{step}"
            tiny.model().save_pretrained(checkpoint)
            (checkpoint / training.MARKER).write_text("{}")

    monkeypatch.setattr(training, "train_nlf", train)
    seconds = training.train_plain(tmp_path, 0, [4, 12])
    assert list(seconds) == ["step-4", "step-12"] and seconds["step-4"] <= seconds["step-12"]
    assert (tmp_path / "step-4/model.safetensors").is_file() and (tmp_path / "step-12/model.safetensors").is_file()
    assert not [*tmp_path.rglob("checkpoint-*")]
