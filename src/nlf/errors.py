"""UserError, the exception for the person at the keyboard: one line with the mistake, its place, what was expected and
what to do. And close matches of a mistyped name.

Any module raises it. `nlf.cli.main.main` alone catches it, prints it and exits with 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the person at the keyboard can correct. The text is one line."""


def near_matches(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are close to a mistyped name, the closest first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint ` did you mean 'local'?`, or an empty string where no known name is close."""
    near = near_matches(name, known)
    return f" did you mean {near[0]!r}?" if near else ""
