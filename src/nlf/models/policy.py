"""The policy and its frozen reference: loading and saving, the tokens that tags need, LoRA.

A policy is a Hugging Face causal language model. Its vocabulary has grown by the separator or, for Quark, by one token
per tag. The reference is the same model before training: a frozen copy or, with LoRA, the policy with its adapter off.
Departures from the published code: embeddings are only resized upwards, so that the padded vocabularies of Qwen and
Pythia keep their rows; `position_ids` are always passed, because GPT-2 and Llama otherwise number padded positions
too.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from nlf.data.files import EMBEDDED, write_text
from nlf.errors import UserError
from nlf.method.tags import FILE as TAGS_FILE
from nlf.method.tags import TagScheme
from nlf.models.adapter import add_adapter, check_own_adapter
from nlf.models.added_tokens import add_tokens, added_ids, check_reference, load_tags, same_vocabulary
from nlf.models.dropout import switch_off_dropout
from nlf.models.encoder import PromptEncoder
from nlf.models.fast_gelu import use_fast_gelu
from nlf.models.fit import fitted_tokenizer
from nlf.models.identity import STORED_DTYPE, ModelIdentity, identity_of, is_widened, revision_of
from nlf.models.loading import (
    check_language_model,
    load_config,
    load_tokenizer,
    load_weights,
    loading,
    progress_bar_hidden,
)
from nlf.models.names import MODEL_SOURCES
from nlf.models.quantized import check_trainable, merged, quantization
from nlf.models.reading import AdapterOff, adapter_off, vocabulary_size
from nlf.models.sources import model_path
from nlf.models.tokenizer_files import remember_files, save_tokenizer

UNKNOWN = ModelIdentity()


@dataclass
class Policy:
    """A model with its tokenizer, its tags and the tokens that they added.

    Attributes:
        reference_model: The frozen reference; None = `model` with its adapter off.
        added_token_ids: Ids of the separator and tag tokens that training added, and of tokens that the model had no row
            for.
        identity: Name, revision and digest of the weights; default: read from the model.
        chat_template_kwargs: The variables that a command gave to the chat template; None = those of the model's files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheme: TagScheme | None = None
    reference_model: PreTrainedModel | None = None
    added_token_ids: tuple[int, ...] = ()
    identity: ModelIdentity = UNKNOWN
    chat_template_kwargs: dict | None = None

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
    def end_token_id(self) -> int | None:
        """The id that ends a completion whose text is given: the tokenizer's EOS, which chat templates write after an answer;
        None = the model has none.
        """
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_token_ids else next(iter(self.eos_token_ids), None)

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled: tokens that tags added, and rows of the output layer that name no token. Ids beyond
        the model's vocabulary are left out, since a reference lacks the tokens that tags added.
        """
        rows = range(vocabulary_size(self.model))
        nameless = set(rows) - self._token_ids - set(self.eos_token_ids)
        return tuple(sorted({*(i for i in self.added_token_ids if i in rows), *nameless}))

    @functools.cached_property
    def _token_ids(self) -> set[int]:
        return set(self.tokenizer.get_vocab().values())

    def has_tokens_of(self, other: "Policy") -> bool:
        """Whether both models have the same tokens, apart from those that tags added."""
        return same_vocabulary(self.tokenizer, self.added_token_ids, other.tokenizer, other.added_token_ids)

    def encoder(self, max_prompt_length: int | None = None) -> PromptEncoder:
        """The encoder of prompts for this policy."""
        return PromptEncoder(self.tokenizer, self.scheme, max_prompt_length, added=self.added_token_ids)


# ---- loading ------------------------------------------------------------------------------------------------------


def load_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    revision: str = "main",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    bits: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder, a GGUF file or the hub, or by a name (`model_path`).

    Args:
        bits: Hold the linear layers in 4 or 8 bits; None = in `dtype`.

    Raises:
        UserError: no such folder, file or hub id, not a causal LM, files that are damaged or lack tensors, an unknown dtype; or
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
        stored = config.get_text_config().dtype  # from_pretrained overwrites it
        tokenizer = load_tokenizer(path, **source)
        options = {"config": config, "dtype": dtype, "attn_implementation": attn_implementation, **source}
        options |= quantization(bits, dtype)
        with progress_bar_hidden(name_or_path == EMBEDDED):  # the embedded model loads at once
            model = load_weights(AutoModelForCausalLM, path, **options)
    model.config.name_or_path = name_or_path  # 'embedded' instead of the installation's folder
    setattr(model, STORED_DTYPE, stored)
    tokenizer = fitted_tokenizer(model, tokenizer)
    remember_files(tokenizer, path, getattr(config, "_commit_hash", None))
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
    scheme, _ = load_tags(path, tokenizer)
    added = added_ids(path, tokenizer, vocabulary_size(model))
    return Policy(model.eval(), tokenizer, scheme, None, added, identity_of(model, digest=digest))


def best_device() -> torch.device:
    """The accelerator of this machine, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


# ---- preparing for training ---------------------------------------------------------------------------------------


def prepare_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scheme: TagScheme | None,
    *,
    tag_tokens: bool = False,
    peft_config=None,
    reference_model: PreTrainedModel | None = None,
    disable_dropout: bool = True,
    seed: int = 0,
) -> Policy:
    """Give the model the tokens of its tags, its adapter and its reference.

    Args:
        scheme: The tags; None = a plain model, which gets no tokens. The tags of conversations have no separator.
        tag_tokens: Represent each tag by one new token (Quark), not by words.
        reference_model: The frozen reference; None = a copy of `model`, or `model` with its adapter off.

    Raises:
        UserError: tokenizer, reference and model do not fit (`fitted_tokenizer`), or a quantized model gets no adapter.
    """
    check_trainable(model, adapted=peft_config is not None or hasattr(model, "peft_config"))
    identity, tokenizer = identity_of(model), fitted_tokenizer(model, tokenizer)
    if peft_config is None and hasattr(model, "peft_config"):
        check_own_adapter(model)
    elif reference_model is None and peft_config is None:
        reference_model = copy.deepcopy(model)
    separator = [scheme.separator] if scheme and scheme.separator else []
    added = add_tokens(model, tokenizer, separator, list(scheme.tags) if scheme and tag_tokens else [], seed)
    if reference_model is not None:
        check_reference(tokenizer, added, reference_model, identity.name)
    if peft_config is not None:
        model = add_adapter(model, peft_config, added, seed)
    for each in filter(None, (model, reference_model)):
        use_fast_gelu(each)
        if disable_dropout:
            switch_off_dropout(each)
    if reference_model is not None:
        reference_model.requires_grad_(False).eval()
    return Policy(model, tokenizer, scheme, reference_model, added, identity)


# ---- saving -------------------------------------------------------------------------------------------------------


@progress_bar_hidden()
def save_policy(policy: Policy, folder: str | Path, *, as_stored: bool = False) -> None:
    """Write the tagged model as a Hugging Face model folder with `tags.json`. LoRA is merged into the weights. A tokenizer
    that got no token is written as its files were.

    Args:
        as_stored: Write merged weights in the type of the base's files, if that is the smaller one.
    """
    folder = Path(folder)
    model = policy.model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = cast(Any, merged(model))
        if as_stored and is_widened(model, policy.identity):
            model.to(policy.identity.dtype)
    # transformers' own generate shall never sample added tokens either; it must be able to sample EOS
    generation = cast(Any, model.generation_config)  # suppress_tokens is set at run time
    suppressed = {*(getattr(generation, "suppress_tokens", None) or ()), *policy.added_token_ids} - {
        *policy.eos_token_ids
    }
    generation.suppress_tokens = sorted(suppressed) or None
    model.save_pretrained(folder)
    save_tokenizer(policy.tokenizer, folder)
    save_scheme(policy, folder)


def save_scheme(policy: Policy, folder: str | Path) -> None:
    """Write `tags.json`, the policy's tags and added tokens, into a model's folder, whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    if policy.scheme is not None:
        tokens = {i: token for token, i in policy.tokenizer.get_vocab().items()}
        added = [tokens[i] for i in policy.added_token_ids if i in tokens]
        write_text(Path(folder) / TAGS_FILE, policy.scheme.to_json(added))
