"""Rules as rewards: length, repetition, a list of words, a pattern. Local, fast, and made to be added to another reward.

| name | reward of a completion |
| --- | --- |
| `length` | how many words it has |
| `length:20` | how near it is to 20 words: the smaller number by the larger one, in [0, 1] |
| `repetition` | the share of its runs of 3 words that are not a repeat of an earlier one; `repetition:2` for pairs |
| `keywords:FILE` | the share of its words and marks that belong to no entry of the list, one entry a line |
| `regex:PATTERN` | 1 where the pattern is found, else 0; `regex:-PATTERN` the other way round |

Only the completion is read. In Python they are the classes below, made of the same text: `Length("20")`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlf.errors import UserError
from nlf.rewards.audit import WORD

SHOWN = 40  # characters of a pattern that are part of its name


class Rule:
    """What the rules share: a subclass gives `reward` of one text, a name and a version of what it depends on."""

    name: str
    version: int | str = 1
    remote = False

    def reward(self, text: str) -> float:
        raise NotImplementedError

    def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[float]:
        """TRL's reward signature; conversational completions are scored by their last message."""
        return [self.reward(c if isinstance(c, str) else c[-1]["content"]) for c in completions]


class Length(Rule):
    """The number of words between white space; with a number, n/m of the two numbers of words with n the smaller.

    The ratio is 1 at the number asked for and falls on both sides without end, so that no two lengths on one side tie:
    half and double are .5, a text without words is 0.

    Args:
        words: How many there should be, 1 or more, as text or a number. None = the more the better.

    Raises:
        UserError: it is no such number.
    """

    def __init__(self, words: str | int | None = None):
        self.words = None if words is None else _whole(words, "length", "length:20")
        self.name = "length" if self.words is None else f"length:{self.words}"

    def reward(self, text: str) -> float:
        found = len(text.split())
        return float(found) if self.words is None else min(found, self.words) / max(found, self.words)


class Repetition(Rule):
    """1 − the attribute `repetition`, the share of runs of words that occur earlier in the text (case is not read).

    A text of fewer words than a run has none that repeats: reward 1. TRL's `get_repetition_penalty_reward` is the same
    share of token ids, negated.

    Args:
        size: Words in a run, 1 or more, as text or a number.

    Raises:
        UserError: it is no such number.
    """

    def __init__(self, size: str | int = 3):
        self.size = _whole(size, "repetition", "repetition:3")
        self.name = "repetition" if self.size == 3 else f"repetition:{self.size}"

    def reward(self, text: str) -> float:
        words = text.lower().split()
        runs = [*zip(*(words[i:] for i in range(self.size)), strict=False)]
        return len(set(runs)) / len(runs) if runs else 1.0

    def attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """`repetition` (len(texts),): the share of runs that are repeats."""
        return {"repetition": np.array([1 - self.reward(text) for text in texts], dtype=float)}


class Keywords(Rule):
    """The share of words and marks that belong to no listed entry: 1 where none is found, less for each one.

    An entry is one or several words; it is found as whole words in any case, `ass` not in `class`, and marks count
    (`f*ck`, an emoji). `version` is a digest of the entries, so their order and blank lines do not matter.

    Args:
        file: A text file in UTF-8, one entry a line.

    Raises:
        UserError: it cannot be read or has no entries.
    """

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
    """1 where a pattern of Python's `re` is found anywhere in the text, else 0; with a minus before it, the other way.

    Args:
        pattern: `PATTERN` or `-PATTERN`; one that begins with a minus itself is written `[-]…`. `(?i)` ignores case.

    Raises:
        UserError: it is empty, or no pattern.
    """

    def __init__(self, pattern: str):
        self.low = pattern.startswith("-")
        try:
            self.pattern = re.compile(pattern[self.low :])
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"reward {f'regex:{pattern}'!r}: no pattern: {error}; expected one of Python's `re`"
            ) from error
        if not self.pattern.pattern:
            raise UserError(
                f"reward 'regex:{pattern}': the pattern is empty; expected regex:PATTERN or regex:-PATTERN"
            )
        shown = " ".join(pattern.splitlines())  # a line break would break the tables it is named in
        self.name = f"regex:{shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + '…'}"
        self.version = _digest(pattern)

    def reward(self, text: str) -> float:
        return float((self.pattern.search(text) is None) == self.low)


def _tokens(text: str) -> tuple[str, ...]:
    """Lower-cased words and single marks."""
    return tuple(WORD.findall(text.lower().replace("’", "'")))


def _whole(value: str | int, rule: str, example: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"reward '{rule}:{value}': {str(value)!r} is no whole number from 1 on; write {example}")
    return number


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
