"""Rules as rewards: values computed by hand, versions, and speed."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.rewards import Reward, score
from nlf.rewards.registry import resolve_reward
from nlf.rewards.rules import Keywords, Length, Regex, Repetition


@pytest.fixture
def words(tmp_path):
    """A list like those in use: a blank line, capitals, a phrase, punctuation, an apostrophe."""
    path = tmp_path / "words.txt"
    path.write_text("Damn\n\n shut up \nf*ck\n🖕\nain't\n", encoding="utf-8")
    return path


def test_length_is_the_number_of_words():
    assert Length()(completions=["one two  three\n four", "", " one "]) == [4, 0, 1]
    assert resolve_reward("length").label == "length@1"


def test_length_with_a_number_is_the_ratio_of_the_two():
    texts = ["w " * n for n in (0, 5, 10, 20, 21, 40)]
    assert Length("20")(completions=texts) == [0, 0.25, 0.5, 1, 20 / 21, 0.5]
    assert Length(20).name == "length:20"


def test_repetition_is_the_share_of_runs_that_occur_earlier():
    texts = ["a b c a b c", "A b c a B c", "a a a a a", "a b c d", "a b", ""]
    assert Repetition()(completions=texts) == [3 / 4, 3 / 4, 1 / 3, 1, 1, 1]  # abc bca cab abc; aaa three times
    assert Repetition().attributes(texts)["repetition"] == pytest.approx([1 / 4, 1 / 4, 2 / 3, 0, 0, 0])
    assert Repetition("1")(completions=["a b a b"]) == [1 / 2]
    assert (Repetition("3").name, Repetition("2").name) == ("repetition", "repetition:2")


def test_repetition_is_trls_share_where_every_word_is_a_token():
    trl = pytest.importorskip("trl.rewards")
    texts = ["a b c a b c", "a a a a a", "a b c d", "a b"]
    theirs = trl.get_repetition_penalty_reward(ngram_size=3)(completion_ids=[text.split() for text in texts])
    assert Repetition()(completions=texts) == pytest.approx([1 + each for each in theirs])


def test_keywords_are_whole_words_in_any_case(words):
    scorer = Keywords(words)
    texts = ["damn it", "DAMN!", "damnation", "Shut  up, please", "shut it up", "what the f*ck", "fck", "🖕 you", ""]
    # of 2 tokens 1; of "damn !" 1; none; of "shut up , please" 2; none; of "what the f * ck" 3; none; 1 of 2; none
    assert scorer(completions=texts) == [1 / 2, 1 / 2, 1, 1 / 2, 1, 2 / 5, 1, 1 / 2, 1]
    assert scorer(completions=["That ain’t so"]) == [pytest.approx(2 / 3)]  # a typographic apostrophe


def test_overlapping_keywords_count_once(tmp_path):
    (tmp_path / "w").write_text("a b\nb c\nb\n")
    assert Keywords(tmp_path / "w")(completions=["a b c d"]) == [1 / 4]


def test_the_version_of_keywords_is_that_of_their_entries(words, tmp_path):
    scorer = Keywords(words)
    (tmp_path / "other.txt").write_bytes("\ufeffain't\r\n🖕\r\nF*CK\r\nshut up\r\ndamn\r\n".encode())
    same = Keywords(tmp_path / "other.txt")
    assert (scorer.name, same.name) == ("keywords:words.txt", "keywords:other.txt")
    assert scorer.version == same.version and len(scorer.version) == 12
    words.write_text("damn")
    assert Keywords(words).version != scorer.version


def test_regex_is_one_where_it_is_found_and_with_a_minus_where_not():
    texts = ["see https://a.b", "no link", "HTTPS://A.B", ""]
    assert Regex("https?://")(completions=texts) == [1, 0, 0, 0]
    assert Regex("-https?://")(completions=texts) == [0, 1, 1, 1]
    assert Regex("(?i)https?://")(completions=texts) == [1, 0, 1, 0]
    assert Regex("[-]{2}")(completions=["a--b", "a-b"]) == [1, 0]
    assert Regex("a:b")(completions=["a:b"]) == [1]


def test_the_name_and_version_of_a_pattern():
    assert Regex("-a+").name == "regex:-a+" and Regex(r"\bx\b").name == r"regex:\bx\b"
    long, other = Regex("x" * 60), Regex("x" * 61)
    assert long.name == other.name == f"regex:{'x' * 39}…" and long.version != other.version
    assert Regex("a\nb").name == "regex:a b" and Regex("a\nb")(completions=["a\nb"]) == [1]


def test_rules_are_named_weighted_and_added(words):
    specs = ["length:2", "repetition", f"keywords:{words}", "regex:-!"]
    rewards = [resolve_reward(spec) for spec in specs]
    found = score(rewards, [1, 2, 3, 0.5], [""] * 2, ["damn it", "a a a a!"], [[]] * 2, {})
    assert found.per_function["length:2"].tolist() == [1, 0.5]
    assert found.per_function["repetition"].tolist() == [1, 1]  # "a a a" and "a a a!" are two
    assert found.per_function["keywords:words.txt"].tolist() == [0.5, 1]
    assert found.reward.tolist() == [1 + 2 + 1.5 + 0.5, 0.5 + 2 + 3]
    assert found.attributes.keys() == {"repetition"}
    assert found.scorer == ",".join(f"{each.name}@{each.version}" for each in rewards)
    assert not any(each.remote or each.is_async for each in rewards)


def test_conversations_are_read_by_their_last_message(words):
    completions = [[{"role": "user", "content": "damn damn damn"}, {"role": "assistant", "content": "fine so"}]]
    for rule in (Length("2"), Repetition(), Keywords(words), Regex("fine")):
        assert Reward(rule)([[]], completions, [[]], topic=["x"]) == [1]


@given(st.text(max_size=60))
def test_every_text_has_a_reward_between_zero_and_one(text):
    for rule in (Length("5"), Repetition("2"), Regex("-x")):
        assert 0 <= rule.reward(text) <= 1


WRONG = {
    "length:twenty": "reward 'length:twenty': 'twenty' is not a whole number from 1 on; write length:20",
    "length:0": "not a whole number from 1 on",
    "length:2.5": "not a whole number from 1 on",
    "keywords:absent.txt": "reward 'keywords:absent.txt': cannot read it: No such file or directory; expected a text file",
    "keywords:.": "cannot read it: Is a directory",
    "keywords:empty.txt": "reward 'keywords:empty.txt': the list is empty; expected one word a line",
    "keywords:latin.txt": "cannot read it: it is not UTF-8",
    "regex:(a": "reward 'regex:(a': not a pattern: missing ), unterminated subpattern at position 0; expected a pattern",
    "regex:(a\n": "not a pattern: missing )",
    "regex:a{99999999999}": "not a pattern: the repetition number is too large",
    "regex:": "reward 'regex:': the pattern is empty; expected regex:PATTERN or regex:-PATTERN",
    "regex:-": "the pattern is empty",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_is_said_in_a_line(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9\n")
    with pytest.raises(UserError) as caught:
        resolve_reward(spec)
    assert WRONG[spec] in str(caught.value) and "\n" not in str(caught.value)


def test_a_corpus_takes_seconds(tmp_path):
    """20,000 texts of 20 words against 2,000 entries; the limit is ten times what a slow machine needs."""
    draw = np.random.default_rng(0)
    known = [f"word{i}" for i in range(5_000)]
    texts = [" ".join(known[i] for i in row) for row in draw.integers(5_000, size=(20_000, 20))]
    (tmp_path / "list.txt").write_text("\n".join([*known[:1_000], *(f"{a} {a}" for a in known[1_000:2_000])]))
    for rule in (Length("20"), Repetition(), Keywords(tmp_path / "list.txt"), Regex("word1 word2")):
        begin = time.process_time()
        rewards = rule(completions=texts)
        assert time.process_time() - begin < 10 and len(rewards) == 20_000
