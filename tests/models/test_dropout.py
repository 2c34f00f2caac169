"""Dropout is off wherever transformers' models keep a rate, and a model that stays random is found."""

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig

from nlf.errors import UserError
from nlf.models.dropout import RATE, check_training_mode, switch_off_dropout

FUNCTIONAL = ["opt", "xglm", "biogpt", "gpt_bigcode", "starcoder2", "falcon", "bloom", "gpt_neo", "phi", "ctrl"]
OTHER = ["llama", "gpt2", "gptj", "gpt_neox", "codegen", "qwen2_moe", "mixtral", "persimmon", "openai-gpt", "granite"]
SPECS = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
}
IDS = torch.arange(1, 17)[None]


def with_dropout(kind: str):
    """A model in training mode whose every rate is 0.4."""
    plain = vars(AutoConfig.for_model(kind))
    rates = {name: 0.4 for name, value in plain.items() if RATE.search(name) and isinstance(value, float)}
    return tiny.any_model(kind, **rates, **SPECS.get(kind, {})).train()


@pytest.mark.parametrize("kind", FUNCTIONAL + OTHER)
def test_rates_that_a_model_hands_to_functional_dropout_are_off_too(kind):
    model = with_dropout(kind)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        switch_off_dropout(model)
        found, still = model(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits
    assert torch.allclose(found, still, atol=1e-5)
    check_training_mode(model)


def test_layers_that_are_dropped_and_a_router_s_noise_are_dropout():
    opt, mixtral = tiny.any_model("opt", layerdrop=0.5), tiny.any_model("mixtral", router_jitter_noise=0.5)
    switch_off_dropout(opt)
    switch_off_dropout(mixtral)
    assert opt.model.decoder.layerdrop == 0.0
    assert {vars(m)["jitter_noise"] for m in mixtral.modules() if "jitter_noise" in vars(m)} == {0.0}


def test_the_dropout_of_an_adapter_is_off():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.model("llama"), LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    switch_off_dropout(model)
    assert all(m.p == 0 for m in model.modules() if isinstance(m, nn.Dropout))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


def test_a_model_that_stays_random_in_training_is_refused():
    model = tiny.model("llama").train()
    model.model.norm = nn.Sequential(model.model.norm, Noise())
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="LlamaForCausalLM answers differently each time.*disable_dropout to false"):
        check_training_mode(model)
    assert torch.equal(state, torch.get_rng_state()) and model.training


def test_a_model_that_answers_otherwise_in_training_is_told_of(caplog):
    model = tiny.model("llama").train()
    model.model.norm.register_forward_hook(lambda module, args, out: out * 2 if module.training else out)
    check_training_mode(model)
    assert "answers differently than in evaluation mode" in caplog.text
