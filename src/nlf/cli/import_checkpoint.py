"""`nlf import`: turn a checkpoint of the published code (ALT, Quark) into a Hugging Face folder with `tags.json`.

The published `.pth` is a dict of `policy_model` (the state dict of a GPT-2), `optimizer` and `scheduler`, written by
`torch.save`. Its embedding has more rows than its base model:

- ALT adds one row, the separator, after the vocabulary. Its tags are words: `{feedback}<|separator|>{prompt}`.
- Quark adds one row for each quantile token, ` _TREE_TOKEN_00000` (the best), `…00001` and so on; the token stands
  directly before the prompt. It also adds ` _TREE_TOKEN_ZERO_COMMENTS`, which it never uses. This last row stays, so that
  no logit changes, but it gets no token, so it is never read or sampled.

A `.pth` is a pickle, and a pickle can run code. `weights_only=True` loads tensors and plain values, and refuses
everything else before it runs; the published code loads without this option. The weights are mapped from the disk,
checked against the base model's configuration by name and shape, and written as safetensors. The base model's
configuration and tokenizer are needed; its weights are not.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nlf.config import ImportOptions
from nlf.data.files import refuse_others, write_folder
from nlf.data.locks import locked_folder
from nlf.data.run_folder import CONFIG, MODEL_FILES
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, FEEDBACK, PROMPT, SEPARATOR, TagScheme
from nlf.models.fit import give_padding
from nlf.models.loading import load_config, load_tokenizer, loading
from nlf.models.policy import Policy, save_policy
from nlf.models.sources import model_path

WEIGHTS = "policy_model"
BUFFERS = re.compile(r"(^|\.)(attn|crossattention)\.(bias|masked_bias)$")  # causal masks that old transformers stored
ZIP = b"PK\x03\x04"  # the start of a zip file
REFUSED = re.compile(r"(?:GLOBAL|class|function) (\S+)")  # what torch names when it refuses a pickle
MOST_TOKENS = 101  # of Quark, whose default is 5 quantiles and the unused row; more rows are another vocabulary
EXPECTED = "expected a .pth that ALT or Quark saved, a dict with policy_model in it"


def import_command(options: ImportOptions) -> str:
    """Run `nlf import`: write the folder, and return a description of it.

    Raises:
        UserError: the checkpoint is unreadable, unsafe, of another form or of another base model; or the folder holds
            files of a model or a run, is being written by another command, or cannot be written.
    """
    folder, path = Path(options.output_dir), Path(options.checkpoint)
    with locked_folder(folder):
        refuse_others(folder, (*MODEL_FILES, CONFIG))
        content = read_checkpoint(path)
        policy = make_policy(content[WEIGHTS], options.base_model, options.model_revision, options.tags, str(path))
        write_folder(folder, lambda temporary: save_policy(policy, temporary))
    ignored = ", ".join(sorted(map(str, content.keys() - {WEIGHTS})))
    return _summary(folder, options.base_model, policy, ignored)


# ---- reading ------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict:
    """Read a `.pth`: the state dict `policy_model` and other values. No code in the file runs.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or a pickle of more than tensors and plain values.
    """
    try:
        zipped = _check_zip(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        named = REFUSED.search(str(error))
        what = f" ({named[1]})" if named else ", or is damaged"
        raise UserError(
            f"{path}: refused: the pickle holds more than tensors and plain values{what}; nothing in it was run; {EXPECTED}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {EXPECTED}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: damaged, or not a checkpoint; {EXPECTED}") from error
    weights = content.get(WEIGHTS) if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not weights:
        kind = f"a dict of {_few(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path}: no state dict under {WEIGHTS!r}; the file holds {kind}; {EXPECTED}")
    return content


def _check_zip(path: Path) -> bool:
    """Whether a checkpoint is a zip file, as torch has written them since 1.6. torch does not check the checksums.

    Raises:
        UserError: the zip file is cut off, or a checksum is wrong.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        try:
            with zipfile.ZipFile(path) as members:
                damaged = members.testzip()
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"{path}: damaged: the file is cut off, or no zip file; copy it again; {EXPECTED}"
            ) from error
        if damaged:
            raise UserError(
                f"{path}: damaged: the checksum of {damaged} in it is wrong; copy the file again; {EXPECTED}"
            )
    return zipped


def _few(names: Iterable) -> str:
    """The first six names, quoted."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "") or "nothing"


# ---- making the model ---------------------------------------------------------------------------------------------


def make_policy(
    weights: Mapping[str, Tensor], base: str, revision: str = "main", tags: list[str] | None = None, where: str = ""
) -> Policy:
    """Make a policy from a published state dict.

    Args:
        weights: Tensors by name. Old names are accepted: with `module.`, without `transformer.`, and with the masks that
            old transformers stored.
        base: The base model, a folder or a hub id; its configuration and tokenizer are read.
        revision: Hub revision of the base model.
        tags: Tags, best first; None = the five published tags, or Quark's tokens.
        where: The file, for errors.

    Raises:
        UserError: the base cannot be loaded, or the weights do not fit it.
    """
    config, tokenizer = _load_base(base, revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = _renamed(weights, model, where)
    table = _name_of(model, model.get_input_embeddings())
    if table not in weights:
        raise UserError(f"{where}: no tensor {table!r}; the file has {_few(weights)}; {EXPECTED}")
    extra = weights[table].shape[0] - len(tokenizer)
    scheme, names = _scheme(extra, tags, f"{where}: {table} has {weights[table].shape[0]} rows", len(tokenizer))
    model.resize_token_embeddings(len(tokenizer) + extra, mean_resizing=False)
    added = tuple(range(len(tokenizer), len(tokenizer) + extra))  # in the order in which they were added
    tokenizer.add_tokens(names, special_tokens=True)
    _fill(model, weights, where, base)
    return Policy(model.eval(), tokenizer, scheme, None, added)


def _load_base(base: str, revision: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Load the configuration and the tokenizer of the base model."""
    path = model_path(base)
    shared: dict[str, Any] = {"trust_remote_code": False} | ({} if Path(path).is_dir() else {"revision": revision})
    with loading(f"--base_model {base}: cannot be loaded", "a hub id or a folder with config.json and tokenizer"):
        config, tokenizer = load_config(path, **shared), load_tokenizer(path, **shared)
    give_padding(tokenizer, base)
    return config, tokenizer


def _renamed(weights: Mapping[str, Tensor], model: PreTrainedModel, where: str) -> dict[str, Tensor]:
    """Rename the tensors of a state dict to the names in today's model."""
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise UserError(f"{where}: {name!r} is {type(tensor).__name__}, expected a dense tensor; {EXPECTED}")
    if all(name.startswith("module.") for name in weights):  # saved from nn.DataParallel
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    known, prefix = set(model.state_dict()), f"{model.base_model_prefix}."
    if not any(name.startswith(prefix) for name in weights):  # saved without the head
        weights = {name if name in known else prefix + name: tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if name in known or not BUFFERS.search(name)}


def _name_of(model: PreTrainedModel, module: torch.nn.Module) -> str:
    """The name of a layer's weight in the state dict."""
    return next(f"{name}.weight" for name, other in model.named_modules() if other is module)


def _scheme(extra: int, tags: list[str] | None, where: str, vocabulary: int) -> tuple[TagScheme, list[str]]:
    """The tag scheme of a checkpoint with `extra` added rows, and the tokens of these rows."""
    if extra == 1:
        return TagScheme(tuple(tags or DEFAULT_TAGS), conversational=False), [SEPARATOR]
    if not 3 <= extra <= MOST_TOKENS:
        raise UserError(
            f"{where} and the base model's vocabulary {vocabulary}: expected 1 more (ALT's separator), or 3 to "
            f"{MOST_TOKENS} (Quark's quantile tokens and its unused one); is --base_model the model it was trained from?"
        )
    tokens = tags or [f" _TREE_TOKEN_{i:05}" for i in range(extra - 1)]
    if not extra - 1 <= len(tokens) <= extra:
        raise UserError(
            f"{where}, {extra} of them Quark's tokens: {len(tokens)} --tags; expected {extra - 1}, or {extra} if the "
            "last row belongs to a quantile too"
        )
    return TagScheme(tuple(tokens), FEEDBACK + PROMPT, None, conversational=False), tokens


def _fill(model: PreTrainedModel, weights: dict[str, Tensor], where: str, base: str) -> None:
    """Load the weights into a model on the meta device; the head is tied to the embedding if the two are equal."""
    head, table = (_name_of(model, m) for m in (model.get_output_embeddings(), model.get_input_embeddings()))
    tied = head not in weights or torch.equal(weights[head], weights[table])
    model.config.tie_word_embeddings = tied
    weights = weights | {head: weights[table]} if tied else weights
    _check(model, weights, where, base)
    model.load_state_dict(weights, assign=True)
    if tied:
        model.tie_weights()


def _check(model: PreTrainedModel, weights: dict[str, Tensor], where: str, base: str) -> None:
    """Raise UserError if names, shapes or values do not fit the model."""
    wanted = model.state_dict()
    for what, names in (("no tensor", wanted.keys() - weights), ("an unknown tensor", weights.keys() - wanted)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{where}: {what} {min(names)!r}{more} for {base}; is --base_model the model it was trained from?"
            )
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{where}: {name!r} has shape {tuple(tensor.shape)}, in {base} it is {tuple(wanted[name].shape)}; "
                "is --base_model the model it was trained from?"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(
                f"{where}: {name!r} ({tensor.dtype}) holds values that are not finite floats; is the file damaged?"
            )


def _summary(folder: Path, base: str, policy: Policy, ignored: str) -> str:
    """Describe the folder, and name the commands that use it."""
    assert policy.scheme is not None  # make_policy gives every policy a scheme
    tags, separator = policy.scheme.tags, policy.scheme.separator
    form = "Quark's tokens" if separator is None else f"the separator {separator}"
    lines = [
        f"{folder}: {base} with {form} and {len(tags)} tags, {tags[0]!r} (best) to {tags[-1]!r} (worst)",
        f"left out: {ignored}" if ignored else "",
        "" if policy.model.config.tie_word_embeddings else "the head is not tied to the embedding",
        f"next: nlf sample --model {quote(str(folder))} --output_dir {quote(str(folder / 'samples'))}",
        f"  or: nlf evaluate --model {quote(str(folder))} --base_model {quote(base)}",
    ]
    return "\n".join(filter(None, lines))
