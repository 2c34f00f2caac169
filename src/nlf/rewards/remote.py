"""Remote scorers: ask about each text once, at a bounded rate, and lose no answer.

Answers in the cache are not asked for. Workers ask for the other answers; each request waits for its turn under the
rate limit. A try that fails in transport, by 408, 429 or 5xx, or by broken JSON is repeated after a growing pause with
jitter. A text that the service cannot score has no reward, and the reason is counted; any other 4xx is a mistake in
the request and stops the run. A text that has used up its tries gets a second round at the end. The run stops if the
second round fails too, or if several texts in a row use up their tries. Every answer is on disk as soon as it arrives,
so a stopped run can be continued.

A scorer is a subclass of `RemoteScorer`, which says how to ask about a text and what an answer means.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from tqdm.auto import tqdm

from nlf.config import RemoteOptions
from nlf.data.files import cache_folder
from nlf.data.progress import has_bars
from nlf.errors import UserError
from nlf.rewards.cache import Cache, Found, Pace, digest, gap
from nlf.rewards.contract import Judgement, completion_text
from nlf.secrets import masked
from nlf.services import Rejected, Retry, Waits, new_client, retrying, said, timed, together

logger = logging.getLogger(__name__)

LONG = 120.0  # a call that takes more seconds than this is announced
_options = RemoteOptions()


def configure(options: RemoteOptions) -> None:
    """Set the options of all remote scorers that were made without options."""
    global _options
    _options = options


def cache_path(options: RemoteOptions) -> Path:
    """The file of the cache: in `cache_dir`, or else in `cache_folder`."""
    return (Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder()) / "scores.sqlite"


def export_cache(path: str | Path) -> int:
    """Write all cached answers to a JSON Lines file; returns their number."""
    with Cache(cache_path(_options)) as cache:
        return cache.export(Path(path))


def import_cache(path: str | Path) -> int:
    """Add the answers of a file that `export_cache` wrote to the cache; returns the number of new answers."""
    with Cache(cache_path(_options)) as cache:
        return cache.take(Path(path))


class Refused(Exception):
    """The service can never score this text."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Ask:
    """A question to the service about one completion.

    Attributes:
        key: The texts that the answer depends on, as plain JSON data.
        body: The request.
        answer: The answer, if it is known without asking.
    """

    key: object
    body: dict
    answer: Judgement | None = None

    @classmethod
    def known(cls, answer: Judgement) -> "Ask":
        return cls(None, {}, answer)


class RemoteScorer:
    """A scorer object and an async TRL reward function. A subclass has a `name` and defines `requests`, `ask` and `read`.

    Attributes:
        service: Scorers of one service share answers; default: `name`.
        base_url: The server; each server has its own rate limit.
        rate_limit: Requests a second if the options give no limit; None = no limit.
        backoff: Seconds of the first pause at most; each following pause is twice as long.
        answer_type: The type of the answers; an answer of another type in the cache is asked for again.

    Args:
        options: Options of this scorer alone; None = the options set by `configure`.
    """

    name, version, remote = "", "1", True
    base_url = ""
    rate_limit: float | None = None
    backoff = 1.0
    answer_type: type = object

    def __init__(self, options: RemoteOptions | None = None):
        self.options = options
        self.counts: Counter[str] = Counter()

    @property
    def service(self) -> str:
        return self.name

    def requests(self, prompts: Sequence, completions: Sequence[str], **columns) -> list[Ask]:
        """The question about each completion; conversations are passed as the text of their last message."""
        raise NotImplementedError

    def settings(self) -> dict:
        """The settings that an answer depends on besides service, version and text: plain JSON data without secrets."""
        return {"base_url": self.base_url}

    def ready(self) -> None:
        """Called before the first request; raises UserError if the service cannot be asked, for example without a key."""

    async def ask(self, client: httpx2.AsyncClient, ask: Ask) -> object:
        """Send one request and return the answer as plain JSON data, which the cache keeps.

        Raises:
            Retry: another try may succeed; httpx2.TransportError has the same effect.
            Refused: the service cannot score this text.
        """
        raise NotImplementedError

    def read(self, answer) -> Judgement:
        """The meaning of an answer. An answer without a score is counted and has a reward of None."""
        raise NotImplementedError

    def secrets(self) -> list[str]:
        """Strings that must not appear in any message or answer, besides the keys that `nlf.secrets` knows."""
        return []

    def count(self, reason: str) -> None:
        """Count a reason for the warning at the end of a call."""
        self.counts[reason] += 1

    def mistake(self, error: Rejected, check: str) -> UserError:
        """The error for a rejected request; `check` names the settings that may be wrong."""
        return UserError(
            f"{self.name}: {self.base_url} rejects the request: HTTP {error.status}: "
            f"{said(error.payload, self.secrets())}; check {check}; answers so far are kept"
        )

    async def __call__(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list:
        return [each.reward for each in await self.judge(prompts, completions, completion_ids, **columns)]

    async def judge(self, prompts=None, completions: Sequence = (), completion_ids=None, **columns) -> list[Judgement]:
        """Judgements of N completions. Equal questions are asked once.

        Raises:
            UserError: the service cannot be asked, rejects a request, or fails again and again; or, in replay, the cache
                lacks an answer.
        """
        shared = _shared()
        texts = [completion_text(completion) for completion in completions]
        async with shared.locks[self.service]:  # another reward of the service may be asking about the same texts
            self.counts.clear()
            asks = self.requests(prompts, texts, **columns)
            origin = [self.service, self.version, self.settings()]
            keys = ["" if ask.answer else digest([*origin, ask.key]) for ask in asks]
            found = await self._find({key: ask for key, ask in zip(keys, asks, strict=True) if key}, shared.client)
            judgements = [ask.answer or self._read(found[key]) for key, ask in zip(keys, asks, strict=True)]
            self._report(judgements)
        return judgements

    async def _find(self, todo: dict[str, Ask], client: httpx2.AsyncClient) -> dict[str, Found]:
        """The answers to all questions, from the cache or the service."""
        options = self.options or _options
        with Cache(cache_path(options)) as cache:
            found = cache.get(todo, self.answer_type)
            missing = {key: ask for key, ask in todo.items() if key not in found}
            if missing and options.replay:
                raise UserError(
                    f"{self.name}: {len(missing)} of {len(todo)} texts have no answer in {cache.path}; "
                    "ask for them without --replay, or add answers with `nlf score --import_cache`"
                )
            if missing:
                self.ready()
                found |= await _Asking(self, options, cache, client).all(missing)
        return found

    def _read(self, found: Found) -> Judgement:
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
    """One call's questions to a service, and the state that its workers share."""

    def __init__(self, scorer: RemoteScorer, options: RemoteOptions, cache: Cache, client: httpx2.AsyncClient):
        self.scorer, self.options, self.cache, self.client = scorer, options, cache, client
        self.rate = options.rate_limit or scorer.rate_limit
        self.found: dict[str, Found] = {}
        self.failures: Counter[str] = Counter()  # failed tries by reason
        self.in_a_row = 0  # texts that used up their tries since the last answer
        self.turn = asyncio.Lock()
        self.waits = Waits(scorer.name)
        self.random = random.Random()

    async def all(self, todo: Mapping[str, Ask]) -> dict[str, Found]:
        """The answers to all questions.

        Raises:
            UserError: a question has no answer.
        """
        name, seconds = self.scorer.name, len(todo) * gap(self.rate) if self.rate else 0
        if seconds > LONG:
            hours = f"at least {seconds / 3600:,.1f} hours at {self.rate:g} a second"
            logger.info(f"{name}: {len(todo):,} requests, {hours}")
        bar = tqdm(total=len(todo), desc=name, unit="text", delay=5, disable=not has_bars(), leave=False)
        pace = Pace(cache_folder()) if self.rate else contextlib.nullcontext()
        with bar as self.bar, pace as self.pace:
            for _ in range(2):  # the second round is for texts that used up their tries
                await self._work({key: ask for key, ask in todo.items() if key not in self.found})
        if left := len(todo) - len(self.found):
            raise self._stopped(f"{left} of {len(todo)} texts have no answer after twice all tries")
        return self.found

    async def _work(self, todo: Mapping[str, Ask]) -> None:
        queue = iter(todo.items())
        await together(min(self.options.max_concurrency, len(todo)), lambda: self._take(queue))

    async def _take(self, queue: Iterator[tuple[str, Ask]]) -> None:
        """One worker: ask the questions of the shared queue one after another."""
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

    async def _answer(self, key: str, ask: Ask) -> Found | None:
        """The answer to one question; None once its tries are used up."""
        uniform, options = self.random.uniform, self.options
        tries = retrying(options.max_tries, self.scorer.backoff, uniform, failed=self._failed, waits=self.waits)
        try:
            return await tries(self._try, key, ask)
        except Retry:
            return None

    async def _try(self, key: str, ask: Ask) -> Found:
        if known := await self._turn(key):
            return known
        try:
            answer = await timed(self.scorer.ask(self.client, ask), self.options.request_timeout)
        except Refused as refused:
            return {"refused": masked(refused.reason, self.scorer.secrets())}
        return {"answer": masked(answer, self.scorer.secrets())}

    async def _turn(self, key: str) -> Found | None:
        """Wait until a request may start. Returns the answer if another process has written it in the meantime."""
        service = f"{self.scorer.service} {self.scorer.base_url}"
        async with self.turn:
            while not (known := self.cache.get([key], self.scorer.answer_type)) and (wait := self._wait(service)):
                await asyncio.sleep(wait)
        return known.get(key)

    def _wait(self, service: str) -> float:
        """Seconds until a request may start; 0 = now."""
        return self.pace.start(service, self.rate) if self.pace and self.rate else 0.0

    def _failed(self, error: Retry) -> None:
        self.failures[error.reason] += 1
        self.bar.set_postfix(failures=self.failures.total(), refresh=False)

    def _stopped(self, what: str) -> UserError:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.failures.most_common(5))
        where = f" at {self.scorer.base_url}" if self.scorer.base_url else ""
        return UserError(
            f"{self.scorer.name}: {what} (failed tries{where}: {reasons}); {len(self.found):,} new answers are kept in "
            f"{self.cache.path}: run again to continue"
        )


class _Shared:
    """State of one event loop: an HTTP client, whose connections stay open, and a lock for each service."""

    def __init__(self) -> None:
        self.client = new_client()
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)


_loops: dict[asyncio.AbstractEventLoop, _Shared] = {}


def _shared() -> _Shared:
    """The state of the running loop; closed loops are forgotten."""
    for closed in [loop for loop in _loops if loop.is_closed()]:
        del _loops[closed]
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = _Shared()
    return _loops[loop]


def probability(value: object) -> float | None:
    """The value as a float if it is a number in [0, 1], else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= 1 else None
