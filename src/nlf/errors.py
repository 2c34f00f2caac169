"""The one exception meant for a person: what was wrong, where, what was expected, what to do, in one line.

Raised anywhere in the package, caught only in `nlf.cli.main.main`, which prints it and exits with 2.
"""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; its text is one line."""
