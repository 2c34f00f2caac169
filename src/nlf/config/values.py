"""The value of a knob: text of a flag, a value of YAML or JSON, or a Python value, read as the knob's type.

One rule for all three: `true` is no number, 2.0 is a whole number and 2.5 is not, text may hold a number (YAML reads
1e-4 as text), a scalar or an array of numpy or torch counts as its numbers, and every number is finite.
"""

import functools
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nlf.errors import UserError, shown
from nlf.secrets import is_secret

LARGEST = 3e38  # float32 holds no larger number
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


# ---- types --------------------------------------------------------------------------------------------------------


def annotations_of(options: type) -> dict[str, Any]:
    """The annotation of each field. HfArgumentParser writes simpler ones into the fields themselves."""
    if options not in _annotations:
        _annotations[options] = get_type_hints(options)
    return _annotations[options]


_annotations: dict[type, dict[str, Any]] = {}  # a server reads options for each request


@functools.cache
def choices_of(annotation: Any) -> tuple:
    """The values that `Literal[…]` or `Literal[…] | None` allows; none for any other type."""
    literals = [kind for kind in _members(annotation) if get_origin(kind) is Literal]
    return tuple(value for kind in literals for value in get_args(kind))


def _members(kind: Any) -> tuple:
    """The types of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


@functools.cache
def type_of(annotation: Any) -> str:
    """The types that a field takes, as text: 'float | None'."""
    return " | ".join(map(_type_text, _members(annotation)))


def _type_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "str"
    if kind is types.NoneType:
        return "None"
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


# ---- values -------------------------------------------------------------------------------------------------------


def converted(name: str, kinds: str, choices: tuple, value: Any, where: str = "") -> Any:
    """Read a value as one of the types `kinds`, such as 'float | None'; 'null' and None are the same.

    Args:
        name: The knob, for the error.
        choices: The values that are allowed; () allows all of the type.
        where: The start of the error: a file and line, or the dashes of a flag.

    Raises:
        UserError: the value has another type, or a number is not finite; the error names the place, the knob and what was
            expected.
    """
    value, wanted = _plain(value), [kind.strip() for kind in kinds.split(" | ")]
    if isinstance(value, bool) and (word := str(value).lower()) in choices:  # as a flag gives it
        value = word
    if value is None or value in ("null", ["null"]):
        if "None" in wanted:
            return None
    else:
        for kind, each in _readings(wanted, value):
            try:
                result = _read(kind, each)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if not choices or result in choices:
                check_finite(f"{where}{name}", result)
                return result
    expected = "one of " + ", ".join(map(str, choices)) if choices else kinds.replace("None", "null")
    told = "a value" if is_secret(name) else shown(value)
    raise UserError(f"{where}{name}: {told} where {expected} was expected")


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a value, those in lists and mappings included."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)


def check_finite(name: str, value: Any) -> None:
    """Raise UserError if a number of the value is NaN, infinite, or too large to compute with."""
    digits = 63 if isinstance(value, dict) else 32  # a count over 2**32 is a mistake
    for number in numbers_in(value):
        words = "a finite number" if isinstance(number, float) else f"a number below 2**{digits}"
        if not abs(number) <= (LARGEST if isinstance(number, float) else 2**digits - 1):  # NaN compares with nothing
            raise UserError(f"{name}: {shown(value)} where {words} was expected")


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, a path as its text, a tuple as a list."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


def _readings(kinds: list[str], value: Any) -> list[tuple[str, Any]]:
    """(type, value) to try in turn: text after numbers, and lists last. A list of one item also means the item."""
    plain = [kind for kind in kinds if kind != "None" and not kind.startswith("list")]
    lists = [(kind, value) for kind in kinds if kind.startswith("list")]
    if isinstance(value, list) and len(value) != 1:
        return lists
    alone = value[0] if isinstance(value, list) else value
    return [(kind, alone) for kind in sorted(plain, key=lambda kind: _reader(kind) is _text)] + lists


def _read(kind: str, value: Any) -> Any:
    if kind.startswith("list"):
        items = value if isinstance(value, list) else [value]
        return [_read(kind[5:-1], item) for item in items]
    return _reader(kind)(value)


def _reader(kind: str) -> Callable[[Any], Any]:
    return READERS.get(kind.split("[")[0].rpartition(".")[2], _text)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _integer(value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.strip("+- ").isdigit() else _number(value)
    if not math.isfinite(number) or number != int(number):
        raise ValueError(value)
    return int(number)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return value if isinstance(value, int) else float(value)


def _mapping(value: Any) -> dict:
    value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(value)
    return {key: _exponent(each) for key, each in value.items()}


def _exponent(value: Any) -> Any:
    """The number in a text such as 1e-4, which YAML does not read as one; any other value as it is."""
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else _plain(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    value.encode()  # half a surrogate pair is a ValueError; no file could hold it
    return value


READERS = {"bool": _boolean, "Literal": _boolean, "int": _integer, "float": _number, "dict": _mapping}
