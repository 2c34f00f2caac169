"""Rule-based rewards: length, repetition, a list of words, a pattern. They are fast and best added to another reward.

| name | reward of a completion |
| --- | --- |
| `length` | its number of words |
| `length:20` | its closeness to 20 words: the smaller number divided by the larger one, in [0, 1] |
| `repetition` | the share of its runs of 3 words that do not repeat an earlier run; `repetition:2` for pairs |
| `keywords:FILE` | the share of its words and punctuation marks that belong to no entry of the list, one entry a line |
| `regex:PATTERN` | 1 if the pattern is found, else 0; `regex:-PATTERN` is 0 if it is found, else 1 |

Only the completion is read. In Python the classes below take the same argument: `Length("20")`.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlf.errors import UserError
from nlf.method.tags import degrees
from nlf.rewards.audit import WORD
from nlf.rewards.contract import completion_text

SHOWN = 40  # characters of a pattern in its name
LOOKS_AHEAD = re.compile(
    r"(?<!\\)(?:\\\\)*(?:\$|\\Z|\\z|\(\?[=!])"
)  # in a pattern: the end, or what follows; "[$]" too


class Rule:
    """Base class of rules. A subclass defines a name, a version of its list or pattern, and the reward of one text.

    Attributes:
        prefixes: The reward of a beginning means what that of a whole completion means, because what counts is in the
            beginning already, not in how the text ends.
    """

    name: str
    version: int | str = 1
    remote = False
    prefixes = True

    def reward(self, text: str) -> float:
        raise NotImplementedError

    def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[float]:
        """TRL's reward signature. A conversation is scored by its last message."""
        return [self.reward(completion_text(completion)) for completion in completions]


class Length(Rule):
    """The number of words (separated by white space), or its closeness to a target.

    With a target the reward is the smaller of the two numbers divided by the larger one: 1 at the target, .5 at half and
    at double of it, 0 for a text without words. It is strictly monotone on each side, so that different lengths on one
    side never tie.

    Args:
        words: The target, 1 or more, as text or a number. None = the reward is the number of words.

    Raises:
        UserError: the target is not a whole number from 1 on.
    """

    def __init__(self, words: str | int | None = None):
        self.words = None if words is None else _whole(words, "length", "length:20")
        self.name = "length" if self.words is None else f"length:{self.words}"
        self.prefixes = self.words is None  # a beginning is far from the target because it is not finished
        far = f"Distance From {self.words} Words"
        self.default_tags = degrees("Length")[::-1] if self.words is None else degrees(far)

    def reward(self, text: str) -> float:
        found = len(text.split())
        return float(found) if self.words is None else min(found, self.words) / max(found, self.words)


class Repetition(Rule):
    """1 − the attribute `repetition`, the share of runs of words that occur earlier in the text. Ignores case.

    A text that is shorter than a run has the reward 1. TRL's `get_repetition_penalty_reward` is the negative share of
    repeated runs of token ids.

    Args:
        size: Words in a run, 1 or more, as text or a number.

    Raises:
        UserError: the size is not a whole number from 1 on.
    """

    default_tags = degrees("Repetition")

    def __init__(self, size: str | int = 3):
        self.size = _whole(size, "repetition", "repetition:3")
        self.name = "repetition" if self.size == 3 else f"repetition:{self.size}"

    def reward(self, text: str) -> float:
        words = text.lower().split()
        runs = [*zip(*(words[i:] for i in range(self.size)), strict=False)]
        return len(set(runs)) / len(runs) if runs else 1.0

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """`repetition`, `(len(texts),)`: the share of runs that repeat an earlier run."""
        return {"repetition": np.array([1 - self.reward(text) for text in texts], dtype=float)}


class Keywords(Rule):
    """The share of words and punctuation marks that belong to no listed entry; 1 = no entry is found.

    An entry is one or several words. It matches whole words in any case: `ass` does not match `class`. Punctuation marks
    and emoji can be part of an entry (`f*ck`). `version` is a digest of the entries; their order and blank lines do not
    matter.

    Args:
        file: A text file in UTF-8 with one entry a line.

    Raises:
        UserError: the file cannot be read or has no entries.
    """

    default_tags = degrees("Keyword Use")

    def __init__(self, file: str | Path):
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"reward 'keywords:{file}': cannot read it: {getattr(error, 'strerror', None) or 'it is not UTF-8'}; "
                "expected a text file with one word a line"
            ) from error
        entries = {entry for line in lines if (entry := _tokens(line))}
        if not entries:
            raise UserError(f"reward 'keywords:{file}': the list is empty; expected one word a line")
        self.name, self.version = f"keywords:{Path(file).name}", _digest(repr(sorted(entries)))
        self.first = {entry[0] for entry in entries}
        self.entries = {size: {e for e in entries if len(e) == size} for size in {len(e) for e in entries}}

    def reward(self, text: str) -> float:
        tokens = _tokens(text)
        if self.first.isdisjoint(tokens):
            return 1.0
        found = {
            i + j
            for size, entries in self.entries.items()
            for i in range(len(tokens) - size + 1)
            if tokens[i : i + size] in entries
            for j in range(size)
        }
        return 1 - len(found) / len(tokens)


class Regex(Rule):
    """1 if a pattern of Python's `re` is found anywhere in the text, else 0; a leading minus swaps the two values.

    Args:
        pattern: `PATTERN` or `-PATTERN`. Write `[-]…` for a pattern that itself begins with a minus. `(?i)` ignores case.

    Attributes:
        prefixes: False for a pattern that says how the text ends or goes on (`$`, `\\Z`, `(?=`, `(?!`): what a beginning
            lacks may still come.

    Raises:
        UserError: the pattern is empty or malformed.
    """

    def __init__(self, pattern: str):
        self.low = pattern.startswith("-")
        try:
            self.pattern = re.compile(pattern[self.low :])
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"reward {f'regex:{pattern}'!r}: not a pattern: {error}; expected a pattern of Python's `re`"
            ) from error
        if not self.pattern.pattern:
            raise UserError(
                f"reward 'regex:{pattern}': the pattern is empty; expected regex:PATTERN or regex:-PATTERN"
            )
        shown = " ".join(pattern.splitlines())  # a line break would break the tables that show the name
        self.name = f"regex:{shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + '…'}"
        self.version = _digest(pattern)
        self.prefixes = not LOOKS_AHEAD.search(self.pattern.pattern)
        self.default_tags = degrees("Pattern Match")[:: 1 if self.low else -1]

    def reward(self, text: str) -> float:
        return float((self.pattern.search(text) is None) == self.low)


def _tokens(text: str) -> tuple[str, ...]:
    """The words and punctuation marks of a text in lower case."""
    return tuple(WORD.findall(text.lower().replace("’", "'")))


def _whole(value: str | int, rule: str, example: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"reward '{rule}:{value}': {str(value)!r} is not a whole number from 1 on; write {example}")
    return number


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
