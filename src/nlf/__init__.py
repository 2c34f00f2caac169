"""nlf: align language models with textual feedback.

A name is loaded when it is first used, so that `import nlf` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ALTConfig": "nlf.training.config",
    "ALTTrainer": "nlf.training.trainer",
    "TagGuidance": "nlf.evaluation.guidance",
    "TagScheme": "nlf.method.tags",
    "UserError": "nlf.errors",
    "distill": "nlf.training.distill",
    "dry_run": "nlf.cli.calls",
    "evaluate": "nlf.cli.calls",
    "import_checkpoint": "nlf.cli.calls",
    "load": "nlf.evaluation.writer",
    "load_prompts": "nlf.data.prompts",
    "perplexity": "nlf.cli.calls",
    "sample": "nlf.cli.calls",
    "score": "nlf.cli.calls",
    "train": "nlf.cli.calls",
    "write_report": "nlf.report",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name, and return what it names."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlf' has no attribute {name!r}")
