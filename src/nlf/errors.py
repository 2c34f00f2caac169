"""The one exception meant for a person: what was wrong, where, what was expected, what to do, in one line.

Raised anywhere in the package, caught only in `nlf.cli.main.main`, which prints it and exits with 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; its text is one line."""


def near_matches(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that a mistyped one is close to, the closest first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` did you mean 'local'?`, or nothing where no known name is close."""
    near = near_matches(name, known)
    return f" did you mean {near[0]!r}?" if near else ""
