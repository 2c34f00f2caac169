"""Google's batch form: several requests in one `multipart/mixed` body, each part an HTTP request as text.

`googleapiclient`'s `new_batch_http_request` sends it, and matches answers to requests by their Content-ID.
"""

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import BytesParser
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from nlf.serving.protocol import Refused

MOST_CALLS = 1000  # in one batch, as in googleapiclient
REQUEST_LINE = re.compile(r"([A-Z]+) (\S+)(?: HTTP/[0-9.]+)?\r?\n")


@dataclass(frozen=True)
class Call:
    """A request inside a batch. `content` is its body; `key` the API key in its address."""

    method: str
    path: str
    key: str
    content: bytes
    content_id: str


def calls_of(content_type: str, body: bytes) -> list[Call]:
    """The requests in a batch.

    Raises:
        Refused: the body is no batch, or a part is no request.
    """
    message = BytesParser().parsebytes(
        b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n" + body
    )
    if not message.is_multipart():
        raise Refused(400, "Failed to parse batch request, error: expected multipart/mixed with a boundary.")
    parts = [part for part in message.walk() if not part.is_multipart()]
    if len(parts) > MOST_CALLS:
        raise Refused(400, f"The batch request has {len(parts)} calls, more than the {MOST_CALLS} allowed.")
    return [_call(part.get_payload(decode=True), str(part.get("Content-ID", ""))) for part in parts]


def _call(written: object, content_id: str) -> Call:
    text = written if isinstance(written, bytes) else b""
    line = REQUEST_LINE.match(text.decode("latin-1"))
    if line is None:
        raise Refused(400, "Failed to parse batch request, error: a part is no application/http request.")
    try:
        address = urlsplit(line[2])
    except ValueError as error:
        raise Refused(400, "Failed to parse batch request, error: a part has no valid address.") from error
    content = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[-1]
    key = parse_qs(address.query).get("key", [""])[0]
    return Call(line[1], unquote(address.path), key, content, content_id)


def batch_of(answers: Iterable[tuple[str, int, bytes]]) -> tuple[str, bytes]:
    """The content type and the body of the answer to a batch.

    Args:
        answers: For each request its Content-ID, the status and the JSON of its answer.
    """
    boundary = f"batch_{uuid.uuid4().hex}"
    body = bytearray()
    for content_id, status, content in answers:
        named = re.sub(r"[^ -~]", "", content_id).removeprefix("<").removesuffix(">")
        head = (
            f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{named}>\r\n\r\n"
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=UTF-8\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        body += head.encode() + content + b"\r\n"
    return f"multipart/mixed; boundary={boundary}", bytes(body) + f"--{boundary}--\r\n".encode()
