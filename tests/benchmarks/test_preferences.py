"""The comparison with DPO runs in a small form, and its figures are those of hand-computed values."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from nlf.models.policy import load_policy

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import preferences


def test_ranking_and_ties():
    found = preferences.first_is_first(np.array([[2.0, 1.0], [0.0, 0.5], [1.0, 1.0]]))
    assert found.tolist() == [1.0, 0.0, 0.5]


def test_log_probabilities_are_those_of_the_answer_alone(tmp_path):
    policy = load_policy(tiny.save(tmp_path))
    pair = preferences.Pair("the river", " is calm", " is a quarrel about")
    found = preferences.log_probs(policy, [pair] * 5, None)
    for answer, value in ((pair.chosen, found[4, 0]), (pair.rejected, found[4, 1])):
        prompt, ids = (policy.tokenizer.encode(text) for text in (pair.prompt, answer))
        logp = policy.model(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0]
        expected = math.fsum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))
        assert value == pytest.approx(expected, rel=1e-4)


def test_both_methods_train_and_have_a_row(tmp_path):
    pytest.importorskip("trl")
    model, path = tiny.save(tmp_path / "model"), tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": p["prompt"], "chosen": f" calm {i}", "rejected": f" lost {i}"} for i, p in enumerate(tiny.PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--model", model, "--feedback", str(path), "--steps", "2", "--pairs_per_step", "2", "--use_cpu"]
    flags += ["--validation_pairs", "3", "--test_pairs", "4", "--output_dir", str(tmp_path / "out")]
    table = preferences.compare(preferences.parser().parse_args(flags))
    assert [line.split("|")[1].strip().split(",")[0] for line in table.splitlines()[2:]] == ["start", "nlf", "DPO"]
    assert "validation (3 pairs)" in table and "test (4 pairs)" in table
    kept = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert len(kept) == 13
