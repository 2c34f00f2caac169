"""Checks of the numbers that a reward returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nlf.errors import UserError, shown

# Sums, z-scores and statistics of rewards up to this size stay finite, whatever the weights of this size.
LARGEST = 1e100


def attribute_values(who: str, name: str, values: Any, texts: Sequence[str]) -> np.ndarray:
    """One attribute's values as floats `(N,)`; None and NaN are unknown."""
    found = listed(values)
    if found is None:
        raise UserError(f"{who}: attribute {name!r} is {shown(values)}; expected one number for each text")
    return numbers(f"{who}, attribute {name!r},", found, texts)


def listed(values: Any) -> list | tuple | None:
    """The values of an array, a tensor, a list or a tuple; None for anything else."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return values if isinstance(values, (list, tuple)) else None


def numbers(who: str, values: Any, texts: Sequence[str]) -> np.ndarray:
    """`checked` for values in which NaN means unknown, too."""
    found = listed(values)
    if found is None:
        raise UserError(f"{who} returned {shown(values)}; expected one number for each text")
    return checked(who, [None if isinstance(value, float) and value != value else value for value in found], texts)


def checked(who: str, returned: Sequence, texts: Sequence[str]) -> np.ndarray:
    """The values as floats `(N,)`, None as NaN.

    Raises:
        UserError: there are not N values, or one is neither None nor a number from -LARGEST to LARGEST.
    """
    if len(returned) != len(texts):
        raise UserError(f"{who} returned {len(returned)} values for {len(texts)} completions; expected one for each")
    values = np.full(len(texts), np.nan)
    for i, value in enumerate(returned):
        if value is None:
            continue
        values[i] = number(value)
        if not abs(values[i]) <= LARGEST:
            kind = f"number from {-LARGEST:g} to {LARGEST:g}" if abs(values[i]) > LARGEST else "finite number"
            raise UserError(
                f"{who} returned {shown(value)} for completion {i} ({texts[i][:40]!r}); "
                f"expected a {kind}, or None where it cannot score"
            )
    return values


def number(value: Any) -> float:
    """The value as a float: NaN for anything but a number, infinity for an integer that no float can hold."""
    try:
        return np.nan if isinstance(value, (str, bytes)) else float(value)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan
