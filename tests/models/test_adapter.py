"""Adapters train, merge into the model that is saved, and leave the reference as it was; others are refused."""

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.policy import load_model, prepare_policy, save_policy

IDS = torch.tensor([[1, 2, 3, 4, 5, 300, 7]])


def model(tied: bool = False):
    config = AutoConfig.for_model(
        **tiny.ARCHITECTURES["llama"], vocab_size=300, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tied
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def lora(**options):
    from peft import LoraConfig

    return LoraConfig(r=2, task_type="CAUSAL_LM", **options)


def prepared(start, config):
    return prepare_policy(start, tiny.tokenizer(), TagScheme(), peft_config=config)


def assert_trains_and_merges(start, config, folder) -> None:
    """A step moves the policy, not its reference, and the saved model answers as the policy does."""
    with torch.no_grad():
        before = start(input_ids=IDS[:, :5]).logits
    policy = prepared(start, config)
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        policy.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    with policy.reference() as reference:
        assert torch.allclose(reference(input_ids=IDS[:, :5]).logits[..., :300], before, atol=1e-5)
    save_policy(policy, folder)
    saved, _ = load_model(str(folder))
    with torch.no_grad():
        found, expected = saved.eval()(input_ids=IDS).logits, policy.model(input_ids=IDS).logits
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(expected[:, :5, :300], before, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": "all-linear", "trainable_token_indices": [5]},
    ],
)
def test_embeddings_that_train_anyway_are_not_trained_twice(tmp_path, options, tied):
    assert_trains_and_merges(model(tied), lora(**options), tmp_path)


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"], r".*(q_proj|embed_tokens)"])
def test_adapters_on_embeddings_that_are_not_tied_are_merged(tmp_path, targets):
    assert_trains_and_merges(model(), lora(target_modules=targets), tmp_path)


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"], r".*(q_proj|lm_head)"])
def test_adapters_on_one_of_two_tied_layers_are_refused_before_sampling(targets):
    with pytest.raises(UserError, match="share their weights in this model"):
        prepared(model(tied=True), lora(target_modules=targets))


def test_modules_that_are_not_there_are_named_with_those_that_are():
    with pytest.raises(UserError, match="target_modules: no module is named 'v_porj'; .*q_proj"):
        prepared(model(), lora(target_modules=["q_proj", "v_porj"]))
    with pytest.raises(UserError, match="modules_to_save: no module is named 'wte'"):
        prepared(model(), lora(target_modules=["q_proj"], modules_to_save=["wte"]))
    with pytest.raises(UserError, match="peft cannot adapt this model: Target modules"):
        prepared(model(), lora(target_modules="nothing"))


def test_virtual_tokens_cannot_be_merged():
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    for kind in (PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig):
        with pytest.raises(UserError, match=f"{kind.__name__} trains virtual tokens"):
            prepared(model(), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))


def test_trained_biases_would_move_the_reference():
    with pytest.raises(UserError, match="set bias='none'"):
        prepared(model(), lora(target_modules=["q_proj"], bias="all"))


def test_other_kinds_of_adapters_are_merged(tmp_path):
    from peft import IA3Config, VeraConfig

    assert_trains_and_merges_a_little(
        VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2), tmp_path / "v"
    )
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    assert_trains_and_merges_a_little(ia3, tmp_path / "i")


def assert_trains_and_merges_a_little(config, folder) -> None:
    policy = prepared(model(), config)
    save_policy(policy, folder)
    with torch.no_grad():
        found = load_model(str(folder))[0].eval()(input_ids=IDS).logits
        assert torch.allclose(found, policy.model.eval()(input_ids=IDS).logits, atol=1e-5)


def test_a_second_adapter_and_one_that_does_not_train_are_refused(tmp_path):
    from peft import PeftModel, get_peft_model

    with pytest.raises(UserError, match="the model has an adapter already"):
        prepared(get_peft_model(model(), lora(target_modules=["q_proj"])), lora(target_modules=["q_proj"]))
    get_peft_model(model(), lora(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is_trainable=True"):
        prepared(PeftModel.from_pretrained(model(), tmp_path), None)
    assert prepared(PeftModel.from_pretrained(model(), tmp_path, is_trainable=True), None).reference_model is None
    with pytest.raises(UserError, match="peft_config is dict"):
        prepared(model(), {"r": 2})


def test_an_adapter_of_transformers_is_refused(tmp_path):
    start = model()
    start.add_adapter(lora(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="load_adapter; load it by peft.PeftModel"):
        prepared(start, None)
