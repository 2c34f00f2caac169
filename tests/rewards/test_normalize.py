"""Normalised words: each spelling trick, what must stay as it is, places, prefixes, and time on odd texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.rewards.normalize import MAX_CHARACTERS, Vocabulary, Word, prefix_words, words

USUAL = "the you are is a i this good so no not what bad some fuck shit idiot stupid ass can't usa cat huge".split()
VOCABULARY = Vocabulary.of(USUAL, "fuck shit idiot stupid bitch ass asshole".split())


def read(text: str) -> list[str]:
    return [word.text for word in words(text, VOCABULARY)]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1d10t",
            "i d i o t",
            "i-d-i-o-t",
            "i.d.i.o.t",
            "i_d_i_o_t",
            "id_ot",
            "*diot",
            "id*ot",
            "id#ot",
            "iiidiooot",
        ),
        *(
            "\u0456d\u0456\u043et",
            "ｉｄｉｏｔ",
            "i\u200bd\u200biot",
            "id\u00adiot",
            "i\u0335d\u0335iot",
            "ïdiöt",
            "𝓲𝓭𝓲𝓸𝓽",
            "ⓘⓓⓘⓞⓣ",
        ),
        *("🇮🇩🇮🇴🇹", "🅸🅳🅸🅾🆃", "ʇoıpı", "ɪᴅɪᴏᴛ", "id💩ot", "i  d  i  o  t", "id-iot", "!d!ot"),
    ],
)
def test_a_trick_is_undone(text):
    assert [word.lower() for word in read(text)] == ["idiot"]


def test_words_that_only_look_like_tricks_stay():
    text = "3rd 4chan mp3 h2o covid19 1st @you no.one he/she *not* you! 10am"
    assert read(text) == [
        *("3rd", "4chan", "mp3", "h2o", "covid19", "1st", "@", "you", "no", ".", "one", "he", "/", "she"),
        *("*", "not", "*", "you", "!", "10am"),
    ]


@pytest.mark.parametrize("text", ["Я не знаю что это такое", "το σπιτι ειναι ομορφο", "هذا بيت جميل", "这是一个苹果"])
def test_other_scripts_stay(text):
    assert read(text) == text.split()


def test_places_are_those_of_the_original_text():
    text = "you \u200b i d\u0301 i o t! ﬁne"
    found = words(text, VOCABULARY)
    assert found == [Word("you", 0, 3), Word("idiot", 6, 16), Word("!", 16, 17), Word("fine", 18, 21)]


def test_case_is_kept():
    assert read("F*CK Sh!t fuuuck @$$") == ["FUCK", "Shit", "fuck", "ass"]


def test_one_mark_may_hide_several_letters_of_a_rude_word():
    assert read("f*k f* sh* c*t") == ["fuck", "fuck", "shit", "c", "*", "t"]


NASTY = st.text(
    st.sampled_from("abfuckidot *.-_@$!105'  \n\u200b\u0301ыаеоя😀👍🏽🇫🇺🇨🇰ﬁ½ß\u00ad\ud800\x00é"), max_size=60
)
USUAL_TEXT = st.lists(st.sampled_from([*USUAL, "f*ck", "i d i o t", "s_h_i_t", "1d10t", "год", "!", "…", "x"])).map(
    " ".join
)


@settings(max_examples=100)
@given(NASTY | USUAL_TEXT | st.text(max_size=30))
def test_prefixes_equal_the_words_of_each_prefix(text):
    ends = range(len(text) + 1)
    whole = words(text, VOCABULARY)
    found, prefixes = prefix_words(text, ends, VOCABULARY)
    assert found == whole
    for end, (n, tail) in zip(ends, prefixes, strict=True):
        assert whole[:n] + tail == words(text[:end], VOCABULARY)
    assert all(0 <= word.start < word.end <= len(text) for word in whole)


@pytest.mark.parametrize(
    "piece", ["#", "a", "a ", "*", "_", "a\u0301", "\u0301", "f*k ", "f.", "a'", "1a", "👍", "\ufdfa", "м"]
)
def test_an_endless_text_is_read_in_linear_time(piece):
    """A quadratic rule takes minutes here."""
    text = piece * MAX_CHARACTERS
    assert words(text, VOCABULARY) == words(text[:MAX_CHARACTERS], VOCABULARY)
