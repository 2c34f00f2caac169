"""Keys of services: where they are read, and how they are kept out of every text that is shown or stored.

A service can quote a key in an error, and a judge can write it into its answer: whole, in parts, reversed, or encoded.
`masked` replaces what it finds of a key by `[key]`.
"""

import base64
import functools
import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from nlf.errors import UserError

MASK = "[key]"
OPENAI_KEY, PERSPECTIVE_KEY = "OPENAI_API_KEY", "PERSPECTIVE_API_KEY"
SERVE_KEY = "NLF_SERVE_KEY"  # the key that the server of a scorer asks for
API_KEY = "NLF_API_KEY"  # the key that the server of a model asks for
VARIABLES = (OPENAI_KEY, PERSPECTIVE_KEY, SERVE_KEY, API_KEY, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PIECE = 8  # letters and digits in a row that identify a key in any text
WORD = 4  # letters and digits of a whole word that identify a key in a service's error, such as the last four of it
WORDS = re.compile(r"x{3,}|((?:(?!x{3})[^\W_])+)", re.I)  # services write xxx for what they leave out
T = TypeVar("T")


def key_of(variable: str) -> str:
    """A service's key, from $VARIABLE or from the file that $VARIABLE_FILE names; "" if neither is set.

    Raises:
        UserError: the file cannot be read, or the key has characters that no key has.
    """
    file = os.environ.get(f"{variable}_FILE")
    try:
        key = os.environ.get(variable) or (Path(file).expanduser().read_text(encoding="utf-8") if file else "")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {file}, which {variable}_FILE names: {reason}") from error
    if not re.fullmatch("[!-~]*", key.strip()):
        raise UserError(
            f"{variable}: expected a key, one word of letters, digits and marks; remove spaces and line breaks"
        )
    return key.strip()


def known_secrets() -> frozenset[str]:
    """The keys that this process can read from its environment."""
    found: set[str] = set()
    for variable in VARIABLES:
        try:
            found.add(key_of(variable))
        except UserError:  # no usable key; whoever needs it says so
            continue
    return frozenset(found - {""})


def is_secret(name: str) -> bool:
    """Whether a setting or flag of this name holds a secret: `hub_token`, but not `eos_token_id`."""
    return re.search(r"(^|_)(token|key|secret|password)$", name.lower().replace("-", "_")) is not None


def masked(value: T, secrets: Iterable[str] = (), *, words: bool = False) -> T:
    """Plain JSON data in which every text has `[key]` in place of a secret.

    Capitals and the marks between letters do not matter. The secrets are those of the environment and of `secrets`.

    Args:
        words: Also replace short words that are a part of a secret. For errors: in an answer, such a word may be chance.

    Raises:
        RecursionError: the data is nested too deeply.
    """
    keys = frozenset(filter(None, secrets)) | known_secrets()
    return cast(T, _masked(value, keys, words)) if keys else value


def _masked(value: Any, keys: frozenset[str], words: bool) -> Any:
    if isinstance(value, str):
        return _masked_text(value, keys, words)
    if isinstance(value, list):
        return [_masked(each, keys, words) for each in value]
    if isinstance(value, dict):
        return {_masked(name, keys, words): _masked(each, keys, words) for name, each in value.items()}
    return value


def _masked_text(text: str, keys: frozenset[str], words: bool) -> str:
    hits = bytearray(len(text))  # 1 for each character of a secret
    for start, end in _spans(text, keys, words):
        hits[start:end] = b"\1" * (end - start)
    runs = groupby(range(len(text)), hits.__getitem__)
    return "".join(MASK if hit else "".join(text[i] for i in run) for hit, run in runs)


def _spans(text: str, keys: frozenset[str], words: bool) -> Iterator[tuple[int, int]]:
    """The places of a text that hold a piece of a key."""
    forms, pieces = _forms(keys)
    for key in (key for key in keys if len(key) >= (WORD if words else PIECE)):
        for whole in re.finditer(re.escape(key), text, re.I):
            yield whole.span()
    places = [i for i, character in enumerate(text) if character.isalnum()]
    plain = "".join(text[i].lower()[:1] for i in places)  # lower() can give two characters
    for i in range(len(plain) - PIECE + 1):
        if plain[i : i + PIECE] in pieces:
            yield places[i], places[i + PIECE - 1] + 1
    for word in WORDS.finditer(text if words else ""):
        if word[1] and len(word[1]) >= WORD and any(word[1].lower() in form for form in forms):
            yield word.span()


@functools.lru_cache(maxsize=16)
def _forms(keys: frozenset[str]) -> tuple[list[str], set[str]]:
    """The keys in each way of writing them, as lower-case letters and digits, and all pieces of them."""
    forms = []
    for key in keys:
        raw = key.encode()
        shifted = [
            base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")[shift and shift + 1 :] for shift in range(3)
        ]
        written = [key, quote(key, safe=""), raw.hex(), *shifted]
        forms += [_plain(each) for each in [*written, *(each[::-1] for each in written)]]
    return forms, {form[i : i + PIECE] for form in forms for i in range(len(form) - PIECE + 1)}


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
