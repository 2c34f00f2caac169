"""Switch off dropout: the published code trains without it, so training and sampling see the same model.

transformers' models keep their rates in three places: in `nn.Dropout` modules, in numbers that a module hands to
`F.dropout` (`self.dropout`, `self.activation_dropout`, …), and in the configuration. Dropped layers and paths and the
noise on a router's input are dropout too.
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn

from nlf.errors import UserError
from nlf.models.reading import check_reads, equal_but_for_rounding, last_logits, unwrapped

logger = logging.getLogger(__name__)

# Names of rates: attn_pdrop, layerdrop, drop_path_rate, jitter_noise, …
RATE = re.compile(r"drop|jitter", re.IGNORECASE)
DROPOUTS = nn.modules.dropout._DropoutNd  # the base class of nn.Dropout, nn.Dropout1d, nn.AlphaDropout, …


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate of a model, and of an adapter on it, to 0."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
    for owner in [*model.modules(), *configs, *_inner(configs)]:
        for name, value in list(vars(owner).items()):
            if isinstance(value, float) and RATE.search(name):
                setattr(cast(Any, owner), name, 0.0)


def _inner(configs: Iterable[Any]) -> list[Any]:
    """The configurations inside configurations: of the text part, of the attention, …"""
    return [each for config in configs for each in vars(config).values() if hasattr(each, "to_dict")]


def check_training_mode(model: nn.Module) -> None:
    """Check by passes over a few tokens that a model without dropout answers alike each time in training mode.

    Attention kernels that need a GPU are not tried on a CPU, nor weights that are elsewhere (on the meta device).

    Raises:
        UserError: two passes in training mode differ; or see `check_reads`.
    """
    device, name = next(model.parameters()).device, type(unwrapped(model)).__name__
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None) or "sdpa"
    if device.type == "meta" or (device.type == "cpu" and kernel not in ("eager", "sdpa")):
        return
    ids = torch.tensor([[1, 2, 1, 1, 2, 2, 1, 2]], device=device)
    with _modes_restored(model), torch.no_grad(), torch.random.fork_rng(devices=_with_random_state(device)):
        model.eval()
        check_reads(model)
        still = last_logits(model, ids, torch.tensor([8], device=device))
        model.train()
        first, second = (last_logits(model, ids, torch.tensor([8], device=device)) for _ in range(2))
    if not still.isfinite().all():
        return  # broken weights, which sampling reports
    if not equal_but_for_rounding(second, first):
        raise UserError(
            f"in training mode {name} answers differently each time, though its dropout is off: it draws random numbers of "
            "its own; set disable_dropout to false to train it with them"
        )
    if not equal_but_for_rounding(first, still):
        logger.warning(
            "in training mode %s answers differently than in evaluation mode, though its dropout is off: the loss and the "
            "KL are those of training mode",
            name,
        )


def _with_random_state(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


@contextlib.contextmanager
def _modes_restored(model: nn.Module) -> Iterator[None]:
    """After the `with` block, each module is in the mode that it had before: training or evaluation."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
