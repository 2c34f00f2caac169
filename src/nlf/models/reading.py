"""Logits and hidden states at the positions that predict completion tokens, and nowhere else.

Letters in shapes: B rows, L positions, N completion tokens of all rows, D width, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils import is_compiled_module
from torch import nn
from transformers import PreTrainedModel

from nlf.errors import UserError, line_of
from nlf.models.encoder import ForwardInputs


@dataclass(frozen=True)
class LogitsPlan:
    """How a model and its reference (or a student and its teacher) compute the logits of completion tokens.

    Attributes:
        bare: Both models have a `bare_head`. Their output layers are then applied outside their forward passes, to a few
            tokens at a time, so that no tensor holds all logits. Otherwise the models return all logits.
        model_mlp, reference_mlp: The MLP of the last layer (`last_mlp`), computed at completion positions only; None
            computes it everywhere.
        most_logits: Logits computed at a time for one branch; None suits the device.
    """

    bare: bool = False
    model_mlp: nn.Module | None = None
    reference_mlp: nn.Module | None = None
    most_logits: int | None = None


def plan_logits(model: nn.Module, reference: nn.Module) -> LogitsPlan:
    """Find out by trial passes how both models can compute logits. All weights must be on this rank.

    Call it once training has set up the models: gradient checkpointing changes the plan. The trials run in evaluation mode,
    so they draw no random numbers, and dropout does not change the plan.
    """
    with eval_mode(model), eval_mode(reference):
        if not (bare_head(model) and bare_head(reference)):
            return LogitsPlan()
        return LogitsPlan(True, last_mlp(model), last_mlp(reference))


def completion_outputs(
    model: nn.Module, inputs: ForwardInputs, bare: bool, mlp: nn.Module | None = None
) -> torch.Tensor:
    """`completion_hidden` of a model with a `bare_head`, `completion_logits` of other models: `(N, D or V)`."""
    return completion_hidden(model, inputs, mlp) if bare else completion_logits(model, inputs)


def completion_logits(model: nn.Module, inputs: ForwardInputs) -> torch.Tensor:
    """Logits of each completion token, `(N, V)`, in the order of the rows."""
    predicts = inputs["predicts"]  # (B, L)
    columns = predicts.any(0).nonzero()[:, 0]  # (C,)
    if "logits_to_keep" in forward_parameters(model):
        logits = model(**_arguments(model, inputs), logits_to_keep=columns).logits  # (B, C, V)
    else:
        logits = model(**_arguments(model, inputs)).logits[:, columns]
    return logits[predicts[:, columns]]


def last_logits(model: nn.Module, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits `(B, V)` at the last token of each row, without a cache.

    Args:
        ids: `(B, L)`, padded on the right.
        lengths: `(B,)`, tokens of each row.
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    inputs: ForwardInputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": columns.expand_as(ids),
        "predicts": columns == lengths[:, None] - 1,
    }
    return completion_logits(model, inputs)


def check_reads(model: nn.Module) -> None:
    """Refuse a model that does not read a text token by token, by a trial with a few tokens.

    Raises:
        UserError: it cannot read plain text, its answer at a token depends on later tokens, or its positions do not start
            at 0.
    """
    name, device = type(unwrapped(model)).__name__, next(model.parameters()).device
    ids = torch.tensor([[1, 2, 1, 1], [1, 2, 2, 1]], device=device)
    try:
        with torch.no_grad():
            own = model(input_ids=ids[:1, :2]).logits[:, -1]  # (1, V), with positions and mask of its own
            found = last_logits(model, ids, torch.full_like(ids[:, 0], 2))  # (2, V)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any model may be given
        raise UserError(f"the model ({name}) cannot read plain text: {named(error)}") from error
    if not found.isfinite().all():
        return  # broken weights, which whoever reads the model reports
    if not equal_but_for_rounding(found[0], found[1]):
        raise UserError(
            f"the model ({name}) is not causal: its answer to a text depends on the tokens after it, as a masked language "
            "model's does; expected a causal language model"
        )
    if not equal_but_for_rounding(found[:1], own):
        raise UserError(
            f"the model ({name}) does not number positions from 0, or changes with an attention mask of ones, so "
            "batches of texts would be read wrongly; expected a causal language model such as GPT-2 or Llama"
        )


def named(error: Exception) -> str:
    """An error's name and text, on one line."""
    return f"{type(error).__name__}: {line_of(error, 200)}"


def completion_hidden(model: nn.Module, inputs: ForwardInputs, mlp: nn.Module | None = None) -> torch.Tensor:
    """Hidden states of the completion tokens, `(N, D)`. The output layer turns them into `completion_logits` if the model
    has a `bare_head`.

    Args:
        mlp: The model's `last_mlp`, computed at the N positions only. Compiled models ignore it.
    """
    mlp = None if is_compiled_module(model) else mlp
    none = inputs["input_ids"].new_empty(0)  # logits at no position
    with _only_at(mlp, inputs["predicts"]):
        out = model(**_arguments(model, inputs), logits_to_keep=none, output_hidden_states=True)
    return out.hidden_states[-1][inputs["predicts"]]


def _arguments(model: nn.Module, inputs: ForwardInputs) -> dict[str, Any]:
    """The arguments of a forward pass, those that the model takes."""
    whole = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "position_ids": inputs["position_ids"],
        "use_cache": False,
    }
    taken = forward_parameters(model)
    return {name: value for name, value in whole.items() if name in taken}


def last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last layer, if it acts on each token alone, so that prompt tokens can be skipped. It is two thirds of a
    layer. A trial pass checks that the hidden states of completion tokens stay the same.

    Also None with gradient checkpointing: the recomputation in the backward pass would not know the positions.
    """
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not mlps or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return None
    ids = torch.arange(1, 9, device=next(model.parameters()).device).view(2, 4)
    inputs: ForwardInputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(4).to(ids).expand(2, 4),
        "predicts": ids % 3 == 0,
    }
    with torch.no_grad():
        expected = completion_hidden(model, inputs)
        try:
            found = completion_hidden(model, inputs, mlps[-1])
        except Exception:  # the module does not take one tensor (tokens, D)
            return None
    return mlps[-1] if equal_but_for_rounding(found, expected) else None


def equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two outputs differ by rounding only, in the precision of the model's matrix products."""
    kind = found.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else found.dtype
    return bool((found - expected).abs().max() <= torch.finfo(dtype).eps ** 0.5 * expected.abs().max())


@contextlib.contextmanager
def _only_at(module: nn.Module | None, positions: torch.Tensor) -> Iterator[None]:
    """Inside the `with` block, the module computes only `positions` (B, L) of its input (B, L, D), and 0 elsewhere."""
    if module is None:
        yield
        return
    places = positions.flatten().nonzero()[:, 0]  # (N,)

    def pick(module, args):
        return args[0].flatten(0, 1).index_select(0, places)[None], *args[1:]

    def put(module, args, output):
        whole = output.new_zeros(positions.numel(), output.shape[-1])
        return whole.index_copy(0, places, output[0]).unflatten(0, positions.shape)

    hooks = [module.register_forward_pre_hook(pick), module.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def bare_head(model: nn.Module) -> bool:
    """Whether the model returns the output layer's values for the last hidden state, without scale or cap, and only at
    the positions `logits_to_keep`. Checked by replacing the layer's output with sentinels.
    """
    head = output_layer(model)
    if head is None:
        return False
    seen: dict[str, torch.Tensor] = {}

    def replace_output(module, args, output):
        sentinels = torch.linspace(-100, 100, output.numel(), device=output.device).reshape(output.shape)
        seen.update(read=args[0], sentinels=sentinels.to(output.dtype))
        return seen["sentinels"]

    hook = head.register_forward_hook(replace_output)
    try:
        with torch.no_grad():
            ids = torch.tensor([[1, 2]], device=head.weight.device)  # the row of 0, if it is padding, may be zeros
            arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            kept = ids.new_tensor([1])
            out = model(**arguments, output_hidden_states=True, logits_to_keep=kept)
    except TypeError:  # its forward lacks one of these arguments
        return False
    finally:
        hook.remove()
    if not seen or not getattr(out, "hidden_states", None):
        return False
    return torch.equal(out.logits, seen["sentinels"]) and torch.equal(seen["read"], out.hidden_states[-1][:, kept])


def project(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits `(..., V)` of hidden states `(..., D)`, by the output layer of a model with a `bare_head`."""
    head = output_layer(model)
    assert head is not None  # a model with a bare head has one
    if not isinstance(model, AdapterOff):
        return head(hidden)
    with torch.no_grad(), adapter_off(model):
        return head(hidden)


# ---- models in wrappers -------------------------------------------------------------------------------------------


class AdapterOff:
    """A peft model that always answers without its adapter and without gradients."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args, **kwargs):
        with torch.no_grad(), adapter_off(self._model):
            return self._model(*args, **kwargs)


def adapter_off(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within, a peft model answers without its adapter."""
    return cast(Any, model).disable_adapter()  # a method of peft


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, `torch.compile` and the like."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    return model


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The layer that makes logits; None if the model has no separate one."""
    # transformers types every layer as a Module
    return cast(nn.Linear | None, cast(PreTrainedModel, unwrapped(model)).get_output_embeddings())


def vocabulary_size(model: nn.Module) -> int:
    """Number of token ids that the model accepts: rows of its input embeddings."""
    # transformers types every layer as a Module
    return cast(nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings()).weight.shape[0]


def forward_parameters(model: nn.Module) -> set[str]:
    """Parameter names of the innermost model's forward (wrappers such as DDP and peft take anything)."""
    inner = unwrapped(model)
    # a method of peft
    inner = cast(Any, inner).get_base_model() if hasattr(inner, "get_base_model") else inner
    return set(inspect.signature(inner.forward).parameters)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, the model is in evaluation mode; afterwards each module is back in its earlier mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
