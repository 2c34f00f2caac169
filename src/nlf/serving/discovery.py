"""The discovery document of Perspective's protocol: methods and messages, which client libraries build their methods from.

The names and types are those of Google's document for `commentanalyzer` v1alpha1; the descriptions are ours. The server
checks requests by the same schemas (`nlf.serving.protocol.checked`).
"""

from typing import Any

NAME, VERSION = "commentanalyzer", "v1alpha1"
PATHS = ("/$discovery/rest", f"/discovery/v1/apis/{NAME}/{VERSION}/rest")  # where clients ask for the document
BATCH = "batch"
SCORE_TYPES = ("SCORE_TYPE_UNSPECIFIED", "PROBABILITY", "STD_DEV_SCORE", "PERCENTILE", "RAW")
TEXT_TYPES = ("TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML")

STRING: dict[str, Any] = {"type": "string"}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
FLOAT: dict[str, Any] = {"type": "number", "format": "float"}
INTEGER: dict[str, Any] = {"type": "integer", "format": "int32"}


def _choice(names: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names), "enumDescriptions": [""] * len(names)}


def _is(name: str) -> dict[str, Any]:
    return {"$ref": name}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _map(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value}


def _messages(**fields: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"id": name, "type": "object", "properties": found} for name, found in fields.items()}


COMMON: dict[str, dict[str, Any]] = {  # fields of both requests
    "comment": _is("TextEntry"),
    "context": _is("Context"),
    "languages": _list(STRING),
    "clientToken": STRING,
    "communityId": STRING,
    "sessionId": STRING,
}
SCHEMAS = _messages(
    TextEntry={"text": STRING, "type": _choice(TEXT_TYPES)},
    ArticleAndParentComment={"article": _is("TextEntry"), "parentComment": _is("TextEntry")},
    Context={"entries": _list(_is("TextEntry")), "articleAndParentComment": _is("ArticleAndParentComment")},
    AttributeParameters={"scoreType": _choice(SCORE_TYPES), "scoreThreshold": FLOAT},
    Score={"value": FLOAT, "type": _choice(SCORE_TYPES)},
    SpanScore={"begin": INTEGER, "end": INTEGER, "score": _is("Score")},
    AttributeScores={"summaryScore": _is("Score"), "spanScores": _list(_is("SpanScore"))},
    AnalyzeCommentRequest={
        **COMMON,
        "requestedAttributes": _map(_is("AttributeParameters")),
        "spanAnnotations": BOOLEAN,
        "doNotStore": BOOLEAN,
        "dropUnsupportedAttributes": BOOLEAN,
    },
    AnalyzeCommentResponse={
        "attributeScores": _map(_is("AttributeScores")),
        "languages": _list(STRING),
        "detectedLanguages": _list(STRING),
        "clientToken": STRING,
    },
    SuggestCommentScoreRequest={**COMMON, "attributeScores": _map(_is("AttributeScores"))},
    SuggestCommentScoreResponse={
        "clientToken": STRING,
        "detectedLanguages": _list(STRING),
        "requestedLanguages": _list(STRING),
    },
)
QUERY = {  # parameters of every method; the server reads `key` and ignores the others
    **dict.fromkeys(("access_token", "callback", "fields", "oauth_token", "quotaUser"), STRING),
    **dict.fromkeys(("uploadType", "upload_protocol", "key"), STRING),
    "$.xgafv": _choice(("1", "2")),
    "alt": {**_choice(("json", "media", "proto")), "default": "json"},
    "prettyPrint": {**BOOLEAN, "default": "true"},
}


def _method(name: str, message: str, about: str) -> dict[str, Any]:
    path = f"{VERSION}/comments:{name}"
    return {
        **{
            "id": f"{NAME}.comments.{name}",
            "httpMethod": "POST",
            "path": path,
            "flatPath": path,
            "description": about,
        },
        **{"parameters": {}, "parameterOrder": [], "request": _is(f"{message}Request")},
        "response": _is(f"{message}Response"),
    }


METHODS = {
    "analyze": _method("analyze", "AnalyzeComment", "Score a text by the requested attributes."),
    "suggestscore": _method("suggestscore", "SuggestCommentScore", "Suggest scores of a text. Nothing is stored."),
}


def document(address: str) -> dict[str, Any]:
    """The discovery document of a server.

    Args:
        address: The server's URL as the client reached it, with a slash at its end.
    """
    return {
        **{"kind": "discovery#restDescription", "discoveryVersion": "v1", "id": f"{NAME}:{VERSION}", "name": NAME},
        **{
            "version": VERSION,
            "version_module": True,
            "protocol": "rest",
            "title": "Perspective Comment Analyzer API",
        },
        **{"canonicalName": "Comment Analyzer", "ownerName": "nlf", "ownerDomain": "", "revision": "1"},
        "description": "A scorer of nlf behind the protocol of Google's Perspective API.",
        **{"rootUrl": address, "baseUrl": address, "servicePath": "", "basePath": "", "batchPath": BATCH},
        **{"parameters": QUERY, "schemas": SCHEMAS},
        "resources": {"comments": {"methods": METHODS}},
    }
