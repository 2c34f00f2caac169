"""Make an ordinary model folder of a GGUF file: safetensors in bf16, tokenizer and configuration.

transformers reads the file and undoes its quantization; nothing of GGUF is left in the folder, so every command treats it
like any other model, and it can be trained.
"""

import contextlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlf.data.files import write_folder
from nlf.data.locks import in_turn
from nlf.errors import UserError, line_of
from nlf.models.loading import check_language_model, load_config, load_tokenizer, load_weights, loading
from nlf.models.names import MODEL_SOURCES, converted_folder, file_digest, is_model

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"
ROOM = 64e6  # bytes for tokenizer and configuration, beside the weights


def converted(path: Path) -> Path:
    """The folder of the model in a GGUF file, which is converted unless the cache has it.

    Raises:
        UserError: the package gguf is missing; the file is not GGUF, is damaged, or holds a model that transformers cannot
            read; or there is not enough space.
    """
    folder = converted_folder(file_digest(path))
    if not is_model(folder):
        shapes = shapes_in(path)
        with in_turn(folder, f"{path} is being converted by another command; waiting for it"):
            if not is_model(folder):
                _convert(path, folder, shapes)
    return folder


def _convert(path: Path, folder: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Write the model of a GGUF file into a folder, whole or not at all."""
    _check_space(folder, 2 * sum(map(math.prod, shapes)) + ROOM)
    logger.info("converting %s once into %s: a minute, or a few if it has many tokens", path, folder)
    model, tokenizer = _read(path)
    write_folder(folder, lambda temporary: _save(model, tokenizer, temporary))


def shapes_in(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the tensors in a GGUF file.

    Raises:
        UserError: the package gguf is missing, or the file is not GGUF or is damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is not a GGUF file; expected {MODEL_SOURCES}")
    require_gguf(path)
    from gguf import GGUFReader

    try:
        return [tuple(map(int, reversed(tensor.shape))) for tensor in GGUFReader(path).tensors]
    except Exception as error:  # the reader fails where its arrays end
        raise UserError(f"{path}: a damaged or cut-off GGUF file ({line_of(error, 100)}); get it again") from error


def require_gguf(what: str | Path) -> None:
    """Check that GGUF files can be read and written.

    Raises:
        UserError: the package gguf is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(f"{what}: GGUF files need the package gguf: `pip install gguf`") from error


def _check_space(folder: Path, needed: float) -> None:
    """Refuse to start a conversion whose result the disk has no room for.

    Raises:
        UserError: there is not enough space.
    """
    there = next(each for each in folder.absolute().parents if each.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(
            f"cannot write {folder}: {needed / 1e9:.2f} GB are needed, and {free / 1e9:.2f} GB are free; free some space, "
            "or set NLF_CACHE to another folder"
        )


def _read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in bf16, not quantized, and its tokenizer."""
    expected = "a GGUF file of a causal language model that transformers can read"
    with loading(f"cannot convert {path}", expected), _alone(path) as (folder, file):
        config = load_config(folder, gguf_file=file)
        check_language_model(config)
        if config.model_type == "gpt2":  # transformers reads two of its settings into fields that GPT-2 has not
            config.n_positions = getattr(config, "n_ctx", config.n_positions)
            config.n_inner = getattr(config, "feed_forward_length", None)
        plain = GgufConfig(dequantize=True)
        options = {"gguf_file": file, "config": config, "dtype": torch.bfloat16, "quantization_config": plain}
        model = load_weights(AutoModelForCausalLM, folder, **options)
        return model, load_tokenizer(folder, gguf_file=file)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[str, str]]:
    """A folder that holds nothing but a link to the file, and the link.

    Beside the file, transformers would take a tokenizer_config.json of another model, and it would prefer a file of the same
    name in the working folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "model.gguf")
        os.symlink(path.absolute(), link)
        yield folder, str(link)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model as if it had never been quantized."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
