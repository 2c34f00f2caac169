"""The parts that every knob is made of: a default, a line of help, a type, and the values that are allowed.

A knob is a dataclass field whose metadata holds a `Help`: the text and the bounds. The choices of a knob stand in its
type, `Literal["even", "published"]`. `check` reads both (`values` reads the types). A rule about several knobs stands in
the method `check_together` of the dataclass that holds them.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, NamedTuple

from nlf.config.values import annotations_of, choices_of, converted, type_of
from nlf.errors import UserError, shown

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


class Rule(NamedTuple):
    """A condition on a value, and words for the error: "… where `expected` was expected"."""

    holds: Callable[[Any], bool]
    expected: str


class Following:
    """A default that follows other knobs: `Options.complete` replaces it, unless the person gave a value.

    Args:
        words: What the help shows in the place of a value.
    """

    def __init__(self, words: str) -> None:
        self.words = words

    def __repr__(self) -> str:
        return self.words


class FollowingList(list, Following):
    """Numbers that follow other knobs; the help shows them."""

    def __init__(self, numbers: list[float]) -> None:
        list.__init__(self, numbers)
        Following.__init__(self, " ".join(map(str, numbers)))

    __repr__ = Following.__repr__


class Help(str):
    """A line of help that carries the rule of its knob.

    HfArgumentParser hands every key of a field's metadata to argparse, so the rule has no key of its own.
    """

    rule: Rule | None = None
    short: bool = False  # the short help shows the knob
    objects: bool = False  # Python may give objects where flags give names


def bounds(least: float | None = None, above: float | None = None, most: float | None = None) -> Rule:
    """The rule for a number, or for each number of a list.

    Args:
        least: The lowest allowed value.
        above: A value that the number must exceed.
        most: The highest allowed value.
    """
    low = -math.inf if least is None else least
    lowest = -math.inf if above is None else above
    high = math.inf if most is None else most
    words = f"{least} or more" if above is None else f"a number above {above}"

    def holds(value: Any) -> bool:
        numbers = value if isinstance(value, list) else [value]
        return bool(numbers) and all(low <= n <= high and n > lowest for n in numbers)

    return Rule(holds, words if most is None else f"{words}, {most} at most")


def knob(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    rule: Rule | None = None,
    short: bool = False,
    objects: bool = False,
) -> Any:
    """A dataclass field with its help and its bounds. A list is copied for each instance.

    Args:
        least, above, most: The arguments of `bounds`.
        rule: A rule of another kind.
        short: `nlf train --help` shows the knob; `nlf train --help all` shows every knob.
        objects: Python may give objects in the list, such as functions.
    """
    if (least, above, most) != (None, None, None):
        rule = bounds(least, above, most)
    about = Help(help)
    about.rule, about.short, about.objects = rule, short, objects
    return _field(default, about)


def like(options: type, name: str, default: Any) -> Any:
    """A copy of the knob `name` of another dataclass, with another default."""
    return _field(default, next(help_of(f) for f in fields(options) if f.name == name))


def _field(default: Any, help: Help) -> Any:
    metadata = {"help": help}
    if isinstance(default, list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def help_of(f: Field) -> Help:
    """The help of a field; a field of transformers has no rule."""
    help = f.metadata.get("help", "")
    return help if isinstance(help, Help) else Help(help)


def default_of(f: Field) -> Any:
    """The default of a field; a list is a fresh one."""
    return f.default if f.default_factory is MISSING else f.default_factory()


@dataclass
class Options:
    """The base of every group of knobs: values are checked when an instance is made."""

    def __post_init__(self) -> None:
        check(self)

    def complete(self) -> None:
        """Fill in the values that follow from other knobs. A group that overrides this calls `super()` first."""

    def check_together(self) -> None:
        """Raise UserError if two knobs contradict each other. A group that overrides this calls `super()` first."""


def check(options: Options) -> None:
    """Read each knob as its type, fill in what follows, then check each knob and knobs against each other.

    Raises:
        UserError: the first value that is not allowed, under the name that the person typed.
    """
    annotations = annotations_of(type(options))
    for f in fields(options):
        setattr(options, f.name, _typed(f, annotations[f.name], getattr(options, f.name)))
    options.complete()
    for f in fields(options):
        check_value(f.name, getattr(options, f.name), help_of(f).rule)
    options.check_together()


def _typed(f: Field, annotation: Any, value: Any) -> Any:
    """A value as the field's type. transformers' own fields also take objects, which it checks itself."""
    if isinstance(value, Following):
        return value
    default = default_of(f)
    if value is None and isinstance(default, Following) and "None" not in type_of(annotation):
        return default
    given = [*value] if isinstance(value, (list, tuple)) else [value]
    if help_of(f).objects and not all(isinstance(each, PLAIN) for each in given):
        return given
    own = isinstance(f.metadata.get("help"), Help)
    if not own and value is None and "str" in type_of(annotation):
        return None  # HfArgumentParser gives it in the place of an empty text or list
    if own or isinstance(value, PLAIN) or hasattr(value, "tolist"):
        return converted(f.name, type_of(annotation), choices_of(annotation), value)
    return value


def check_value(name: str, value: Any, rule: Rule | None = None) -> None:
    """Check that the rule of a value holds. None, and a default that is still to follow, are always allowed.

    Raises:
        UserError: the error names the knob, the value and what was expected.
    """
    if rule and value is not None and not isinstance(value, Following) and not rule.holds(value):
        raise UserError(f"{name}: {shown(value)} where {rule.expected} was expected")


def among(options: Any, group: type) -> Any:
    """The knobs of `group` from the fields of a larger object; a knob that the object lacks has its default."""
    return group(**{f.name: getattr(options, f.name, default_of(f)) for f in fields(group)})
