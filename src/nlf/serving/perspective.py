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
from nlf.serving.http import Handler, body_of, guarded, parsed, raw, reply, same_key
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
KEY_HEADER = "x-goog-api-key"
ALL = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


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
        if not same_key(key, self.key):
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
        return await does(parsed(content, Refused))

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


def no_method(method: str, path: str) -> Refused:
    """The error for a path or method that the server does not have."""
    known = f"POST {COMMENTS}analyze, suggestscore or batchAnalyze, POST /{BATCH}, GET {PATHS[0]} or GET /healthz"
    return Refused(404, f"Method not found: {method[:20]} {path[:100]}. Expected {known}.")


# ---- HTTP ---------------------------------------------------------------------------------------------------------


def application(service: Service) -> "FastAPI":
    """The web application of a service."""
    from fastapi import FastAPI
    from starlette.routing import BaseRoute, Route

    def read_body(request: "Request") -> Awaitable[bytes]:
        return body_of(request, MOST_BYTES, Refused)

    def route(path: str, does: Handler, methods: list[str]) -> BaseRoute:
        return Route(path, guarded(does, Refused), methods=methods)

    async def analyze(request: "Request") -> "Response":
        return reply(200, await service.called("POST", request.url.path, await read_body(request), key_in(request)))

    async def listed(request: "Request") -> "Response":
        return reply(200, await service.listed(parsed(await read_body(request), Refused), key_in(request)))

    async def batch(request: "Request") -> "Response":
        calls = calls_of(request.headers.get("content-type", ""), await read_body(request))
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
    routes = [route(path, does, ["POST"]) for path, does in {**posts, f"/{BATCH}": batch}.items()]
    routes += [route(path, does, ["GET"]) for path, does in gets.items()]
    routes.append(route("/{path:path}", missing, ALL))
    return FastAPI(openapi_url=None, routes=routes, redirect_slashes=False)


def key_in(request: "Request") -> str:
    """The API key of a request, from the address or the header."""
    return request.query_params.get("key") or request.headers.get(KEY_HEADER, "")
