"""What is measured, by hand on a small table, and `nlf evaluate` on a tiny model."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch

from nlf.batches import PromptEncoder
from nlf.cli import main
from nlf.evaluate import Likelihoods, comparison, likelihoods, summarize
from nlf.policy import Policy, prepare_policy, save_policy
from nlf.rollouts import SCHEMA
from nlf.tags import TagScheme


def table(completions, toxicity, feedback=None, prompts=None) -> pa.Table:
    n = len(completions)
    columns = {
        "prompt_ids": prompts or [[5, 6]] * n,
        "completion": completions,
        "completion_ids": [[7] * (i + 1) for i in range(n)],
        "ended": [i == 0 for i in range(n)],
        "feedback": [feedback] * n,
        "reward": [None if t is None else 1 - t for t in toxicity],
        "rewards": [[("local", None if t is None else 1 - t)] for t in toxicity],
        "attributes": [[("toxicity", t)] for t in toxicity],
    }
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA}, schema=SCHEMA)


def test_metrics_by_hand():
    found = summarize(
        table(["a b a b", "a b", "c d", ""], [0.5, 0.1, 0.2, 0.3]),
        2,
        Likelihoods(np.array([1.0, 2, 3, 4]), np.ones(4), 2 * np.ones(4), np.array([1, 2, 3, 4])),
    )
    assert found["expected_max_toxicity"] == pytest.approx(0.4)
    assert found["toxicity_probability"] == 0.5  # the first prompt has one of exactly .5
    assert found["toxicity"] == pytest.approx(0.275) and found["reward"] == pytest.approx(0.725)
    assert found["dist-2"] == pytest.approx((2 / 6 + 1 / 2) / 2)  # {ab, ba} of 6 words; {cd} of 2
    assert found["perplexity"] == pytest.approx(math.e) and found["kl"] == 0.4 and found["entropy"] == 0.8
    assert found["completions/mean_length"] == 2.5 and found["completions/ended_ratio"] == 0.25


def test_a_prompt_without_any_score_does_not_spoil_the_rest():
    found = summarize(table(["a", "b", "c", "d"], [0.5, 0.1, None, None]), 2)
    assert found["expected_max_toxicity"] == 0.5 and found["num_unscored"] == 2


def test_likelihoods_are_those_of_a_plain_forward_pass():
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    rows = [{"prompt": "x"}, {"prompt": "y"}]
    made = table(["a", "b"], [0.1, 0.2], "Lowest Toxicity", [[5, 6, 8], [9]])
    found = likelihoods(made, policy, PromptEncoder(policy.tokenizer, policy.scheme), rows, batch_size=1)
    for i, (prompt, completion) in enumerate([([5, 6, 8], [7]), ([9], [7, 7])]):
        logits = policy.reference_model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = -sum(logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion))
        assert found.nll[i] == pytest.approx(float(expected), rel=1e-5)
    assert found.tokens.tolist() == [1, 2] and (found.kl > 0).all()


def test_a_model_that_is_its_own_reference_has_no_kl():
    model = tiny.model()
    policy = Policy(model, tiny.tokenizer(), None, model)
    found = likelihoods(table(["a"], [0.1]), policy, PromptEncoder(policy.tokenizer, None), [{"prompt": "x"}])
    assert found.kl == pytest.approx([0.0], abs=1e-6)


def test_the_command_compares_base_tag_guidance_and_other_tags(tmp_path, capsys):
    base = tiny.save(tmp_path / "base")
    save_policy(prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme()), tmp_path / "run")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    words = ["evaluate", "--model", str(tmp_path / "run"), "--dataset", str(prompts), "--num_generations", "3"]
    words += ["--max_completion_length", "4", "--sweep_tags", "--sweep_prompts", "2", "--guidance_scale", "1"]
    assert main(words) == 2 and "--base_model" in capsys.readouterr().err
    assert main([*words, "--base_model", base]) == 0
    results = json.loads((tmp_path / "run/evaluation/results.json").read_text())["systems"]
    assert [row["name"] for row in results] == ["base", "best tag", "best tag, guidance 1", *["tag"] * 4]
    assert [row["num_prompts"] for row in results] == [20, 20, 20, 2, 2, 2, 2]
    assert results[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert capsys.readouterr().out.count("\n") == 9
    generations = (tmp_path / "run/evaluation/generations-base.jsonl").read_text().splitlines()
    assert len(generations) == 20 and len(json.loads(generations[0])["completion"]) == 3
    assert main([*words, "--tag", "Best", "--base_model", base]) == 2
    assert "unknown tag 'Best'" in capsys.readouterr().err


def test_the_table_leaves_out_what_nobody_has():
    text = comparison(
        [{"name": "base", "tag": None, "num_prompts": 2, "reward": 0.5, "perplexity": 3, "dist-2": 1}], 4
    )
    assert text.splitlines()[0] == "| system | prompts × 4 | reward | perplexity | dist-2 |"
