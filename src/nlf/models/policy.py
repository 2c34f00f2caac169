"""The policy and its frozen reference: loading, the tokens that tags need, LoRA, and logits of completions.

A policy is an ordinary Hugging Face causal language model whose vocabulary has grown by the separator (and, for Quark,
one token per tag). Its reference is the same model before training: a frozen copy, or with LoRA the policy itself with
the adapter switched off. Departures from the published code: embeddings are only ever resized upwards (padded
vocabularies of Qwen or Pythia keep their rows), and `position_ids` are always passed, because GPT-2 and Llama ignore
the attention mask when they number positions themselves.
"""

import contextlib
import copy
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import is_compiled_module
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nlf.config import ModelOptions
from nlf.data.files import ASSETS
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.fast_gelu import use_fast_gelu
from nlf.models.sharding import whole_parameters

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


def predicting(
    model: nn.Module, inputs: dict[str, torch.Tensor], bare: bool, last: nn.Module | None = None
) -> torch.Tensor:
    """`predicting_hidden` of a model with a `bare_head`, of others `predicting_logits`: `(N, D or V)`."""
    return predicting_hidden(model, inputs, last) if bare else predicting_logits(model, inputs)


def predicting_logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Next-token logits where `batches.read_whole` says that a completion's token is next: `(N, V)`, row by row."""
    predicts = inputs["predicts"]  # (B, L)
    columns = predicts.any(0).nonzero()[:, 0]  # (C,)
    asked = _asked(inputs)
    if "logits_to_keep" in forward_parameters(model):  # of those columns alone where the model can
        logits = model(**asked, logits_to_keep=columns).logits  # (B, C, V)
    else:
        logits = model(**asked).logits[:, columns]
    return logits[predicts[:, columns]]


def predicting_hidden(
    model: nn.Module, inputs: dict[str, torch.Tensor], last: nn.Module | None = None
) -> torch.Tensor:
    """What the output layer of a model with a `bare_head` makes those logits of: `(N, D)`.

    Args:
        last: The model's `last_feed_forward`, which is then asked for those N positions alone; not of a compiled model.
    """
    last = None if is_compiled_module(model) else last
    none = inputs["input_ids"].new_empty(0)  # logits of no position
    with _only_at(last, inputs["predicts"]):
        out = model(**_asked(inputs), logits_to_keep=none, output_hidden_states=True)
    return out.hidden_states[-1][inputs["predicts"]]


def _asked(inputs: dict[str, torch.Tensor]) -> dict:
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")} | {"use_cache": False}


def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """The feed-forward part of the last layer, where what it makes of a token reaches no other token, as a trial shows: at a
    prompt's tokens nobody then asks for it. It is two thirds of a layer.

    None also where activations are made again for the gradient, when nobody says any more which tokens are asked for.
    """
    found = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not found or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return None
    ids = torch.arange(1, 9, device=next(model.parameters()).device).view(2, 4)
    position = torch.arange(4).to(ids).expand(2, 4)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": position,
        "predicts": ids % 3 == 0,
    }
    with torch.no_grad():
        expected = predicting_hidden(model, inputs)
        try:
            got = predicting_hidden(model, inputs, found[-1])
        except Exception:  # it is no function of one tensor, token by token
            return None
    return found[-1] if equal_but_for_rounding(got, expected) else None


def equal_but_for_rounding(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether what a model says differs by no more than the order of sums makes it, in the precision of its products."""
    kind = got.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else got.dtype
    return bool((got - expected).abs().max() <= torch.finfo(dtype).eps ** 0.5 * expected.abs().max())


@contextlib.contextmanager
def _only_at(module: nn.Module | None, positions: torch.Tensor) -> Iterator[None]:
    """Within, a module of one tensor (B, L, D) is given those at `positions` (B, L) alone, and makes zeros of the others."""
    if module is None:
        yield
        return
    places = positions.flatten().nonzero()[:, 0]  # (N,)

    def pick(module, given):
        return given[0].flatten(0, 1).index_select(0, places)[None], *given[1:]

    def put(module, given, made):
        whole = made.new_zeros(positions.numel(), made.shape[-1])
        return whole.index_copy(0, places, made[0]).unflatten(0, positions.shape)

    hooks = [module.register_forward_pre_hook(pick), module.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def bare_head(model: nn.Module) -> bool:
    """Whether logits are what the output layer makes of the last hidden state, at the positions that are asked for and
    with nothing done before or after it: no scale, no cap. Seen by putting marks in the place of what the layer says.
    """
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        return False
    seen = {}

    def look(module, given, made):
        marks = torch.linspace(-100, 100, made.numel(), device=made.device).reshape(made.shape).to(made.dtype)
        seen.update(read=given[0], marks=marks)
        return marks

    hook = head.register_forward_hook(look)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
            asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            kept = ids.new_tensor([1])
            out = model(**asked, output_hidden_states=True, logits_to_keep=kept)
    except TypeError:  # it does not take one of these
        return False
    finally:
        hook.remove()
    if not seen or not getattr(out, "hidden_states", None):
        return False
    return torch.equal(out.logits, seen["marks"]) and torch.equal(seen["read"], out.hidden_states[-1][:, kept])


def project(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits `(..., V)` of hidden states `(..., D)`, by the output layer of a model with a `bare_head`."""
    head = unwrapped(model).get_output_embeddings()
    if not isinstance(model, _AdapterOff):
        return head(hidden)
    with torch.no_grad(), model.disable_adapter():
        return head(hidden)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, `torch.compile` and the like."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    return model


def forward_parameters(model: nn.Module) -> set[str]:
    """Names that the innermost model's forward takes (wrappers such as DDP and peft take anything)."""
    model = unwrapped(model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(model.forward).parameters)


def trainable_digest(model: nn.Module) -> str:
    """A digest of the weights that training changes: two policies with equal digests sample equal completions.

    Sharded weights are gathered, one after another: all ranks call it.
    """
    return _digest((name, tensor) for name, _, tensor in whole_parameters(model, trained=True))


def revision_of(model: PreTrainedModel) -> str:
    """Which weights these are: the commit of a hub model, else a digest of them."""
    return getattr(model.config, "_commit_hash", None) or _digest(model.named_parameters())


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase, added: Iterable[int] = ()) -> str:
    """Two tokenizers of one digest give a text the same ids, whatever tokens tags added."""
    added = set(added)
    kept = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in added)
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:16]


def _digest(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules or "all-linear",
    )
