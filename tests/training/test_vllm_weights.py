"""Training on rollouts from vLLM: real processes run a stand-in for vLLM."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from runs import alive, lines, make, same, settings, wait_for_end, weights
from safetensors.torch import load_file
from test_distributed import nlf_train
from transformers import TrainerCallback

import nlf.training.collector
from nlf.cli.main import main
from nlf.data.checkpoints import clear_checkpoint
from nlf.data.rollouts import part_path
from nlf.errors import UserError
from nlf.method.prompt_order import NumberedRow
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy, save_policy
from nlf.training.collector import Part
from nlf.training.vllm_weights import FOLDER, check_sampler, plain_start, share

PARTS = [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]  # (iteration, prompts) of a whole run


def read(folder: Path) -> str:
    """The digest that the stand-in computes of a folder's weights."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "sampling" / "stand_in"))
    import vllm

    return vllm.weights(folder)


def train(folder, resume=None, **changes):
    trainer = make(folder, **{"sampler": "vllm"} | changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_run_is_sampled_from_each_iterations_weights(tmp_path, stand_in):
    held = []

    def look() -> None:
        held.extend(pid for told in stand_in() for pid in (told["pid"], told["core"]) if alive(pid))

    def reward(prompts, completions, completion_ids, **columns):
        look()
        return tiny.vowels(prompts, completions, completion_ids)

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            look()

    run = tmp_path / "run"
    trainer = make(run, reward=reward, sampler="vllm")  # evaluation samples in this process
    trainer.add_callback(Watch())
    trainer.train()
    told = stand_in()
    assert [each["prompts"] for each in told] == [prompts for _, prompts in PARTS]
    assert [told[0]["pid"]] * 3 + [told[3]["pid"]] * 3 == [each["pid"] for each in told]  # one process per iteration
    assert not held  # no vLLM runs while rollouts are scored and trained on
    assert not (run / FOLDER).exists()
    tiny.save(tmp_path / "start")
    assert told[0]["weights"] == read(tmp_path / "start") and told[3]["weights"] == read(run / "checkpoint-3")
    assert told[0]["params"][0]["logit_bias"] is None  # the reference has no separator to ban
    assert told[3]["params"][0]["logit_bias"] == {"300": -100.0}
    table = pq.read_table(part_path(run, 1, 0))
    assert set(table["feedback"].to_pylist()) == {"Maximum Reward"} and min(table["completion_ids"].to_pylist())
    assert [row["pool/size"] for row in lines(run) if "pool/size" in row] == [20, 40]
    assert len([row for row in lines(run) if "loss" in row]) == 6 and "eval_reward" in lines(run)[-1] | lines(run)[-2]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        stand_in = Path(__file__).parents[1] / "sampling" / "stand_in"
        patch.syspath_prepend(stand_in)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(stand_in), *sys.path]))
        patch.setenv("STAND_IN_LOG", str(folder / "log"))
        train(folder / "run")
        sys.modules.pop("vllm", None)
    return folder / "run"


@pytest.mark.parametrize("part", [1, 5])
def test_a_run_that_is_stopped_while_sampling_does_no_part_again(tmp_path, stand_in, unbroken, monkeypatch, part):
    written, write = [], nlf.training.collector.write_part

    def stopped(path, *args):
        if len(written) == part + part // 3 * 3:  # each part is written twice: sampled, then scored
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(nlf.training.collector, "write_part", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    for told in stand_in():
        wait_for_end(told["pid"])
        wait_for_end(told["core"])
    before = len(stand_in())
    train(tmp_path / "run", resume=True)
    assert [told["prompts"] for told in stand_in()[before:]] == [prompts for _, prompts in PARTS[part:]]
    assert same(weights(tmp_path / "run"), weights(unbroken))


def test_vllm_that_dies_is_one_line_and_what_is_done_is_kept(tmp_path, stand_in, unbroken, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("STAND_IN_DIES_AT", "3")
    with pytest.raises(UserError, match=r"vLLM failed \(exit status -9\) .*Finished work is kept"):
        train(run)
    assert len(list(run.glob("rollouts/*/samples-*"))) == 2 and not (run / FOLDER).exists()
    trainer = make(run, sampler="vllm")

    def fail(*args, **kwargs):
        trainer.stop.asked = True  # a signal that asks all processes of a run to stop ends vLLM too
        raise UserError("vLLM failed")

    collector = trainer.collector(0, trainer.policy, SimpleNamespace(sample=fail, close=None))
    with pytest.raises(SystemExit, match="143"):
        collector.sample([Part(9, [NumberedRow(0, 0)])], lambda: [None])
    monkeypatch.delenv("STAND_IN_DIES_AT")
    train(run, resume=True)
    assert [told["prompts"] for told in stand_in()[2:]] == [prompts for _, prompts in PARTS[2:]]
    assert same(weights(run), weights(unbroken))


def test_resuming_in_the_middle_of_an_iteration_starts_no_vllm(tmp_path, stand_in, unbroken):
    changed = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    run = tmp_path / "run"
    train(run, **changed)
    clear_checkpoint(run / "checkpoint-6")
    asked = len(stand_in())
    train(run, resume=True, **changed)
    assert len(stand_in()) == asked and same(weights(run), weights(unbroken))


@pytest.mark.parametrize("sampler", ["hf", "vllm"])
def test_a_part_is_never_sampled_from_later_weights(tmp_path, stand_in, sampler):
    changed = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "sampler": sampler}
    train(tmp_path, **changed)
    clear_checkpoint(tmp_path / "checkpoint-6")
    part_path(tmp_path, 1, 1).unlink()
    with pytest.raises(
        UserError, match=r"part-00001.parquet is missing, and training has .* is \S+checkpoint-3: give"
    ):
        train(tmp_path, resume=str(tmp_path / "checkpoint-5"), **changed)
    before = weights(tmp_path)
    train(tmp_path, resume=True, **changed)
    assert part_path(tmp_path, 1, 1).is_file() and same(weights(tmp_path), before)


def test_lora_is_merged_and_the_start_is_without_it(tmp_path, stand_in):
    from peft import LoraConfig

    def lora(folder, **changes):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        return train(folder, architecture="llama", peft_config=config, **changes)

    lora(tmp_path / "one", num_train_epochs=1)
    trainer = lora(tmp_path / "two")
    told = stand_in()[3:]
    assert told[3]["weights"] == read(tmp_path / "one")  # the merged model after iteration 0
    save_policy(prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme()), tmp_path / "start")
    assert told[0]["weights"] == read(tmp_path / "start")
    save_policy(plain_start(trainer.policy), tmp_path / "again")  # although the adapter has learned
    assert read(tmp_path / "again") == told[0]["weights"]


def test_another_sampler_is_refused_on_resume(tmp_path, unbroken, stand_in):
    with pytest.raises(UserError, match="was started with sampler='vllm', now it is 'hf'"):
        make(unbroken).train(resume_from_checkpoint=True)
    train(tmp_path, num_train_epochs=1, sampler="hf")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert values.pop("sampler") == "hf"  # as earlier versions wrote it
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="was started with sampler='hf', now it is 'vllm'"):
        train(tmp_path, resume=True)
    train(tmp_path, resume=True, sampler="hf", gpu_memory_utilization=0.3)  # this changes no result


def test_what_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="sampler vllm needs vLLM: pip install vllm"):
        make(tmp_path / "run", sampler="vllm")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="sampler server cannot be used in training: the server does not get the new"):
        settings(tmp_path, sampler="server")
    assert main(["train", "--sampler", "server", "--output_dir", str(tmp_path)]) == 2
    assert "sampler: 'server' where one of hf, vllm was expected" in capsys.readouterr().err


def ranks(count: int, tensor: int = 1, **changes) -> list:
    common = {"sampler": "vllm", "world_size": count, "tensor_parallel_size": tensor}
    return [SimpleNamespace(**common | changes, process_index=rank) for rank in range(count)]


def test_ranks_sample_alone_or_in_groups(stand_in, monkeypatch):
    assert [share(rank) for rank in ranks(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [share(rank) for rank in ranks(4, tensor=2)] == [(0, 2), (None, 2), (1, 2), (None, 2)]
    assert [share(rank) for rank in ranks(2, tensor=2, sampler="hf")] == [(0, 2), (1, 2)]
    assert share(ranks(1, tensor=2)[0]) == (0, 1)
    check_sampler(ranks(4, tensor=2)[0])
    check_sampler(ranks(1, tensor=3)[0])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        UserError, match="tensor_parallel_size 8: the 4 processes of a machine cannot be grouped by it"
    ):
        check_sampler(ranks(16, tensor=8)[0])


def completions(run: Path) -> list:
    return [pq.read_table(path)["completion_ids"].to_pylist() for path in sorted(run.glob("rollouts/*/part-*"))]


def assert_as_one(folder: Path, inputs, processes: int, *flags: str, config: str | None = None) -> None:
    """Several processes sample the same completions and train the same weights as one process."""
    nlf_train(folder / "one", *inputs, 1, "--sampler", "vllm")
    nlf_train(folder / "several", *inputs, processes, "--sampler", "vllm", *flags, config=config)
    assert completions(folder / "one") == completions(folder / "several")
    one, other = (load_file(folder / name / "model.safetensors") for name in ("one", "several"))
    assert one.keys() == other.keys() and all(torch.allclose(one[n], other[n], atol=1e-4) for n in one)


def test_each_rank_has_a_vllm_that_reads_whole_weights(tmp_path, stand_in, inputs):
    """The processes run under a launcher, whose environment variables vLLM must not see."""
    assert_as_one(tmp_path, inputs, 2, config="fsdp2")
    told = stand_in()
    assert len({each["pid"] for each in told[:8]}) == 2 and len({each["pid"] for each in told[8:]}) == 4
    start, later = told[0]["weights"], {each["weights"] for each in told[8:]} - {told[0]["weights"]}
    assert [each["weights"] for each in told[8:]].count(start) == 4 and len(
        later
    ) == 1  # the reference's weights, then the policy's


@pytest.mark.extended
def test_ranks_share_a_vllm_over_their_gpus(tmp_path, stand_in, inputs):
    assert_as_one(tmp_path, inputs, 4, "--tensor_parallel_size", "2")
    told = stand_in()[8:]
    assert len({each["pid"] for each in told}) == 4 and {each["tensor"] for each in told} == {2}
