"""Weights laid out for oneDNN, for as long as a model on a CPU is only read.

A matrix product packs its weights before it multiplies, at every call. A sampled token takes a product of a few dozen rows
with every weight of the model, so that this shows: with weights packed once, by oneDNN, 100 rows go 1.1 × as fast through a
layer of GPT-2 and 1.2 to 1.3 × through its output layer. Equal up to rounding. What it costs is a copy of the weights, and the
time of some fifty rows to make it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 1_000  # read while packed, below which the copy is not worth its time
MOST_BYTES = 4 * 2**30  # of a model's weights that are copied; larger models do without
FEWEST_ROWS = 3  # of one product, below which oneDNN is no faster


@contextlib.contextmanager
def packed_weights(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within, linear layers of a float32 model on a CPU multiply by packed copies of the weights they have now.

    Other models, weights that are sharded over ranks, and layers with a forward of another's making stay as they are, and
    all of them under autocast. Not for several threads on one model.

    Args:
        tokens: That will be read, at least: few are not worth it.
    """
    layers = [module for module in model.modules() if _packable(module)] if tokens >= FEWEST_TOKENS else []
    if sum(4 * layer.weight.numel() for layer in layers) > MOST_BYTES or torch.is_autocast_enabled("cpu"):
        layers = []
    try:
        forwards = [_packed_forward(layer) for layer in layers]
    except (AttributeError, RuntimeError, NotImplementedError) as error:  # a torch that has these otherwise
        logger.info("weights are not packed: %s", error)
        forwards = []
    with contextlib.ExitStack() as after:
        for layer, forward in zip(layers, forwards, strict=False):
            after.callback(vars(layer).pop, "forward", None)  # the class's is there again
            layer.forward = forward
        yield


def _packable(module: nn.Module) -> bool:
    own = "forward" in vars(module)
    if type(module) not in (nn.Linear, Conv1D) or own or not torch.backends.mkldnn.is_available():
        return False
    data = module.weight.data  # of another type where ranks share it, empty where they do so with DeepSpeed
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

    forward(weight.new_zeros(FEWEST_ROWS, weight.shape[1]))  # whether it can be done at all
    return forward
