"""Read a judge's answer in JSON or plain text: its category, or its feedback and score.

An answer without a category (or score), or with two different ones, is unreadable; nothing is guessed. (The published
code keeps any text of a categorical judge as feedback, and any number as a score.)
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|cannot|hardly|without|less|far from)\b|n['’]t\b", re.I)
DRESS = r"(?:[^\w\n]|_){0,9}"  # quotes, asterisks and other marks around a word
LABEL = re.compile(rf"^{DRESS}(analysis|feedback|score){DRESS}:", re.I | re.M)
SCORE = re.compile(r"[^\w-]{0,9}(\d{1,9})(?:\.0+)?(?:\s*(?:/|out of|of)\s*(\d{1,9}))?(?!\d)\D*")


def category_of(text: str, categories: Sequence[str]) -> int | None:
    """The index of the category that an answer names: in JSON, alone on a line, or within a sentence, in any case.

    Returns:
        None if the answer names no category or two, or names one within a sentence that has a negation.
    """
    said = [str(each["category"]) for each in _objects(text) if "category" in each]
    found = {_named(each, categories) for each in said or [text]}
    return found.pop() if len(found) == 1 else None


def _named(text: str, categories: Sequence[str]) -> int | None:
    longest_first = sorted(categories, key=len, reverse=True)  # "very good" before "good"
    names = "|".join(r"\s+".join(map(re.escape, category.split())) for category in longest_first)
    anywhere = re.compile(rf"(?<![^\W_])(?<!-)(?:{names})(?![^\W_]|-)", re.I)
    alone = re.compile(rf"^{DRESS}(?:\w+{DRESS}:)?{DRESS}(?:\d+[^\w\n]+)?(?:{names}){DRESS}$", re.I | re.M)
    found = {folded(name) for name in anywhere.findall(text)}
    if len(found) != 1 or (not alone.search(text) and NEGATION.search(anywhere.sub("", text))):
        return None
    return list(map(folded, categories)).index(found.pop())


def sentence_of(text: str, max_score: int) -> tuple[str, int] | None:
    """The (feedback, score) of an answer in JSON, or in lines `Feedback: …` and `Score: …`.

    Returns:
        None if feedback or score is missing, or the answer gives two different values.
    """
    said = [each for each in _objects(text) if "feedback" in each and "score" in each] or _labelled(text)
    found = {(plain_sentence(each["feedback"]), whole_score(each["score"], max_score)) for each in said}
    feedback, score = found.pop() if len(found) == 1 else ("", None)
    return (feedback, score) if feedback and score is not None else None


def _labelled(text: str) -> list[Mapping[str, object]]:
    """The texts after the labels `Feedback:` and `Score:`; empty unless each label occurs once."""
    _, *parts = LABEL.split(text)
    labels = [label.lower() for label in parts[::2]]
    if labels.count("feedback") != 1 or labels.count("score") != 1:
        return []
    said = dict(zip(labels, parts[1::2], strict=True))
    return [{**said, "score": said["score"].strip().partition("\n")[0]}]


def _objects(text: str) -> Iterator[Mapping[str, object]]:
    """The JSON objects in a text, their keys in lower case."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
            yield {key.lower(): value for key, value in found.items()}
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def plain_sentence(value: object) -> str:
    """A sentence on one line, without quotes or emphasis around it; "" if the value is not text."""
    return " ".join(value.split()).strip(" *_\"'“”") if isinstance(value, str) else ""


def whole_score(value: object, max_score: int) -> int | None:
    """A whole number from 0 to `max_score`, also from "2.0", "2/3" or "2 out of 3 points"; else None."""
    found = None if isinstance(value, bool) else SCORE.fullmatch(str(value))
    if not found or int(found[1]) > max_score or (found[2] and int(found[2]) != max_score):
        return None
    return int(found[1])


def folded(text: str) -> str:
    """A text in which case and white space make no difference."""
    return " ".join(text.split()).casefold()
