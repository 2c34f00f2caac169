"""Logits and hidden states where completion tokens are predicted, and nowhere else."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from accelerate.utils import is_compiled_module
from torch import nn

from nlf.models.policy import _AdapterOff


def predicting(
    model: nn.Module, inputs: dict[str, torch.Tensor], bare: bool, last: nn.Module | None = None
) -> torch.Tensor:
    """`predicting_hidden` of a model with a `bare_head`, of others `predicting_logits`: `(N, D or V)`."""
    return predicting_hidden(model, inputs, last) if bare else predicting_logits(model, inputs)


def predicting_logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Next-token logits where `batches.read_whole` says that a completion's token is next: `(N, V)`, row by row."""
    predicts = inputs["predicts"]  # (B, L)
    columns = predicts.any(0).nonzero()[:, 0]  # (C,)
    asked = _asked(inputs)
    if "logits_to_keep" in forward_parameters(model):  # of those columns alone where the model can
        logits = model(**asked, logits_to_keep=columns).logits  # (B, C, V)
    else:
        logits = model(**asked).logits[:, columns]
    return logits[predicts[:, columns]]


def predicting_hidden(
    model: nn.Module, inputs: dict[str, torch.Tensor], last: nn.Module | None = None
) -> torch.Tensor:
    """What the output layer of a model with a `bare_head` makes those logits of: `(N, D)`.

    Args:
        last: The model's `last_feed_forward`, which is then asked for those N positions alone; not of a compiled model.
    """
    last = None if is_compiled_module(model) else last
    none = inputs["input_ids"].new_empty(0)  # logits of no position
    with _only_at(last, inputs["predicts"]):
        out = model(**_asked(inputs), logits_to_keep=none, output_hidden_states=True)
    return out.hidden_states[-1][inputs["predicts"]]


def _asked(inputs: dict[str, torch.Tensor]) -> dict:
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")} | {"use_cache": False}


def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """The feed-forward part of the last layer, where what it makes of a token reaches no other token, as a trial shows: at a
    prompt's tokens nobody then asks for it. It is two thirds of a layer.

    None also where activations are made again for the gradient, when nobody says any more which tokens are asked for.
    """
    found = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not found or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return None
    ids = torch.arange(1, 9, device=next(model.parameters()).device).view(2, 4)
    position = torch.arange(4).to(ids).expand(2, 4)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": position,
        "predicts": ids % 3 == 0,
    }
    with torch.no_grad():
        expected = predicting_hidden(model, inputs)
        try:
            got = predicting_hidden(model, inputs, found[-1])
        except Exception:  # it is no function of one tensor, token by token
            return None
    return found[-1] if equal_but_for_rounding(got, expected) else None


def equal_but_for_rounding(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether what a model says differs by no more than the order of sums makes it, in the precision of its products."""
    kind = got.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else got.dtype
    return bool((got - expected).abs().max() <= torch.finfo(dtype).eps ** 0.5 * expected.abs().max())


@contextlib.contextmanager
def _only_at(module: nn.Module | None, positions: torch.Tensor) -> Iterator[None]:
    """Within, a module of one tensor (B, L, D) is given those at `positions` (B, L) alone, and makes zeros of the others."""
    if module is None:
        yield
        return
    places = positions.flatten().nonzero()[:, 0]  # (N,)

    def pick(module, given):
        return given[0].flatten(0, 1).index_select(0, places)[None], *given[1:]

    def put(module, given, made):
        whole = made.new_zeros(positions.numel(), made.shape[-1])
        return whole.index_copy(0, places, made[0]).unflatten(0, positions.shape)

    hooks = [module.register_forward_pre_hook(pick), module.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def bare_head(model: nn.Module) -> bool:
    """Whether logits are what the output layer makes of the last hidden state, at the positions that are asked for and
    with nothing done before or after it: no scale, no cap. Seen by putting marks in the place of what the layer says.
    """
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        return False
    seen = {}

    def look(module, given, made):
        marks = torch.linspace(-100, 100, made.numel(), device=made.device).reshape(made.shape).to(made.dtype)
        seen.update(read=given[0], marks=marks)
        return marks

    hook = head.register_forward_hook(look)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
            asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            kept = ids.new_tensor([1])
            out = model(**asked, output_hidden_states=True, logits_to_keep=kept)
    except TypeError:  # it does not take one of these
        return False
    finally:
        hook.remove()
    if not seen or not getattr(out, "hidden_states", None):
        return False
    return torch.equal(out.logits, seen["marks"]) and torch.equal(seen["read"], out.hidden_states[-1][:, kept])


def project(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits `(..., V)` of hidden states `(..., D)`, by the output layer of a model with a `bare_head`."""
    head = unwrapped(model).get_output_embeddings()
    if not isinstance(model, _AdapterOff):
        return head(hidden)
    with torch.no_grad(), model.disable_adapter():
        return head(hidden)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, `torch.compile` and the like."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    return model


def forward_parameters(model: nn.Module) -> set[str]:
    """Names that the innermost model's forward takes (wrappers such as DDP and peft take anything)."""
    model = unwrapped(model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(model.forward).parameters)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout while sampling; each module's own mode is restored after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
