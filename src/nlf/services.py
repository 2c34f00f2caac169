"""Requests to a service over HTTP, shared by remote scorers and the server sampler.

A failed try that may succeed later raises `Retry`; a try that cannot succeed raises `Rejected`. `retrying` repeats the
first kind with growing pauses. The caller decides how many tries a request gets and what a rejection means. Answers are
bounded in size, depth and the time that they may ask to wait, and their texts come without keys (`nlf.secrets`).
"""

import asyncio
import functools
import json
import logging
import math
import os
import re
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from nlf.errors import UserError
from nlf.secrets import masked

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0  # seconds between two tries, unless the service asks for more
LONGEST_WAIT = 3600.0  # seconds that a service may ask to wait; after a longer demand the request is given up
TOLD_WAIT = 10.0  # a demand of more seconds is announced
MOST_BYTES = 8 * 2**20  # of an answer, decompressed; real ones have some thousands
DEEPEST = 100  # levels of JSON in an answer; real ones have fewer than ten
JITTER = (0.5, 1.0)  # each pause is multiplied by a random number from this range
# Names of OpenAI's client, which other servers of its API share.
OPENAI, OPENAI_URL = "https://api.openai.com/v1", "OPENAI_BASE_URL"
# A host is a name, or an IPv6 address in brackets.
ADDRESS = re.compile(
    r"https?://(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]\\%]+)(?::(?P<port>[0-9]*))?(?P<path>/[^\s?#@]*)?"
)
LABEL = re.compile("[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.I)  # between the dots of a host's name
T = TypeVar("T")


class Retry(Exception):
    """A try failed and may succeed later.

    Attributes:
        after: Seconds that the service asks to wait; None if it does not ask.
        answer: What the service rejected the request with; None if the try failed in another way.
    """

    def __init__(self, reason: str, after: float | None = None, answer: "Rejected | None" = None):
        super().__init__(reason)
        self.reason, self.after, self.answer = reason, after, answer


class Rejected(Exception):
    """The service rejected the request, and another try cannot help. `payload` is the JSON object of its answer."""

    def __init__(self, status: int, payload: dict):
        super().__init__(f"HTTP {status}")
        self.status, self.payload = status, payload


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of our own and return its result.

    A notebook already runs an event loop in its thread, where `asyncio.run` is an error.
    """
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()  # stops the work on Ctrl-C; a finished future ignores it


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process: one for the whole run, because an HTTP client can only be used in its own loop. A
    forked process needs a new one, because its parent's threads are not copied.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async work", daemon=True).start()
    return loop


async def timed(answer: Awaitable[T], seconds: float) -> T:
    """Await the answer of one try, for at most `seconds`.

    Raises:
        Retry: the answer took longer, or the connection failed.
    """
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except (TimeoutError, httpx2.TransportError, httpx2.DecodingError) as error:
        raise Retry(type(error).__name__) from error


def retrying(
    tries: int,
    backoff: float,
    uniform: Callable[[float, float], float],
    *,
    failed: Callable[[Retry], None],
    waits: Callable[[Retry], None],
) -> AsyncRetrying:
    """A caller that repeats an async function for as long as it raises `Retry`, then raises the last `Retry`.

    Make a new one for each request: tenacity keeps the state of the current call in it.

    Args:
        tries: Calls of the function at most.
        backoff: Seconds of the first pause, before jitter; each following pause is twice as long.
        uniform: Draws the jitter of a pause, as `random.uniform`.
        failed: Called after each failed try.
        waits: Called before each pause, as `Waits`.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(Retry),
        stop=stop_after_attempt(tries),
        wait=lambda state: max(_error(state).after or 0.0, pause(state.attempt_number, backoff, uniform(*JITTER))),
        after=lambda state: failed(_error(state)),
        before_sleep=lambda state: waits(_error(state)),
        sleep=asyncio.sleep,
        reraise=True,
    )


def _error(state: RetryCallState) -> Retry:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Retry)  # tenacity calls the hooks of `retrying` after a Retry only
    return error


async def together(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `count` workers at a time. If one fails, cancel the others and raise its error."""
    workers = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class Waits:
    """Called before each pause: announces a long one, once for requests that wait at the same time.

    Args:
        who: The name of the service in messages.
    """

    def __init__(self, who: str):
        self.who, self.until = who, 0.0

    def __call__(self, error: Retry) -> None:
        """Raises UserError if the service asks to wait for more than LONGEST_WAIT seconds."""
        if not error.after or error.after <= TOLD_WAIT:
            return
        asked = f"{error.after:,.0f}" if error.after < 1e12 else "more than 1e12"
        said = f"{self.who}: the service asks to wait {asked} seconds ({error.reason})"
        if error.after > LONGEST_WAIT:
            raise UserError(
                f"{said}, more than the {LONGEST_WAIT:,.0f} allowed; finished work is kept: run again later"
            )
        until = time.monotonic() + error.after
        if until > self.until + 1:
            self.until = until
            logger.warning(f"{said}; waiting")


def new_client() -> httpx2.AsyncClient:
    """An HTTP client without a timeout of its own, which asks for uncompressed answers.

    Raises:
        UserError: a proxy or certificate of the environment cannot be used.
    """
    for scheme in ("http", "https", "all"):
        proxy = re.sub(r"^(\w+://)?([^/@]*@)?", r"http://", getproxies().get(scheme, ""))
        if proxy != "http://" and not _is_address(proxy):
            raise UserError(f"{scheme.upper()}_PROXY: expected http://host:port, with a port from 1 to 65535")
    try:
        limits, headers = httpx2.Limits(max_connections=None), {"Accept-Encoding": "identity"}
        return httpx2.AsyncClient(timeout=None, limits=limits, headers=headers)
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        raise UserError(
            f"no HTTP connections with the proxies and certificates of the environment ({type(error).__name__}): check "
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE"
        ) from error


async def post(
    client: httpx2.AsyncClient, url: str, body: dict, headers: dict | None = None, query: dict | None = None
) -> dict:
    """Send a JSON object by POST and return the JSON object of the answer.

    Args:
        query: Parameters that are added to the URL on the wire only. They can hold a key, and httpx2 logs URLs.

    Raises:
        Retry: the status is 408, 429 or 5xx, or the answer is too large, or the body of a success is not a JSON object.
        Rejected: the status is another error.
    """
    wire = {"target": httpx2.URL(url).raw_path + f"?{urlencode(query)}".encode()} if query else {}
    content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # UTF-8 has no surrogates
    headers = {"Content-Type": "application/json", **(headers or {})}
    async with client.stream("POST", url, content=content, headers=headers, extensions=wire) as response:
        payload = _object(await _body(response))
    status = response.status_code
    if status in (408, 429) or status >= 500:
        after = retry_after(response.headers.get("retry-after"), response.headers.get("date"))
        raise Retry(f"HTTP {status}", after, Rejected(status, payload or {}))
    if not response.is_success:
        raise Rejected(status, payload or {})
    if payload is None:
        raise Retry("invalid JSON")
    return payload


async def _body(response: httpx2.Response) -> bytes:
    """The whole body, decompressed; a compressed one is never unpacked to more than MOST_BYTES.

    Raises:
        Retry: the body is too large, or compressed in another way than asked for.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in ("gzip", "x-gzip", "deflate") else None
    if unzip is None and encoding != "identity":
        raise Retry("an answer in an encoding that was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += unzip.decompress(chunk, MOST_BYTES - len(body) + 1) if unzip else chunk
        except zlib.error as error:
            raise Retry("an answer that cannot be decompressed") from error
        if len(body) > MOST_BYTES:
            raise Retry(f"an answer of more than {MOST_BYTES >> 20} MB")
    return bytes(body)


def _object(content: bytes) -> dict | None:
    """The JSON object; None for other content."""
    try:
        payload = _finite(json.loads(content))
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _finite(value: Any, depth: int = 0) -> Any:
    """JSON data with None in place of NaN and infinity, which Python reads and JSON does not know.

    Raises:
        ValueError: the data is nested more deeply than DEEPEST.
    """
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {name: _finite(each, depth + 1) for name, each in value.items()}
    return value


def pause(tries: int, backoff: float, jitter: float) -> float:
    """Seconds to wait after `tries` failed tries: `backoff`, doubled for each further try up to LONGEST_PAUSE, times the
    jitter.
    """
    return min(backoff * 2 ** min(tries - 1, 60), LONGEST_PAUSE) * jitter


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for; None without a valid header.

    Args:
        value: The header: a number of seconds, or a date.
        date: The answer's Date header, from which seconds are counted; None = count from our clock.
    """
    try:
        seconds = float(value or "nan")
    except ValueError:
        until, now = _moment(value), _moment(date) or datetime.now(UTC)
        seconds = (until - now).total_seconds() if until else math.nan
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _moment(header: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def said(payload: dict, secrets: Iterable[str] = ()) -> str:
    """The reason that a service gives for rejecting a request, on one line of at most 200 characters, without keys.

    Args:
        payload: The JSON object of the answer.
        secrets: Further secrets to mask, besides those of the environment.
    """
    found = payload.get("error") or payload.get("message") or payload.get("detail")
    found = found.get("message") if isinstance(found, dict) else found
    text = "".join(each if each.isprintable() else " " for each in str(found or "no reason given"))
    return " ".join(masked(text, secrets, words=True).split())[:200]


def checked_url(url: str, where: str) -> str:
    """A base URL, its final slash removed.

    Args:
        url: The URL as given.
        where: The setting that it comes from, for the error.

    Raises:
        UserError: it is not an HTTP URL, or holds a user, a password or a query, which logs would show.
    """
    if not _is_address(url):
        raise UserError(
            f"{where}: expected http(s)://host[:port][/path], a port from 1 to 65535, without a user, a key or a query in it"
        )
    return url.rstrip("/")


def _is_address(url: str) -> bool:
    """Whether a URL can be connected to: scheme, host and port are well formed, and there is no user and no query."""
    try:
        host = httpx2.URL(url).raw_host.decode()
    except httpx2.InvalidURL:
        return False
    found = ADDRESS.fullmatch(url)
    labels = host.removesuffix(".").split(".")
    named = ":" in host or (len(host) < 254 and all(map(LABEL.fullmatch, labels)))
    return bool(found and host and named and 0 < int(found["port"] or 80) < 65536)


def api_url(url: str, where: str) -> str:
    """The base URL of a server with OpenAI's API: a URL without a path gets /v1. See `checked_url`."""
    url = checked_url(url, where)
    return url if urlsplit(url).path else f"{url}/v1"


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key; none for an empty key."""
    return {"Authorization": f"Bearer {key}"} if key else {}
