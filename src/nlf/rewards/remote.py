"""Scorers behind a network: each text is asked about once, at a bounded rate, and no answer is lost.

What is known comes from the cache; the rest is asked for by workers, each request at its turn of the rate limit. A try
that fails in transport (or by 408, 429, 5xx, broken JSON) is made again after a growing, jittered pause. What a service
cannot score is None, its reason counted; any other 4xx is a mistake and stops the run. Texts that have used up their
tries are tried once more at the end; so many of them in a row, or one that has no answer even then, stop the run too.
Every answer is on disk as soon as it arrives: running again goes on.

A scorer is a subclass of `RemoteScorer`: how a text is asked about, and what an answer means.
"""

import asyncio
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from tqdm.auto import tqdm

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.rewards import Judgement
from nlf.rewards.cache import Cache, Pace, digest, gap
from nlf.services import LONGEST_PAUSE, Rejected, Retry, pause, said, timed, together

logger = logging.getLogger(__name__)

LONG = 120.0  # seconds of asking that are told beforehand
_options = RemoteOptions()


def configure(options: RemoteOptions) -> None:
    """How scorers are asked from now on, but for those with options of their own."""
    global _options
    _options = options


def cache_path(options: RemoteOptions) -> Path:
    """Where the answers are: in `cache_dir`, $NLF_CACHE, or the user's cache folder."""
    folder = options.cache_dir or os.environ.get("NLF_CACHE")
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nlf"
    return Path(folder).expanduser() / "scores.sqlite"


def export_cache(path: str | Path) -> int:
    """Write all answers that are kept as JSON Lines; how many."""
    with Cache(cache_path(_options)) as cache:
        return cache.export(Path(path))


def import_cache(path: str | Path) -> int:
    """Take the answers of such a file that are not there yet; how many."""
    with Cache(cache_path(_options)) as cache:
        return cache.take(Path(path))


class Refused(Exception):
    """The service cannot score this text, now or later."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Ask:
    """A question: the texts that the answer depends on, as plain JSON data, and what is sent; or what is known without
    asking.
    """

    key: object
    body: dict
    judgement: Judgement | None = None

    @classmethod
    def known(cls, judgement: Judgement) -> "Ask":
        return cls(None, {}, judgement)


class RemoteScorer:
    """A scorer object and an async TRL reward function. A subclass has a `name` and gives `requests`, `ask` and `read`.

    Attributes:
        service: Scorers of one service share answers; `name` unless a subclass says otherwise.
        base_url: Where it is asked; each has a rate of its own.
        rate_limit: Requests a second where the options name none; None = no limit.
        backoff: Seconds of the first pause at most; doubled for each next one.

    Args:
        options: For this scorer alone; None = those of `configure`.
    """

    name, version, remote = "", "1", True
    base_url = ""
    rate_limit: float | None = None
    backoff = 1.0

    def __init__(self, options: RemoteOptions | None = None):
        self.options = options
        self.counts: Counter[str] = Counter()

    @property
    def service(self) -> str:
        return self.name

    def requests(self, prompts: Sequence, completions: Sequence[str], **columns) -> list[Ask]:
        """One for each completion; that of a conversation comes as its text."""
        raise NotImplementedError

    def settings(self) -> dict:
        """What the answer depends on besides service, version and text, as plain JSON data; never a secret."""
        return {"base_url": self.base_url}

    def ready(self) -> None:
        """Called before anything is asked; raises UserError where it cannot be: no key, say."""

    async def ask(self, client: httpx2.AsyncClient, ask: Ask):
        """One try: the answer as plain JSON data, which is what is kept.

        Raises:
            Retry: it may be tried again, as after httpx2's TransportError; Refused: this text cannot be scored.
        """
        raise NotImplementedError

    def read(self, answer) -> Judgement:
        """What an answer means; where it says nothing, a reward of None, counted."""
        raise NotImplementedError

    def secrets(self) -> list[str]:
        """What must never be shown."""
        return []

    def count(self, reason: str) -> None:
        """Count what is to be told at the end of a call."""
        self.counts[reason] += 1

    def mistake(self, error: Rejected, check: str) -> UserError:
        """What to say where a request that should be right is rejected; `check` says what to look at."""
        return UserError(
            f"{self.name}: {self.base_url} rejects the request: HTTP {error.status}: "
            f"{said(error.payload, self.secrets())}; check {check}; answers so far are kept"
        )

    async def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list:
        return [each.reward for each in await self.judge(prompts, completions, completion_ids, **columns)]

    async def judge(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[Judgement]:
        """Judgements of N completions; the same question is asked once.

        Raises:
            UserError: the service cannot be asked, rejects a request, or fails again and again; or, in replay, an answer
                is missing.
        """
        options, shared = self.options or _options, _shared()
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        async with shared.locks[self.service]:  # another reward of the service may leave nothing to ask
            self.counts.clear()
            asks = self.requests(prompts, texts, **columns)
            origin = [self.service, self.version, self.settings()]
            keys = [None if ask.judgement else digest([*origin, ask.key]) for ask in asks]
            todo = {key: ask for key, ask in zip(keys, asks, strict=True) if key}
            with Cache(cache_path(options)) as cache:
                found = cache.get(todo)
                missing = {key: ask for key, ask in todo.items() if key not in found}
                if missing and options.replay:
                    raise UserError(
                        f"{self.name}: {len(missing)} of {len(todo)} texts have no answer in {cache.path}; "
                        "ask for them without --replay, or take answers with `nlf score --import_cache`"
                    )
                if missing:
                    self.ready()
                    found |= await _Asking(self, options, cache, shared.client).all(missing)
            judgements = [ask.judgement or self._read(found[key]) for key, ask in zip(keys, asks, strict=True)]
            self._report(judgements)
        return judgements

    def _read(self, found: dict) -> Judgement:
        if "refused" not in found:
            return self.read(found["answer"])
        self.count(found["refused"])
        return Judgement(None)

    def _report(self, judgements: list[Judgement]) -> None:
        unscored = sum(each.reward is None for each in judgements)
        if unscored or self.counts:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.counts.most_common())
            logger.warning(f"{self.name}: {len(judgements):,} texts, {unscored:,} without a score; {reasons}")


class _Asking:
    """The questions of one call: what its workers share."""

    def __init__(self, scorer: RemoteScorer, options: RemoteOptions, cache: Cache, client: httpx2.AsyncClient):
        self.scorer, self.options, self.cache, self.client = scorer, options, cache, client
        self.rate = options.rate_limit or scorer.rate_limit
        self.found: dict[str, dict] = {}
        self.failures: Counter[str] = Counter()  # tries that failed, by reason
        self.in_a_row = 0  # texts out of tries since the last answer
        self.turn = asyncio.Lock()
        self.random = random.Random()

    async def all(self, todo: dict[str, Ask]) -> dict[str, dict]:
        """What is found for every question; UserError where that cannot be had."""
        name, seconds = self.scorer.name, len(todo) * gap(self.rate) if self.rate else 0
        if seconds > LONG:
            hours = f"at least {seconds / 3600:,.1f} hours at {self.rate:g} a second"
            logger.info(f"{name}: {len(todo):,} requests, {hours}")
        bar = tqdm(total=len(todo), desc=name, unit="text", delay=5, disable=None, leave=False)
        with bar as self.bar, Pace() as self.pace:
            for _ in range(2):  # once more for those that are out of tries
                await self._work({key: ask for key, ask in todo.items() if key not in self.found})
        if left := len(todo) - len(self.found):
            raise self._stopped(f"{left} of {len(todo)} texts have no answer after twice all tries")
        return self.found

    async def _work(self, todo: dict[str, Ask]) -> None:
        queue = iter(todo.items())
        await together(min(self.options.max_concurrency, len(todo)), lambda: self._take(queue))

    async def _take(self, queue) -> None:
        for key, ask in queue:
            found = await self._answer(key, ask)
            if found is not None:
                self.cache.put(key, self.scorer.name, found)
                self.found[key], self.in_a_row = found, 0
                self.bar.update()
                continue
            self.in_a_row += 1
            if self.in_a_row >= self.options.max_failures_in_a_row:
                tries = self.options.max_tries
                raise self._stopped(f"{self.in_a_row} texts in a row have no answer after {tries} tries")

    async def _answer(self, key: str, ask: Ask) -> dict | None:
        """What is found for a text; None where it has used up its tries."""
        for tries in range(1, self.options.max_tries + 1):
            if known := await self._turn(key):
                return known
            try:
                return await self._try(ask)
            except Retry as failed:
                self.failures[failed.reason] += 1
                self.bar.set_postfix(failures=self.failures.total(), refresh=False)
                if tries < self.options.max_tries:
                    await asyncio.sleep(self._pause(tries, failed.after))
        return None

    async def _turn(self, key: str) -> dict | None:
        """Wait until a request may start; or what another process has found meanwhile."""
        service = f"{self.scorer.service} {self.scorer.base_url}"
        async with self.turn:
            while not (known := self.cache.get([key])) and (wait := self.rate and self.pace.start(service, self.rate)):
                await asyncio.sleep(wait)
        return known.get(key)

    async def _try(self, ask: Ask) -> dict:
        try:
            return {"answer": await timed(self.scorer.ask(self.client, ask), self.options.request_timeout)}
        except Refused as refused:
            return {"refused": refused.reason}

    def _pause(self, tries: int, after: float | None) -> float:
        if after and after > LONGEST_PAUSE:
            logger.warning(f"{self.scorer.name}: the service asks to wait {after:,.0f} seconds")
        return max(after or 0.0, pause(tries, self.scorer.backoff, self.random.uniform(0.5, 1)))

    def _stopped(self, what: str) -> UserError:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.failures.most_common(5))
        where = f" at {self.scorer.base_url}" if self.scorer.base_url else ""
        return UserError(
            f"{self.scorer.name}: {what} (failed tries{where}: {reasons}); {len(self.found):,} new answers are kept in "
            f"{self.cache.path}: run again to go on"
        )


class _Shared:
    """What the calls on one event loop share: a client, whose connections stay open, and a lock for each service."""

    def __init__(self):
        self.client = httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_connections=None))
        self.locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)


_loops: dict[asyncio.AbstractEventLoop, _Shared] = {}


def _shared() -> _Shared:
    for closed in [loop for loop in _loops if loop.is_closed()]:
        del _loops[closed]
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = _Shared()
    return _loops[loop]


def probability(value) -> float | None:
    """A number in [0, 1]; None = it is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 1 else None
