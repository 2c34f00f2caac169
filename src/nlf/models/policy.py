"""The policy and its frozen reference: loading and saving, the tokens that tags need, LoRA.

A policy is a Hugging Face causal language model. Its vocabulary has grown by the separator or, for Quark, by one token
per tag. The reference is the same model before training: a frozen copy or, with LoRA, the policy with its adapter off.
Departures from the published code: embeddings are only resized upwards, so that the padded vocabularies of Qwen and
Pythia keep their rows; `position_ids` are always passed, because GPT-2 and Llama otherwise number padded positions
too.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from nlf.data.files import EMBEDDED, model_path, write_text
from nlf.errors import UserError
from nlf.method.tags import FILE as TAGS_FILE
from nlf.method.tags import TagScheme
from nlf.models.adapter import add_adapter, check_own_adapter
from nlf.models.dropout import switch_off_dropout
from nlf.models.fast_gelu import use_fast_gelu
from nlf.models.fit import check_rows, fitted_tokenizer
from nlf.models.identity import ModelIdentity, identity_of, revision_of
from nlf.models.loading import (
    MODEL_SOURCES,
    check_language_model,
    load_config,
    load_tokenizer,
    load_weights,
    loading,
    progress_bar_hidden,
)
from nlf.models.reading import AdapterOff, adapter_off, vocabulary_size

UNKNOWN = ModelIdentity()


@dataclass
class Policy:
    """A model with its tokenizer, its tags and the tokens that they added.

    Attributes:
        reference_model: The frozen reference; None = `model` with its adapter off.
        added_token_ids: Ids of the separator and of tag tokens that are in the vocabulary.
        identity: Name, revision and digest of the weights; default: read from the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheme: TagScheme | None = None
    reference_model: PreTrainedModel | None = None
    added_token_ids: tuple[int, ...] = ()
    identity: ModelIdentity = UNKNOWN

    def __post_init__(self) -> None:
        if self.identity == UNKNOWN:
            self.identity = identity_of(self.model)

    @contextlib.contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """Inside the `with` block, the frozen reference as a model; gradients are off."""
        if self.reference_model is not None:
            with torch.no_grad():
                yield self.reference_model
        else:
            with torch.no_grad(), adapter_off(self.model):
                yield self.model

    def reference_module(self) -> nn.Module:
        """The frozen reference as one object, for code that takes a model and needs no gradients."""
        if self.reference_model is not None:
            return self.reference_model
        return cast(nn.Module, AdapterOff(self.model))  # it forwards every attribute of a module

    @property
    def revision(self) -> str:
        """The commit of a hub model, else the digest of the weights."""
        return self.identity.revision or self.identity.digest or revision_of(self.model)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion, from the tokenizer and the generation config. Ids that the model has no row for
        are left out.
        """
        found = getattr(self.model.generation_config, "eos_token_id", None)
        ids = list(found) if isinstance(found, (list, tuple)) else [found]
        rows = vocabulary_size(self.model)
        return tuple(sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None and 0 <= i < rows}))

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled: tokens that tags added, and padding rows of the output layer. Ids beyond the
        model's vocabulary are left out, since a reference lacks the tokens that tags added.
        """
        rows = vocabulary_size(self.model)
        return tuple(sorted({*(i for i in self.added_token_ids if i < rows), *range(len(self.tokenizer), rows)}))


# ---- loading ------------------------------------------------------------------------------------------------------


def load_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    revision: str = "main",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder or the hub.

    Raises:
        UserError: no such folder or hub id, not a causal LM, files that are damaged or lack tensors, an unknown dtype; or
            the tokenizer does not fit the model (`fitted_tokenizer`).
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
    path = model_path(name_or_path)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if Path(path).is_dir():
        source.pop("revision")
    with loading(f"cannot load a causal language model from {name_or_path!r}", MODEL_SOURCES):
        config = load_config(path, **source)
        check_language_model(config)
        tokenizer = load_tokenizer(path, **source)
        options = {"config": config, "dtype": dtype, "attn_implementation": attn_implementation, **source}
        with progress_bar_hidden(name_or_path == EMBEDDED):  # the embedded model loads at once
            model = load_weights(AutoModelForCausalLM, path, **options)
    model.config.name_or_path = name_or_path  # 'embedded' instead of the installation's folder
    tokenizer = fitted_tokenizer(model, tokenizer)
    use_fast_gelu(model)
    return model, tokenizer


def load_policy(
    path: str, *, dtype: str = "float32", revision: str = "main", trust_remote_code: bool = False, digest: bool = True
) -> Policy:
    """Load the model of a run, or any causal LM. Tags and added tokens come from its `tags.json`, if it has one.

    Args:
        digest: Compute the digest of the weights now; False for a model that will be trained.
    """
    model, tokenizer = load_model(path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    scheme = TagScheme.load(path) if (Path(path) / TAGS_FILE).is_file() else None
    names = [] if scheme is None else [scheme.separator, *scheme.tags]
    vocabulary = tokenizer.get_vocab()
    added = tuple(vocabulary[name] for name in names if name and name in vocabulary)
    return Policy(model.eval(), tokenizer, scheme, None, added, identity_of(model, digest=digest))


def best_device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


# ---- preparing for training ---------------------------------------------------------------------------------------


def prepare_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scheme: TagScheme,
    *,
    tag_tokens: bool = False,
    peft_config=None,
    reference_model: PreTrainedModel | None = None,
    disable_dropout: bool = True,
    seed: int = 0,
) -> Policy:
    """Give the model the tokens of its tags, its adapter and its reference.

    Args:
        scheme: The tags. If prompts are conversations, it has no separator: feedback goes into the system message.
        tag_tokens: Represent each tag by one new token (Quark), not by words.
        reference_model: The frozen reference; None = a copy of `model`, or `model` with its adapter off.
    """
    identity = identity_of(model)
    if peft_config is None and hasattr(model, "peft_config"):
        check_own_adapter(model)
    elif reference_model is None and peft_config is None:
        reference_model = copy.deepcopy(model)
    if reference_model is not None:
        check_rows(reference_model, tokenizer, "the policy, which the reference must know,")
    known = vocabulary_size(model)
    separator = [scheme.separator] if scheme.separator else []
    added = _add_tokens(model, tokenizer, separator, list(scheme.tags) if tag_tokens else [], seed)
    added = tuple(sorted({*added, *range(known, len(tokenizer))}))  # the reference has no row for them
    if peft_config is not None:
        model = add_adapter(model, peft_config, added, seed)
    for each in filter(None, (model, reference_model)):
        use_fast_gelu(each)
        if disable_dropout:
            switch_off_dropout(each)
    if reference_model is not None:
        reference_model.requires_grad_(False).eval()
    return Policy(model, tokenizer, scheme, reference_model, added, identity)


def _add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, separators: list[str], tags: list[str], seed: int
) -> tuple[int, ...]:
    """Add the tokens that the vocabulary lacks; returns the ids of all of them. The separator starts as a copy of EOS, tag
    tokens as small random rows.
    """
    new = [token for token in separators + tags if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    if len(tokenizer) > vocabulary_size(model):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    scale = model.config.get_text_config().initializer_range if tags else 0.0
    generator = torch.Generator().manual_seed(seed)
    tables = [t for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None]
    with torch.no_grad():  # nn.Module types an attribute as Tensor or Module
        for weight in {id(table): cast(torch.Tensor, table.weight) for table in tables}.values():
            for token in new:
                row = weight[tokenizer.eos_token_id]
                if token in tags:
                    row = torch.randn(row.shape, generator=generator).to(row) * scale
                weight[tokenizer.convert_tokens_to_ids(token)] = row
    # one token has one id; the method also takes a list
    return tuple(int(cast(int, tokenizer.convert_tokens_to_ids(token))) for token in separators + tags)


# ---- saving -------------------------------------------------------------------------------------------------------


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write the tagged model as a Hugging Face model folder with `tags.json`. LoRA is merged into the weights."""
    folder = Path(folder)
    model = policy.model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = copy.deepcopy(cast(Any, model)).merge_and_unload()  # a method of peft
    if policy.added_token_ids:  # transformers' own generate shall never sample them either
        cast(Any, model.generation_config).suppress_tokens = list(policy.added_token_ids)  # set at run time
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.scheme is not None:
        save_scheme(policy.scheme, folder)


def save_scheme(scheme: TagScheme, folder: str | Path) -> None:
    """Write `tags.json` into a model's folder, whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    write_text(Path(folder) / TAGS_FILE, scheme.to_json())
