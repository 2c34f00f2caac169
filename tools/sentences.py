"""Read sentence files: templates with slots, in kinds. The embedded toxicity scorer learns from one and is tested on another.

    slots:
      group: [women, Muslims, old people]
    kinds:
      - name: groups-neutral
        hateful: false
        targets: {toxicity: .06}          # files to train on only: Perspective's scale, 0 to 1
        templates:
          - "{Group} and {group2} share a library."

`{group}` is filled with a word of the slot `group`, and a second `{group}` with the same word. `{group2}` is another word of
that slot. `{Group}` is the word with a capital first letter, for the beginning of a sentence. An article before a slot agrees
with the word: `a {group}` becomes "an Italian" and "a Pole".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlf.data.yaml_files import read_mapping
from nlf.errors import UserError, did_you_mean, shown

ATTRIBUTES = ("toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit")
PLACE = re.compile(r"\{(\w*)\}")
ARTICLE_AND_PLACE = re.compile(r"(?:\b([Aa])n? )?" + PLACE.pattern)
TAKES_AN = re.compile(
    "[aio]|e(?!u)|u(?!s)|hon|hour", re.IGNORECASE
)  # by the first letters; "useless" and "European" take a
Slots = Mapping[str, Sequence[str]]


class Kind(NamedTuple):
    """Sentences that a scorer must treat alike, as templates; `targets` is empty in a file to test on."""

    name: str
    hateful: bool
    templates: tuple[str, ...]
    targets: Mapping[str, float]


class Sentences(NamedTuple):
    """The words of every slot, and the kinds in the order of the file."""

    slots: Slots
    kinds: tuple[Kind, ...]


def read_sentences(path: Path) -> Sentences:
    """Read and check a sentence file.

    Raises:
        UserError: the file is no YAML, or a name, slot, template or target in it is wrong.
    """
    found = read_mapping(path, "sentence file ")
    where = f"sentence file {path}"
    _check_names(found, {"slots", "kinds"}, {"slots", "kinds"}, where)
    if not isinstance(found["slots"], dict):
        raise UserError(
            f"{where}: slots is {shown(found['slots'])}; a list of words for each slot's name was expected"
        )
    slots = {name: _words(words, f"{where}: the slot {name!r}") for name, words in found["slots"].items()}
    for name in slots:
        if not re.fullmatch(r"[a-z_]+", name):
            raise UserError(f"{where}: the slot name {name!r} may have only lower-case letters and _")
    if not isinstance(found["kinds"], list) or not found["kinds"]:
        raise UserError(f"{where}: kinds is {shown(found['kinds'])}; a list of kinds was expected")
    kinds = tuple(_kind(given, slots, f"{where}: kind {i}") for i, given in enumerate(found["kinds"], start=1))
    _check_distinct([kind.name for kind in kinds], f"{where}: the kind")
    _check_distinct([template for kind in kinds for template in kind.templates], f"{where}: the template")
    return Sentences(slots, kinds)


def filled(kind: Kind, slots: Slots, rng: np.random.Generator, count: int) -> list[str]:
    """Draw `count` distinct sentences of a kind; fewer if the kind has fewer.

    The templates take turns in random order, so a template with few fillings is as frequent as one with many while its
    fillings last.
    """
    order = rng.permutation(len(kind.templates))
    waiting = [_fillings(kind.templates[i], slots, rng) for i in order]
    sentences: dict[str, None] = {}
    while waiting and len(sentences) < count:
        turn = waiting.pop(0)
        new = next((text for text in turn if text not in sentences), None)
        if new is not None:
            sentences[new] = None
            waiting.append(turn)
    return list(sentences)


def fillings(template: str, slots: Slots) -> int:
    """The number of ways to fill a template."""
    return math.prod(_choices(_places(template, slots), slots))


def _fillings(template: str, slots: Slots, rng: np.random.Generator) -> Iterator[str]:
    """Yield every filling of a template once, in random order."""
    places = _places(template, slots)
    choices = _choices(places, slots)
    for number in _shuffled(math.prod(choices), rng):
        words: dict[str, str] = {}
        for (place, slot), size in zip(places.items(), choices, strict=True):
            number, index = divmod(number, size)
            taken = {words[other] for other in words if places[other] == slot}
            words[place] = [word for word in slots[slot] if word not in taken][index]
        yield ARTICLE_AND_PLACE.sub(lambda match, words=words: _written(match[1], match[2], words), template)


def _written(article: str | None, place: str, words: Mapping[str, str]) -> str:
    word = words[place.lower()]
    if place[:1].isupper():
        word = word[:1].upper() + word[1:]
    return f"{article}{'n' * bool(TAKES_AN.match(word))} {word}" if article else word


def _shuffled(size: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield 0 … size-1 in random order, in memory that grows only with the numbers taken (Fisher and Yates, sparse)."""
    moved: dict[int, int] = {}
    for i in range(size):
        j = i + int.from_bytes(rng.bytes(32), "little") % (size - i)  # size may be over 64 bits
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)


def _places(template: str, slots: Slots) -> dict[str, str]:
    """The places of a template in their order, each with its slot: group2 → group."""
    names = dict.fromkeys(name.lower() for name in PLACE.findall(template))
    return {name: name if name in slots else name.rstrip("0123456789") for name in names}


def _choices(places: Mapping[str, str], slots: Slots) -> list[int]:
    """The number of words that remain for each place: another place of the same slot takes one."""
    taken: dict[str, int] = {}
    choices = []
    for slot in places.values():
        choices.append(max(len(slots[slot]) - taken.get(slot, 0), 0))
        taken[slot] = taken.get(slot, 0) + 1
    return choices


def _kind(given: Any, slots: Slots, where: str) -> Kind:
    if not isinstance(given, dict):
        raise UserError(f"{where} is {shown(given)}; name, hateful and templates were expected")
    name = given.get("name")
    if isinstance(name, str) and name:
        where = f"{where} ({name})"
    _check_names(given, {"name", "hateful", "templates"}, {"name", "hateful", "templates", "targets"}, where)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: name is {shown(name)}; a text was expected")
    if not isinstance(given["hateful"], bool):
        raise UserError(f"{where}: hateful is {shown(given['hateful'])}; true or false was expected")
    templates = _words(given["templates"], f"{where}: templates")
    for template in templates:
        _check_template(template, slots, where)
    return Kind(name, given["hateful"], templates, _targets(given.get("targets", {}), where))


def _targets(given: Any, where: str) -> dict[str, float]:
    if not isinstance(given, dict):
        raise UserError(f"{where}: targets is {shown(given)}; attributes with a number from 0 to 1 were expected")
    _check_names(given, set(), set(ATTRIBUTES), f"{where}: targets")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{where}: the target {name} is {shown(value)}; a number from 0 to 1 was expected")
    return {name: float(value) for name, value in given.items()}


def _check_template(template: str, slots: Slots, where: str) -> None:
    places = _places(template, slots)
    for place, slot in places.items():
        if slot not in slots:
            hint = did_you_mean(slot, slots) or f" the slots are {', '.join(slots) or 'none'}"
            raise UserError(f"{where}: the template {template!r} has the unknown slot {place!r};{hint}")
    if re.search(r"[{}]", PLACE.sub("", template)):
        raise UserError(f"{where}: the template {template!r} has a brace without a slot; write {{slot}}")
    if 0 in _choices(places, slots):
        raise UserError(f"{where}: the template {template!r} needs more words of one slot than the slot has")


def _words(given: Any, where: str) -> tuple[str, ...]:
    """A list of distinct texts that is not empty."""
    if not isinstance(given, list) or not given:
        raise UserError(f"{where}: {shown(given)} was given; a list of at least one text was expected")
    for word in given:
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"{where}: {shown(word)} is not a text; put numbers and words such as true in quotes")
    _check_distinct(given, f"{where}:")
    return tuple(given)


def _check_names(given: Mapping[str, Any], needed: set[str], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f" known are {', '.join(sorted(known))}"
            raise UserError(f"{where}: unknown name {name!r};{hint}")
    if missing := sorted(needed - set(given)):
        raise UserError(f"{where}: {', '.join(missing)} must be given")


def _check_distinct(names: Sequence[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise UserError(f"{what} {name!r} is given twice")
        seen.add(name)
