"""Make a model and its tokenizer fit each other, whoever gives them: files, the hub, or Python objects."""

import copy
import logging
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from nlf.errors import UserError
from nlf.models.reading import vocabulary_size

logger = logging.getLogger(__name__)


def fitted_tokenizer(model: PreTrainedModel, processing_class: Any, name: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token; the model's ids and generation config are mended in place.

    Args:
        processing_class: The tokenizer, or a processor that holds it.
        name: The model, for errors; default: the name that it was loaded by.

    Raises:
        UserError: there is no tokenizer or no EOS token, the model lacks rows of tokens, or it is not a causal LM.
    """
    name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
    tokenizer = getattr(processing_class, "tokenizer", None)
    tokenizer = tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"processing_class of {name} is {type(processing_class).__name__}: give the tokenizer that belongs to the model"
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder model ({type(model).__name__}); expected a causal language model"
        )
    give_padding(tokenizer, name)
    check_rows(model, tokenizer, name)
    _mend_padding_ids(model, tokenizer)
    mend_generation_config(model, name)
    return tokenizer


def give_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Pad with the EOS token if the tokenizer has no padding token: every mask excludes padding, so any token will do.

    Raises:
        UserError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name} has no EOS token, so no completion would end; set eos_token in its "
            "tokenizer_config.json, or tokenizer.eos_token"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse tokens without a row in the model, unless no text becomes them: padding, or the place of an image.

    Raises:
        UserError: a token has no row.
    """
    rows = vocabulary_size(model)
    used = {tokenizer.eos_token, tokenizer.bos_token}
    lacking = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    for i, token in lacking:
        known = tokenizer.added_tokens_decoder.get(i)
        if token in used or known is None or not known.special or token in str(tokenizer.chat_template or ""):
            raise UserError(
                f"the tokenizer of {name} has {len(tokenizer)} tokens and its model {rows} rows: token {token!r} is {i}; "
                "name the tokenizer that belongs to the model, or resize the model's embeddings and train them"
            )


def _mend_padding_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace ids of padding that the model has no row for, such as -1: its saved folder could not be loaded."""
    rows = vocabulary_size(model)
    pad = tokenizer.pad_token_id if cast(int, tokenizer.pad_token_id) < rows else tokenizer.eos_token_id
    for config in {id(c): c for c in (model.config, model.config.get_text_config(), model.generation_config)}.values():
        known = getattr(config, "pad_token_id", None)
        if isinstance(known, int) and not 0 <= known < rows:
            cast(Any, config).pad_token_id = pad


def mend_generation_config(model: PreTrainedModel, name: str = "") -> None:
    """Change a generation config that transformers would refuse to save, such as a temperature beside do_sample false.

    This package samples by its own options, so the config matters to other users of the saved model only.
    """
    model = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model  # the model inside peft's
    given = getattr(model, "generation_config", None)
    if given is None:
        return
    reason = objection(given)
    if reason is None:
        return
    sampled = copy.deepcopy(given)
    sampled.do_sample = True
    ids = {key: getattr(given, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    plain = GenerationConfig(do_sample=True, **ids)
    mended, change = (sampled, "do_sample is set to true") if objection(sampled) is None else (plain, "it is replaced")
    logger.warning(
        "%s: %s in the saved model, because its generation config cannot be saved: %s", name, change, reason
    )
    model.generation_config = mended


def objection(config: GenerationConfig) -> str | None:
    """Why transformers would refuse to save a generation config; None if it would not."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        lines = [line.strip(" -") for line in str(error).splitlines()]
        return next((line for line in lines if line.startswith("`")), lines[0]).partition(" -- ")[0].rstrip(".")
    return None
