"""Which weights and which vocabulary these are: digests and revisions."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlf.models.sharding import whole_parameters


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
