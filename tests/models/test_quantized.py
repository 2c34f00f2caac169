"""Models in 4 or 8 bits: refused in one line where they cannot be, trained by adapters, and saved as the plain model that
was trained. The tests that load such a model need bitsandbytes, which runs on a CPU too.
"""

import importlib.util

import pytest
import runs
import tiny
import torch

from nlf import config
from nlf.errors import UserError
from nlf.models import quantized
from nlf.models.adapter import lora_config
from nlf.models.policy import load_model, load_policy, prepare_policy
from nlf.training.trainer import ALTTrainer

installed = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not installed, reason="needs bitsandbytes")
LORA = config.ModelOptions(use_peft=True, lora_r=2)
TEXT = torch.tensor([[5, 60, 70, 80]])


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """A folder of a model whose linear layers, and the other way round in GPT-2, can be quantized."""
    if installed:  # its kernel for some CPUs takes no matrices as small as these
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    return tiny.save(tmp_path / "start")


def test_settings_that_exclude_each_other():
    with pytest.raises(UserError, match="^load_in_4bit and load_in_8bit exclude each other"):
        config.ModelOptions(load_in_4bit=True, load_in_8bit=True, use_peft=True)
    with pytest.raises(UserError, match="^load_in_8bit: weights of 8 bits cannot be trained; add use_peft"):
        config.ModelOptions(load_in_8bit=True)
    assert [config.ModelOptions(use_peft=True, **{f"load_in_{n}bit": True}).bits for n in (4, 8)] == [4, 8]
    assert config.ModelOptions().bits is None


def test_a_machine_that_cannot_is_said_before_anything_is_loaded(monkeypatch):
    quantized.check_quantization(None, torch.device("cpu"))
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="^load_in_4bit needs the package bitsandbytes: `pip install bitsandbytes`"):
        quantized.check_quantization(4, torch.device("cuda"))
    monkeypatch.setattr(quantized, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="^load_in_8bit needs a GPU, and this machine shows none"):
        quantized.check_quantization(8, torch.device("cpu"))
    quantized.check_quantization(8, torch.device("cuda"))


def test_the_command_says_so_in_one_line_and_writes_nothing(tmp_path, capsys):
    from nlf.cli.main import main

    argv = ["train", "--load_in_4bit", "--use_peft", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("nlf: error: load_in_4bit needs ")
    assert not [*tmp_path.rglob("*.yaml"), *tmp_path.rglob("*.json")]


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_is_the_quantized_model_and_costs_nothing(gpt2, bits):
    model, tokenizer = load_model(gpt2, bits=bits)
    before = model.eval()(TEXT).logits.detach()
    policy = prepare_policy(model, tokenizer, None, peft_config=lora_config(LORA))
    assert policy.reference_model is None and quantized.bits_of(policy.model) == bits
    shake(policy.model)
    assert not torch.allclose(policy.model(TEXT).logits, before, atol=1e-3)
    with policy.reference() as reference:
        assert torch.equal(reference(TEXT).logits, before)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_the_saved_model_is_the_trained_one_without_quantization(gpt2, bits, tmp_path):
    """peft would round the sum of weights and update to 4 bits again."""
    model, tokenizer = load_model(gpt2, bits=bits)
    policy = prepare_policy(model, tokenizer, None, peft_config=lora_config(LORA))
    shake(policy.model)
    trained = policy.model.eval()(TEXT).logits.detach()
    rounded = {4: 1e-5, 8: 0.02}[bits]  # 8 bits also round what a layer reads
    whole = quantized.merged(policy.model)
    assert torch.allclose(whole(TEXT).logits, trained, atol=rounded) and quantized.bits_of(whole) is None
    whole.save_pretrained(tmp_path / "whole")
    policy.tokenizer.save_pretrained(tmp_path / "whole")
    again = load_policy(str(tmp_path / "whole")).model
    assert torch.equal(again(TEXT).logits, whole.eval()(TEXT).logits)
    assert torch.equal(policy.model(TEXT).logits, trained), "the policy itself stays as it is"
    start = quantized.merged(policy.model, adapter=False)
    with policy.reference() as reference:
        assert torch.allclose(start(TEXT).logits, reference(TEXT).logits, atol=rounded)


@needs_bitsandbytes
def test_a_quantized_model_without_an_adapter_is_refused(gpt2):
    model, tokenizer = load_model(gpt2, bits=4)
    with pytest.raises(
        UserError, match="^the model is held in 4 bits, and such weights cannot be trained: train an adapter"
    ):
        prepare_policy(model, tokenizer, None)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_trains_resumes_and_ends_as_a_plain_folder(gpt2, bits, tmp_path):
    def trainer(**changes):
        model, tokenizer = load_model(gpt2, bits=bits)
        return ALTTrainer(
            model, tiny.vowels, runs.settings(tmp_path / "run", eval_strategy="no", **changes),
            train_dataset=tiny.PROMPTS, processing_class=tokenizer, peft_config=lora_config(LORA),
        )  # fmt: skip

    first = trainer()
    first.train()
    assert "quantization_config" not in (tmp_path / "run" / "config.json").read_text()
    assert load_policy(str(tmp_path / "run")).scheme is not None
    digest = first.sampling_digest()
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.sampling_digest() == digest


def shake(model):
    """Give the adapter an update."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
