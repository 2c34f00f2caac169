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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nlf.config import ModelOptions
from nlf.data.files import EMBEDDED, model_path, write_text
from nlf.errors import UserError
from nlf.method.tags import FILE as TAGS_FILE
from nlf.method.tags import TagScheme
from nlf.models.added_tokens import add_tokens, added_ids, check_reference, load_tags, same_vocabulary
from nlf.models.encoder import PromptEncoder
from nlf.models.fast_gelu import use_fast_gelu
from nlf.models.identity import ModelIdentity, identity_of, revision_of
from nlf.models.reading import AdapterOff, adapter_off, vocabulary_size

UNKNOWN = ModelIdentity()


@dataclass
class Policy:
    """A model with its tokenizer, its tags and the tokens that they added.

    Attributes:
        reference_model: The frozen reference; None = `model` with its adapter off.
        added_token_ids: Ids of the separator and tag tokens that training added, and of tokens that the model had no row
            for.
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
        """Every id that ends a completion, from the tokenizer and the generation config."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        ids = list(found) if isinstance(found, (list, tuple)) else [found]
        return tuple(sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}))

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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer from a folder or the hub.

    Raises:
        UserError: no such folder or hub id, not a causal LM, an unknown dtype, or no EOS token.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
    path = model_path(name_or_path)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if Path(path).is_dir():
        source.pop("revision")
    try:
        with hidden_bars(name_or_path == EMBEDDED):  # the embedded model loads at once
            model, tokenizer = _from_pretrained(path, source, dtype, attn_implementation)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load a causal language model from {name_or_path!r}: {reason} "
            "(expected a folder with config.json, weights and tokenizer, a hub id, or 'embedded')"
        ) from error
    model.config.name_or_path = name_or_path  # 'embedded' instead of the installation's folder
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name_or_path!r} has no EOS token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # every mask excludes padding, so any token will do
    use_fast_gelu(model)
    return model, tokenizer


def _from_pretrained(
    path: str, source: dict[str, Any], dtype: str, attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = AutoConfig.from_pretrained(path, **source)
    tokenizer = AutoTokenizer.from_pretrained(path, **source)
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=attn_implementation, **source
    )
    return model, tokenizer


@contextlib.contextmanager
def hidden_bars(hidden: bool = True) -> Iterator[None]:
    """Inside the `with` block, or the decorated function, transformers shows no progress bar if `hidden`."""
    hidden = hidden and transformers_logging.is_progress_bar_enabled()
    if hidden:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            transformers_logging.enable_progress_bar()


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

    Raises:
        UserError: the reference has other tokens, or the tokenizer has no room for new ones.
    """
    identity = identity_of(model)
    if reference_model is None and peft_config is None and not hasattr(model, "peft_config"):
        reference_model = copy.deepcopy(model)
    separator = [scheme.separator] if scheme.separator else []
    added = add_tokens(model, tokenizer, separator, list(scheme.tags) if tag_tokens else [], seed)
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


def add_adapter(model: PreTrainedModel, peft_config, added: tuple[int, ...], seed: int) -> PreTrainedModel:
    """The model with LoRA; the rows of added tokens train too. The seed determines the adapter's start."""
    from peft import get_peft_model

    if added and getattr(peft_config, "trainable_token_indices", 0) is None:
        peft_config.trainable_token_indices = list(added)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cast(PreTrainedModel, get_peft_model(model, peft_config))  # it forwards every attribute


def lora_config(options: ModelOptions):
    """The peft configuration of the `lora_*` options; by default every linear layer is adapted."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        target_modules=options.lora_target_modules or "all-linear",
    )


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0: the published code trains without dropout too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # attention keeps its own copy of the rate
            cast(Any, module).attention_dropout = 0.0  # nn.Module types no float attribute
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, 0.0)


# ---- saving -------------------------------------------------------------------------------------------------------


@hidden_bars()
def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write the tagged model as a Hugging Face model folder with `tags.json`. LoRA is merged into the weights."""
    folder = Path(folder)
    model = policy.model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = copy.deepcopy(cast(Any, model)).merge_and_unload()  # a method of peft
    # transformers' own generate shall never sample added tokens either; it must be able to sample EOS
    generation = cast(Any, model.generation_config)  # suppress_tokens is set at run time
    suppressed = {*(getattr(generation, "suppress_tokens", None) or ()), *policy.added_token_ids} - {
        *policy.eos_token_ids
    }
    generation.suppress_tokens = sorted(suppressed) or None
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
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
