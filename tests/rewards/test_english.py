"""What can be scored: English with its slang, names and typos; neither other languages nor texts without words."""

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest
from foreign_sentences import SENTENCES, sentences
from hypothesis import given
from hypothesis import strategies as st

from nlf.rewards.english import EVIDENCE, FOREIGN, KINDS, KNOWN, MARK, NAME, RUDE, SCRIPT, UNLIKELY, kind, readable
from nlf.rewards.normalize import words
from nlf.rewards.vocabulary import Vocabulary

USUAL = """the of and to you he she it that this is was are be not no in on at for with as your my me we they what who
good bad man woman dog house car sea park money night cold day read book friend like love hate think want go see eat
lol ur dumb af gimme got nobody time hello thank people pull up boys dat ok yeah dude""".split()
TINY = Vocabulary.of(USUAL, ["fuck", "idiot", "ass", "fuckwit"])


def can_be_scored(texts: list[str], vocabulary: Vocabulary = TINY) -> np.ndarray:
    counts = np.zeros((len(texts), KINDS), dtype=int)
    for i, text in enumerate(texts):
        for word in words(text, vocabulary):
            counts[i, kind(word.text, vocabulary)] += 1
    return readable(counts)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("dog", KNOWN), ("Dog's", KNOWN), ("FUCK", RUDE), ("el", FOREIGN), ("nicht", FOREIGN), ("собака", SCRIPT)),
        *(("犬", SCRIPT), ("Roxbury", NAME), ("NATO", NAME), ("qwlkej", UNLIKELY), ("zxmc", UNLIKELY)),
        *(("!", MARK), ("42", MARK), ("😀", MARK), ("m8", MARK), ("'", MARK)),
    ],
)
def test_kinds(word, expected):
    assert kind(word, TINY) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("Fuckwit", "lol ur dumb af", "gimme that", "ok", "No", "bruh", "Trumptards", "Obama", "you 😀", "WTF!!!"),
        *(
            "He finna pull up on dem boys",
            "Nobody got time for dat",
            "@jo_smith you idiot #sorrynotsorry",
            "f.u.c.k u",
        ),
        *("Xi Jinping likes my dog", "Angeles", "thank you ありがとう", "I think the house is 漂亮"),
    ],
)
def test_english_with_slang_names_and_typos_is_scored(text):
    assert can_be_scored([text]).all()


@pytest.mark.parametrize(
    "text", ["", " ", "!!!", "12 34", "😀😀", "\u200b", "asdkj qwlkej zxmc", "\ud800", "--", "5 * 3"]
)
def test_what_is_no_text_is_refused(text):
    assert not can_be_scored([text]).any()


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_of_another_language_are_refused(language):
    found = sentences(language)
    assert len(found) >= 10
    assert can_be_scored(found).mean() <= 0.2


def test_english_counts_in_a_mixed_text_by_its_share():
    assert can_be_scored(["I like my friend and the dog but el perro no me gusta"]).all()
    assert not can_be_scored(["ok, el perro de mi hermana no me gusta nada"]).any()


@given(st.lists(st.lists(st.integers(0, 50), min_size=KINDS, max_size=KINDS), min_size=1, max_size=5))
def test_a_row_counts_by_itself_and_marks_say_nothing(rows):
    counts = np.array(rows)
    found = readable(counts)
    assert found.shape == (len(rows),)
    assert [bool(readable(row[None])[0]) for row in counts] == found.tolist()
    counts[:, MARK] = 0
    assert (readable(counts) == found).all()
    assert EVIDENCE.shape == (KINDS,)


@pytest.fixture(scope="module")
def usual(data_dir):
    """A vocabulary counted from one corpus, within a second."""
    counts: Counter[str] = Counter()
    with gzip.open(data_dir / "labelled-toxic-spans/comments_16k.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            counts.update(set(re.findall("[a-z']{2,}", json.loads(line)["text"].lower())))
    return Vocabulary.of([word for word, n in counts.most_common() if n > 2], ["fuck", "idiot", "stupid", "shit"])


def test_next_to_no_recorded_english_is_refused(usual, data_dir):
    with gzip.open(data_dir / "rtp-scored/train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:2_000]
    found = can_be_scored([row[part]["text"] for row in rows for part in ("prompt", "continuation")], usual)
    assert found.mean() >= 0.995


def test_next_to_all_foreign_sentences_are_refused(usual):
    found = can_be_scored([line for language in SENTENCES for line in sentences(language)], usual)
    assert found.mean() <= 0.03
