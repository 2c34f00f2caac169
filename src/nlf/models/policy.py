"""The policy and its frozen reference: loading, the tokens that tags need, LoRA, and logits of completions.

A policy is an ordinary Hugging Face causal language model whose vocabulary has grown by the separator (and, for Quark,
one token per tag). Its reference is the same model before training: a frozen copy, or with LoRA the policy itself with
the adapter switched off. Departures from the published code: embeddings are only ever resized upwards (padded
vocabularies of Qwen or Pythia keep their rows), and `position_ids` are always passed, because GPT-2 and Llama ignore
the attention mask when they number positions themselves.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nlf.config import ModelOptions
from nlf.data.files import ASSETS
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.fast_gelu import use_fast_gelu

EMBEDDED = "embedded"


@dataclass
class Policy:
    """A model with its tokenizer, its tags, and what they added to the vocabulary.

    `reference_model` is None where the model itself with its adapter off is the reference.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheme: TagScheme | None = None
    reference_model: PreTrainedModel | None = None
    added_token_ids: tuple[int, ...] = field(default=())

    @contextlib.contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The frozen start, as a model to call without gradients."""
        if self.reference_model is not None:
            with torch.no_grad():
                yield self.reference_model
        else:
            with torch.no_grad(), self.model.disable_adapter():
                yield self.model

    def reference_module(self) -> nn.Module:
        """The frozen start, for code that takes a model and needs no gradients."""
        return self.reference_model if self.reference_model is not None else _AdapterOff(self.model)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion, from the tokenizer and the generation config."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = list(ids) if isinstance(ids, (list, tuple)) else [ids]
        return tuple(sorted({i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}))

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled: what tags added, and rows of the head that name no token. Only those that the model
        has: a reference does not know the tokens of tags.
        """
        rows = self.model.get_input_embeddings().weight.shape[0]
        return tuple(sorted({*(i for i in self.added_token_ids if i < rows), *range(len(self.tokenizer), rows)}))


class _AdapterOff:
    """A peft model that answers without its adapter, whatever is asked of it in between."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def __call__(self, *args, **kwargs):
        with torch.no_grad(), self._model.disable_adapter():
            return self._model(*args, **kwargs)


def model_path(name_or_path: str) -> str:
    """`embedded` means the model shipped with the package; everything else is a folder or a hub id."""
    return str(ASSETS / "lm") if name_or_path == EMBEDDED else name_or_path


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
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    if Path(path).is_dir():
        shared.pop("revision")
    quiet = transformers_logging.is_progress_bar_enabled() and name_or_path == EMBEDDED  # it takes no time to load
    try:
        if quiet:
            transformers_logging.disable_progress_bar()
        config = AutoConfig.from_pretrained(path, **shared)
        tokenizer = AutoTokenizer.from_pretrained(path, **shared)
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attn_implementation, **shared
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load a causal language model from {name_or_path!r}: {reason} "
            "(expected a folder with config.json, weights and tokenizer, a hub id, or 'embedded')"
        ) from error
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()
    model.config._name_or_path = name_or_path  # 'embedded' rather than where it is installed
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name_or_path!r} has no EOS token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked everywhere, so its identity does not matter
    use_fast_gelu(model)
    return model, tokenizer


def prepare_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scheme: TagScheme,
    *,
    conversational: bool = False,
    tag_tokens: bool = False,
    peft_config=None,
    reference_model: PreTrainedModel | None = None,
    disable_dropout: bool = True,
    seed: int = 0,
) -> Policy:
    """Give the model the tokens of its tags, its adapter and its reference.

    Args:
        conversational: Feedback goes into the system message; no separator is added.
        tag_tokens: Each tag becomes one new token (Quark) instead of words.
        reference_model: The frozen start; default: a copy of `model`, or `model` with its adapter off.
    """
    if reference_model is None and peft_config is None and not hasattr(model, "peft_config"):
        reference_model = copy.deepcopy(model)
    separator = [] if conversational or not scheme.separator else [scheme.separator]
    added = _add_tokens(model, tokenizer, separator, list(scheme.tags) if tag_tokens else [], seed)
    if peft_config is not None:
        model = add_adapter(model, peft_config, added, seed)
    for each in filter(None, (model, reference_model)):
        use_fast_gelu(each)
        if disable_dropout:
            switch_off_dropout(each)
    if reference_model is not None:
        reference_model.requires_grad_(False).eval()
    return Policy(model, tokenizer, scheme, reference_model, added)


def _add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, separators: list[str], tags: list[str], seed: int
) -> tuple[int, ...]:
    """Add the tokens that are missing; the separator starts as a copy of EOS, tag tokens as small random rows."""
    new = [token for token in separators + tags if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    embeddings = model.get_input_embeddings()
    if len(tokenizer) > embeddings.weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in {
            id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None
        }.values():
            for token in new:
                row = table.weight[tokenizer.eos_token_id]
                if token in tags:
                    row = (
                        torch.randn(row.shape, generator=generator).to(row)
                        * model.config.get_text_config().initializer_range
                    )
                table.weight[tokenizer.convert_tokens_to_ids(token)] = row
    return tuple(tokenizer.convert_tokens_to_ids(token) for token in separators + tags)


def add_adapter(model: PreTrainedModel, peft_config, added: tuple[int, ...], seed: int) -> nn.Module:
    """LoRA; the rows of added tokens train too. The adapter's start is a function of the seed."""
    from peft import get_peft_model

    if added and getattr(peft_config, "trainable_token_indices", 0) is None:
        peft_config.trainable_token_indices = list(added)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, peft_config)


def switch_off_dropout(model: nn.Module) -> None:
    """As published: the policy is compared with a reference that has none."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, 0.0)
    for module in model.modules():  # attention keeps its own copy of the rate
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def load_policy(
    path: str, *, dtype: str = "float32", revision: str = "main", trust_remote_code: bool = False
) -> Policy:
    """Load what a run left behind, or any causal LM: tags and added tokens come from its `tags.json`, if it has
    one.
    """
    model, tokenizer = load_model(path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    scheme = TagScheme.load(path) if (Path(path) / "tags.json").is_file() else None
    names = [] if scheme is None else [scheme.separator, *scheme.tags]
    vocabulary = tokenizer.get_vocab()
    added = tuple(vocabulary[name] for name in names if name and name in vocabulary)
    return Policy(model.eval(), tokenizer, scheme, None, added)


def best_device() -> torch.device:
    """The accelerator of this machine, else its processor."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write the tagged model as an ordinary Hugging Face folder with `tags.json`; LoRA is merged into the weights."""
    folder = Path(folder)
    model = policy.model
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = copy.deepcopy(model).merge_and_unload()
    if policy.added_token_ids:  # plain transformers never samples them either
        model.generation_config.suppress_tokens = list(policy.added_token_ids)
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.scheme is not None:
        policy.scheme.save(folder)


def lora_config(options: ModelOptions):
    """The peft configuration of the `lora_*` options; by default every linear layer is adapted."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        target_modules=options.lora_target_modules or "all-linear",
    )
