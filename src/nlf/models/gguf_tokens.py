"""The tokens of a model as llama.cpp knows them: what of a tokenizer goes into a GGUF file (gguf_export.py).

llama.cpp has two kinds of BPE. Byte-level BPE (`gpt2`) has merges, and a name for the rule that splits a text into words;
SentencePiece (`llama`) has a score for each token. The rule's name is found by the rule itself, as it stands in the
tokenizer; llama.cpp's converter compares a hash over a test string, and refuses tokenizers of one's own.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from nlf.errors import UserError
from nlf.models.encoder import prefix_of

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model
SPACE = "\u2581"  # SentencePiece's
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_TOKEN = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

# ---- the rules that split a text into words, by llama.cpp's names -------------------------------------------------

GPT2_WORDS, DIGITS = "ByteLevel", "Digits"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
QWEN2_WORDS = _LETTERS + r"|\p{N}" + _TAIL
LLAMA3_WORDS = _LETTERS + r"|\p{N}{1,3}" + _TAIL
PRE_TOKENIZERS = {
    (GPT2_WORDS,): "gpt-2",
    (DIGITS, GPT2_WORDS): "smollm",
    (QWEN2_WORDS,): "qwen2",
    (LLAMA3_WORDS,): "llama-bpe",
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, one for each row of its embeddings.

    Attributes:
        kind: `BYTE_LEVEL` or `SENTENCEPIECE`.
        pre: llama.cpp's name of the rule that splits a text into words.
        types: Of each token, in GGUF's numbers.
        scores: Of each token of SentencePiece; higher is merged first. Empty for byte-level BPE.
        merges: Pairs of tokens with a space between, best first.
        adds_bos: Whether BOS stands before every text.
        adds_space: Whether a space stands before every text.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    adds_bos: bool
    adds_space: bool


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The tokens of a tokenizer.

    Args:
        rows: Rows of the model's embeddings. A row without a token gets an unused one.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    spec = _specification(tokenizer)
    rules = list(_parts(spec["pre_tokenizer"], "pretokenizers"))
    normalizers = list(_parts(spec["normalizer"], "normalizers"))
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in spec["model"]["merges"]]
    byte_level = any(rule["type"] == "ByteLevel" for rule in rules)
    pre = _pre_tokenizer(rules, normalizers) if byte_level else "default"
    adds_space = not byte_level and _adds_space(rules, normalizers)
    tokens, types = _tokens(tokenizer, rows, byte_level)
    return Vocabulary(
        BYTE_LEVEL if byte_level else SENTENCEPIECE, pre, tokens, types,
        [] if byte_level else _scores(tokens, pairs), [" ".join(pair) for pair in pairs],
        _adds_bos(tokenizer), adds_space,
    )  # fmt: skip


def _specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as the package tokenizers writes it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it is not one of the package tokenizers")
    spec = json.loads(backend.to_str())
    if (kind := spec["model"]["type"]) != "BPE":
        raise _refused(f"it is {kind}, and BPE is expected")
    return spec


def _parts(spec: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a sequence of pre-tokenizers or normalizers, which may hold sequences."""
    if spec is None:
        return
    if spec["type"] != "Sequence":
        yield spec
        return
    for part in spec[name]:
        yield from _parts(part, name)


def _refused(reason: str) -> UserError:
    return UserError(f"this model's tokenizer cannot be written as GGUF: {reason}; serve the model with transformers")


# ---- byte-level BPE -----------------------------------------------------------------------------------------------


def _pre_tokenizer(rules: list[Mapping[str, Any]], normalizers: list[Mapping[str, Any]]) -> str:
    """llama.cpp's name of a rule that splits a text into words. NFC is left to whoever writes the text."""
    found = tuple(filter(None, map(_rule, rules)))
    others = [each["type"] for each in normalizers if each["type"] != "NFC"]
    if found not in PRE_TOKENIZERS or others:
        raise _refused(f"llama.cpp has no name for its rule of words, {', '.join([*others, *found])[:200]}")
    return PRE_TOKENIZERS[found]


def _rule(rule: Mapping[str, Any]) -> str:
    """One step of the rule; empty for a step that only spells bytes."""
    if rule["type"] == "ByteLevel":
        return "a space before the text" if rule["add_prefix_space"] else GPT2_WORDS if rule["use_regex"] else ""
    if rule["type"] == "Split" and rule["behavior"] == "Isolated" and not rule["invert"]:
        return str(rule["pattern"].get("Regex"))
    return DIGITS if rule["type"] == "Digits" and rule["individual_digits"] else f"a {rule['type']}"


# ---- SentencePiece ------------------------------------------------------------------------------------------------


def _adds_space(rules: list[Mapping[str, Any]], normalizers: list[Mapping[str, Any]]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text; refuses tokenizers that are not SentencePiece."""
    steps = [each["type"] for each in normalizers]
    metaspace = next((rule for rule in rules if rule["type"] == "Metaspace"), None)
    if metaspace and not steps:
        return metaspace["prepend_scheme"] != "never"
    if steps not in (["Replace"], ["Prepend", "Replace"]) or normalizers[-1]["content"] != SPACE:
        raise _refused(f"it is neither byte-level BPE nor SentencePiece ({', '.join(steps) or 'no normalizer'})")
    return steps[0] == "Prepend"


def _scores(tokens: list[str], pairs: list[list[str]]) -> list[float]:
    """Scores that make SentencePiece merge in the order of the merges; a token that no merge makes gets the least."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(pairs))) for token in tokens]


# ---- both ---------------------------------------------------------------------------------------------------------


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int, byte_level: bool) -> tuple[list[str], list[int]]:
    """The token and its type for each row."""
    texts = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for i in range(rows):
        text = texts.get(i)
        if text is None:
            text, kind = f"[PAD{i}]", UNUSED
        elif not byte_level and i == tokenizer.unk_token_id:
            kind = UNKNOWN
        elif i in added:
            kind = CONTROL if added[i].special else USER_DEFINED
            text = text if byte_level else text.replace(SPACE, " ")  # matched in the text as it was written
        else:
            kind = BYTE_TOKEN if not byte_level and BYTE.fullmatch(text) else NORMAL
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS, and nothing else, before a text."""
    before = prefix_of(tokenizer)
    if before not in ([], [tokenizer.bos_token_id]):
        raise _refused(f"it puts the tokens {before} before a text, and llama.cpp puts BOS there or nothing")
    return bool(before)
