"""Statistics of a micro-batch through models: in groups and chunks as in one naive pass, with the same gradients."""

import copy
import random
from dataclasses import replace

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from nlf.method.losses import Coefficients, StepTotals, alt_loss
from nlf.models.encoder import pad
from nlf.models.policy import Policy
from nlf.models.reading import LogitsPlan, bare_head, last_mlp, plan_logits
from nlf.training.batches import Example, collate
from nlf.training.objective import completion_stats

COEFS = {"nll_coef": 0.3, "contrast_coef": 1.0, "beta": 0.7, "entropy_coef": 0.1}


def drawn(count=9, contrast=True, seed=0, vocabulary=250) -> list[Example]:
    draw = random.Random(seed)

    def ids(most: int, least: int = 1) -> list[int]:
        return draw.choices(range(1, vocabulary), k=draw.randint(least, most))

    rows = [(ids(12), ids(7)) for _ in range(count)]
    tokens = sum(len(completion) for _, completion in rows)
    return [Example(ids(4) + p, ids(4) + p if contrast else None, p, c, tokens, count) for p, c in rows]


BARE = LogitsPlan(bare=True)


def ours(model, reference, examples, *, pass_tokens=None, bare=True, last=False, most_logits=None, **options):
    loss = 0.0
    plan = LogitsPlan(bare, most_logits=most_logits)
    if last:
        plan = replace(plan_logits(model, reference), most_logits=most_logits)
        assert plan.bare and plan.model_mlp is last_mlp(model) and plan.reference_mlp is last_mlp(reference)
        assert None not in (plan.model_mlp, plan.reference_mlp)
    for group in collate(examples, 0, pass_tokens)["groups"]:
        branches = completion_stats(model, reference, group, plan, **options)
        loss = loss + alt_loss(
            branches[0], group["completion_mask"], branches[1] if branches[1:] else None,
            totals=StepTotals(group["num_tokens"], group["num_completions"]), coefficients=Coefficients(**COEFS),
        )[0]  # fmt: skip
    return loss


def naive(model, reference, examples, excluded=(), direction="forward"):
    """A row at a time, nothing padded, every position's logits, autograd's own sums."""
    kept = [i for i in range(model.config.vocab_size) if i not in excluded]
    sums = {"nll": 0.0, "kl": 0.0, "entropy": 0.0, "contrast": 0.0}
    for e in examples:

        def log_p(net, query, completion=e.completion):
            logits = net(input_ids=torch.tensor([query + completion])).logits[0, len(query) - 1 : -1]
            return logits.log_softmax(-1)

        label = torch.tensor(e.completion)[:, None]
        with torch.no_grad():
            ref = log_p(reference, e.prompt)[:, kept].log_softmax(-1)
        branches = [log_p(model, query) for query in (e.right, e.wrong) if query]
        own = [each.gather(1, label).sum() for each in branches]
        sums["nll"] -= own[0]
        sums["entropy"] -= (branches[0].exp() * branches[0]).sum()
        for each in branches:
            policy = each[:, kept].log_softmax(-1)
            p, q = (ref, policy) if direction == "forward" else (policy, ref)
            sums["kl"] += (p.exp() * (p - q)).sum()
        if own[1:]:
            sums["contrast"] -= torch.nn.functional.logsigmoid(own[0] - own[1])
    tokens, count = examples[0].num_tokens, examples[0].num_completions
    loss = (
        COEFS["nll_coef"] * sums["nll"] + COEFS["beta"] * sums["kl"] - COEFS["entropy_coef"] * sums["entropy"]
    ) / tokens
    return loss + COEFS["contrast_coef"] * sums["contrast"] / count


def pair(architecture="gpt2"):
    return tiny.model(architecture, seed=1).double(), tiny.model(architecture, seed=0).double().requires_grad_(False)


def gradients(loss, model) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pass_tokens": 20},
        {"most_logits": 300},  # one token at a time
        {"most_logits": 300 * 7, "pass_tokens": 20},
        {"bare": False},
        {"last": True},
        {"last": True, "most_logits": 300 * 7, "pass_tokens": 20},
        {"kl_direction": "reverse", "excluded_ids": (299,), "most_logits": 900},
        {"excluded_ids": (3, 299), "pass_tokens": 20},
    ],
)
def test_loss_and_gradients_are_the_naive_ones(architecture, options):
    model, reference = pair(architecture)
    examples = drawn()
    expected = naive(
        model, reference, examples, options.get("excluded_ids", ()), options.get("kl_direction", "forward")
    )
    found = ours(model, reference, examples, **options)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(gradients(found, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-10)


def test_one_branch_is_right_alone():
    model, reference = pair()
    examples = drawn(contrast=False)
    torch.testing.assert_close(ours(model, reference, examples, pass_tokens=20), naive(model, reference, examples))


def test_padding_is_marked_by_zeros():
    model, reference = pair()
    [group] = collate(drawn(), 0)["groups"]
    right, wrong = completion_stats(model, reference, group, BARE)
    assert right.logp.shape == wrong.kl.shape == group["labels"].shape
    assert not right.logp[~group["completion_mask"]].any() and (right.logp[group["completion_mask"]] < 0).all()


def test_no_tensor_of_all_logits_is_kept():
    """What the graph keeps for the gradient: nothing of tokens × vocabulary, but for one chunk's."""
    model, reference = pair()
    [group] = collate(drawn(40), 0)["groups"]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        completion_stats(model, reference, group, LogitsPlan(bare=True, most_logits=300 * 16))
    tokens = int(group["completion_mask"].sum())
    assert tokens > 100
    assert not [shape for shape in kept if shape[-1] == 300 and shape.numel() > 2 * 17 * 300]


def test_an_adapter_that_is_off_is_the_reference():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["c_attn"], trainable_token_indices=[299], init_lora_weights=False)
    model = get_peft_model(tiny.model(seed=1), config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_adapter" in name or "delta" in name:
                parameter.add_(0.1)
    off = Policy(model, tiny.tokenizer(), None, None, ()).reference_module()
    start = tiny.model(seed=1).double()
    assert bare_head(model) and bare_head(off)
    examples = drawn()
    for most in (None, 900):
        found, expected = (ours(model, ref, examples, most_logits=most, last=True) for ref in (off, start))
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(gradients(found, model), gradients(expected, model), strict=True):
            torch.testing.assert_close(mine, theirs)


SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "more", "bare"),
    [
        ("llama", {}, True),
        ("granite", {"logits_scaling": 8.0}, False),
        ("granite", {"logits_scaling": 1.0}, True),
        ("cohere", {"logit_scale": 0.0625}, False),
        ("gemma2", {"final_logit_softcapping": 30.0, "head_dim": 8}, False),
    ],
)
def test_heads_that_scale_or_cap_are_told_from_bare_ones(kind, more, bare):
    config = AutoConfig.for_model(kind, **SHAPE, **more)
    assert bare_head(AutoModelForCausalLM.from_config(config).eval()) is bare


def deaf_to_states(forward):
    return lambda input_ids, logits_to_keep=0, **_: forward(input_ids, logits_to_keep=logits_to_keep)


def deaf_to_positions(forward):
    return lambda input_ids, output_hidden_states=None, **_: forward(
        input_ids, output_hidden_states=output_hidden_states
    )


@pytest.mark.parametrize("deaf", [deaf_to_states, deaf_to_positions])
def test_a_forward_that_lacks_one_of_both_arguments_has_no_bare_head(deaf):
    model = tiny.model()
    model.forward = deaf(model.forward)
    assert not bare_head(model)


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_the_tested_architectures_have_bare_heads(architecture):
    model = tiny.model(architecture)
    before = copy.deepcopy(model.state_dict())
    assert bare_head(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.get_output_embeddings()._forward_hooks


def test_the_last_mlp_part_is_asked_for_completions_only():
    model, asked = tiny.model(), []
    layers = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    assert last_mlp(model) is layers[-1]
    for layer in layers:
        layer.register_forward_hook(lambda module, given, made: asked.append(given[0].shape[:-1].numel()))
    [group] = collate(drawn(), 0)["groups"]
    completion_stats(model, model, group, LogitsPlan(True, layers[-1]))
    tokens, read = int(group["completion_mask"].sum()), group["policy"]["input_ids"].numel()
    assert asked[-len(layers) :] == [read] * (len(layers) - 1) + [2 * tokens]
    assert all(len(layer._forward_hooks) == 1 and not layer._forward_pre_hooks for layer in layers)


class Mixing(torch.nn.Module):
    """A part that looks at other tokens too."""

    def forward(self, x):
        return x + x.cumsum(-2)


class Named(torch.nn.Module):
    """One that is called by name."""

    def forward(self, *, hidden_states):
        return hidden_states


@pytest.mark.parametrize("part", [Mixing(), Named()])
def test_a_last_part_that_is_not_token_by_token_is_left_alone(part):
    model = tiny.model()
    block = [module for name, module in model.named_modules() if hasattr(module, "mlp")][-1]
    block.mlp = part
    if isinstance(part, Named):
        block.forward = lambda hidden_states, *args, **kwargs: part(hidden_states=hidden_states)
    assert last_mlp(model) is None
    assert not part._forward_hooks and not part._forward_pre_hooks


def test_activations_that_are_made_again_are_made_as_before():
    model = tiny.model()
    model.gradient_checkpointing_enable()
    assert last_mlp(model) is None


@pytest.mark.parametrize("bare", [True, False])
def test_a_reference_elsewhere_is_given_all_it_reads(bare, monkeypatch):
    """There is no second device here: tensors that go to one by name are marked."""
    away, to, moved = torch.device("cpu:0"), torch.Tensor.to, []

    def marking(self, *args, **kwargs):
        found = to(self, *args, **kwargs)
        if args[:1] == (away,):
            moved.append(found)
        return found

    monkeypatch.setattr(torch.Tensor, "to", marking)
    model, reference = tiny.model("gpt2"), tiny.model("gpt2")

    def read_where(there: bool):
        def look(module, args, inputs):
            tensors = [
                each for name, each in inputs.items() if name in ("input_ids", "attention_mask", "position_ids")
            ]
            assert all(any(each is other for other in moved) == there for each in tensors if each is not None)

        return look

    model.register_forward_pre_hook(read_where(False), with_kwargs=True)
    reference.register_forward_pre_hook(read_where(True), with_kwargs=True)
    elsewhere = ours(model, reference, drawn(), bare=bare, reference_device=away)
    assert moved
    torch.testing.assert_close(elsewhere, naive(tiny.model("gpt2"), tiny.model("gpt2"), drawn()))


def test_right_padding_does_not_reach_what_is_read():
    model = tiny.model("llama").double()
    [group] = collate(drawn(), 0)["groups"]
    other = {**group, "policy": {**group["policy"]}}
    ids, predicts = other["policy"]["input_ids"], other["policy"]["predicts"]
    padding = predicts.flip(1).cumsum(1).flip(1) == 0  # after the last that predicts a token
    assert padding.any() and not ids[padding].any()
    other["policy"]["input_ids"] = torch.where(padding, 77, ids)
    for first, second in zip(*(completion_stats(model, model, g, BARE) for g in (group, other)), strict=True):
        torch.testing.assert_close(first.logp, second.logp)
    assert pad([[1], [2, 3]], 0, "right").tolist() == [[1, 0], [2, 3]]


def test_half_precision_is_in_the_models_only():
    """Under autocast the sums over the vocabulary stay in float32."""
    model, reference = (each.float() for each in pair())
    [group] = collate(drawn(), 0)["groups"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        right, _ = completion_stats(model, reference, group, BARE)
    exact, _ = completion_stats(model, reference, group, BARE)
    assert right.kl.dtype == right.entropy.dtype == torch.float32
    assert len(right.entropy.unique()) > 0.9 * group["completion_mask"].sum()  # bfloat16 knows one number in 128
    torch.testing.assert_close(right.entropy, exact.entropy, rtol=1e-3, atol=1e-3)


def test_completions_without_a_token_count_nowhere():
    model, reference = pair()
    empty = [Example([1, 2], [3, 2], [2], [], 1, 2) for _ in range(2)]
    right, wrong = completion_stats(model, reference, collate(empty, 0)["groups"][0], BARE)
    assert right.logp.shape == wrong.kl.shape == (2, 0)
