"""Sharded weights (FSDP2, DeepSpeed ZeRO-3). The reference is sharded like the policy. All weights are gathered on each rank
to sample from a model, and to measure, digest or save it.

A rank samples with as many forward passes as its prompts need. With sharded weights every pass is a collective: all
ranks would have to make the same number of passes, and each token would move all weights over the network. So the
weights are gathered once before sampling, into an unsharded model on each rank, and dropped afterwards. Ranks exchange
nothing while they sample, with the decode loop of an unsharded run. The price is memory: beside its shards, a device
holds a copy of the policy in the run's precision while it samples, and a copy of the reference too while it evaluates
(docs/scaling.md).

Every function that gathers is a collective: all ranks call it, in the same order.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from nlf.errors import UserError
from nlf.models.identity import weights_digest
from nlf.models.policy import Policy
from nlf.models.quantized import bits_of

MODELS = ("model", "reference_model")  # the fields of a Policy that hold weights
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of gathered weights, by the run's mixed precision


def load_whole() -> None:
    """Make `from_pretrained` load whole models from now on, although TrainingArguments has read a ZeRO-3 config.

    Tokens are then added, the reference copied and scorers loaded as in any run. Trainer shards the policy when training
    starts.
    """
    unset_hf_deepspeed_config()


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether training shards the weights, so that a rank holds a part of each weight only.

    Raises:
        UserError: FSDP1, whose flattened weights this module cannot gather.
    """
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
    if plugin is not None:
        return plugin.zero_stage == 3
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise UserError("fsdp_version 1 is not supported; set fsdp_version: 2 in the accelerate config")
    return accelerator.distributed_type == "FSDP"


def skeleton(policy: Policy, accelerator: Accelerator) -> Policy | None:
    """The policy with models without weights, which `whole` fills; None if training shards nothing.

    Call it before training shards the policy.

    Raises:
        UserError: LoRA trains rows of the embeddings, which cannot be sharded by this backend, or the model is quantized.
    """
    if not shards_weights(accelerator):
        return None
    if bits := bits_of(policy.model):
        raise UserError(
            f"weights of {bits} bits are not sharded: use accelerate config multi_gpu, or leave load_in_{bits}bit out"
        )
    if hasattr(policy.model, "peft_config") and policy.added_token_ids:
        tied = policy.model.config.get_text_config().tie_word_embeddings
        if accelerator.distributed_type == "DEEPSPEED" or tied:
            raise UserError(
                "use_peft with added tokens: peft trains rows of the embeddings, which ZeRO-3 cannot shard, nor FSDP2 "
                "where input and output share them; use accelerate config multi_gpu or zero2, or set use_peft false"
            )
    empty: dict[str, Any] = {name: _without_weights(getattr(policy, name)) for name in MODELS}
    return replace(policy, **empty)


def _without_weights(model: nn.Module | None) -> nn.Module | None:
    """A copy whose parameters are on the meta device. Buffers are copied, and tied parameters stay tied."""
    if model is None:
        return None
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def place_reference(
    model: nn.Module | None, accelerator: Accelerator, device: torch.device | None = None
) -> nn.Module | None:
    """The reference, moved to a device and sharded if the policy is.

    Args:
        model: None = the reference is the policy with its adapter off.
        device: None = the policy's device.

    Raises:
        UserError: `device` is given, but the reference is sharded or is the policy with its adapter off.
    """
    sharded = shards_weights(accelerator)
    if device is not None and (model is None or sharded):
        why = "its weights are sharded like the policy's" if sharded else "it is the policy with its adapter off"
        raise UserError(f"reference_device {device}: the reference cannot be moved, {why}; leave it out")
    if model is None:
        return None
    if not sharded:
        zero2 = accelerator.distributed_type == "DEEPSPEED"  # it casts the policy instead of using autocast
        dtype = DTYPES.get(accelerator.mixed_precision) if zero2 else None
        return model.to(device=device or accelerator.device, dtype=dtype)
    if accelerator.distributed_type == "FSDP":
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, model).eval()
    import deepspeed

    settings = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    for name in ("optimizer", "scheduler"):
        settings.pop(name, None)
    engine = deepspeed.initialize(model=model, config=settings)[0]
    engine.eval()  # returns None
    return engine


@contextlib.contextmanager
def moved(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Inside the `with` block, the model is on this device; afterwards it is moved back. A quantized model cannot be moved."""
    if model is None or bits_of(model):
        yield
        return
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def whole_parameter(parameter: nn.Parameter) -> torch.Tensor:
    """All of a parameter, without gradients. A parameter that is not sharded is not copied."""
    if isinstance(parameter, DTensor):
        # `detach` is typed as giving a Tensor
        return cast(DTensor, parameter.detach()).full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def whole_parameters(model: nn.Module, trained: bool = False) -> Iterator[tuple[str, nn.Parameter, torch.Tensor]]:
    """(name, parameter, whole tensor) of each parameter, one at a time. A tied parameter comes once, under its first name.

    Args:
        trained: Skip frozen parameters.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # weights left gathered by its last forward have the precision of the computation
    for name, parameter in getattr(model, "module", model).named_parameters():  # DeepSpeed's engine would add a prefix
        if parameter.requires_grad or not trained:
            yield name, parameter, whole_parameter(parameter)


def trainable_digest(model: nn.Module) -> str:
    """A digest of the weights that training changes. Two policies with equal digests sample equal completions.

    All ranks must call it: sharded weights are gathered, one after another.
    """
    return weights_digest((name, tensor) for name, _, tensor in whole_parameters(model, trained=True))


def fill(empty: nn.Module, model: nn.Module, *, device: torch.device, dtype: torch.dtype | None, keep: bool) -> None:
    """Fill a model made by `_without_weights` with all weights of the sharded model.

    Args:
        dtype: Type that floating-point weights are cast to; None keeps their type.
        keep: False = this rank takes part in gathering, but keeps nothing.
    """
    tied = {names[0]: names for names in _names(empty).values()}
    for name, parameter, tensor in whole_parameters(model):
        if keep:
            tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
            _put(empty, tied[name], nn.Parameter(tensor, parameter.requires_grad))
    left = [name for name, parameter in empty.named_parameters() if parameter.is_meta]
    if keep and left:
        raise RuntimeError(f"{len(left)} weights of the sharded model were not gathered: {', '.join(left[:3])} …")
    for module in empty.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def drop(empty: nn.Module) -> None:
    """Drop the weights that `fill` put into the model."""
    for parameter, names in _names(empty).items():
        _put(empty, names, nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad))


def _names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter. A tied parameter has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _put(model: nn.Module, names: list[str], parameter: nn.Parameter) -> None:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)


@contextlib.contextmanager
def whole(
    policy: Policy,
    empty: Policy | None,
    models: Iterable[str] = MODELS,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    keep: bool = True,
) -> Iterator[Policy]:
    """Inside the `with` block, a policy in evaluation mode with all weights on this rank.

    If nothing is sharded, it is `policy` itself, unchanged.

    Args:
        empty: The policy's `skeleton`; None = nothing is sharded.
        models: Names of the models to fill. Other models stay without weights.
        dtype, keep: See `fill`.
    """
    if empty is None:
        yield policy
        return
    names = [name for name in models if getattr(policy, name) is not None]
    try:
        for name in names:
            fill(getattr(empty, name).eval(), getattr(policy, name), device=device, dtype=dtype, keep=keep)
        yield empty
    finally:
        for name in names:
            drop(getattr(empty, name))
