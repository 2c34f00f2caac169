"""Perspective's protocol without a server: what a request means, what its answer is, and what Google's errors say."""

import html
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import analyze

from nlf.errors import UserError
from nlf.serving.discovery import SCHEMAS, document
from nlf.serving.protocol import (
    ATTRIBUTES,
    Refused,
    answer,
    attribute_of,
    checked,
    error_type,
    offered_by,
    read,
    suggested,
)
from nlf.serving.texts import MOST_SPANS, plain_text, sentences, utf16_length

OFFERED = ("TOXICITY", "INSULT")


def score(text: str) -> dict:
    return {"TOXICITY": text.count("t") / len(text), "INSULT": 0.25}


def answered(request, offered=OFFERED) -> dict:
    """The answer to a request, or the error in its place, as `score` scores."""
    try:
        question = read(request, offered)
        return answer(question, [score(text) for text in question.texts])
    except Refused as error:
        assert error.payload["error"]["code"] == error.code
        return error.payload


def values(response: dict) -> dict:
    return {name: found["summaryScore"]["value"] for name, found in response["attributeScores"].items()}


def error_of(request) -> tuple[str, str]:
    """Google's name of what is wrong, and the message."""
    found = answered(request)
    assert (found["error"]["code"], found["error"]["status"]) == (400, "INVALID_ARGUMENT"), found
    return error_type(found), found["error"]["message"]


# ---- answers ------------------------------------------------------------------------------------------------------


def test_a_whole_answer():
    request = analyze("this tent", "TOXICITY", languages=["en"], clientToken="mine", doNotStore=True, sessionId="7")
    probability = {"value": 1 / 3, "type": "PROBABILITY"}
    assert answered(request) == {
        "attributeScores": {
            "TOXICITY": {"summaryScore": probability, "spanScores": [{"begin": 0, "end": 9, "score": probability}]}
        },
        "languages": ["en"],
        "detectedLanguages": ["en"],
        "clientToken": "mine",
    }


def test_names_may_be_written_with_underscores_and_null_is_a_missing_field():
    request = {
        "comment": {"text": "tent", "type": None},
        "requested_attributes": {"TOXICITY": {"score_threshold": "0.1"}, "INSULT": None},
        "do_not_store": True,
        "client_token": None,
        "languages": None,
        "community_id": "c",
        "context": {"article_and_parent_comment": {"parent_comment": {"text": "before"}}},
    }
    response = answered(request)
    assert values(response) == {"TOXICITY": 0.5, "INSULT": 0.25}
    assert response["languages"] == ["en"] and "clientToken" not in response


def test_attributes_below_their_threshold_are_left_out():
    request = {"comment": {"text": "tent"}, "requestedAttributes": {"TOXICITY": {"scoreThreshold": 0.5}}}
    assert values(answered(request)) == {"TOXICITY": 0.5}
    request["requestedAttributes"] = {"TOXICITY": {"scoreThreshold": 0.51}, "INSULT": {"scoreThreshold": 0.2}}
    assert values(answered(request)) == {"INSULT": 0.25}
    request["requestedAttributes"] = {"TOXICITY": {"scoreThreshold": 0.51}}
    assert answered(request) == {"languages": ["en"], "detectedLanguages": ["en"]}


def test_experimental_names_mean_the_production_attributes():
    assert values(answered(analyze("tent", "TOXICITY_EXPERIMENTAL", "INSULT"))) == {
        "TOXICITY_EXPERIMENTAL": 0.5,
        "INSULT": 0.25,
    }
    assert (
        attribute_of("SEXUALLY_EXPLICIT_EXPERIMENTAL") == "SEXUALLY_EXPLICIT_EXPERIMENTAL"
    )  # Google has no such name


def test_span_scores_of_sentences():
    text = "What kind of test is it? Sorry, I like it."
    spans = answered(analyze(text, spanAnnotations=True))["attributeScores"]["TOXICITY"]["spanScores"]
    assert [(span["begin"], span["end"]) for span in spans] == [(0, 24), (25, 42)]
    assert [span["score"]["value"] for span in spans] == [4 / 24, 1 / 17]


def test_places_count_utf16_units_as_clients_in_javascript_do():
    text = "\U0001f600 yes.\nno \U0001f600!"
    spans = answered(analyze(text, spanAnnotations=True))["attributeScores"]["TOXICITY"]["spanScores"]
    assert [(span["begin"], span["end"]) for span in spans] == [(0, 7), (8, 14)]
    whole = answered(analyze(text))["attributeScores"]["TOXICITY"]["spanScores"]
    assert [(span["begin"], span["end"]) for span in whole] == [(0, 14)]


def test_a_scorer_may_bring_its_own_spans():
    question = read(analyze("one two", spanAnnotations=True), OFFERED, lambda text: [(0, 3), (4, 7)])
    assert question.texts == ["one two", "one", "two"] and question.places == [(0, 3), (4, 7)]


def test_a_span_without_a_score_is_left_out():
    question = read(analyze("One. Two.", spanAnnotations=True), OFFERED)
    found = answer(question, [{"TOXICITY": 0.5}, None, {"TOXICITY": 0.25}])["attributeScores"]["TOXICITY"]
    assert [span["begin"] for span in found["spanScores"]] == [5]


def test_html_is_read_without_its_tags():
    written = "<p>this &amp; <b>t</b>hat</p><script>ttt</script>Tom."
    request = {**analyze(written, spanAnnotations=True), "comment": {"text": written, "type": "HTML"}}
    question = read(request, OFFERED)
    assert question.texts == ["\nthis & that\nTom.", "this & that", "Tom."]
    (begin, end), last = question.places
    assert written[begin:end] == "this &amp; <b>t</b>hat" and written[slice(*last)] == "Tom."
    assert read({**request, "spanAnnotations": False}, OFFERED).places == [(0, len(written))]
    assert read(analyze(written), OFFERED).text == written  # PLAIN_TEXT


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({}, "COMMENT_EMPTY", "Comment must be non-empty."),
        ({"comment": {}}, "COMMENT_EMPTY", "non-empty"),
        (analyze(" \n"), "COMMENT_EMPTY", "non-empty"),
        ({**analyze("<br>"), "comment": {"text": "<br>", "type": "HTML"}}, "COMMENT_EMPTY", "non-empty"),
        ({"comment": {"text": "a"}}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        ({"comment": {"text": "a"}, "requestedAttributes": {}}, "NO_REQUESTED_ATTRIBUTES", "Missing"),
        (analyze("a", "FLIRTATION"), "INVALID_REQUEST", "FLIRTATION. Known attributes: TOXICITY, INSULT"),
        (analyze("a", "toxicity"), "INVALID_REQUEST", "Unknown requested attribute: toxicity"),
        (analyze("a", "THREAT"), "INVALID_REQUEST", "THREAT"),  # this scorer has none
        (
            {"comment": {"text": "a"}, "requestedAttributes": {"TOXICITY": {"scoreType": "RAW"}}},
            "INVALID_REQUEST",
            "Requested score type RAW is not supported by attribute TOXICITY",
        ),
        (
            analyze("a", context={"entries": [{"text": "b"}], "articleAndParentComment": {}}),
            "INVALID_REQUEST",
            "both fields were populated",
        ),
        ([], "", "Expected an object as the root"),
        ("text", "", "Expected an object as the root"),
        (analyze("a", body="b"), "", 'Unknown name "body": Cannot find field.'),
        ({**analyze("a"), "comment": {"body": "a"}}, "", "Unknown name \"body\" at 'comment': Cannot find field."),
        ({**analyze("a"), "comment": "a"}, "", "Invalid value at 'comment' (TYPE_OBJECT)"),
        ({**analyze("a"), "comment": {"text": 3}}, "", "Invalid value at 'comment.text' (TYPE_STRING)"),
        ({**analyze("a"), "comment": {"text": "a", "type": "PDF"}}, "", "one of TEXT_TYPE_UNSPECIFIED, PLAIN_TEXT"),
        (analyze("a", languages="en"), "", "Invalid value at 'languages' (TYPE_ARRAY)"),
        (analyze("a", languages=["en", 1]), "", "Invalid value at 'languages[1]' (TYPE_STRING)"),
        (analyze("a", doNotStore="yes"), "", "Invalid value at 'doNotStore' (TYPE_BOOLEAN)"),
        ({**analyze("a"), "requestedAttributes": ["TOXICITY"]}, "", "Invalid value at 'requestedAttributes'"),
        (
            {**analyze("a"), "requestedAttributes": {"TOXICITY": {"scoreThreshold": "high"}}},
            "",
            "Invalid value at 'requestedAttributes.TOXICITY.scoreThreshold' (TYPE_NUMBER)",
        ),
        ({**analyze("a"), "requestedAttributes": {"TOXICITY": {"scoreThreshold": 10**400}}}, "", "TYPE_NUMBER"),
        ({**analyze("a"), "requestedAttributes": {"TOXICITY": {"scoreThreshold": True}}}, "", "TYPE_NUMBER"),
    ],
)
def test_googles_errors(request_, kind, words):
    found, message = error_of(request_)
    assert found == kind and words in message


def test_the_limit_is_in_bytes():
    assert "attributeScores" in answered(analyze("é" * 10_240))
    kind, message = error_of(analyze("é" * 10_240 + "x"))
    assert kind == "COMMENT_TOO_LONG"
    assert message == "Comment text was too many bytes. Value (20481) exceeded limit (20480)."


@pytest.mark.parametrize("languages", [["en"], ["en-US"], ["EN"], ["en_GB", "en"], []])
def test_english_under_every_name(languages):
    assert answered(analyze("tent", languages=languages))["languages"] == (languages or ["en"])


@pytest.mark.parametrize("languages", [["fr"], ["en", "fr"], ["eng"], [""]])
def test_other_languages_are_refused(languages):
    found = answered(analyze("tent", "INSULT", languages=languages))
    (detail,) = found["error"]["details"]
    assert detail["errorType"] == "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
    assert detail["languageNotSupportedByAttributeError"] == {
        "requestedLanguages": [each for each in languages if each != "en"],
        "attribute": "INSULT",
    }
    assert found["error"]["message"].startswith("Attribute INSULT does not support request languages: ")
    dropped = answered(analyze("tent", "INSULT", languages=languages, dropUnsupportedAttributes=True))
    assert dropped == {"languages": languages, "detectedLanguages": ["en"]}


@pytest.mark.parametrize("scores", [None, {"INSULT": 0.5}])
def test_what_the_scorer_cannot_score_is_no_supported_language(scores):
    with pytest.raises(Refused, match="Attribute TOXICITY does not support request languages: und") as caught:
        answer(read(analyze("bonjour"), OFFERED), [scores])
    assert error_type(caught.value.payload) == "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
    dropping = read(analyze("bonjour", "INSULT", "TOXICITY", dropUnsupportedAttributes=True), OFFERED)
    assert values({"attributeScores": {}, **answer(dropping, [scores])}) == (scores or {})


def test_half_a_character_is_replaced_and_never_breaks_an_answer():
    assert read(analyze("a\ud83d"), OFFERED).text == "a\N{REPLACEMENT CHARACTER}"


def test_suggested_scores_are_checked_and_forgotten():
    request = {"comment": {"text": "a"}, "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0}}}}
    assert suggested({**request, "clientToken": "mine"}) == {"clientToken": "mine"}
    assert suggested(request) == {}
    for broken in ({**request, "attributeScores": {}}, {**request, "comment": {}}, {**request, "languages": "en"}):
        with pytest.raises(Refused):
            suggested(broken)


def test_a_scorer_offers_the_attributes_that_it_has():
    assert offered_by("x@1", ["toxicity", "length", "threat"]) == ("TOXICITY", "THREAT")
    with pytest.raises(UserError, match="reward 'x' has the attributes none; expected at least one of toxicity, "):
        offered_by("x", [])


# ---- properties ---------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NAMES = st.sampled_from(sorted({name for each in SCHEMAS.values() for name in each["properties"]} | set(ATTRIBUTES)))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
)


def message(name: str) -> st.SearchStrategy:
    """Messages of a schema, with a wrong value here and there."""
    fields = {field: st.one_of(*[valid(schema)] * 6, JSON) for field, schema in SCHEMAS[name]["properties"].items()}
    return st.fixed_dictionaries({}, optional=fields)


def valid(schema: dict) -> st.SearchStrategy:
    if "$ref" in schema:
        return st.deferred(lambda: message(schema["$ref"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "array":
        return st.lists(valid(schema["items"]), max_size=2)
    if "additionalProperties" in schema:
        return st.dictionaries(st.sampled_from(ATTRIBUTES), valid(schema["additionalProperties"]), max_size=3)
    return {"string": st.sampled_from(["en", "tent. Tom", "<p>tent</p>", "fr", ""]), "boolean": st.booleans()}.get(
        schema["type"], st.floats(0, 1)
    )


def assert_an_answer(found: dict) -> None:
    """One of the two shapes, and JSON."""
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    if "error" in found:
        assert found["error"].keys() <= {"code", "message", "status", "details"}
        assert found["error"]["code"] == 400 and isinstance(found["error"]["message"], str)
    else:
        assert checked("AnalyzeCommentResponse", found) == found
        for each in found.get("attributeScores", {}).values():
            assert each["summaryScore"]["type"] == "PROBABILITY" and each["spanScores"]


@given(JSON | message("AnalyzeCommentRequest"))
def test_any_json_gets_an_answer_or_googles_error(request_):
    assert_an_answer(answered(request_, ATTRIBUTES[:2]))


@given(message("SuggestCommentScoreRequest"))
def test_any_suggestion_gets_an_answer_or_googles_error(request_):
    try:
        assert suggested(request_).keys() <= {"clientToken"}
    except Refused as error:
        assert_an_answer(error.payload)


@given(st.text())
def test_sentences_hold_every_word_once_in_order(text):
    found = sentences(text)
    assert "".join("".join(text[begin:end].split()) for begin, end in found) == "".join(text.split())
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(found))
    assert all(text[begin:end].strip() == text[begin:end] != "" for begin, end in found)


def test_sentences_end_with_marks_quotes_and_lines():
    text = 'He said "no!" Then: yes.\n\nLast line\nand more'
    assert [text[slice(*span)] for span in sentences(text)] == ['He said "no!"', "Then: yes.", "Last line", "and more"]


def test_a_text_of_very_many_sentences_has_a_bounded_number_of_spans():
    found = sentences("a. " * 3000)
    assert len(found) == MOST_SPANS and found[-1][1] == 8999


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_escaped_text_is_itself_again(text):
    written = html.escape(text)
    found, places = plain_text(written)
    assert found == text and len(places) == len(text)
    assert all(html.unescape(written[begin:end]) == text[i] for i, (begin, end) in enumerate(places))


@given(st.lists(st.sampled_from(["<p>", "</p>", "<", ">", "&", "&lt", "<!--", "-->", "<script>", "a", " ", "<b a='"])))
def test_any_html_gives_text_with_its_places(pieces):
    written = "".join(pieces)
    text, places = plain_text(written)
    assert len(text) == len(places) and all(0 <= begin <= end <= len(written) for begin, end in places)
    assert places == sorted(places)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_length_in_utf16(text):
    assert utf16_length(text) == len(text.encode("utf-16-le")) // 2


def test_the_discovery_document_names_only_schemas_that_it_has():
    written = json.dumps(document("http://here/"))
    named = {part.split('"')[0] for part in written.split('"$ref": "')[1:]}
    assert named <= SCHEMAS.keys() and '"rootUrl": "http://here/"' in written
