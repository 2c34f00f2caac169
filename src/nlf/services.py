"""Requests to a service over HTTP, shared by remote scorers and the server sampler.

A failed try that may succeed later raises `Retry`; a try that cannot succeed raises `Rejected`. `retrying` repeats the
first kind with growing pauses. The caller decides how many tries a request gets and what a rejection means.
"""

import asyncio
import functools
import json
import math
import os
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from nlf.errors import UserError

LONGEST_PAUSE = 60.0  # seconds between two tries, unless the service asks for more
JITTER = (0.5, 1.0)  # each pause is multiplied by a random number from this range
# Names of OpenAI's client, which other servers of its API share.
OPENAI, OPENAI_KEY, OPENAI_URL = "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL"
T = TypeVar("T")


class Retry(Exception):
    """A try failed and may succeed later. `after` is the number of seconds that the service asks to wait."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.reason, self.after = reason, after


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
    waits: Callable[[Retry], None] = lambda error: None,
) -> AsyncRetrying:
    """A caller that repeats an async function for as long as it raises `Retry`, then raises the last `Retry`.

    Make a new one for each request: tenacity keeps the state of the current call in it.

    Args:
        tries: Calls of the function at most.
        backoff: Seconds of the first pause, before jitter; each following pause is twice as long.
        uniform: Draws the jitter of a pause, as `random.uniform`.
        failed: Called after each failed try.
        waits: Called before each pause.
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


async def post(
    client: httpx2.AsyncClient, url: str, body: dict, headers: dict | None = None, query: dict | None = None
) -> dict:
    """Send a JSON object by POST and return the JSON object of the answer.

    Args:
        query: Parameters that are added to the URL on the wire only. They can hold a key, and httpx2 logs URLs.

    Raises:
        Retry: the status is 408, 429 or 5xx, or the body of a success is not a JSON object.
        Rejected: the status is another error.
    """
    wire = {"target": httpx2.URL(url).raw_path + f"?{urlencode(query)}".encode()} if query else {}
    content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # UTF-8 has no surrogates
    headers = {"Content-Type": "application/json", **(headers or {})}
    response = await client.post(url, content=content, headers=headers, extensions=wire)
    if response.status_code in (408, 429) or response.status_code >= 500:
        after = retry_after(response.headers.get("retry-after"), response.headers.get("date"))
        raise Retry(f"HTTP {response.status_code}", after)
    payload = _object(response.content)
    if not response.is_success:
        raise Rejected(response.status_code, payload or {})
    if payload is None:
        raise Retry("invalid JSON")
    return payload


def _object(content: bytes) -> dict | None:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


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
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def said(payload: dict, secrets: Sequence[str] = ()) -> str:
    """The reason that a service gives for rejecting a request, on one line of at most 200 characters.

    Args:
        payload: The JSON object of the answer.
        secrets: Strings that are replaced by `[key]`.
    """
    found = payload.get("error") or payload.get("message") or payload.get("detail")
    found = found.get("message") if isinstance(found, dict) else found
    found = " ".join(str(found or "no reason given").split())
    for secret in filter(None, secrets):
        found = found.replace(secret, "[key]").replace(quote(secret, safe=""), "[key]")
    return found[:200]


def key_of(variable: str) -> str:
    """A service's key, from $VARIABLE or from the file that $VARIABLE_FILE names; "" if neither is set.

    Raises:
        UserError: the file cannot be read, or the key has characters that no key has.
    """
    file = os.environ.get(f"{variable}_FILE")
    try:
        key = os.environ.get(variable) or (Path(file).expanduser().read_text(encoding="utf-8") if file else "")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {file}, which {variable}_FILE names: {reason}") from error
    if not re.fullmatch("[!-~]*", key.strip()):
        raise UserError(
            f"{variable}: expected a key, one word of letters, digits and marks; remove spaces and line breaks"
        )
    return key.strip()


def checked_url(url: str, where: str) -> str:
    """A base URL, its final slash removed.

    Args:
        url: The URL as given.
        where: The setting that it comes from, for the error.

    Raises:
        UserError: it is not an HTTP URL, or holds a user, a password or a query, which logs would show.
    """
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
        raise UserError(f"{where}: expected http(s)://host[:port][/path], without a user, a key or a query in it")
    return url.rstrip("/")


def api_url(url: str, where: str) -> str:
    """The base URL of a server with OpenAI's API: a URL without a path gets /v1. See `checked_url`."""
    url = checked_url(url, where)
    return url if urlsplit(url).path else f"{url}/v1"


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key; none for an empty key."""
    return {"Authorization": f"Bearer {key}"} if key else {}
