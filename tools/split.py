"""The split by document that scorers, embedded language model and prompts share: 10 % test, 5 % validation, 85 % train.

A hash of the document's name gives its split. So all tools agree without a stored list, and new data needs no work.
"""

from __future__ import annotations

import hashlib


def split_of(document: str) -> str:
    """The split of a document (train, validation or test); its name is its group, its id, or else `text_document`."""
    bucket = int(hashlib.sha256(("nlf:" + document).encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < 10 else "validation" if bucket < 15 else "train"


def text_document(text: str) -> str:
    """The document name of a text without an id: the sha256 of its lower-cased words."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
