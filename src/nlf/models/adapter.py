"""Adapters of peft (LoRA and its kin): put them on a model, and refuse what cannot be merged into its weights later."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from nlf.config import ModelOptions
from nlf.errors import UserError, line_of
from nlf.models.reading import output_layer


def lora_config(options: ModelOptions):
    """The peft configuration of the `lora_*` options; by default every linear layer is adapted."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        target_modules="all-linear"
        if options.lora_target_modules in (None, ["all-linear"])
        else options.lora_target_modules,
    )


def add_adapter(model: PreTrainedModel, peft_config, added: tuple[int, ...], seed: int) -> PreTrainedModel:
    """The model with an adapter; the rows of added tokens train too. The seed determines the adapter's start.

    Raises:
        UserError: no configuration of peft, a model with an adapter already, modules that the model does not have, or an
            adapter that could not be merged or would move the reference.
    """
    from peft import get_peft_model

    _check_kind(peft_config)
    if hasattr(model, "peft_config"):
        raise UserError(
            "the model has an adapter already: leave peft_config out to train that one, or merge it first "
            "(model.merge_and_unload())"
        )
    trained = _trains_embedding(model, peft_config)
    if added and not trained and getattr(peft_config, "trainable_token_indices", 0) is None:
        peft_config.trainable_token_indices = list(added)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cast(PreTrainedModel, get_peft_model(model, peft_config))  # it forwards every attribute
    except (ValueError, TypeError, ImportError) as error:  # no such module, a layer of another type, no such package
        reason = line_of(error).rstrip(".")
        raise UserError(f"peft cannot adapt this model: {reason} (its layers: {_layers(model)})") from error


def check_own_adapter(model: nn.Module) -> None:
    """Check the adapter that a model was given with.

    Raises:
        UserError: it is not a PeftModel, nothing of it trains, or see `add_adapter`.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UserError(
            "the model has an adapter of transformers' load_adapter; load it by peft.PeftModel, or merge it"
        )
    _check_kind(model.active_peft_config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "nothing of the model's adapter trains; load it with PeftModel.from_pretrained(is_trainable=True)"
        )


def _check_kind(peft_config: Any) -> None:
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig):
        raise UserError(
            f"peft_config is {type(peft_config).__name__}; expected a configuration of peft: LoraConfig, …"
        )
    if peft_config.is_prompt_learning:
        raise UserError(
            f"{type(peft_config).__name__} trains virtual tokens, which cannot be merged into a model; use LoraConfig"
        )
    if getattr(peft_config, "bias", "none") != "none":
        raise UserError(
            "peft_config with bias: it trains biases of the model, so its reference, the model with the adapter off, "
            "would change; set bias='none'"
        )


def _trains_embedding(model: PreTrainedModel, peft_config: Any) -> bool:
    """Whether the adapter trains the embedding, so that peft cannot also train some of its rows.

    Raises:
        UserError: modules that the model does not have, or an adapter on one of two layers that share their weights.
    """
    _check_names(model, peft_config)
    table, head = model.get_input_embeddings(), output_layer(model)
    tied = head is not None and head.weight is table.weight
    tables = [each for each in (table, head if tied else None) if each is not None]
    if tied and any(_is_target(model, peft_config, each) for each in tables):
        raise UserError(
            "target_modules name the embedding or the output layer, which share their weights in this model, so the "
            "adapter of one could not be merged; leave them out, or name the embedding in modules_to_save"
        )
    saved = tuple(getattr(peft_config, "modules_to_save", None) or ())
    return any(_is_target(model, peft_config, each) or _name(model, each).endswith(saved) for each in tables)


def _check_names(model: nn.Module, peft_config: Any) -> None:
    """Refuse names of modules that the model does not have; peft leaves out those that it does not find."""
    names = [name for name, _ in model.named_modules()]
    for option in ("target_modules", "modules_to_save"):
        given = getattr(peft_config, option, None) or ()
        for wanted in sorted(given) if not isinstance(given, str) else ():
            if not any(f".{name}".endswith(f".{wanted}") for name in names):
                raise UserError(f"{option}: no module is named {wanted!r}; the model's layers: {_layers(model)}")


def _is_target(model: nn.Module, peft_config: Any, layer: nn.Module) -> bool:
    """Whether target_modules name the layer; "all-linear" leaves out embeddings and output layers."""
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = getattr(peft_config, "target_modules", None)
    if not targets or targets == "all-linear":
        return False
    return bool(check_target_module_exists(peft_config, _name(model, layer)))


def _name(model: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is layer)


def _layers(model: nn.Module) -> str:
    """The last names of the model's linear layers, for an error."""
    kinds = (nn.Linear, nn.Embedding)
    names = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, kinds) or _is_conv1d(m)}
    return ", ".join(sorted(names))


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layer
