"""Which words made a score: beside the score, once each, in every kind of file, and summed over the file."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_score import generation, rows_of, write_rows

from nlf.cli.main import main
from nlf.config import ScoreOptions
from nlf.data.generations import read, text_digest
from nlf.errors import UserError
from nlf.evaluation.score import score_command, score_file
from nlf.rewards import Reward

RUDE = {"bad": 2.0, "awful": 1.0004, "nice": -1.5}


class Counting:
    """Counts rude words, and explains it; None for a text without words. It remembers what it was asked."""

    name, version = "counting", 2

    def __init__(self, fail_after=99):
        self.scored, self.explained, self.fail_after = [], [], fail_after

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.scored += completions
        return [-sum(RUDE.get(word, 0) for word in text.split()) if text.split() else None for text in completions]

    def explain(self, text, attribute="rudeness"):
        if len(self.explained) >= self.fail_after:
            raise KeyboardInterrupt
        self.explained.append(text)
        found, end = [], 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            found.append((start, end, RUDE.get(word.lower(), 0.0)))
        return found


def explain(path, scorer, **options):
    return score_file(path, [Reward(scorer)], explain=True, progress=lambda n: None, **options)


def run(path, scorer):
    return score_command(ScoreOptions(path=str(path), reward_funcs=[scorer], explain=True))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_words_stand_beside_the_score_and_are_explained_once(tmp_path, kind):
    path, scorer = write_rows(tmp_path / f"t.{kind}", [{"text": "a bad day"}, {"text": " "}]), Counting()
    for _ in range(2):
        (tally,) = explain(path, scorer)
        first, second = (row["scores"]["counting@2"] for row in rows_of(path))
        assert first == {
            "of": text_digest(["a bad day"]), "reward": -2.0, "attributes": {},
            "words": [[0, 1, 0.0], [2, 5, 2.0], [6, 9, 0.0]],
        }  # fmt: skip
        assert (second["reward"], second["words"]) == (None, [])  # no score, so nothing to explain
    assert scorer.explained == ["a bad day"] and scorer.scored == ["a bad day", " "]
    assert tally.now == 0


def test_completions_have_words_each(tmp_path):
    path = write_rows(tmp_path / "generations.jsonl", [generation(0, ["awful", "", "nice bad"])])
    explain(path, Counting())
    scores = next(read(path))["scores"]["counting@2"]
    assert scores["words"] == [[[0, 5, 1.0]], [], [[0, 4, -1.5], [5, 8, 2.0]]]  # 1.0004 in three decimals


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_old_score_is_completed_without_being_scored_again(tmp_path, kind):
    path, scorer = write_rows(tmp_path / f"t.{kind}", [{"text": "bad"}, {"text": "day"}]), Counting()
    score_file(path, [Reward(scorer)], progress=lambda n: None)
    before = [row["scores"]["counting@2"] for row in rows_of(path)]
    (tally,) = explain(path, scorer)
    assert scorer.scored == scorer.explained == ["bad", "day"] and (tally.texts, tally.now) == (2, 0)
    after = [row["scores"]["counting@2"] for row in rows_of(path)]
    assert after == [
        {**old, "words": words} for old, words in zip(before, [[[0, 3, 2.0]], [[0, 3, 0.0]]], strict=True)
    ]
    score_file(path, [Reward(scorer)], progress=lambda n: None)  # without --explain the words stay
    assert [row["scores"]["counting@2"] for row in rows_of(path)] == after


def test_a_changed_text_is_scored_and_explained_again_and_the_others_are_not(tmp_path):
    path, scorer = write_rows(tmp_path / "t.jsonl", [{"text": "bad"}, {"text": "day"}]), Counting()
    explain(path, scorer)
    rows = rows_of(path)
    rows[1]["text"] = "awful"
    write_rows(path, [*rows, {"text": "new"}])
    (tally,) = explain(path, scorer)
    assert scorer.scored == scorer.explained == ["bad", "day", "awful", "new"] and tally.now == 2


@pytest.mark.parametrize("first", [True, False])  # whether --explain scores too
def test_killed_and_run_again_every_text_is_scored_and_explained_once(tmp_path, first):
    """The trap: a journal that holds scores without words, or words, must neither be lost nor taken for whole."""
    path = write_rows(tmp_path / "t.csv", [{"text": f"bad {i}"} for i in range(6)])
    killed, scorer = Counting(fail_after=4), Counting()
    if not first:
        score_file(path, [Reward(killed)], progress=lambda n: None)
    with pytest.raises(KeyboardInterrupt):
        explain(path, killed, block=2)
    explain(path, scorer, block=2)
    assert scorer.explained == ["bad 4", "bad 5"] and scorer.scored == (scorer.explained if first else [])
    assert [row["scores"]["counting@2"]["words"][0] for row in rows_of(path)] == [[0, 3, 2.0]] * 6


def test_the_command_shows_the_words_that_raise_the_attribute_most(tmp_path):
    rows = [generation(0, ["Bad bad", "nice"]), generation(1, ["awful bad \x1b[31m", ""])]
    said = run(write_rows(tmp_path / "generations.jsonl", rows), Counting())
    table = said.split("\n\n")[1].splitlines()
    assert table[0] == "counting@2: the words that raise rudeness most (shares of the logit)"
    assert [line.split() for line in table[1:]] == [
        ["word", "count", "mean", "share", "sum"],
        ["bad", "3", "2.000", "6.000"],
        ["awful", "1", "1.000", "1.000"],
    ]
    said = run(write_rows(tmp_path / "calm.jsonl", [{"text": "a nice day"}]), Counting())
    assert said.endswith("\n\ncounting@2: no word raises rudeness")


def test_a_word_cannot_steer_the_terminal_and_ten_are_shown(tmp_path, monkeypatch):
    text = " ".join(f"w{i}" for i in range(20)) + " \x1b[31m"
    for i, word in enumerate(text.split()):
        monkeypatch.setitem(RUDE, word, 1.0 + i)
    said = run(write_rows(tmp_path / "t.jsonl", [{"text": text}]), Counting())
    table = said.split("\n\n")[1].splitlines()
    assert len(table) == 12 and table[2].split()[0] == "\N{REPLACEMENT CHARACTER}[31m" and "\x1b" not in said


def test_a_reward_that_cannot_explain_is_one_line_before_anything_is_scored(tmp_path, capsys):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
    assert main(["score", str(path), "--explain", "--reward_funcs", "length"]) == 2
    said = capsys.readouterr().err
    assert "explain: reward 'length" in said and "leave out --explain" in said and "Traceback" not in said
    scorer = Counting()
    with pytest.raises(UserError, match="'short' cannot say which words made its scores"):
        score_file(path, [Reward(scorer), Reward(lambda completions, **k: [1.0], "short")], explain=True)
    assert scorer.scored == [] and "scores" not in path.read_text()


@pytest.mark.parametrize(
    "words", [None, 3, "abc", [[0, 9, 1.0]], [[0, 0, 1.0]], [[0, 1]], [[0, 1, "x"]], [[0.5, 1, 1.0]]]
)
def test_words_of_a_file_that_are_no_words_of_its_text_are_one_line(tmp_path, words):
    scores = {"of": text_digest(["abc"]), "reward": 1.0, "attributes": {}, "words": words}
    path = write_rows(tmp_path / "t.jsonl", [{"text": "abc", "scores": {"counting@2": scores}}])
    with pytest.raises(UserError, match=r"t\.jsonl, row 1: the 'words' of counting@2 are no words of its text"):
        run(path, Counting())


@pytest.mark.parametrize("words", [None, [], [[]], [[[0, 1, 1.0]], None]])
def test_words_of_other_completions_are_one_line(tmp_path, words):
    scores = {"of": text_digest(["a", ""]), "reward": [1.0, None], "attributes": {}, "words": words}
    row = {**generation(0, ["a", ""]), "scores": {"counting@2": scores}}
    with pytest.raises(UserError, match="row 1: the 'words' of counting@2 are no words of its text"):
        run(write_rows(tmp_path / "generations.jsonl", [row]), Counting())


def test_a_flat_file_with_broken_words_is_one_line(tmp_path):
    path = write_rows(tmp_path / "t.csv", [{"text": "abc"}])
    explain(path, Counting())
    path.write_text(path.read_text().replace("[[", "[("))
    with pytest.raises(UserError, match="column 'scores/counting@2/words' holds .* expected a list in JSON"):
        explain(path, Counting())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), min_size=1, max_size=4
    ),
    kind=st.sampled_from(["jsonl", "csv", "parquet"]),
)
def test_words_lie_inside_any_text_of_any_file(tmp_path, texts, kind):
    path, scorer = write_rows(tmp_path / f"t.{kind}", [{"text": text} for text in texts]), Counting()
    explain(path, scorer)
    for row in rows_of(path):
        words = row["scores"]["counting@2"]["words"]
        assert [row["text"][start:end] for start, end, _ in words] == row["text"].split()
    json.dumps(rows_of(path), allow_nan=False)
