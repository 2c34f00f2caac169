"""Two processes over gloo do what one does: the same pool, the same losses up to float error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

HERE = Path(__file__).parent


def nlf_train(folder: Path, model: str, prompts: Path, processes: int, *flags: str) -> str:
    """`nlf train` in one or several processes; returns what it printed."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [
        *launcher, "nlf", "train", "--use_cpu", "true", "--model_name_or_path", model, "--output_dir", str(folder),
        "--dataset", str(prompts), "--eval_dataset", str(prompts), "--max_eval_prompts", "5", "--reward_funcs", "tiny:vowels",
        "--num_train_epochs", "2", "--steps_per_iteration", "3", "--per_device_train_batch_size", str(8 // processes),
        "--prompts_per_iteration", "10", "--prompts_per_part", "3", "--num_generations", "2",
        "--max_completion_length", "5", "--eval_max_completion_length", "5", "--eval_num_generations", "2",
        "--logging_steps", "1", "--learning_rate", "0.01", "--disable_tqdm", "true", *flags,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def inputs(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    return tiny.save(tmp_path / "model"), prompts


def test_two_processes_match_one(tmp_path, inputs):
    nlf_train(tmp_path / "one", *inputs, 1)
    nlf_train(tmp_path / "two", *inputs, 2)
    for iteration in (0, 1):
        names = [f"rollouts/iteration-{iteration:04d}/part-{p:05d}.parquet" for p in range(4)]
        for name in names:
            one, two = (pq.read_table(tmp_path / run / name) for run in ("one", "two"))
            assert one["completion_ids"].to_pylist() == two["completion_ids"].to_pylist()
            assert one["reward"].to_pylist() == two["reward"].to_pylist()
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "kl", "contrast", "tag_margin", "eval_reward", "eval_perplexity", "eval_kl"):
            assert (name in left) == (name in right)
            if name in left:
                assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-5), (left["step"], name)
    world = json.loads((tmp_path / "two" / "checkpoint-6" / "nlf.json").read_text())["world_size"]
    assert world == 2


def distant(prompts, completions, completion_ids, **columns):
    """As `tiny.vowels`, and keeps which rank asked."""
    with open(os.environ["ASKED"], "a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', '0')} {len(completions)}\n")
    return tiny.vowels(prompts, completions, completion_ids)


distant.remote = True


def length(completions, **columns):
    with open(f"{os.environ['ASKED']}-local", "a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', '0')}\n")
    return [len(text) / 100 for text in completions]


def test_the_first_rank_asks_the_remote_rewards_for_all(tmp_path, inputs, monkeypatch):
    """The local ones stay with the rank that sampled, and the rollouts are those of one process."""
    rewards = ["--reward_funcs", "test_distributed:distant", "test_distributed:length"]
    asked = {}
    for name, processes in (("one", 1), ("two", 2)):
        monkeypatch.setenv("ASKED", str(tmp_path / f"asked-{name}"))
        nlf_train(tmp_path / name, *inputs, processes, *rewards)
        asked[name] = [line.split() for line in (tmp_path / f"asked-{name}").read_text().splitlines()]
    assert {rank for rank, _ in asked["two"]} == {"0"}
    assert {*(tmp_path / "asked-two-local").read_text().split()} == {"0", "1"}
    assert sum(int(n) for _, n in asked["two"]) == sum(int(n) for _, n in asked["one"]) == 2 * 20 + 2 * 10
    for path in (tmp_path / "one").glob("rollouts/*/part-*"):
        one, two = (pq.read_table(tmp_path / run / path.relative_to(tmp_path / "one")) for run in ("one", "two"))
        assert one.equals(two)
    assert not list((tmp_path / "two").glob("rollouts/*/samples-*")) and not list((tmp_path / "two").glob(".remote*"))
    evaluated = [[row for row in metrics(tmp_path / name) if "eval_reward" in row] for name in asked]
    for left, right in zip(*evaluated, strict=True):
        for name in ("eval_reward", "eval_reward/distant", "eval_reward/length"):
            assert right[name] == pytest.approx(left[name], rel=1e-3)


@pytest.mark.extended
def test_four_processes_match_one(tmp_path, inputs):
    nlf_train(tmp_path / "one", *inputs, 1)
    nlf_train(tmp_path / "four", *inputs, 4)
    one, four = metrics(tmp_path / "one"), metrics(tmp_path / "four")
    for left, right in zip(one, four, strict=True):
        for name in ("loss", "grad_norm", "eval_reward"):
            if name in left:
                assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-5), (left["step"], name)
