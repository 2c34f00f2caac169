"""The split by document never changes, because the shipped assets were trained on one side of it."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from split import split_of, text_document


def test_split_is_the_published_hash():
    # sha256("nlf:" + name), first 8 hex digits modulo 100, worked out with sha256sum
    assert [split_of(name) for name in ("a", "b", "lexicon", "")] == ["test", "train", "train", "train"]


def test_shares_are_ten_five_eighty_five():
    counts = Counter(split_of(f"document-{i}") for i in range(20_000))
    assert abs(counts["test"] / 20_000 - 0.10) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.05) < 0.01


def test_a_text_is_its_words():
    assert text_document("Same  words\n") == text_document("same words") != text_document("other words")
