"""The server under Google's own client library: only the address of the discovery document changes."""

import pytest
from running import analyze, serving

discovery = pytest.importorskip("googleapiclient.discovery", reason="needs google-api-python-client")
from googleapiclient.errors import HttpError  # noqa: E402


@pytest.fixture(scope="module")
def comments():
    with serving(key="the key") as url:
        client = discovery.build(
            "commentanalyzer",
            "v1alpha1",
            developerKey="the key",
            discoveryServiceUrl=f"{url}/$discovery/rest?version=v1alpha1",
            static_discovery=False,
        )
        yield client


def test_analyze(comments):
    found = comments.comments().analyze(body=analyze("tent", "TOXICITY", "INSULT", languages=["en"])).execute()
    assert found["attributeScores"]["TOXICITY"]["summaryScore"] == {"value": 0.5, "type": "PROBABILITY"}
    assert found["attributeScores"]["INSULT"]["spanScores"][0]["score"]["value"] == 0.25


def test_suggestscore(comments):
    body = {
        "comment": {"text": "a"},
        "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0}}},
        "clientToken": "7",
    }
    assert comments.comments().suggestscore(body=body).execute() == {"clientToken": "7"}


@pytest.mark.parametrize(
    ("body", "words", "kind"),
    [
        (analyze(""), "Comment must be non-empty.", "COMMENT_EMPTY"),
        (analyze("x" * 20_481), "Comment text was too many bytes. Value (20481) exceeded limit", "COMMENT_TOO_LONG"),
        (
            analyze("bonjour"),
            "Attribute TOXICITY does not support request languages: und",
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        ),
        (analyze("a", "FLIRTATION"), "Unknown requested attribute: FLIRTATION", "INVALID_REQUEST"),
    ],
)
def test_errors(comments, body, words, kind):
    with pytest.raises(HttpError) as caught:
        comments.comments().analyze(body=body).execute()
    assert caught.value.status_code == 400 and words in caught.value.reason
    assert caught.value.error_details[0]["errorType"] == kind


def test_a_wrong_key(comments):
    request = comments.comments().analyze(body=analyze("tent"))
    request.uri = request.uri.replace("the+key", "another").replace("the%20key", "another")
    with pytest.raises(HttpError) as caught:
        request.execute()
    assert caught.value.status_code == 403


def test_a_batch(comments):
    found = {}
    batch = comments.new_batch_http_request(callback=lambda name, answer, error: found.update({name: (answer, error)}))
    for text in ("tent", "", "Tést"):
        batch.add(comments.comments().analyze(body=analyze(text)), request_id=text or "empty")
    batch.execute()
    assert found["tent"][0]["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.5
    assert found["Tést"][0]["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.25
    answer, error = found["empty"]
    assert answer is None and error.status_code == 400 and error.reason == "Comment must be non-empty."
