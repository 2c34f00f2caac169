"""Models without weights are filled and emptied again. test_distributed.py does it with sharded weights."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy
from nlf.models.sharding import _without_weights, drop, fill, moved, place_reference, skeleton, whole

CPU = torch.device("cpu")
IDS = torch.arange(12).reshape(2, 6)
TAGS = TagScheme(("good", "bad"), "{feedback}<|separator|>{prompt}", "<|separator|>")


def sharding(kind: str, zero_stage: int = 3, is_fsdp2: bool = True, mixed_precision: str = "no") -> SimpleNamespace:
    """A stand-in for an Accelerator, with the attributes that are used."""
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=zero_stage))
    return SimpleNamespace(
        distributed_type=kind, is_fsdp2=is_fsdp2, state=state, device=CPU, mixed_precision=mixed_precision
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_filled_model_answers_as_its_source(architecture):
    """GPT-2 has a tied embedding, Llama buffers that no state dict holds."""
    model = tiny.model(architecture)
    empty = _without_weights(model)
    assert all(p.is_meta for p in empty.parameters())
    assert len(list(empty.parameters())) == len(list(model.parameters())), "what is tied stays tied"
    fill(empty, model, device=CPU, dtype=None, keep=True)
    assert torch.equal(empty(IDS).logits, model(IDS).logits)
    drop(empty)
    assert all(p.is_meta for p in empty.parameters())
    assert not any(p.is_meta for p in model.parameters())


def test_weights_are_filled_in_the_precision_asked_for_or_not_kept():
    model = tiny.model("llama")
    empty = _without_weights(model)
    fill(empty, model, device=CPU, dtype=torch.bfloat16, keep=True)
    assert {p.dtype for p in empty.parameters()} == {torch.bfloat16}
    drop(empty)
    fill(empty, model, device=CPU, dtype=None, keep=False)
    assert all(p.is_meta for p in empty.parameters())


def test_a_weight_that_nobody_gathered_is_no_silent_loss():
    model, empty = tiny.model(), _without_weights(tiny.model())
    empty.extra = nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(RuntimeError, match="extra"):
        fill(empty, model, device=CPU, dtype=None, keep=True)


def policy(architecture: str = "gpt2", lora: bool = False):
    from peft import LoraConfig

    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None
    return prepare_policy(tiny.model(architecture), tiny.tokenizer(), TAGS, peft_config=adapter)


def test_only_the_models_asked_for_are_filled_and_only_inside():
    source = policy()
    empty = skeleton(source, sharding("FSDP"))
    with whole(source, empty, ["reference_model"], device=CPU) as found:
        assert torch.equal(found.reference_model(IDS).logits, source.reference_model(IDS).logits)
        assert next(found.model.parameters()).is_meta
    assert next(empty.reference_model.parameters()).is_meta


def test_nothing_is_copied_where_nothing_is_sharded():
    source = policy()
    for unsharded in (sharding("NO"), sharding("MULTI_GPU"), sharding("DEEPSPEED", zero_stage=2)):
        assert skeleton(source, unsharded) is None
    with whole(source, None, device=CPU) as found:
        assert found is source


def test_the_reference_follows_the_precision_that_deepspeed_gives_the_policy():
    placed = place_reference(tiny.model(), sharding("DEEPSPEED", zero_stage=2, mixed_precision="bf16"))
    assert next(placed.parameters()).dtype == torch.bfloat16
    assert (
        next(place_reference(tiny.model(), sharding("NO", mixed_precision="bf16")).parameters()).dtype == torch.float32
    )


def test_a_sharded_reference_has_no_device_of_its_own():
    with pytest.raises(UserError, match="reference_device cpu: .* sharded like the policy's; leave it out"):
        place_reference(tiny.model(), sharding("FSDP"), CPU)
    assert place_reference(None, sharding("FSDP")) is None


def test_a_model_that_comes_over_goes_back_whatever_happens():
    places = []
    model = SimpleNamespace(parameters=lambda: iter([torch.empty(0, device="meta")]), to=places.append)
    with pytest.raises(KeyboardInterrupt), moved(model, CPU):
        assert places == [CPU]
        raise KeyboardInterrupt
    assert places == [CPU, torch.device("meta")]
    with moved(None, CPU):
        pass


def test_what_cannot_be_sharded_is_refused():
    with pytest.raises(UserError, match="fsdp_version 1"):
        skeleton(policy(), sharding("FSDP", is_fsdp2=False))
    for kind, architecture in (("DEEPSPEED", "llama"), ("FSDP", "gpt2")):
        with pytest.raises(UserError, match="multi_gpu or zero2"):
            skeleton(policy(architecture, lora=True), sharding(kind))
    assert skeleton(policy("llama", lora=True), sharding("FSDP")) is not None
