"""What tags add to a model, and that the model of before can still be had."""

import pytest
import tiny
import torch

from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.encoder import forward_inputs
from nlf.models.policy import load_model, load_policy, prepare_policy, save_policy
from nlf.models.reading import completion_logits, forward_parameters, unwrapped
from nlf.models.sharding import trainable_digest


def test_the_separator_starts_as_eos_and_embeddings_only_grow():
    model = tiny.model(vocab_size=320)  # padded, as Qwen's and Pythia's are
    policy = prepare_policy(model, tiny.tokenizer(), TagScheme())
    assert policy.added_token_ids == (300,)
    table = model.get_input_embeddings().weight
    assert table.shape[0] == 320 and torch.equal(table[300], table[0])
    small = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    assert small.model.get_input_embeddings().weight.shape[0] == 301
    assert small.reference_model.get_input_embeddings().weight.shape[0] == 300


def test_rows_that_name_no_token_are_never_sampled():
    policy = prepare_policy(tiny.model(vocab_size=320), tiny.tokenizer(), TagScheme())
    assert policy.banned_token_ids == tuple(range(300, 320))


def test_the_reference_does_not_move():
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    before = {k: v.clone() for k, v in policy.reference_model.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(v, policy.reference_model.state_dict()[k]) for k, v in before.items())


def test_with_lora_the_model_without_adapter_is_the_reference():
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    start = tiny.model("llama")
    batch = forward_inputs([[5, 6], [7]], [[8, 9], [10]], 0)
    expected = completion_logits(start, batch)
    policy = prepare_policy(start, tiny.tokenizer(), TagScheme(), peft_config=config)
    with policy.reference() as reference:
        found = completion_logits(reference, batch)
    assert torch.allclose(found[..., :300], expected, atol=1e-6)
    assert not torch.allclose(completion_logits(policy.model, batch), found, atol=1e-3)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_padding_does_not_change_logits(architecture):
    model = tiny.model(architecture)
    alone = completion_logits(model, forward_inputs([[5, 6, 7]], [[8, 9]], 0))
    together = completion_logits(model, forward_inputs([[5, 6, 7], [1] * 9], [[8, 9], [1, 2, 3, 4]], 0))
    assert torch.allclose(alone, together[:2], atol=1e-5)


def test_a_compiled_model_is_looked_into():
    model = tiny.model()
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model
    assert forward_parameters(compiled) == forward_parameters(model)


def test_saved_and_loaded(tmp_path):
    policy = prepare_policy(tiny.model("llama"), tiny.tokenizer(), TagScheme())
    save_policy(policy, tmp_path)
    loaded = load_policy(str(tmp_path))
    assert loaded.scheme == policy.scheme and loaded.added_token_ids == (300,)
    assert trainable_digest(loaded.model) == trainable_digest(policy.model)
    assert loaded.model.generation_config.suppress_tokens == [300]  # plain transformers never samples the separator


def test_dropout_is_off_unless_asked():
    model = tiny.model()
    assert any(m.p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    policy = prepare_policy(model, tiny.tokenizer(), TagScheme())
    assert all(m.p == 0 for m in policy.model.modules() if isinstance(m, torch.nn.Dropout))


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load a causal language model"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="dtype 'float99'"):
        load_model("embedded", dtype="float99")
