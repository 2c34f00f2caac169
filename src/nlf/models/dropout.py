"""Switch off dropout: the published code trains without it, so training and sampling see the same model.

transformers' models keep their rates in three places: in `nn.Dropout` modules, in numbers that a module hands to
`F.dropout` (`self.dropout`, `self.activation_dropout`, …), and in the configuration. Dropped layers and paths and the
noise on a router's input are dropout too.
"""

import re
from typing import Any, cast

from torch import nn

RATE = re.compile(
    r"drop|jitter", re.IGNORECASE
)  # names of rates: attn_pdrop, layerdrop, drop_path_rate, jitter_noise, …
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


def _inner(configs) -> list[Any]:
    """The configurations inside configurations: of the text part, of the attention, …"""
    return [each for config in configs for each in vars(config).values() if hasattr(each, "to_dict")]
