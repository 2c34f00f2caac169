"""Packed layers give the same results as plain ones, pack the present weights, and are restored afterwards."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests import tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlf.config import SamplingOptions
from nlf.models import packed_weights as packing
from nlf.models.packed_weights import FEWEST_TOKENS, packed_weights
from nlf.sampling import Request
from nlf.sampling.hf import HFSampler

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
IDS = torch.arange(1, 13).view(2, 6)


def packed_layers(model):
    return [module for module in model.modules() if "forward" in vars(module)]


def lora():
    model = get_peft_model(tiny.model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)  # LoRA starts with an update of 0
    return model


@pytest.mark.parametrize("build", [lambda: tiny.model("gpt2"), lambda: tiny.model("llama"), lora])
@torch.inference_mode()
def test_a_model_says_what_it_says_without(build):
    model = build().eval()
    expected = model(IDS).logits
    linear = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    with packed_weights(model, FEWEST_TOKENS):
        assert linear and packed_layers(model) == linear
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-6)
    assert not packed_layers(model)
    assert torch.equal(model(IDS).logits, expected)


@torch.inference_mode()
def test_the_weights_are_those_at_the_time():
    layer = nn.Linear(8, 8)
    x = torch.randn(5, 8)
    for _ in range(2):
        with packed_weights(layer, FEWEST_TOKENS):
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        layer.weight.add_(1)


def test_autocast_computes_as_it_does_without():
    layer, x = nn.Linear(8, 8), torch.randn(5, 8)
    with packed_weights(layer, FEWEST_TOKENS), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed_weights(layer, FEWEST_TOKENS):
        assert not packed_layers(layer)
        assert inside.dtype == torch.bfloat16 and torch.equal(inside, layer(x))


def test_forwards_are_back_after_an_error():
    model = tiny.model("gpt2")
    with pytest.raises(KeyboardInterrupt), packed_weights(model, FEWEST_TOKENS):
        raise KeyboardInterrupt
    assert not packed_layers(model)


def with_a_forward_of_its_own(layer):
    layer.forward = copy.copy(layer.forward)  # as accelerate's hooks do


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.bfloat16(),
        with_a_forward_of_its_own,
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.empty(0))),  # as ZeRO-3 does between passes
    ],
)
def test_what_cannot_be_packed_stays_as_it_is(change):
    layer = nn.Linear(8, 8)
    change(layer)
    before = dict(vars(layer))
    with packed_weights(layer, FEWEST_TOKENS):
        assert vars(layer) == before
    assert vars(layer) == before


def test_few_tokens_and_many_weights_are_left_alone(monkeypatch):
    layer = nn.Linear(8, 8)
    with packed_weights(layer, FEWEST_TOKENS - 1):
        assert not packed_layers(layer)
    monkeypatch.setattr(packing, "MOST_BYTES", 255)
    with packed_weights(layer, FEWEST_TOKENS):
        assert not packed_layers(layer)


@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise"])
def test_a_torch_without_these_operations_does_without(name, monkeypatch):
    layer = nn.Linear(8, 8)

    def other(*args):
        raise RuntimeError("mkldnn: another signature")

    monkeypatch.setattr(torch.ops.mkldnn, name, other)
    with packed_weights(layer, FEWEST_TOKENS):
        assert not packed_layers(layer)


def test_completions_are_the_same(monkeypatch):
    model, asked = tiny.model("gpt2"), [Request((1 + i, 2), key=i) for i in range(60)]
    options, found = SamplingOptions(num_generations=1, max_completion_length=20, top_p=0.9), []
    for most in (packing.MOST_BYTES, 0):
        monkeypatch.setattr(packing, "MOST_BYTES", most)
        found.append(HFSampler(model, eos_token_ids=(0,)).sample(asked, options, seed=0, iteration=0))
    assert found[0] == found[1]
