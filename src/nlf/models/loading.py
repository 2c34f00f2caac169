"""Load models, configurations and tokenizers of transformers. This is the only place that calls `from_pretrained`.

transformers fills tensors that the files lack with random numbers and goes on; here such files are refused. Files of
others, and code that comes with them, can raise anything; here every such error becomes one line.
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from nlf.errors import UserError

logger = logging.getLogger(__name__)

OTHER_TASKS = re.compile(r"Classification|QuestionAnswering|MultipleChoice|MaskedLM|Reward")  # names of architectures
# Starts of the lines by which torch advises to load a file unsafely.
ADVICE = ("Weights only load failed", "(1)", "(2)", "Please file an issue", "Check the documentation")
SPOKEN = (OSError, ValueError, ImportError, RuntimeError)  # errors whose texts need no name


@contextlib.contextmanager
def loading(failed: str, expected: str) -> Iterator[None]:
    """Inside the `with` block, an error of loading becomes one line: `FAILED: reason (expected EXPECTED)`.

    Raises:
        UserError: something could not be loaded.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raise plain Exceptions, damaged pickles and remote code raise anything
        raise UserError(f"{failed}: {reason_of(error)} (expected {expected})") from error


def reason_of(error: Exception) -> str:
    """The first line that says why, without torch's advice to load a file unsafely."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = next((line for line in lines if line and not line.startswith(ADVICE)), "")[:300].rstrip(".")
    if "safetensor" in f"{type(error).__module__}{told}".lower():
        return f"a damaged or cut-off safetensors file: {told}"
    return told if told and isinstance(error, SPOKEN) else f"{type(error).__name__} {told}".strip()


def load_config(path: str, **source: Any) -> PreTrainedConfig:
    """The configuration of a model.

    Raises:
        ValueError: the folder holds an adapter, not a model.
    """
    if "gguf_file" not in source and (Path(path) / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(_is_adapter(Path(path)))
    return AutoConfig.from_pretrained(path, **source)


def _is_adapter(folder: Path) -> str:
    """Say where the whole model is: a LoRA run writes adapters into its folder and the merged model at its root."""
    root = folder.resolve().parent
    if (root / "config.json").is_file():
        return f"it holds an adapter without its base model; name {root}, which holds the merged model"
    if (root / "config.yaml").is_file():
        return (
            f"it holds an adapter without its base model; the run {root} writes the merged model when it ends: resume it"
            " with --resume_from_checkpoint true, then name its folder"
        )
    return "it holds an adapter without its base model; merge it with peft's merge_and_unload, and save the result"


def load_tokenizer(path: str, **source: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ValueError: it has no vocabulary.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, **source)
    if len(tokenizer) < 10:  # transformers makes a tokenizer of special tokens if the files are missing
        raise ValueError("its tokenizer has no vocabulary; copy the tokenizer's files to it")
    return tokenizer


def load_weights(kind: Any, path: str, **options: Any) -> PreTrainedModel:
    """A model whose every tensor comes from its files.

    Args:
        kind: A class with `from_pretrained`, such as AutoModelForCausalLM.
        options: Its arguments.

    Raises:
        ValueError: the files lack tensors, or tensors have other shapes than the configuration says.
    """
    with _without_report():
        model, found = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if found["missing_keys"]:
        raise ValueError(f"its files have no {_named(found['missing_keys'])}, so its answers would be random")
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(f"{name!r} is {tuple(there)} in its files, and {tuple(wanted)} by config.json")
    if found["unexpected_keys"]:
        logger.warning("%s: not used, because no layer has these names: %s", path, _named(found["unexpected_keys"]))
    return model


def check_language_model(config: PreTrainedConfig) -> None:
    """Refuse the configuration of another kind of model than a causal language model.

    Raises:
        ValueError: an encoder-decoder model, a classifier, or another model with a head of its own.
    """
    made = next(iter(config.architectures or []), "")
    if config.is_encoder_decoder:
        raise ValueError(
            f"it is an encoder-decoder model ({made or config.model_type}), which reads prompts another way"
        )
    if OTHER_TASKS.search(made):
        raise ValueError(f"it is a {made}, not a causal language model; name the model that it was made from")


def _named(names: Iterable[str]) -> str:
    """The first three names, quoted, and the number of others."""
    shown = sorted(names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(map(repr, shown[:3])) + more


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Inside the `with` block, transformers logs no table of missing and unexpected tensors."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(keep)
    try:
        yield
    finally:
        reporter.removeFilter(keep)


@contextlib.contextmanager
def progress_bar_hidden(hidden: bool = True) -> Iterator[None]:
    """Inside the `with` block, or the decorated function, transformers shows no progress bar if `hidden`."""
    hidden = hidden and transformers_logging.is_progress_bar_enabled()
    if hidden:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            transformers_logging.enable_progress_bar()
