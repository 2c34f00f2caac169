"""Weights packed for oneDNN while a model on a CPU only infers.

Every matrix product packs its weights before it multiplies. A sampled token multiplies a few dozen rows with every
weight of the model, so packing takes a visible share of the time. With weights packed once, a layer of GPT-2
multiplies 100 rows 1.1 × as fast, and its output layer 1.2 to 1.3 × as fast. Results are equal up to rounding. The
cost is a copy of the weights; making the copy takes as long as multiplying about fifty rows.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 1_000  # with fewer tokens to read, the copy is not worth its time
MOST_BYTES = 4 * 2**30  # models with more bytes in these layers are not packed
FEWEST_ROWS = 3  # with fewer rows in a product, oneDNN is no faster


@contextlib.contextmanager
def packed_weights(model: nn.Module, tokens: int) -> Iterator[None]:
    """Inside the `with` block, linear layers of a float32 model on a CPU multiply by packed copies of their weights.

    The copies are made at the start of the block. Models of other types or devices, weights that are sharded over
    ranks, layers whose forward has been replaced, and all layers under autocast stay unchanged. Do not use one model
    from several threads at a time.

    Args:
        tokens: Least number of tokens that the model will read.
    """
    layers: list[nn.Linear | Conv1D] = []
    if tokens >= FEWEST_TOKENS:
        layers = [
            module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)) and _packable(module)
        ]
    if sum(4 * layer.weight.numel() for layer in layers) > MOST_BYTES or torch.is_autocast_enabled("cpu"):
        layers = []
    try:
        forwards = [_packed_forward(layer) for layer in layers]
    except (AttributeError, RuntimeError, NotImplementedError) as error:  # this torch lacks the operators
        logger.info("weights are not packed: %s", error)
        forwards = []
    with contextlib.ExitStack() as after:
        for layer, forward in zip(layers, forwards, strict=False):
            after.callback(vars(layer).pop, "forward", None)  # restores the forward of its class
            vars(layer)["forward"] = forward
        yield


def _packable(module: nn.Linear | Conv1D) -> bool:
    replaced = "forward" in vars(module)
    if type(module) not in (nn.Linear, Conv1D) or replaced or not torch.backends.mkldnn.is_available():
        return False
    data = module.weight.data  # sharded weights have another type, or are empty with DeepSpeed
    return type(data) is Tensor and data.numel() > 0 and data.device.type == "cpu" and data.dtype == torch.float32


def _packed_forward(layer: nn.Linear | Conv1D) -> Callable[[Tensor], Tensor]:
    """The layer's forward, (..., K) → (..., N)."""
    plain, bias = layer.forward, layer.bias
    weight = layer.weight.detach()
    weight = weight if isinstance(layer, nn.Linear) else weight.t()  # (N, K)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.numel() < FEWEST_ROWS * x.shape[-1] or torch.is_autocast_enabled("cpu"):
            return plain(x)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    forward(weight.new_zeros(FEWEST_ROWS, weight.shape[1]))  # raises if this machine cannot do it
    return forward
