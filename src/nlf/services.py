"""Asking a service over HTTP: what scorers and samplers behind a network share.

A try that may pass later raises `Retry`, one that will not raises `Rejected`; how often, and what that means, is said by
who asks.
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
from urllib.parse import quote, urlencode

import httpx2

from nlf.errors import UserError

LONGEST_PAUSE = 60.0  # seconds, unless the service asks for more


class Retry(Exception):
    """A try failed in a way that may pass; `after` = seconds that the service asks to wait."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.reason, self.after = reason, after


class Rejected(Exception):
    """The service answered with a status that is no success and not worth another try, and with this object."""

    def __init__(self, status: int, payload: dict):
        super().__init__(f"HTTP {status}")
        self.status, self.payload = status, payload


def run(work: Coroutine):
    """The result of async work. It runs in a loop of its own, so that a notebook's loop does not forbid it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()  # on Ctrl-C; does nothing to what is done


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop for the whole run: a client that is kept between calls stays usable. A forked process has its own, since
    threads are not forked.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async work", daemon=True).start()
    return loop


async def timed(answer: Awaitable, seconds: float):
    """What one try gives, within so many seconds.

    Raises:
        Retry: it took longer, or failed in transport.
    """
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except (TimeoutError, httpx2.TransportError, httpx2.DecodingError) as error:
        raise Retry(type(error).__name__) from error


async def together(count: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run so many workers at a time; where one fails, the others are cancelled and its error is raised."""
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
    """POST JSON; the object that comes back.

    Args:
        query: Put behind the URL on the wire only: httpx2 logs URLs, and knows nothing of it.

    Raises:
        Retry: 408, 429, 5xx, or what came back is no JSON object; Rejected: another status that is no success.
    """
    wire = {"target": httpx2.URL(url).raw_path + f"?{urlencode(query)}".encode()} if query else {}
    content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # half a character is no UTF-8
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
    """Seconds to wait after so many tries: doubled each time, LONGEST_PAUSE at most, times the jitter."""
    return min(backoff * 2 ** min(tries - 1, 60), LONGEST_PAUSE) * jitter


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date by the service's own clock (its Date header,
    else ours); None where it says nothing.
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
    """Why a service rejects a request, in its own words, on one line, without what must not be shown."""
    found = payload.get("error") or payload.get("message") or payload.get("detail")
    found = found.get("message") if isinstance(found, dict) else found
    found = " ".join(str(found or "no reason given").split())
    for secret in filter(None, secrets):
        found = found.replace(secret, "[key]").replace(quote(secret, safe=""), "[key]")
    return found[:200]


def key_of(variable: str) -> str:
    """A service's key, from $VARIABLE or the file that $VARIABLE_FILE names; "" where there is none.

    Raises:
        UserError: the file cannot be read, or what is there is no key.
    """
    file = os.environ.get(f"{variable}_FILE")
    try:
        key = os.environ.get(variable) or (Path(file).expanduser().read_text(encoding="utf-8") if file else "")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {file}, which {variable}_FILE names: {reason}") from error
    if not re.fullmatch("[!-~]*", key.strip()):
        raise UserError(f"{variable}: expected a key, one word of letters, digits and marks; look for spaces in it")
    return key.strip()


def checked_url(url: str, where: str) -> str:
    """A base URL without a slash at its end.

    Raises:
        UserError: it is none, or has in it what must not be shown, as a user or a query.
    """
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
        raise UserError(f"{where}: expected http(s)://host[:port][/path], without a user, a key or a query in it")
    return url.rstrip("/")
