"""One split by document for everything that is trained here: the scorer, the embedded language model, the prompts.

A hash of the document's name decides, so no list of members is stored, tools that never meet agree, and new data
falls into place. 10 % test, 5 % validation, 85 % train.
"""

from __future__ import annotations

import hashlib


def split_of(document: str) -> str:
    """The split (train, validation or test) of a document: its group or id, or `text_document` where it has neither."""
    bucket = int(hashlib.sha256(("nlf:" + document).encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < 10 else "validation" if bucket < 15 else "train"


def text_document(text: str) -> str:
    """The document's name for a text that has no id: the sha256 of its lower-cased words."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
