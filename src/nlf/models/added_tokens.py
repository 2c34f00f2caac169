"""The tokens that tags add to a model: added before training, recorded in `tags.json`, found again when a model is loaded.

Only these tokens are banned from sampling and left out of the KL. A tag or a separator that the vocabulary had before is
ordinary text.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlf.data.checkpoints import step_of
from nlf.data.run_folder import run_settings
from nlf.errors import UserError
from nlf.method.tags import FILE, SEPARATOR, TagScheme, read_file
from nlf.models.fit import check_rows
from nlf.models.identity import name_of, vocabulary_digest
from nlf.models.loading import load_tokenizer, loading
from nlf.models.reading import vocabulary_size
from nlf.models.sources import model_path

# ---- adding -------------------------------------------------------------------------------------------------------


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, separators: list[str], tags: list[str], seed: int
) -> tuple[int, ...]:
    """Add the tokens that the vocabulary lacks. The separator starts as a copy of EOS, tag tokens as small random rows.

    Returns:
        The ids of the new tokens, of tokens that an earlier training added, and of tokens that the model had no row for.

    Raises:
        UserError: the tokenizer gives a new token the id of another token.
    """
    vocabulary, rows = tokenizer.get_vocab(), vocabulary_size(model)
    earlier = added_ids(name_of(model), tokenizer, rows)
    new = [token for token in separators + tags if token not in vocabulary]
    tokenizer.add_tokens(new, special_tokens=True)
    # one token has one id; the method also takes a list
    ids = {token: int(cast(int, tokenizer.convert_tokens_to_ids(token))) for token in separators + tags}
    _check_new({ids[token]: token for token in new}, vocabulary)
    needed = max([*vocabulary.values(), *ids.values()]) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    drawn = [ids[token] for token in new if token in tags]
    copied = {*(ids[token] for token in new), *(i for i in earlier if i >= rows)} - {*drawn}
    _fill_rows(model, tokenizer.eos_token_id, copied, drawn, seed)
    ours = [ids[token] for token in separators + tags if token in new or ids[token] in earlier]
    return tuple(dict.fromkeys([*ours, *earlier]))


def _check_new(new: dict[int, str], vocabulary: dict[str, int]) -> None:
    """Refuse new tokens, by id, whose ids belong to other tokens: tokenizers number a new token by their token count."""
    taken = next((token for token, i in vocabulary.items() if i in new), None)
    if taken is not None:
        raise UserError(
            f"the tokenizer's ids have gaps, and the new token {new[vocabulary[taken]]!r} got the id of {taken!r}; set "
            "separator and tag_template to a text that is a token already, or separator to null and tag_tokens to false"
        )


def _fill_rows(model: PreTrainedModel, eos: int, copied: Collection[int], drawn: Sequence[int], seed: int) -> None:
    """Set rows of the embeddings and of the output layer: `copied` rows to EOS's, `drawn` rows to small random values."""
    scale = model.config.get_text_config().initializer_range if drawn else 0.0
    generator = torch.Generator().manual_seed(seed)
    tables = [t for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None]
    with torch.no_grad():  # nn.Module types an attribute as Tensor or Module
        for weight in {id(table): cast(torch.Tensor, table.weight) for table in tables}.values():
            for i in copied:
                weight[i] = weight[eos]
            for i in drawn:
                weight[i] = torch.randn(weight[eos].shape, generator=generator).to(weight) * scale


# ---- finding ------------------------------------------------------------------------------------------------------


def load_tags(folder: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[TagScheme | None, list[str]]:
    """The tags of a model, and the tokens that training added to it; (None, []) without a `tags.json`.

    Older versions did not record these tokens, nor whether prompts were conversations. Both then follow from the other
    files of the folder: added tokens are special tokens without a role such as EOS, and the separator that `config.yaml`
    names is null in the `tags.json` of conversations alone.

    Raises:
        UserError: a file cannot be read.
    """
    if not folder or not (Path(folder) / FILE).is_file():
        return None, []
    scheme, added = read_file(folder)
    if added is None:
        table = tokenizer.added_tokens_decoder.items()
        special = {token.content for i, token in table if token.special and i not in tokenizer.all_special_ids}
        added = [token for token in (scheme.separator, *scheme.tags) if token in special]
        scheme = replace(scheme, conversational=_was_conversational(Path(folder), scheme))
    return scheme, added


def _was_conversational(folder: Path, scheme: TagScheme) -> bool | None:
    """Whether the prompts of an older run were conversations; None if its settings are not there."""
    settings = run_settings(folder if step_of(folder) is None else folder.parent)
    separator = settings.get("separator", SEPARATOR)
    if not settings or scheme.conversational is not None:
        return scheme.conversational
    return scheme.separator is None and separator is not None and separator in scheme.template


def added_ids(folder: str | None, tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[int, ...]:
    """Ids of the tokens that training added to the model in a folder, and of added tokens that it has no row for.

    Args:
        rows: Rows of the model's embeddings.
    """
    vocabulary = tokenizer.get_vocab()
    added = [vocabulary[token] for token in load_tags(folder, tokenizer)[1] if token in vocabulary]
    return tuple(dict.fromkeys([*added, *sorted(i for i in vocabulary.values() if i >= rows)]))


# ---- comparing ----------------------------------------------------------------------------------------------------


def check_reference(
    tokenizer: PreTrainedTokenizerBase, added: Collection[int], reference: PreTrainedModel, name: str | None
) -> None:
    """Refuse a reference that has other tokens than the policy.

    The tokenizer of the reference is loaded from its folder or the hub. Without one, numbers of tokens are compared.

    Args:
        tokenizer, added, name: The policy's tokenizer, the ids that tags added to it, and its name.

    Raises:
        UserError: the tokens differ, or the reference lacks rows of tokens of its own.
    """
    source, rows = name_of(reference), vocabulary_size(reference)
    other = tokenizer_of(source) if source and source != name else None
    if other is not None:
        check_rows(reference, other, str(source))
        same = same_vocabulary(tokenizer, added, other, added_ids(source, other, rows))
    else:
        same = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0) < rows
    if not same:
        raise UserError(
            f"the reference {source or 'model'} has another vocabulary than {name or 'the model'}; expected a model with "
            "the same tokens: name it with --ref_model_name_or_path, or leave it out"
        )


def tokenizer_of(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or hub id; None if there is none that loads."""
    try:
        with loading(f"cannot load a tokenizer from {name!r}", "a folder or hub id"):
            return load_tokenizer(model_path(name))
    except UserError:
        return None


def same_vocabulary(
    one: PreTrainedTokenizerBase,
    one_added: Collection[int],
    other: PreTrainedTokenizerBase,
    other_added: Collection[int],
) -> bool:
    """Whether two tokenizers have the same tokens, apart from those that tags added."""
    return vocabulary_digest(one, one_added) == vocabulary_digest(other, other_added)
