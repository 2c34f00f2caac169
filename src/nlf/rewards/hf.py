"""Hugging Face classifiers and reward models as rewards: `hf:MODEL_ID#LABEL`, or `hf:FOLDER#LABEL`.

The model's configuration says what its logits mean:

| configuration | value | reward of `#LABEL` | reward of `#-LABEL` | attributes |
| --- | --- | --- | --- | --- |
| several labels (problem_type single_label_classification or none) | softmax | p(LABEL) | 1 - p(LABEL) | all labels |
| problem_type multi_label_classification | sigmoid | p(LABEL) | 1 - p(LABEL) | all labels |
| one label, or problem_type regression | the logit | the logit | - the logit | none: a logit need not lie in [0, 1] |

LABEL is a label's name in any case, or its number as LABEL_1. Without LABEL the reward is the model's only label, or the
label "positive" of a model with two labels; for any other model this is an error, which lists the labels. An attribute
has its label's name in lower case, except that "toxic" becomes "toxicity", which the toxicity metrics read.

Only the completion is read, truncated to the model's maximum. Models load without remote code, in bfloat16 on a GPU and
in float32 on a CPU. A model whose files lack the classification head is refused, because its head would be random. (The
published sentiment evaluation counts the label of a transformers pipeline instead, in batches in file order, without
truncation.)

`detoxify:original`, `:unbiased` and `:multilingual` are three such models with the labels of the detoxify library.
"""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlf.errors import UserError
from nlf.method.tags import degrees
from nlf.models.identity import revision_of
from nlf.models.loading import load_tokenizer, load_weights, loading
from nlf.models.memory import Limit
from nlf.models.policy import best_device
from nlf.rewards.contract import completion_text
from nlf.rewards.words import noun_of

BATCH_TOKENS = Limit(4_096, 65_536)  # tokens of a batch, padding included
KNOWN_AS = {"toxic": "toxicity"}  # the attribute that the toxicity metrics read
DETOXIFY = {  # the library's names → models on the hub; the first label of each is toxicity
    "original": "unitary/toxic-bert",
    "unbiased": "unitary/unbiased-toxic-roberta",
    "multilingual": "unitary/multilingual-toxic-xlm-roberta",
}
DETOXIFY_LABELS = {  # labels in the models' configurations → labels of the library
    "toxic": "toxicity",
    "severe_toxic": "severe_toxicity",
    "identity_hate": "identity_attack",
    "LABEL_0": "toxicity",  # the only label of the multilingual model
}
UNLIMITED = 10**9  # transformers has a larger model_max_length for a tokenizer without a limit


class HFClassifier:
    """A scorer object and TRL reward function: the probability of a label, or the value of a reward model.

    `version` is the commit of a hub model, or a digest of the weights of a local one. It reads a beginning of a completion as
    it reads any text, at the price of one more text.

    Args:
        argument: `MODEL_ID_OR_FOLDER`, `…#LABEL`, or `…#-LABEL` if the label should be unlikely.
        use_safetensors: True = read safetensors only. None = read PyTorch's format too, as plain tensors (`weights_only`).

    Raises:
        UserError: the model cannot be loaded or has no classification head, or the label is missing or unknown.
    """

    remote = False
    prefixes = True

    def __init__(self, argument: str, use_safetensors: bool | None = None):
        source, _, wanted = (argument, "", "") if Path(argument).is_dir() else _split(argument)
        self.model, self.tokenizer = _load(source, use_safetensors)
        config: Any = self.model.config  # transformers types its fields as optional; a classifier has all of them
        self.labels: list[str] = [config.id2label.get(i, f"LABEL_{i}") for i in range(config.num_labels)]
        self.index, self.low = _choice(self.labels, wanted, f"hf:{source}")
        self.activation = _activation(config)
        self.max_length = _max_length(self.model, self.tokenizer)
        named = f"#{'-' * self.low}{self.labels[self.index]}" if self.low or len(self.labels) > 1 else ""
        self.name = f"hf:{Path(source).resolve().name if Path(source).is_dir() else source}{named}"
        self.version = revision_of(self.model)[:12]
        label = self.labels[self.index]
        noun = noun_of(self.name.removeprefix("hf:") if label.startswith("LABEL_") else label)
        self.default_tags = degrees(noun)[:: 1 if self.low else -1]
        self.last: tuple[tuple[str, ...], np.ndarray] = (), np.zeros((0, len(self.labels)))  # texts and their values

    def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[float]:
        """TRL's reward signature. A conversation is scored by its last message."""
        chosen = self._values([completion_text(completion) for completion in completions])[:, self.index]
        if self.low:
            chosen = -chosen if self.activation == "raw" else 1 - chosen
        return chosen.tolist()

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities `(len(texts),)` of every label by its name in lower case; none for a reward model."""
        if self.activation == "raw":
            return {}
        columns = zip(map(str.lower, self.labels), self._values(texts).T, strict=True)
        return {KNOWN_AS.get(label, label): column.copy() for label, column in columns}

    def _values(self, texts: Sequence[str]) -> np.ndarray:
        """Values `(texts, labels)`, float64, kept until the next batch: reward and attributes need the same values."""
        if (texts := tuple(texts)) != self.last[0]:
            self.last = texts, _activated(self._logits(texts), self.activation)
        return self.last[1]

    @torch.inference_mode()
    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        device, accepted = best_device(), inspect.signature(self.model.forward).parameters
        # at the first call, when each process has chosen its GPU; transformers hides the types of `to`
        cast(nn.Module, self.model).to(device)
        ids = self._token_ids(texts)
        logits = np.zeros((len(texts), len(self.labels)))
        for rows in batches_by_length([len(row) for row in ids], BATCH_TOKENS.on(device)):
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(device)
            inputs = {name: value for name, value in batch.items() if name in accepted}
            logits[rows] = self.model(**inputs).logits.double().cpu().numpy()
        return logits

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        found = self.tokenizer(list(texts), **cut)["input_ids"]
        # some tokenizers give no token for an empty text
        return [ids or [self.tokenizer.pad_token_id] for ids in found]


class Detoxify(HFClassifier):
    """Reward = 1 − toxicity by a model of the `detoxify` library, loaded from the hub without that library.

    Every label is a sigmoid, as in the library, whatever the configuration says. Only safetensors are read (the library
    loads pickles). For a model without safetensors transformers asks the hub for a converted copy, so the first use needs
    the network. The hub's weights can be older than the library's.

    Args:
        name: original, unbiased or multilingual.

    Raises:
        UserError: the name is unknown, or the model cannot be loaded.
    """

    def __init__(self, name: str):
        if name not in DETOXIFY:
            raise UserError(f"reward 'detoxify:{name}': no such model; there are {', '.join(DETOXIFY)}")
        source = DETOXIFY[name]
        try:
            super().__init__(f"{source}#-LABEL_0", use_safetensors=True)
        except UserError as error:
            raise UserError(
                f"{error}; detoxify:{name} reads safetensors only, and multilingual needs `pip install sentencepiece`; "
                f"hf:{source}#-LABEL_0 reads PyTorch's weights too, as plain tensors"
            ) from error
        self.labels = [DETOXIFY_LABELS.get(label, label) for label in self.labels]
        if self.labels[0] != "toxicity":
            raise UserError(
                f"reward 'detoxify:{name}': {source} has the labels {', '.join(self.labels)}; expected toxicity first"
            )
        self.name, self.activation = f"detoxify:{name}", "sigmoid"
        self.default_tags = degrees("Toxicity")


def _split(argument: str) -> tuple[str, str, str]:
    source, mark, wanted = argument.rpartition("#")
    return (source, mark, wanted) if mark else (argument, "", "")


def _load(source: str, use_safetensors: bool | None = None) -> tuple[PreTrainedModel, Any]:
    """The model in evaluation mode, and its tokenizer with a padding token."""
    dtype = torch.bfloat16 if best_device().type == "cuda" else torch.float32
    expected = "a hub id or a folder with config.json, weights and tokenizer, trained as a classifier or reward model"
    with loading(f"reward 'hf:{source}': cannot load a classifier", expected), torch.random.fork_rng(devices=[]):
        tokenizer = load_tokenizer(source, trust_remote_code=False)  # by default transformers asks the person
        options = {"dtype": dtype, "use_safetensors": use_safetensors, "trust_remote_code": False}
        model = load_weights(AutoModelForSequenceClassification, source, **options)
    _make_paddable(model, tokenizer, source)
    return model.eval().requires_grad_(False), tokenizer


def _make_paddable(model: PreTrainedModel, tokenizer, source: str) -> None:
    """Pad on the right, so that positions start at the text, with the EOS token if there is no padding token."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"reward 'hf:{source}': its tokenizer has no padding token; set pad_token in its config")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _max_length(model: PreTrainedModel, tokenizer) -> int | None:
    """The number of tokens that the model can read; None = no limit. RoBERTa's positions start after its padding index."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    taken = max(
        [m.padding_idx + 1 for m in tables if isinstance(m, nn.Embedding) and m.padding_idx is not None] or [0]
    )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions - taken if positions and positions > 0 else UNLIMITED]
    return min(limits) if min(limits) < UNLIMITED else None


def _choice(labels: list[str], wanted: str, model: str) -> tuple[int, bool]:
    """The index of the label, and whether it should be unlikely."""
    low = wanted.startswith("-") and _find(labels, wanted) is None
    word = wanted[low:]
    index = _find(labels, word) if word else _default(labels)
    if index is not None:
        return index, low
    shown = ", ".join(labels)
    if word:
        raise UserError(f"reward '{model}#{wanted}': no label {word!r}; there are {shown}")
    raise UserError(
        f"reward '{model}': the model has several labels ({shown}); "
        f"name one: {model}#{labels[0]}, or {model}#-{labels[0]} if it should be low"
    )


def _find(labels: list[str], word: str) -> int | None:
    """The index of a label by its name, by its name in another case, or by its number."""
    lower = [label.lower() for label in labels]
    numbers = [f"label_{i}" for i in range(len(labels))]
    return next(
        (
            names.index(w)
            for names, w in ((labels, word), (lower, word.lower()), (numbers, word.lower()))
            if w in names
        ),
        None,
    )


def _default(labels: list[str]) -> int | None:
    """The index of the label that needs no name: the only label, or "positive" of two labels."""
    lower = [label.lower() for label in labels]
    if len(labels) == 2 and "positive" in lower:
        return lower.index("positive")
    return 0 if len(labels) == 1 else None


def _activation(config) -> str:
    """The function that turns logits into values; transformers' losses use the same one."""
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    return "raw" if config.problem_type == "regression" or config.num_labels == 1 else "softmax"


def _activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """Values of logits, both `(N, labels)`."""
    if activation == "raw":
        return logits
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Batches of indices, the longest texts first. A batch has one text, or at most `tokens` with padding."""
    order, start = sorted(range(len(lengths)), key=lambda i: -lengths[i]), 0
    while start < len(order):
        stop = start + max(tokens // lengths[order[start]], 1)
        yield order[start:stop]
        start = stop
