"""The identity of a model's weights and vocabulary: names, revisions and digests."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

STORED_DTYPE = "stored_dtype"  # the attribute by which a loaded model keeps the type of its files


@dataclass(frozen=True)
class ModelIdentity:
    """The source of a model, and a mark of the weights that it had when it was loaded.

    Attributes:
        name: Folder, hub id or "embedded", as the user gave it; "" for a model built in memory.
        revision: Commit of a hub model; None for other models.
        digest: Digest of the weights; None for a hub model, or if not computed.
        dtype: Type in which its files hold the weights; None for a model built in memory, or if its config.json does not say.
    """

    name: str = ""
    revision: str | None = None
    digest: str | None = None
    dtype: torch.dtype | None = None


def identity_of(model: nn.Module, *, digest: bool = False) -> ModelIdentity:
    """The identity of a model that has just been loaded.

    Args:
        digest: Compute the digest if the model has no hub commit. It reads all weights.
    """
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)  # transformers has no public name for it
    weights = weights_digest(model.named_parameters()) if digest and not commit else None
    return ModelIdentity(name_of(model) or "", commit, weights, getattr(model, STORED_DTYPE, None))


def name_of(model: nn.Module | None) -> str | None:
    """Folder, hub id or "embedded" that a model was loaded from; None if the model has no record of it."""
    return getattr(getattr(model, "config", None), "name_or_path", None)


def revision_of(model: PreTrainedModel) -> str:
    """The commit of a hub model, else the digest of the weights."""
    found = identity_of(model, digest=True)
    return found.revision or found.digest or ""


def is_widened(model: PreTrainedModel, identity: ModelIdentity) -> bool:
    """Whether a model's weights have a larger type than its files."""
    return identity.dtype is not None and identity.dtype.itemsize < model.dtype.itemsize


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase, added: Iterable[int] = ()) -> str:
    """A digest of a vocabulary without the tokens that tags added. Tokenizers with equal digests give a text equal ids."""
    added = set(added)
    kept = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in added)
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:16]


def weights_digest(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A digest of named weights, in their order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
