"""`nlf score FILE --as perspective`: an answer for each text, in a file of its own, whatever was killed between."""

import json

import pytest
from running import Letters
from runs import locked_by_another

from nlf.cli.main import main
from nlf.data.generations import files_of
from nlf.errors import UserError
from nlf.evaluation.score_files import form_of
from nlf.rewards import Reward
from nlf.serving.answers import answers_to, write_answers
from nlf.serving.protocol import error_type
from nlf.serving.scoring import AttributeScorer

TEXTS = ["tent", "", "bonjour", "x" * 20_481, "the"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "answers": 3}) + "\n" for text in TEXTS))
    return path


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, letters, block=64):
    target = path.with_name("out.jsonl")
    return target, write_answers(path, target, form_of(path), AttributeScorer(Reward(letters)), block)


def test_each_text_gets_the_answer_of_the_server_or_googles_error(texts):
    before = texts.read_text()
    target, counts = write(texts, Letters())
    found = lines_of(target)
    kinds = ["", "COMMENT_EMPTY", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "COMMENT_TOO_LONG", ""]
    assert [error_type(each) for each in found] == kinds
    assert [each.get("clientToken") for each in found] == ["1", None, None, None, "5"]
    assert found[0]["attributeScores"]["TOXICITY"]["summaryScore"] == {"value": 0.5, "type": "PROBABILITY"}
    assert {key: value for key, value in found[4].items() if key != "clientToken"} == answers_to(
        ["the"], AttributeScorer(Reward(Letters()))
    )[0]
    assert counts == {"texts": 5, "scored": 2, **dict.fromkeys(kinds[1:4], 1)}
    assert texts.read_text() == before


def test_a_killed_command_goes_on_where_it_stopped(texts):
    class Killed(Letters):
        def attributes(self, texts):
            if "the" in texts:
                raise KeyboardInterrupt
            return super().attributes(texts)

    with pytest.raises(KeyboardInterrupt):
        write(texts, Killed(), block=1)
    assert not (texts.parent / "out.jsonl").exists()
    letters = Letters()
    target, counts = write(texts, letters, block=1)
    assert letters.calls[1:] == [["the"]]  # after the trial
    assert counts["scored"] == 2 and len(lines_of(target)) == 5
    assert sorted(path.name for path in texts.parent.iterdir()) == ["out.jsonl", "texts.jsonl"]


def test_generations_have_a_line_for_each_completion_and_their_answers_are_no_generations(tmp_path):
    row = {"prompt": "p", "prompt_id": "0", "prompt_ids": [1], "feedback": None, "ended": [True, True]}
    rows = [{**row, "completions": ["tent", text], "completion_ids": [[1], [2]]} for text in ("", "the")]
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert main(["score", str(tmp_path), "--as", "perspective", "--reward_funcs", "audit"]) == 0
    target = tmp_path / "generations.jsonl.perspective.jsonl"
    assert [each.get("clientToken") for each in lines_of(target)] == ["1.1", None, "2.1", "2.2"]
    assert files_of(tmp_path) == [tmp_path / "generations.jsonl"]


def test_the_command_prints_a_table_and_may_be_repeated(texts, capsys):
    command = ["score", str(texts), "--as", "perspective"]
    assert main(command) == main(command) == 0
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == [
        *("answers", "texts", "scored", "COMMENT_EMPTY", "COMMENT_TOO_LONG"),
        "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
    ]
    assert row.split()[:2] == [str(texts) + ".perspective.jsonl", "5"]
    assert main([*command, "--output", str(texts.parent / "mine.jsonl")]) == 0
    assert len(lines_of(texts.parent / "mine.jsonl")) == 5


def test_mistakes_are_one_line(texts, capsys):
    def said(*argv: str) -> str:
        assert main(["score", *argv]) == 2
        return capsys.readouterr().err

    command = [str(texts), "--as", "perspective"]
    assert "path is missing" in said("--as", "perspective")
    assert "'other' where 'perspective' was expected" in said(str(texts), "--as", "other")
    assert "it is the file of --as perspective" in said(str(texts), "--output", "x")
    assert "is the file of the texts" in said(*command, "--output", str(texts))
    other = texts.with_name("other.txt")
    other.write_text("of another program\n")
    assert f"{other} is there already and would be overwritten" in said(*command, "--output", str(other))
    texts.write_text("")
    assert "no texts in it" in said(*command)


def test_one_command_at_a_time_writes_the_answers(texts, capsys):
    target = texts.with_name(texts.name + ".perspective.jsonl")
    target.touch()
    with locked_by_another(target):
        assert main(["score", str(texts), "--as", "perspective"]) == 2
    assert "is being written by" in capsys.readouterr().err


def test_a_broken_file_is_found_before_the_scoring(texts):
    texts.write_text(texts.read_text() + "{")
    letters = Letters()
    with pytest.raises(UserError, match="texts.jsonl:6: broken JSON"):
        write(texts, letters)
    assert len(letters.calls) == 1
