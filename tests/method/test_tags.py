"""Tags: rendering of feedback, mirror quantiles, and schemes that are refused in one line."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, TagScheme, read_file

WORDS = st.text(min_size=1, max_size=12).filter(str.strip)
# tags and text between the fields share letters, so that some schemes cannot tell their tags apart
TAGS = st.lists(
    st.text("ab<| ", min_size=1, max_size=4).filter(str.strip) | WORDS, min_size=2, max_size=6, unique=True
)
LITERAL = st.text("ab<|>: ", max_size=5)


def test_default_template_puts_tag_and_separator_before_the_prompt():
    scheme = TagScheme()
    assert scheme.num_quantiles == 5
    assert (scheme.best, scheme.worst) == ("Lowest Toxicity", "Maximum Toxicity")
    assert scheme.render(scheme.best, "Once") == "Lowest Toxicity<|separator|>Once"
    assert scheme.pieces(scheme.worst) == ("Maximum Toxicity<|separator|>", "")


def test_without_feedback_the_prompt_stays_bare():
    assert TagScheme().render(None, "Once") == "Once"


@given(TAGS, LITERAL, LITERAL, LITERAL, st.text(max_size=30), st.data())
def test_the_pieces_are_the_text_around_the_prompt(tags, head, middle, tail, prompt, data):
    try:
        scheme = TagScheme(tuple(tags), head + "{feedback}" + middle + "{prompt}" + tail, None)
    except UserError as error:
        assert "tell them apart" in str(error)
        assume(False)
    tag = data.draw(st.sampled_from(tags))
    text = scheme.render(tag, prompt)
    before, after = scheme.pieces(tag)
    assert text == before + prompt + after


def test_template_with_words_around_both_fields():
    scheme = TagScheme(("good", "bad"), "feedback: {feedback} input: {prompt} {end}")
    assert scheme.render("relevant, and factual", "{x}") == "feedback: relevant, and factual input: {x} {end}"
    assert scheme.render("bad", "say it") == "feedback: bad input: say it {end}"
    assert scheme.separator is None  # the template does not contain it


def test_tags_as_single_tokens_need_no_separator():
    scheme = TagScheme(("<q0>", "<q1>"), "{feedback}{prompt}", None)
    assert scheme.render("<q1>", "Once") == "<q1>Once"


@pytest.mark.parametrize(
    ("num_tags", "coin", "expected"),
    [(5, 0, [4, 3, 0, 1, 0]), (5, 1, [4, 3, 4, 1, 0]), (2, 1, [1, 0]), (3, 7, [2, 2, 0])],
)
def test_mirror(num_tags, coin, expected):
    scheme = TagScheme(tuple(f"tag {i}." for i in range(num_tags)))
    assert [scheme.mirror(q, coin) for q in range(num_tags)] == expected


def test_quantile_of_lists_the_known_tags():
    assert [TagScheme().quantile_of(tag) for tag in DEFAULT_TAGS] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="'Lowest Negativity'.*'Lowest Toxicity'.*'Maximum Toxicity'"):
        TagScheme().quantile_of("Lowest Negativity")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tags": ("only",)}, "at least two"),
        ({"tags": ()}, "at least two"),
        ({"tags": ("a", " ")}, "non-empty"),
        ({"tags": ("a", "b", "a")}, "'a' is given more than once"),
        ({"tags": ("a<|separator|>", "b")}, "contains the separator"),
        ({"tags": ("good", "goodness"), "template": "{feedback}{prompt}"}, "'goodness' begins like 'good'"),
        ({"template": "{prompt}"}, "expected {feedback} once"),
        ({"template": "{prompt}{feedback}"}, "after it"),
        ({"template": "{feedback}{feedback}{prompt}"}, "once"),
    ],
)
def test_schemes_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        TagScheme(**fields)
    assert "\n" not in str(caught.value)


def test_saved_beside_the_model_and_read_back(tmp_path):
    scheme = TagScheme(("sweet", "sour ü"), "({feedback}) {prompt}")
    (tmp_path / "tags.json").write_text(scheme.to_json(["<sep>"]), encoding="utf-8")
    assert TagScheme.load(tmp_path) == TagScheme.load(tmp_path / "tags.json") == scheme
    assert read_file(tmp_path) == (scheme, ["<sep>"])


def test_a_file_of_an_older_version_names_no_added_tokens(tmp_path):
    (tmp_path / "tags.json").write_text('{"tags": ["a", "b"], "template": "{feedback}|{prompt}", "separator": "|"}')
    assert read_file(tmp_path) == (TagScheme(("a", "b"), "{feedback}|{prompt}", "|"), None)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"tags": ["a", "b"]}', json.dumps({"tags": 3, "template": "", "separator": 1})]
)
def test_a_broken_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tags.json").write_text(content)
    with pytest.raises(UserError, match=r"tags\.json"):
        TagScheme.load(tmp_path)
