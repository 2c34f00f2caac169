"""The fast GELU equals transformers' in values and gradients, and replaces only that one."""

import copy

import pytest
import torch
from tests import tiny
from transformers.activations import GELUTanh, NewGELUActivation

from nlf.models.fast_gelu import TanhGELU, use_fast_gelu


@pytest.mark.parametrize("original", [NewGELUActivation(), GELUTanh()])
def test_values_and_gradients_are_those_of_the_original(original):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -1e-30, 1e4, -1e4])])
    fast, slow = x.clone().requires_grad_(), x.double().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (TanhGELU()(fast) * weight).sum().backward()
    (original(slow) * weight.double()).sum().backward()
    torch.testing.assert_close(TanhGELU()(x), original(x.double()).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.grad, slow.grad.float(), rtol=1e-5, atol=2e-6)


def test_only_x_is_kept_for_the_gradient():
    kept = []
    x = torch.randn(64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        TanhGELU()(x)
    assert kept == [x.data_ptr()]


def test_compiled_it_is_torchs_own_which_takes_any_shape():
    compiled = torch.compile(TanhGELU(), backend="aot_eager", dynamic=True)
    for size in (8, 9):
        x = torch.randn(2, size, generator=torch.Generator().manual_seed(0), requires_grad=True)
        expected = torch.autograd.grad(NewGELUActivation()(x).sum(), x)
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), expected)


def test_half_precision_is_torchs_own():
    x = torch.randn(64, dtype=torch.bfloat16)
    assert torch.equal(TanhGELU()(x), torch.nn.functional.gelu(x, approximate="tanh"))


def test_it_is_put_into_a_model_and_its_copies_and_changes_nothing_saved():
    model = tiny.model("gpt2").eval()
    stock = copy.deepcopy(model)
    use_fast_gelu(model)
    assert sum(type(m) is TanhGELU for m in model.modules()) == 2
    assert not any(type(m) is NewGELUActivation for m in model.modules())
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-6)
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert model.config.to_dict() == stock.config.to_dict()


def test_other_activations_stay():
    model = tiny.model("llama")
    before = [type(m) for m in model.modules()]
    use_fast_gelu(model)
    assert [type(m) for m in model.modules()] == before
