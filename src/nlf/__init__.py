"""nlf: align language models with textual feedback. Names are loaded when first used, so that importing costs
nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "ALTConfig": "nlf.training.config",
    "ALTTrainer": "nlf.training.trainer",
    "TagScheme": "nlf.method.tags",
    "UserError": "nlf.errors",
    "distill": "nlf.training.distill",
    "load_prompts": "nlf.data.prompts",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlf' has no attribute {name!r}")
