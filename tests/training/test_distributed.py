"""Several processes over gloo match one process, sharded or not: the same pool, the same losses up to float error."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from accelerate import PartialState
from safetensors.torch import load_file

HERE = Path(__file__).parent


def nlf_train(folder: Path, model: str, prompts: Path, processes: int, *flags: str, config: str | None = None) -> str:
    """Run `nlf train` and return its output: in one process, in several processes under torchrun, or started by an
    accelerate config.
    """
    launcher = [sys.executable, "-m"]
    if processes > 1 and config is None:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [
        *launcher, "nlf", "train", "--use_cpu", "true", "--model_name_or_path", model, "--output_dir", str(folder),
        "--dataset", str(prompts), "--eval_dataset", str(prompts), "--max_eval_prompts", "5",
        "--reward_funcs", "test_distributed:vowels",
        "--contrast_coef", "1",
        "--num_train_epochs", "2", "--steps_per_iteration", "3", "--per_device_train_batch_size", str(8 // processes),
        "--prompts_per_iteration", "10", "--prompts_per_part", "3", "--num_generations", "2",
        "--max_completion_length", "5", "--eval_num_generations", "2",
        "--logging_steps", "1", "--learning_rate", "0.01", "--disable_tqdm", "true", *flags,
    ]  # fmt: skip
    if config is not None:
        port = ["--main_process_port", str(free_port())]
        command += ["--accelerate_config", config, "--num_processes", str(processes), "--mixed_precision", "no", *port]
    paths = [str(HERE), str(HERE / "sharding_on_cpu"), *sys.path]
    expected = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "EXPECTED_WORLD": str(processes)}
    environment = os.environ | expected | {"PYTHONPATH": os.pathsep.join(paths), "EXPECTED_SHARDS": str(config)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def vowels(prompts, completions, completion_ids, **columns):
    """As `tiny.vowels`; checks that this process knows all ranks and shards as the test asks."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    assert world == int(os.environ["EXPECTED_WORLD"])
    kind = PartialState().distributed_type.value
    assert kind == {"fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}.get(
        os.environ["EXPECTED_SHARDS"], kind
    )
    return tiny.vowels(prompts, completions, completion_ids)


def assert_same_run(one: Path, other: Path, parts: int = 4) -> None:
    """Two runs have the same rollouts, and the same figures up to float error."""
    for iteration in (0, 1):
        for name in (f"rollouts/iteration-{iteration:04d}/part-{p:05d}.parquet" for p in range(parts)):
            left, right = (pq.read_table(run / name) for run in (one, other))
            assert left["completion_ids"].to_pylist() == right["completion_ids"].to_pylist()
            assert left["reward"].to_pylist() == right["reward"].to_pylist()
    for left, right in zip(metrics(one), metrics(other), strict=True):
        for name in ("loss", "grad_norm", "kl", "contrast", "tag_margin", "eval_reward", "eval_perplexity", "eval_kl"):
            assert (name in left) == (name in right)
            if name in left:
                assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-5), (left["step"], name)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory, inputs):
    """The folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one")
    nlf_train(folder / "run", *inputs, 1)
    return folder / "run"


def test_two_processes_match_one(tmp_path, inputs, one):
    nlf_train(tmp_path / "two", *inputs, 2)
    assert_same_run(one, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "checkpoint-6" / "nlf.json").read_text())["world_size"] == 2


def test_two_processes_that_shard_match_one(tmp_path, inputs, one):
    """FSDP2 samples from gathered weights, reads a sharded reference, and saves whole weights."""
    nlf_train(tmp_path / "two", *inputs, 2, config="fsdp2")
    assert_same_run(one, tmp_path / "two")
    assert_same_weights(one, tmp_path / "two")


def assert_same_weights(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    left, right = (load_file(run / "model.safetensors") for run in (one, other))
    assert left.keys() == right.keys()
    assert max(float((left[name] - right[name]).abs().max()) for name in left) <= tolerance


def distant(prompts, completions, completion_ids, **columns):
    """As `tiny.vowels`; records the rank that asks."""
    with open(os.environ["ASKED"], "a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', '0')} {len(completions)}\n")
    return tiny.vowels(prompts, completions, completion_ids)


distant.remote = True


def length(completions, **columns):
    with open(f"{os.environ['ASKED']}-local", "a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', '0')}\n")
    return [len(text) / 100 for text in completions]


def test_the_first_rank_asks_the_remote_rewards_for_all(tmp_path, inputs, monkeypatch):
    """Each rank calls the local rewards for its own completions, and the rollouts equal those of one process."""
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


def prefixed(completions, **columns):
    """The number of vowels, of a beginning too."""
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


prefixed.prefixes = True
CREDIT = ("--contrast_coef", "0", "--credit_coef", "1", "--reward_funcs", "test_distributed:prefixed")


def test_two_processes_by_credit_match_one(tmp_path, inputs):
    """With tags, and the plain model: after the tags in one process, by the command that is printed in two."""
    nlf_train(tmp_path / "one", *inputs, 1, *CREDIT, "--plain", "true")
    said = nlf_train(tmp_path / "two", *inputs, 2, *CREDIT, "--plain", "true")
    assert f"--output_dir {tmp_path / 'two'} --plain only` as this run was started" in said
    nlf_train(tmp_path / "two", *inputs, 2, *CREDIT, "--plain", "only")
    for stage in ("", "plain"):
        one, two = tmp_path / "one" / stage, tmp_path / "two" / stage
        assert_same_run(one, two)
        first, second = (pq.read_table(run / "rollouts/iteration-0000/credit.parquet") for run in (one, two))
        assert first.equals(second) and any(any(row) for row in first["credit"].to_pylist())
        sizes = [[row["credit/size"] for row in metrics(run) if "credit/size" in row] for run in (one, two)]
        assert len(sizes[0]) == 2 and sizes[1] == pytest.approx(sizes[0], rel=1e-3)
        assert_same_weights(one, two, tolerance=1e-3)


@pytest.mark.extended
def test_four_processes_match_one(tmp_path, inputs, one):
    nlf_train(tmp_path / "four", *inputs, 4)
    assert_same_run(one, tmp_path / "four")


@pytest.mark.extended
def test_four_processes_that_shard_match_one(tmp_path, inputs, one):
    """In the last round some ranks have no part; the other ranks do not wait for them."""
    nlf_train(tmp_path / "four", *inputs, 4, "--prompts_per_part", "4", config="fsdp2")
    left, right = metrics(one), metrics(tmp_path / "four")
    assert [row["loss"] for row in right if "loss" in row] == pytest.approx(
        [row["loss"] for row in left if "loss" in row], rel=1e-3
    )
    assert_same_weights(one, tmp_path / "four")


def resumed_equals_unbroken(folder: Path, inputs, *flags: str, config: str) -> None:
    """Train, damage the last checkpoint and resume from the one before: the weights are equal, bit for bit."""
    nlf_train(folder, *inputs, 2, *flags, config=config)
    before = load_file(folder / "model.safetensors")
    (folder / "checkpoint-6" / "rng_state_1.pth").write_bytes(b"torn")  # a file of the other rank
    (folder / "model.safetensors").unlink()
    said = nlf_train(folder, *inputs, 2, *flags, "--resume_from_checkpoint", "true", config=config)
    assert said.count("checkpoint-6 is skipped: rng_state_1.pth has 4 bytes, expected") == 1  # by the first rank only
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.extended
def test_a_sharded_run_resumes_exactly(tmp_path, inputs):
    resumed_equals_unbroken(tmp_path / "two", inputs, config="fsdp2")


@pytest.mark.extended
def test_a_sharded_adapter_matches_one_process_and_resumes_exactly(tmp_path, inputs):
    inputs = (
        tiny.save(tmp_path / "llama", "llama"),
        inputs[1],
    )  # a model whose input and output embeddings are not tied
    nlf_train(tmp_path / "one", *inputs, 1, "--use_peft", "true")
    resumed_equals_unbroken(tmp_path / "two", inputs, "--use_peft", "true", config="fsdp2")
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.extended
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_matches_one_process_and_resumes_exactly(tmp_path, inputs, one, config):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: ZeRO was not run")
    resumed_equals_unbroken(tmp_path / "two", inputs, config=config)
    assert_same_weights(one, tmp_path / "two")
