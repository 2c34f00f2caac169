"""RealToxicityPrompts', DExperts' and Quark's generations are read as ours, and written again as they were."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.data.generations import RECORDS, format_of, read, read_lines, refuse_other_lines, text_digest
from nlf.data.rtp import as_generation, recorded_scores, written
from nlf.errors import UserError

RTP = {
    "filename": "0001.txt",
    "challenging": False,
    "prompt": {"text": "The old boat", "toxicity": 0.1},
    "generations": [
        {"text": " came home.", "toxicity": 0.25, "threat": 0.125},
        {"text": " sank, you fool", "toxicity": 0.75, "threat": None},
    ],
}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rtp.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_a_record_is_read_as_generations_with_its_scores(write):
    (line,) = read(write(RTP))
    assert line["prompt"] == "The old boat" and line["completions"] == [" came home.", " sank, you fool"]
    assert line["columns"] == {"filename": "0001.txt", "challenging": False}
    assert line["scores"] == {
        "recorded": {
            "of": text_digest(line["completions"]),
            "reward": [0.75, 0.25],
            "attributes": {"toxicity": [0.25, 0.75], "threat": [0.125, None]},
        }
    }


def test_what_is_measured_is_written_beside_the_record_which_stays_as_it_was(write):
    path = write(RTP, {**RTP, "prompt": "text too"})
    lines = list(read(path))
    for line in lines:
        line["scores"]["local@1"] = {"reward": [1.0, 0.0], "attributes": {}}
    RECORDS.write(path, lines)
    for found, before in zip(read_lines(path), (RTP, {**RTP, "prompt": "text too"}), strict=True):
        assert found == before | {"scores": {"local@1": {"reward": [1.0, 0.0], "attributes": {}}}}
    assert set(next(read(path))["scores"]) == {"local@1", "recorded"}


def test_dexperts_label_and_score_are_the_probability_of_positive():
    found = [{"text": "a", "label": "NEGATIVE", "score": 0.75}, {"text": "b", "label": "POSITIVE", "score": 0.75}]
    found += [{"text": "c", "label": "", "score": float("nan")}]  # a text that the classifier could not read
    scores = recorded_scores(found, "here")
    assert scores == {"reward": [0.25, 0.75, None], "attributes": {"positive": [0.25, 0.75, None]}}


def test_quarks_token_is_the_feedback_and_no_part_of_the_prompt(write):
    path = write({"prompt": " _TREE_TOKEN_00000The boat", "generations": [{"text": " sank"}]}, name="reward.json")
    (line,) = read(path)
    assert (line["prompt"], line["feedback"]) == ("The boat", "_TREE_TOKEN_00000")
    assert line["scores"] == {}  # nothing is recorded, which is no score of 0


def test_scores_that_nothing_could_give_stay_unknown():
    assert recorded_scores([{"text": "a", "toxicity": None}], "here") == {
        "reward": [None],
        "attributes": {"toxicity": [None]},
    }


WRONG = {
    "no list": ({"generations": {"text": "a"}}, "field 'generations' is dict"),
    "no generations": ({"generations": []}, "field 'generations' is empty"),
    "text alone": ({"generations": ["a"]}, 'generation 1: no text; expected {"text"'),
    "text is a number": ({"generations": [{"text": "a"}, {"text": 3}]}, "generation 2: no text"),
    "score is text": ({"generations": [{"text": "a", "toxicity": "high"}]}, "generation 1: field 'toxicity' is 'high'"),
    "score is true": ({"generations": [{"text": "a", "toxicity": True}]}, "'toxicity' is 'True'; expected a number or null"),
    "mixed scores": (
        {"generations": [{"text": "a", "threat": 0.5}, {"text": "b", "threat": [0.5]}]}, "generation 2: field 'threat'"
    ),
    "no prompt": ({"prompt": {"toxicity": 0.5}}, "no text in field 'prompt'"),
    "feedback is a number": ({"feedback": 3}, "field 'feedback' is int"),
    "scores are a list": ({"scores": [1]}, "field 'scores' is list"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_with_its_place(write, case):
    change, expected = WRONG[case]
    path = write(RTP, {**RTP, **change})
    with pytest.raises(UserError) as caught:
        list(read(path))
    assert f"{path}:2" in str(caught.value) and expected in str(caught.value) and "\n" not in str(caught.value)


def test_two_forms_in_one_file_are_refused(write):
    ours = {
        name: []
        for name in ("prompt", "prompt_id", "prompt_ids", "feedback", "completions", "completion_ids", "ended")
    }
    with pytest.raises(UserError, match=r":2: no field 'generations', but the lines before have it"):
        list(read(write(RTP, ours)))
    with pytest.raises(UserError, match=r":2: no field 'prompt_id'"):
        list(read(write(ours, RTP)))


def test_our_samples_are_never_appended_to_a_file_of_this_form(write):
    with pytest.raises(UserError, match="no field 'prompt_id'"):
        refuse_other_lines(write(RTP))


def test_an_unknown_form_has_no_format(write):
    assert format_of(write({"text": "a"})) is None


NUMBERS = st.none() | st.floats(0, 1)
ATTRIBUTES = st.sampled_from(["toxicity", "threat", "positive"])


@given(st.data(), st.lists(st.text(), min_size=1, max_size=4))
def test_what_is_written_is_read_with_the_same_numbers(data, texts):
    values = st.lists(NUMBERS, min_size=len(texts), max_size=len(texts))
    known = st.lists(st.floats(0, 1), min_size=len(texts), max_size=len(texts))
    attributes = data.draw(st.dictionaries(ATTRIBUTES, known))
    scores = {"reward": data.draw(values), "attributes": attributes}
    line = {"completions": texts, "scores": {"mine": scores}}
    found = as_generation(json.loads(json.dumps({"prompt": "p", "generations": written(line, "mine")})), "here")
    assert found["completions"] == texts
    if any(value is not None for value in scores["reward"]) or attributes:
        assert found["scores"]["recorded"] == scores | {"of": text_digest(texts)}


def test_a_numbered_label_is_no_sentiment():
    """The trap: toxicity data has `label: 1` and `score`, which say nothing about positive."""
    assert recorded_scores([{"text": "a", "label": 1, "score": 0.5}], "here") == {}


def test_errors_name_the_line_though_blank_lines_stand_before_it(tmp_path):
    path = tmp_path / "rtp.jsonl"
    path.write_text(f"\n{json.dumps(RTP)}\n\n{{}}\n")
    with pytest.raises(UserError, match=r"rtp\.jsonl:4: no field 'generations'"):
        list(read(path))


def test_half_a_character_is_no_prompt(write):
    with pytest.raises(UserError, match=r":1: the prompt holds half a character"):
        list(read(write({"prompt": "\ud800", "generations": [{"text": "a"}]})))
