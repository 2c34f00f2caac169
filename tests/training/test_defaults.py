"""A run by credit with its default settings: what the trainer fills in, says, records and resumes."""

import logging
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from runs import make, settings
from transformers import AutoConfig, AutoModelForCausalLM

from nlf.config import TRAINING_DEFAULTS
from nlf.data.checkpoints import clear_checkpoint
from nlf.data.run_folder import changed_settings, settings_in
from nlf.errors import UserError
from nlf.rewards import Judgement
from nlf.training.config import ALTConfig, choose_precision
from nlf.training.inputs import tell_choices
from nlf.training.settings import run_settings
from nlf.training.stages import plain_settings

OPEN = {"contrast_coef": None, "learning_rate": None, "lr_scheduler_type": None, "warmup_steps": None}


def prefixed(prompts, completions, completion_ids, **kwargs):
    return tiny.vowels(prompts, completions, completion_ids)


prefixed.prefixes = True


def test_the_learning_rate_is_chosen_told_recorded_and_kept(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="nlf"):
        trainer = make(tmp_path / "run", eval_strategy="no", **OPEN)
    size = 12_928  # of the tiny model, before the separator is added: 2e-4 √(3,000,000 / 12,928) = 3.05e-3
    assert sum(weight.numel() for weight in tiny.model().parameters()) == size
    told = [record.message for record in caplog.records if record.message.startswith("credit: learning")]
    assert told == [
        "credit: learning rate 0.003 for 0.0 M parameters, 2 iterations of 10 × 2 completions and 3 steps of 8 (in "
        "float32), KL budget 0.1 nats a token (docs/method.md)"
    ]
    trainer.train()
    recorded = settings_in(tmp_path / "run" / "config.yaml")
    expected = {
        "learning_rate": 0.003,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "kl_budget": 0.1,
        "beta": None,
    }
    expected |= {"nll_coef": 0.0, "contrast_coef": 0.0, "credit_coef": 1.0}
    assert {name: recorded[name] for name in expected} == expected
    clear_checkpoint(tmp_path / "run" / "checkpoint-6")
    resumed = make(tmp_path / "run", eval_strategy="no", **OPEN)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.args.learning_rate == 0.003


def test_a_run_goes_on_with_the_defaults_of_its_start(tmp_path):
    """As after an upgrade that changed the defaults: the same command goes on, with the settings that were recorded."""
    first = make(tmp_path / "run", eval_strategy="no", contrast_coef=1.0, learning_rate=0.02)
    first.train()
    again = settings(tmp_path / "run", eval_strategy="no", **OPEN)
    assert (again.contrast_coef, again.credit_coef, again.beta, again.kl_budget) == (1.0, 0.0, 2.0, None)
    assert (again.learning_rate, again.warmup_steps) == (0.02, 1)
    other = settings(tmp_path / "run", eval_strategy="no", credit_coef=1.0, contrast_coef=0.0, learning_rate=0.02)
    recorded = settings_in(tmp_path / "run" / "config.yaml")
    changed = [name for name, _, _ in changed_settings(recorded, run_settings(other, {}))]
    assert {"contrast_coef", "credit_coef"} <= {*changed} and "learning_rate" not in changed


def test_a_judge_from_python_is_trained_by_contrast(tmp_path):
    class Judging:
        def judge(self, prompts, completions, completion_ids, **kwargs):
            return [Judgement(reward=each) for each in tiny.vowels(prompts, completions, completion_ids)]

        def __call__(self, prompts, completions, completion_ids, **kwargs):
            return tiny.vowels(prompts, completions, completion_ids)

    trainer = make(tmp_path, reward=Judging(), eval_strategy="no", **OPEN)
    args = trainer.args
    assert (args.contrast_coef, args.credit_coef, args.beta, args.kl_budget) == (1.0, 0.0, 2.0, None)
    assert (args.learning_rate, args.warmup_steps) == (5e-4, 5)


def test_an_adapter_learns_at_ten_times_the_rate(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    assert make(tmp_path, peft_config=adapter, eval_strategy="no", **OPEN).args.learning_rate == 0.03


@pytest.mark.parametrize(("credit", "scored"), [("auto", True), ("completion", False)])
def test_beginnings_are_scored_only_where_credit_reads_them(tmp_path, credit, scored):
    trainer = make(tmp_path, reward=prefixed, eval_strategy="no", num_train_epochs=1, credit=credit, **OPEN)
    trainer.train()
    part = next((tmp_path / "rollouts" / "iteration-0000").glob("part-*.parquet"))
    table = pq.read_table(part)
    for name in ("prefix_tokens", "prefix_ends"):
        assert (table[name].null_count == 0) == scored, name
    assert any(row for row in table["prefix_rewards"].to_pylist()) == scored


def test_settings_from_python_have_the_sizes_of_credit(tmp_path):
    args = ALTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.num_train_epochs, args.warmup_steps, args.learning_rate) == (15, 3, None)
    assert args.lr_scheduler_type == "linear"
    args = ALTConfig(output_dir=str(tmp_path), use_cpu=True, nll_coef=1)
    assert (args.num_train_epochs, args.warmup_steps, args.learning_rate) == (3, 5, 5e-4)
    assert args.lr_scheduler_type == "cosine"


# ---- the precision ------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_with_bf16(monkeypatch):
    """Let this machine look as if it had a GPU that computes in bf16; the run itself stays on the CPU."""
    for name in ("nlf.training.config.computes_in_bf16", "nlf.training.config.is_torch_bf16_gpu_available"):
        monkeypatch.setattr(name, lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


@pytest.mark.parametrize(
    ("given", "bf16"),
    [
        ({}, True),
        ({"bf16": None}, True),
        ({"bf16": False}, False),
        ({"use_cpu": True}, False),
        ({"use_cpu": True, "bf16": True}, True),
    ],
)
def test_a_gpu_that_computes_in_bf16_does_unless_told_otherwise(tmp_path, gpu_with_bf16, given, bf16):
    args = ALTConfig(output_dir=str(tmp_path), **given)
    assert args.bf16 is bf16
    assert args.mixed_precision == ("bf16" if bf16 else "no")


def test_another_precision_and_accelerates_launcher_are_not_overruled(tmp_path, gpu_with_bf16, monkeypatch):
    args = SimpleNamespace(bf16=TRAINING_DEFAULTS["bf16"], fp16=True, deepspeed=None, use_cpu=False)
    choose_precision(args)
    assert args.bf16 is False
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    args = ALTConfig(output_dir=str(tmp_path))
    assert (args.bf16, args.mixed_precision) == (False, "no")


def test_without_such_a_gpu_runs_compute_in_float32(tmp_path):
    assert ALTConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is False


@pytest.mark.parametrize("recorded", [True, False])
def test_a_resumed_run_keeps_its_precision(tmp_path, gpu_with_bf16, recorded):
    """The trap: runs from before the default would change their precision when they resume."""
    (tmp_path / "config.yaml").write_text(f"bf16: {recorded}\n", encoding="utf-8")
    args = ALTConfig(output_dir=str(tmp_path))
    assert args.bf16 is recorded and run_settings(args, {})["bf16"] is recorded


def test_a_run_in_bf16_is_not_resumed_without_such_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("nlf.training.config.is_torch_bf16_gpu_available", lambda: False)
    (tmp_path / "config.yaml").write_text("bf16: true\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        ALTConfig(output_dir=str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} was started in bf16, and no GPU was found that computes in it: resume the run on such a GPU, or "
        "choose another --output_dir"
    )


@pytest.mark.parametrize(
    ("sizes", "millions", "rates", "at_once"),
    [
        (("llama", 576, 1536, 30, 9, 3, 49152, True), "134.5 M", ("3e-05", "0.0003"), 16),  # as SmolLM2-135M
        (("llama", 2048, 8192, 24, 32, 32, 49152, True), "1711.4 M", ("8.4e-06", "8.4e-05"), 4),  # as SmolLM2-1.7B
        (("qwen2", 3584, 18944, 28, 28, 4, 152064, False), "7615.6 M", ("4e-06", "4e-05"), 2),  # as Qwen2.5-7B
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_models_of_real_sizes(tmp_path, caplog, sizes, millions, rates, at_once, lora):
    args = ALTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True)
    tell_choices(args, on_meta(*sizes), lora)
    assert f"{args.learning_rate:g}" == rates[lora]
    assert caplog.messages == [
        f"credit: learning rate {rates[lora]} for {millions} parameters, 15 iterations of 64 × 4 completions and 4 steps "
        f"of 64 ({at_once} at once, in bf16), KL budget 0.1 nats a token (docs/method.md)"
    ]
    assert args.per_device_train_batch_size == at_once and args.total_batch_size == 64


def test_the_parts_of_a_step_are_recorded_and_kept(tmp_path):
    """A resumed run computes the parts of its start, an old one 64 at once, and the plain stage its own."""
    args = ALTConfig(output_dir=str(tmp_path), use_cpu=True, plain="true")
    plain = plain_settings(args)
    for each in (args, plain):
        tell_choices(each, on_meta("llama", 576, 1536, 30, 9, 3, 49152, True), lora=False)
    recorded = run_settings(args, {})
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    assert [recorded[name] for name in names] == [run_settings(plain, {})[name] for name in names] == [16, 4]
    (tmp_path / "config.yaml").write_text("per_device_train_batch_size: 64\ngradient_accumulation_steps: 1\n")
    again = ALTConfig(output_dir=str(tmp_path), use_cpu=True)
    tell_choices(again, on_meta("llama", 576, 1536, 30, 9, 3, 49152, True), lora=False)
    assert (again.per_device_train_batch_size, again.gradient_accumulation_steps) == (64, 1)


def on_meta(kind, hidden, inner, layers, heads, kv_heads, vocabulary, tied):
    """A model of a public configuration's shapes, without memory for its weights."""
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
