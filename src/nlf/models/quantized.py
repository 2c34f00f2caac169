"""Models that bitsandbytes holds in 4 or 8 bits (QLoRA): an adapter trains on them, and the saved model is a plain one.

The reference is the model with its adapter off, so it costs no memory. peft merges an adapter into quantized weights by
rounding the sum to their bits again; here the weights are made plain first, so that the saved model is the one that was trained.
"""

import copy
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nlf.errors import UserError

FLAGS = {4: "load_in_4bit", 8: "load_in_8bit"}


def bits_of(model: Any) -> int | None:
    """The bits in which a model's linear layers are held: 4, 8, or None for a model that is not quantized."""
    return next(
        (bits for bits, flag in FLAGS.items() if getattr(model, f"is_{flag.replace('load', 'loaded')}", 0)), None
    )


def check_quantization(bits: int | None, device: torch.device) -> None:
    """Check that this machine can hold a model in 4 or 8 bits, before anything is loaded.

    Args:
        bits: 4, 8, or None for a model that is not quantized.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU.
    """
    if bits is None:
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{FLAGS[bits]} needs the package bitsandbytes: `pip install bitsandbytes`, or leave it out")
    if device.type == "cpu":
        raise UserError(f"{FLAGS[bits]} needs a GPU, and this machine shows none; leave it out")


def quantization(bits: int | None, dtype: str) -> dict[str, Any]:
    """The argument of `from_pretrained` that loads a model in these bits; none for None. 4 bits are NF4, as in QLoRA.

    Args:
        dtype: The type in which layers of 4 bits compute; auto is the model's own.
    """
    if bits is None:
        return {}
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    kind = None if dtype == "auto" else getattr(torch, dtype)
    made = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind)
    return {"quantization_config": made}


def check_trainable(model: nn.Module, adapted: bool) -> None:
    """Refuse to train a quantized model without an adapter.

    Raises:
        UserError: the weights of the model cannot be trained.
    """
    bits = bits_of(model)
    if bits and not adapted:
        raise UserError(
            f"the model is held in {bits} bits, and such weights cannot be trained: train an adapter on them "
            "(--use_peft, or peft_config), or load the model as it is"
        )


def merged(model: PreTrainedModel, adapter: bool = True) -> PreTrainedModel:
    """A copy of a model of peft with its adapter merged into the weights, and with plain weights if they were quantized.

    Args:
        adapter: False = leave the adapter out, which gives the model that it was put on.
    """
    whole, bits = copy.deepcopy(cast(Any, model)), bits_of(model)
    if bits:
        _make_plain(whole, adapter)
    whole = whole.merge_and_unload() if adapter else whole.unload()  # methods of peft
    if bits:
        whole.is_quantized = whole.is_loaded_in_4bit = whole.is_loaded_in_8bit = False
        whole.hf_quantizer = None
        for holder, name in ((whole.config, "quantization_config"), (whole, "quantization_method")):
            vars(holder).pop(name, None)
    return whole


def _make_plain(model: nn.Module, adapter: bool) -> None:
    """Replace each quantized layer by a plain one, with the update of its adapter added to the weights if `adapter`."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = cast(Any, model).get_input_embeddings().weight.dtype
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, BaseTunerLayer) and isinstance(layer.get_base_layer(), Linear4bit | Linear8bitLt):
            names = layer.active_adapters if adapter else []
            update = sum(cast(Any, layer).get_delta_weight(each) for each in names)
            model.set_submodule(name, _plain(layer.get_base_layer(), update, dtype))
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, Linear4bit | Linear8bitLt):
            model.set_submodule(name, _plain(layer, 0, dtype))


def _plain(layer: Any, update: Any, dtype: torch.dtype) -> nn.Module:
    """The layer with weights of this type, of the class that it had before it was quantized.

    Args:
        update: What is added to the weights, (out_features, in_features).
    """
    from peft.utils.integrations import dequantize_bnb_weight

    weight = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)) + update
    rows, columns = weight.shape
    transposed = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)  # GPT-2's linear layer
    plain = Conv1D(rows, columns) if transposed else nn.Linear(columns, rows, bias=layer.bias is not None)
    plain.weight = nn.Parameter((weight.T.contiguous() if transposed else weight).to(dtype))
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.to(dtype))
    return plain.to(weight.device)
