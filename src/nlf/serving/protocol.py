"""Perspective's protocol, version v1alpha1, as pure functions: a request becomes a question, and its scores an answer.

    question = read(request, offered)              # raises Refused, which holds Google's error
    response = answer(question, scores of question.texts)

Requests are checked by the schemas of the discovery document. Names may be written in lowerCamelCase or snake_case, null
stands for a missing field, and an unknown field is an error, as in Google's JSON. Differences: HTML is taken, its tags
removed; FLIRTATION and the bridging and New York Times attributes are unknown; the only language is English. Context,
doNotStore, sessionId and communityId change nothing.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlf.errors import UserError
from nlf.rewards.perspective import LIMIT, PRODUCTION
from nlf.serving import http
from nlf.serving.discovery import SCHEMAS
from nlf.serving.texts import Span, plain_text, sentences, utf16_length

ATTRIBUTES = (*PRODUCTION, "SEXUALLY_EXPLICIT")
EXPERIMENTAL = "_EXPERIMENTAL"  # Google has `TOXICITY_EXPERIMENTAL` beside each production attribute
LANGUAGE, UNKNOWN_LANGUAGE = "en", "und"
STATUS = {
    **{400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED"},
    **{429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"},
}
DETAIL = "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
FIELDS = "type.googleapis.com/google.rpc.BadRequest"
MADE_UP = 60  # characters of a wrong name that an error repeats

Scores = Mapping[str, float]  # of one text, by attribute
Answer = dict[str, Any]


class Refused(http.Refused):
    """A request that gets Google's error."""

    def __init__(
        self, code: int, message: str, details: Sequence[Mapping[str, Any]] = (), *, after: int | None = None
    ):
        super().__init__(message)
        self.code, self.after = code, after
        error: dict[str, Any] = {"code": code, "message": message, "status": STATUS[code]}
        self.payload: Answer = {"error": {**error, **({"details": [*details]} if details else {})}}


def invalid(message: str, error_type: str = "INVALID_REQUEST", **more: Any) -> Refused:
    """The error for a request that breaks a rule of the service; `error_type` is Google's name of the rule."""
    return Refused(400, message, [{"@type": DETAIL, "errorType": error_type, **more}])


def malformed(field: str, message: str) -> Refused:
    """The error for JSON that is not the request's message; `field` is the path of the wrong field."""
    return Refused(400, message, [{"@type": FIELDS, "fieldViolations": [{"field": field, "description": message}]}])


def error_type(payload: Answer) -> str:
    """Google's name of what is wrong, `COMMENT_EMPTY` for example; "" if the answer is no such error."""
    details = payload.get("error", {}).get("details") or [{}]
    return details[0].get("errorType", "")


# ---- the form of a request ----------------------------------------------------------------------------------------


def checked(message: str, value: Any) -> dict[str, Any]:
    """A request as its message: names in lowerCamelCase, without nulls.

    Args:
        message: The name of a schema of the discovery document.

    Raises:
        Refused: a field is unknown, or has another type.
    """
    if not isinstance(value, dict):
        raise malformed("", "Invalid JSON payload received. Expected an object as the root of the request.")
    return _object(SCHEMAS[message], value, "")


def _value(schema: Mapping[str, Any], value: Any, path: str) -> Any:
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"]]
    kind = schema["type"]
    if kind == "object" and isinstance(value, dict):
        return _object(schema, value, path)
    if kind == "array" and isinstance(value, list):
        return [_value(schema["items"], each, f"{path}[{i}]") for i, each in enumerate(value)]
    if kind == "string" and isinstance(value, str) and value in schema.get("enum", [value]):
        return value
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind in ("number", "integer") and (number := _number(value)) is not None:
        return number
    expected = f"one of {', '.join(schema['enum'])}" if "enum" in schema else f"TYPE_{kind.upper()}"
    raise malformed(path, f"Invalid value at '{path}' ({expected})")


def _object(schema: Mapping[str, Any], value: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields of a message, or the entries of a map. A null field is missing; a null entry has no fields."""
    start = f"{path}." if path else ""
    if "additionalProperties" in schema:
        entry = schema["additionalProperties"]
        return {
            name: _value(entry, {} if each is None else each, f"{start}{name[:MADE_UP]}")
            for name, each in value.items()
        }
    found = {}
    for name, each in value.items():
        field = _camel(name)
        if field not in schema["properties"]:
            where = f" at '{path}'" if path else ""
            message = f'Invalid JSON payload received. Unknown name "{name[:MADE_UP]}"{where}: Cannot find field.'
            raise malformed(path, message)
        if each is not None:
            found[field] = _value(schema["properties"][field], each, f"{start}{field}")
    return found


def _camel(name: str) -> str:
    """`do_not_store` as `doNotStore`."""
    return re.sub("_([a-z])", lambda letter: letter[1].upper(), name)


def _number(value: Any) -> float | None:
    """A finite number, which may be written as text, as protocol buffers allow; None for anything else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# ---- questions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a request asks for.

    Attributes:
        text: The text to score, plain.
        thresholds: The requested attributes by the name in the request; the score below which an attribute is left out.
        spans: Parts of `text` that are scored alone; none = the text is the only span.
        places: The place of each span in the request's text, in UTF-16 code units.
        languages: The languages in the request.
        drop: Leave out attributes that cannot be scored, in place of an error.
    """

    text: str
    thresholds: Mapping[str, float]
    spans: Sequence[Span]
    places: Sequence[Span]
    languages: Sequence[str]
    client_token: str
    drop: bool

    @property
    def texts(self) -> list[str]:
        """The texts that the answer needs scores of: the whole text, then each span."""
        return [self.text, *(self.text[begin:end] for begin, end in self.spans)]


def read(request: Any, offered: Sequence[str], cut: Callable[[str], list[Span]] = sentences) -> Question:
    """The question of an AnalyzeComment request.

    Args:
        request: The JSON of the request.
        offered: The attributes that the scorer has, among ATTRIBUTES.
        cut: Gives the parts of a text that `spanAnnotations` scores, in order and without overlap.

    Raises:
        Refused: the request is malformed, or asks for what is not offered.
    """
    found = checked("AnalyzeCommentRequest", request)
    written = comment_of(found)
    requested = found.get("requestedAttributes") or {}
    if not requested:
        raise invalid("Missing requested_attributes", "NO_REQUESTED_ATTRIBUTES")
    thresholds = {name: _threshold(name, each, offered) for name, each in requested.items()}
    languages = found.get("languages") or []
    drop = found.get("dropUnsupportedAttributes", False)
    if unknown := [each for each in languages if each.replace("_", "-").split("-")[0].lower() != LANGUAGE]:
        if not drop:
            raise unsupported(next(iter(thresholds)), requestedLanguages=unknown)
        thresholds = {}
    text, source_of = _plain(written, found["comment"].get("type", ""))
    spans = cut(text) if found.get("spanAnnotations") else []
    places = _places(written, [source_of(span) for span in spans] or [(0, len(written))])
    token = found.get("clientToken", "")
    return Question(text, thresholds, spans, places, languages, token, drop)


def wants_spans(request: Any) -> bool:
    """Whether a request, checked or not, asks for scores of spans."""
    return isinstance(request, dict) and any(_camel(name) == "spanAnnotations" for name in request)


def comment_of(found: Mapping[str, Any]) -> str:
    """The text of a checked request, half characters replaced.

    Raises:
        Refused: there is none, it is too long, or the context has two forms.
    """
    written = found.get("comment", {}).get("text", "")
    size = len(written.encode(errors="surrogatepass"))
    if not written.strip():
        raise invalid("Comment must be non-empty.", "COMMENT_EMPTY")
    if size > LIMIT:
        message = f"Comment text was too many bytes. Value ({size}) exceeded limit ({LIMIT})."
        raise invalid(message, "COMMENT_TOO_LONG")
    if {"entries", "articleAndParentComment"} <= found.get("context", {}).keys():
        raise invalid("Context can have either entries or article_and_parent_comment, but both fields were populated.")
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", written)


def _threshold(name: str, parameters: Mapping[str, Any], offered: Sequence[str]) -> float:
    if attribute_of(name) not in offered:
        raise invalid(f"Unknown requested attribute: {name[:MADE_UP]}. Known attributes: {', '.join(offered)}")
    if (kind := parameters.get("scoreType", "")) not in ("", "SCORE_TYPE_UNSPECIFIED", "PROBABILITY"):
        raise invalid(f"Requested score type {kind} is not supported by attribute {name}")
    return parameters.get("scoreThreshold", -math.inf)


def attribute_of(name: str) -> str:
    """The attribute that a requested name stands for: `TOXICITY` for `TOXICITY_EXPERIMENTAL`."""
    base = name.removesuffix(EXPERIMENTAL)
    return base if base in PRODUCTION else name


def unsupported(name: str, **languages: Sequence[str]) -> Refused:
    """The error for an attribute that cannot be scored in these languages (`requestedLanguages`, `detectedLanguages`)."""
    named = ", ".join(each[:MADE_UP] for found in languages.values() for each in found[:5])
    return invalid(
        f"Attribute {name} does not support request languages: {named}",
        "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        languageNotSupportedByAttributeError={**languages, "attribute": name},
    )


def _plain(written: str, kind: str) -> tuple[str, Callable[[Span], Span]]:
    """The text to score, and the function from a span of it to the place in the written text."""
    if kind != "HTML":
        return written, lambda span: span
    text, places = plain_text(written)
    if not text.strip():
        raise invalid("Comment must be non-empty.", "COMMENT_EMPTY")
    return text, lambda span: (places[span[0]][0], places[span[1] - 1][1])


def _places(written: str, spans: Sequence[Span]) -> list[Span]:
    """Spans in UTF-16 code units; the spans are in order and do not overlap."""
    found, last, units = [], 0, 0
    for begin, end in spans:
        start = units + utf16_length(written[last:begin])
        units, last = start + utf16_length(written[begin:end]), end
        found.append((start, units))
    return found


# ---- answers ------------------------------------------------------------------------------------------------------


def answer(question: Question, scores: Sequence[Scores | None]) -> Answer:
    """The AnalyzeComment response.

    `spanScores` are always there, because clients read the first one: without `spanAnnotations` one span for the whole
    text, as Google's production attributes have it.

    Args:
        scores: For each of `question.texts` the scores by attribute; None = the scorer cannot score the text, or an
            attribute is missing.

    Raises:
        Refused: the text or an attribute cannot be scored.
    """
    whole, *parts = scores
    spans = list(zip(question.places, parts if question.spans else [whole], strict=True))
    found = {}
    for name, threshold in question.thresholds.items():
        attribute = attribute_of(name)
        value = (whole or {}).get(attribute)
        if value is None and not question.drop:
            raise unsupported(name, detectedLanguages=[UNKNOWN_LANGUAGE])
        if value is not None and value >= threshold:
            found[name] = {"spanScores": _span_scores(attribute, spans), "summaryScore": _score(value)}
    detected = [UNKNOWN_LANGUAGE if whole is None else LANGUAGE]
    response: Answer = {"attributeScores": found} if found else {}
    response |= {"languages": [*question.languages] or detected, "detectedLanguages": detected}
    return response | ({"clientToken": question.client_token} if question.client_token else {})


def _span_scores(attribute: str, spans: Sequence[tuple[Span, Scores | None]]) -> list[Answer]:
    known = [(place, scores[attribute]) for place, scores in spans if scores and attribute in scores]
    return [{"begin": begin, "end": end, "score": _score(value)} for (begin, end), value in known]


def _score(value: float) -> Answer:
    return {"value": value, "type": "PROBABILITY"}


def suggested(request: Any) -> Answer:
    """The SuggestCommentScore response. The suggestion is checked and forgotten.

    Raises:
        Refused: the request is malformed, or has no text or no scores.
    """
    found = checked("SuggestCommentScoreRequest", request)
    comment_of(found)
    if not found.get("attributeScores"):
        raise invalid("Missing attribute_scores")
    return {"clientToken": found["clientToken"]} if found.get("clientToken") else {}


def offered_by(label: str, attributes: Sequence[str]) -> tuple[str, ...]:
    """Perspective's attributes among those of a scorer.

    Raises:
        UserError: there are none.
    """
    found = tuple(name for name in ATTRIBUTES if name.lower() in attributes)
    if not found:
        known = ", ".join(name.lower() for name in ATTRIBUTES)
        raise UserError(
            f"reward {label!r} has the attributes {', '.join(attributes) or 'none'}; expected at least one of {known}; "
            "try --reward_funcs local"
        )
    return found
