"""HTTP for every protocol: bodies, keys, JSON, errors. Each protocol has its own form of errors, a subclass of `Refused`."""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nlf.data.files import json_text

if TYPE_CHECKING:
    from fastapi.requests import Request
    from fastapi.responses import Response

logger = logging.getLogger(__name__)

MOST_SECONDS = 60.0  # for the body of a request to arrive
Handler = Callable[["Request"], Awaitable["Response"]]


class Refused(Exception):
    """A request that gets an error. `code` is the HTTP status, `payload` the body of the answer, `after` the number of
    seconds after which another try makes sense.
    """

    code: int
    payload: dict[str, Any]
    after: int | None


Refusal = Callable[[int, str], Refused]  # makes the error of a protocol


def parsed(content: bytes, refusal: Refusal) -> Any:
    """The JSON of a request's body.

    Raises:
        Refused: it is no JSON.
    """
    try:
        return json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise refusal(400, "Invalid JSON payload received. Expected JSON in UTF-8.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def same_key(given: str, key: str) -> bool:
    """Whether a key is the server's, or the server has none."""
    return not key or hmac.compare_digest(given.encode(errors="replace"), key.encode())


def guarded(handler: Handler, refusal: Refusal) -> Handler:
    """The handler with the protocol's error in place of an exception, whose text could quote a request."""
    from starlette.requests import ClientDisconnect

    async def handled(request: "Request") -> "Response":
        try:
            return await handler(request)
        except Refused as error:
            return reply(error.code, error.payload, error.after)
        except ClientDisconnect:
            return reply(408, {})  # nobody reads it
        except Exception as error:
            logger.error("a request failed (%s)", type(error).__name__)
            return reply(500, refusal(500, "Internal error encountered.").payload)

    return handled


async def body_of(request: "Request", most: int, refusal: Refusal, too_large: int = 400) -> bytes:
    """The body of a request.

    Args:
        most: Most bytes.
        too_large: The status of a larger one.

    Raises:
        Refused: it is too large, or arrives too slowly.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise refusal(too_large, f"Request payload size exceeds the limit: {most} bytes.")
    except TimeoutError as error:
        raise refusal(408, f"The request did not arrive within {MOST_SECONDS:g} seconds.") from error
    return bytes(body)


def reply(status: int, payload: Any, after: int | None = None) -> "Response":
    """A JSON answer; `after` is the number of seconds after which another try makes sense."""
    return raw(status, "application/json; charset=UTF-8", json_text(payload).encode(), after)


def raw(status: int, content_type: str, content: bytes, after: int | None = None) -> "Response":
    """An answer that no cache keeps."""
    from fastapi.responses import Response

    headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
    return Response(content, status, headers | ({"Retry-After": str(after)} if after else {}))
