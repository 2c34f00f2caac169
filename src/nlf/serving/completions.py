"""`nlf serve`: the models of a run over HTTP, in OpenAI's protocol.

    POST /v1/completions          completions of texts
    POST /v1/chat/completions     answers to conversations
    GET  /v1/models               the models: base, tagged, plain or distilled, with their tags
    GET  /health                  whether the server runs
    GET  /metrics                 numbers for Prometheus
    GET  /                        a page for people
    GET  /nlf/settings            what the page shows: models and limits
    GET  /nlf/score               the scorer of the run
    POST /nlf/score               scores of completions and of their beginnings

Texts and keys are never logged and never stored. There are no CORS headers: a browser page on another site cannot read the
answers, and while the server has no key and listens to this machine only, it refuses other names of itself.
"""

import asyncio
import logging
import os
import sys
import webbrowser
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nlf.config import ServeOptions
from nlf.data.files import json_text
from nlf.errors import UserError
from nlf.secrets import API_KEY, key_of
from nlf.serving import metrics, server
from nlf.serving.http import Handler, body_of, guarded, parsed, raw, reply, same_key
from nlf.serving.openai import Refused, read
from nlf.serving.rating import question_of
from nlf.serving.served import Service, Work, folders_of, writers_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.requests import Request
    from fastapi.responses import Response

logger = logging.getLogger(__name__)

MOST_BYTES = 2**20  # of the body of a request
PAGE = {  # the files of the page, by path
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# The page runs its own script and asks its own server, and nothing else: texts of models are hostile.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOCAL = ["127.0.0.1", "localhost", "[::1]"]
ALL = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
T = TypeVar("T")


def serve_command(options: ServeOptions) -> str:
    """`nlf serve`: serve until Ctrl-C, and return a line for the end."""
    server.check_installed("nlf serve")
    key = options.api_key or key_of(API_KEY)
    folders_of(options)  # the names are right before any model is loaded
    listener = server.listen(options.host, options.port)
    service = Service(writers_of(options), options, key)
    local = server.is_local(listener)
    url = server.url_of(listener)
    logger.info("a page for people at %s", url)
    logger.info("%s at %s/v1; Ctrl-C ends it", ", ".join(service.writers), url)
    if not (key or local):
        logger.warning("everyone who can reach this address can use the server; set %s to ask for a key", API_KEY)
    if options.open:
        open_page(url)  # the listener already takes connections, so the page waits until the server runs
    try:
        server.run(application(service, hosts=LOCAL if local and not key else None), listener)
    finally:
        service.stop()
    return f"{service.engine.finished:,} completions, {service.engine.generated:,} tokens"


def open_page(url: str) -> None:
    """Open a page in a window, where there are windows: a browser of the terminal would take the terminal away."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)


# ---- HTTP ---------------------------------------------------------------------------------------------------------


def application(service: Service, hosts: list[str] | None = None) -> "FastAPI":
    """The web application of a service.

    Args:
        hosts: Names of the server that requests may use; None = any.
    """
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    async def completions(request: "Request") -> "Response":
        return await answered(request, service)

    async def scores(request: "Request") -> "Response":
        body = parsed(await body_of(request, MOST_BYTES, Refused, too_large=413), Refused)
        return reply(200, await service.rater.scores(question_of(body)))

    async def missing(request: "Request") -> "Response":
        raise no_method(request.method, request.url.path)

    def route(path: str, does: Handler, method: str) -> Route:
        checked = with_key(does, service.key) if path.startswith(("/v1/", "/nlf/")) else does
        return Route(path, counted(guarded(checked, Refused), path, service), methods=[method])

    routes = [route(f"/v1/{path}", completions, "POST") for path in ("completions", "chat/completions")]
    routes.append(route("/nlf/score", scores, "POST"))
    routes += [route(path, does, "GET") for path, does in pages(service).items()]
    routes.append(Route("/{path:path}", counted(guarded(missing, Refused), "other", service), methods=ALL))
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)] if hosts else []
    return FastAPI(openapi_url=None, routes=list(routes), redirect_slashes=False, middleware=middleware)


def pages(service: Service) -> dict[str, Handler]:
    """What can be read, by its path."""

    async def models(request: "Request") -> "Response":
        return reply(200, {"object": "list", "data": [service.model(name) for name in service.writers]})

    async def model(request: "Request") -> "Response":
        return reply(200, service.model(service.known(request.path_params["name"])))

    async def health(request: "Request") -> "Response":
        return reply(200, {"status": "ok", "models": list(service.writers)})

    async def numbers(request: "Request") -> "Response":
        return raw(200, metrics.CONTENT_TYPE, service.metrics.text(service.gauges()).encode())

    async def page(request: "Request") -> "Response":
        name, kind = PAGE[request.url.path]
        answer = raw(200, kind, Path(__file__).with_name(name).read_bytes())
        answer.headers.update(PAGE_HEADERS)
        return answer

    async def settings(request: "Request") -> "Response":
        return reply(200, service.settings)

    async def scorer(request: "Request") -> "Response":
        return reply(200, await service.rater.about())

    v1 = {"/v1/models": models, "/v1/models/{name:path}": model}
    own = {"/nlf/settings": settings, "/nlf/score": scorer, **dict.fromkeys(PAGE, page)}
    return {**v1, **own, "/health": health, "/metrics": numbers}


def with_key(handler: Handler, key: str) -> Handler:
    """The handler for requests that bring the server's key, and that no page of another site sends."""

    async def handled(request: "Request") -> "Response":
        given = request.headers.get("authorization", "")
        if not same_key(given.removeprefix("Bearer ").strip(), key):
            raise Refused(
                401, "Incorrect API key provided: send the server's key as a bearer token.", name="invalid_api_key"
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise Refused(403, "A page of another site may not use this server.")
        return await handler(request)

    return handled


def counted(handler: Handler, path: str, service: Service) -> Handler:
    """The handler, with its answers counted in the metrics."""

    async def handled(request: "Request") -> "Response":
        found = await handler(request)
        service.metrics.answers[path, found.status_code] += 1
        return found

    return handled


def no_method(method: str, path: str) -> Refused:
    """The error for a path or method that the server does not have."""
    known = "POST /v1/completions or /v1/chat/completions, GET /v1/models, /health, /metrics or /"
    return Refused(404, f"Invalid URL ({method[:20]} {path[:100]}). Expected {known}.")


async def answered(request: "Request", service: Service) -> "Response":
    """The answer to a request for completions, or the stream of it."""
    body = parsed(await body_of(request, MOST_BYTES, Refused, too_large=413), Refused)
    asked = read(body, chat=request.url.path.startswith("/v1/chat/"))
    work = service.begin(asked)
    if asked.stream:
        return stream_of(work)
    try:
        return reply(200, await unless_gone(request, work.whole()))
    except UserError as error:
        raise Refused(500, str(error)) from error


def stream_of(work: Work) -> "Response":
    """The events of an answer. Its rows are given up when the client goes, even before the first event."""
    from fastapi.responses import StreamingResponse

    class Events(StreamingResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                work.job.cancel()

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in work.events():
                yield f"data: {json_text(event)}\n\n"
        except UserError as error:
            yield f"data: {json_text(Refused(500, str(error)).payload)}\n\n"
        yield "data: [DONE]\n\n"

    return Events(
        lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def unless_gone(request: "Request", work: Awaitable[T]) -> T:
    """The result of work, which is given up if the client goes.

    Raises:
        ClientDisconnect: the client has gone.
    """
    from starlette.requests import ClientDisconnect

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
