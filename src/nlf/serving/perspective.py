"""`nlf score --serve`: a server that speaks the protocol of Google's Perspective API.

    POST /v1alpha1/comments:analyze         scores of a text
    POST /v1alpha1/comments:suggestscore    thanks; nothing is stored
    POST /v1alpha1/comments:batchAnalyze    a JSON list of requests of comments:analyze; a list of their answers
    POST /batch                             Google's batch form, multipart/mixed
    GET  /$discovery/rest?version=v1alpha1  the discovery document; also under /discovery/v1/apis/…
    GET  /healthz                           the scorer and its attributes

Texts and keys are never logged and never stored. There are no CORS headers: a browser page on another site cannot read
the answers.
"""

import asyncio
import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from nlf.config import ScoreOptions, remote_options
from nlf.data.files import json_text
from nlf.errors import UserError
from nlf.rewards.registry import configure
from nlf.secrets import SERVE_KEY, key_of
from nlf.serving import server
from nlf.serving.discovery import BATCH, PATHS, VERSION, document
from nlf.serving.multipart import MOST_CALLS, Call, batch_of, calls_of
from nlf.serving.protocol import Refused, answer, read, suggested, wants_spans
from nlf.serving.scoring import AttributeScorer, Batcher, scorer_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.requests import Request
    from fastapi.responses import Response

logger = logging.getLogger(__name__)

COMMENTS = f"/{VERSION}/comments:"
MOST_BYTES = 10 * 2**20  # of the body of a request, as Google has it
MOST_SECONDS = 60.0  # for the body of a request to arrive
KEY_HEADER = "x-goog-api-key"
ALL = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

Handler = Callable[["Request"], Awaitable["Response"]]


def serve_command(options: ScoreOptions) -> str:
    """`nlf score --serve`: serve until Ctrl-C, and return a line for the end."""
    server.check_installed("nlf score --serve")
    key = key_of(SERVE_KEY)
    configure(remote_options(options))
    scorer = scorer_of(options.reward_funcs)
    if options.rate_limit is not None and not scorer.reward.remote:
        raise UserError(
            f"rate_limit slows requests to a remote scorer, and {scorer.label} is none; --queries_per_second limits what the "
            "server takes"
        )
    service = Service(scorer, key=key, limit=Limit(options.queries_per_second))
    listener = server.listen(options.host, options.port)
    logger.info("%s speaks Perspective's protocol at %s; Ctrl-C ends it", scorer.label, server.url_of(listener))
    if not (key or server.is_local(listener)):
        logger.warning("everyone who can reach this address can use the server; set %s to ask for a key", SERVE_KEY)
    server.run(application(service), listener)
    return f"{service.answered:,} comments scored"


class Limit:
    """Most queries a second, with bursts of at most one second's queries.

    Args:
        rate: Queries a second; None = no limit.
        clock: The time in seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic):
        self.rate, self.clock = rate, clock
        self.free, self.last = max(rate or 0.0, 1.0), clock()

    def take(self) -> None:
        """Count one query.

        Raises:
            Refused: it is one too many.
        """
        if self.rate is None:
            return
        now = self.clock()
        self.free, self.last = min(self.free + (now - self.last) * self.rate, max(self.rate, 1.0)), now
        if self.free < 1:
            message = f"Quota exceeded: this server takes {self.rate:g} queries per second."
            raise Refused(429, message, after=math.ceil(1 / self.rate))
        self.free -= 1


class Service:
    """The answers to requests, without HTTP.

    Attributes:
        answered: The number of comments scored.
    """

    def __init__(self, scorer: AttributeScorer, *, key: str = "", limit: Limit | None = None):
        self.scorer, self.batcher = scorer, Batcher(scorer)
        self.key, self.limit, self.answered = key, limit or Limit(None), 0

    def check_key(self, key: str) -> None:
        """Raise Refused unless the key is the server's, or the server has none."""
        if self.key and not hmac.compare_digest(key.encode(errors="replace"), self.key.encode()):
            raise Refused(403, "The caller does not have permission: the API key is missing or not valid.")

    async def analyze(self, request: Any) -> dict:
        """The answer to a request of comments:analyze."""
        self.limit.take()
        reading = partial(read, request, self.scorer.offered, self.scorer.cut)
        question = await self.batcher.read(reading) if wants_spans(request) else reading()
        response = answer(question, await self.batcher(question.texts))
        self.answered += 1
        return response

    async def suggest(self, request: Any) -> dict:
        """The answer to a request of comments:suggestscore."""
        self.limit.take()
        response = suggested(request)
        logger.info("thanks for a suggested score; it is not stored")
        return response

    async def called(self, method: str, path: str, content: bytes, key: str) -> dict:
        """The answer to a request to one of the two methods."""
        self.check_key(key)
        does = {f"{COMMENTS}analyze": self.analyze, f"{COMMENTS}suggestscore": self.suggest}.get(path)
        if does is None or method != "POST":
            raise no_method(method, path)
        return await does(parsed(content))

    async def batch(self, calls: list[Call], key: str) -> list[tuple[int, dict]]:
        """The outcome of each request of a batch; `key` is used where a request has none."""
        return await asyncio.gather(
            *(outcome(self.called(each.method, each.path, each.content, each.key or key)) for each in calls)
        )

    async def listed(self, requests: Any, key: str) -> list[dict]:
        """The answers, or errors, to a list of requests of comments:analyze."""
        self.check_key(key)
        if not isinstance(requests, list) or len(requests) > MOST_CALLS:
            raise Refused(400, f"Expected a JSON list of at most {MOST_CALLS} requests of comments:analyze.")
        return [payload for _, payload in await asyncio.gather(*(outcome(self.analyze(each)) for each in requests))]


async def outcome(work: Awaitable[dict]) -> tuple[int, dict]:
    """The status and the JSON of an answer, or of the error in its place."""
    try:
        return 200, await work
    except Refused as error:
        return error.code, error.payload


def parsed(content: bytes) -> Any:
    """The JSON of a request's body.

    Raises:
        Refused: it is no JSON.
    """
    try:
        return json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise Refused(400, "Invalid JSON payload received. Expected JSON in UTF-8.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def no_method(method: str, path: str) -> Refused:
    """The error for a path or method that the server does not have."""
    known = f"POST {COMMENTS}analyze, suggestscore or batchAnalyze, POST /{BATCH}, GET {PATHS[0]} or GET /healthz"
    return Refused(404, f"Method not found: {method[:20]} {path[:100]}. Expected {known}.")


# ---- HTTP ---------------------------------------------------------------------------------------------------------


def application(service: Service) -> "FastAPI":
    """The web application of a service."""
    from fastapi import FastAPI
    from starlette.routing import BaseRoute, Route

    async def analyze(request: "Request") -> "Response":
        return reply(200, await service.called("POST", request.url.path, await body_of(request), key_in(request)))

    async def listed(request: "Request") -> "Response":
        return reply(200, await service.listed(parsed(await body_of(request)), key_in(request)))

    async def batch(request: "Request") -> "Response":
        calls = calls_of(request.headers.get("content-type", ""), await body_of(request))
        found = await service.batch(calls, key_in(request))
        answers = (
            (call.content_id, code, json_text(each).encode()) for call, (code, each) in zip(calls, found, strict=True)
        )
        return raw(200, *batch_of(answers))

    async def discovery(request: "Request") -> "Response":
        return reply(200, document(str(request.base_url)))

    async def health(request: "Request") -> "Response":
        return reply(200, {"status": "ok", "scorer": service.scorer.label, "attributes": service.scorer.offered})

    async def missing(request: "Request") -> "Response":
        raise no_method(request.method, request.url.path)

    posts = {f"{COMMENTS}analyze": analyze, f"{COMMENTS}suggestscore": analyze, f"{COMMENTS}batchAnalyze": listed}
    gets = {**dict.fromkeys(PATHS, discovery), "/healthz": health}
    routes: list[BaseRoute] = [
        Route(path, guarded(does), methods=["POST"]) for path, does in {**posts, f"/{BATCH}": batch}.items()
    ]
    routes += [Route(path, guarded(does), methods=["GET"]) for path, does in gets.items()]
    routes.append(Route("/{path:path}", guarded(missing), methods=ALL))
    return FastAPI(openapi_url=None, routes=routes, redirect_slashes=False)


def guarded(handler: Handler) -> Handler:
    """The handler with Google's error in place of an exception, whose text could quote a request."""
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
            return reply(500, Refused(500, "Internal error encountered.").payload)

    return handled


async def body_of(request: "Request") -> bytes:
    """The body of a request.

    Raises:
        Refused: it is too large, or arrives too slowly.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Refused(400, f"Request payload size exceeds the limit: {MOST_BYTES} bytes.")
    except TimeoutError as error:
        raise Refused(408, f"The request did not arrive within {MOST_SECONDS:g} seconds.") from error
    return bytes(body)


def key_in(request: "Request") -> str:
    """The API key of a request, from the address or the header."""
    return request.query_params.get("key") or request.headers.get(KEY_HEADER, "")


def reply(status: int, payload: Any, after: int | None = None) -> "Response":
    """A JSON answer; `after` is the number of seconds after which another try makes sense."""
    return raw(status, "application/json; charset=UTF-8", json_text(payload).encode(), after)


def raw(status: int, content_type: str, content: bytes, after: int | None = None) -> "Response":
    """An answer that no cache keeps."""
    from fastapi.responses import Response

    headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
    return Response(content, status, headers | ({"Retry-After": str(after)} if after else {}))
