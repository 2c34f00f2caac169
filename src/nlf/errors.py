"""UserError, the exception for the person at the keyboard: one line with the mistake, its place, what was expected and
what to do. Any module may raise it; only `nlf.cli.main.main` catches it, prints it and exits with 2.

`near_matches` and `did_you_mean` find known names close to a mistyped one; `line_of` and `shown` put the error of a library
and a value on one line.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the person at the keyboard can correct. The text is one line."""


def near_matches(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are close to a mistyped name, the closest first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint ` did you mean 'local'?`, or an empty string if no known name is close."""
    near = near_matches(name, known)
    return f" did you mean {near[0]!r}?" if near else ""


def line_of(error: BaseException, most: int = 300) -> str:
    """The text of an error on one line of at most `most` characters; the name of its class if it has no text."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def shown(value: object, most: int = 200) -> str:
    """A value on one line, cut after `most` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integer of over 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"
