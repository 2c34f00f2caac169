"""A thread that decodes the requests of a server, and the jobs through which the server follows them.

The thread draws one token of every row of every model in turn. What arrives while it does so joins at the next token;
when it is idle, it first waits a few milliseconds for what arrives together.
"""

import asyncio
import contextlib
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from nlf.errors import UserError, line_of
from nlf.models.packed_weights import FEWEST_TOKENS, packed_weights
from nlf.sampling.continuous import Decoder, Row

logger = logging.getLogger(__name__)

TOGETHER = 0.003  # seconds that an idle engine waits for more requests
JOINING = 0.02  # most seconds that requests wait for others, so that few of them do not cost a pass each
SHARE = 0.25  # requests of this share of the rows do not wait
SMOOTH = 0.03  # seconds between two pieces of a stream, after the first, so that many streams do not slow the decoding
SWITCH = 0.001  # seconds after which the decoding thread gets the interpreter back from the server's thread
IDLE = 0.5  # seconds after which the thread looks whether it shall end


class Busy(Exception):
    """Too many rows wait. `after` is the number of seconds after which another try makes sense."""

    def __init__(self, after: int):
        super().__init__(f"too many completions wait; try again in {after} s")
        self.after = after


class Job:
    """The rows of one request. The engine adds tokens to them, and the event loop reads them.

    Attributes:
        every: Wake the reader on the way, not only at the end.
        woken: When the reader was last woken.
        first: When the first token came, by `time.monotonic`.
        error: Why the rows will not be finished.
    """

    def __init__(self, rows: Sequence[Row], every: bool):
        self.rows, self.every = list(rows), every
        self.begun, self.woken = time.monotonic(), 0.0
        self.first: float | None = None
        self.left = len(self.rows)
        self.error: str | None = None
        self.loop, self.news = asyncio.get_running_loop(), asyncio.Event()

    @property
    def over(self) -> bool:
        return self.left <= 0 or self.error is not None

    async def progress(self) -> AsyncIterator[None]:
        """Give control each time when there is something new, the last time when the job is over.

        Raises:
            UserError: the engine failed.
        """
        while True:
            await self.news.wait()
            self.news.clear()
            over = self.over
            if self.error is not None:
                raise UserError(self.error)
            yield
            if over:
                return

    def cancel(self) -> None:
        """Give up the rows that are not finished."""
        for row in self.rows:
            if row.reason is None:
                row.cancel()


class Engine:
    """Decodes the rows of jobs in a thread of its own, until `stop`.

    Args:
        decoders: By the name of their model.
        most_waiting: Most completions that wait for a place in the batch; further ones are turned away.

    Attributes:
        generated: Tokens drawn so far.
        finished: Rows finished so far.
    """

    def __init__(self, decoders: Mapping[str, Decoder], most_waiting: int):
        self.decoders, self.most_waiting = dict(decoders), most_waiting
        self.generated = self.finished = 0
        self.seconds = 1.0  # that a request took lately, on average
        self.arrived: deque[tuple[str, Job]] = deque()
        self.jobs: dict[Row, Job] = {}  # of the rows in a decoder
        self.since: dict[str, float] = {}  # for each decoder since when rows wait to join
        self.changed, self.stopping = threading.Condition(), False
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH))
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.thread.start()

    @property
    def waiting(self) -> int:
        """Completions that wait for a place in the batch."""
        return sum(len(job.rows) for _, job in list(self.arrived)) + sum(
            len(decoder.waiting) for decoder in self.decoders.values()
        )

    @property
    def live(self) -> int:
        """Completions in the batch."""
        return sum(row.reason is None for decoder in self.decoders.values() for row in decoder.live)

    def submit(self, model: str, rows: Sequence[Row], every: bool = False) -> Job:
        """Decode rows, which `Decoder.check` has seen.

        Args:
            every: See `Job`.

        Raises:
            Busy: too many rows wait already.
        """
        waiting = self.waiting
        if waiting and waiting + len(rows) > self.most_waiting:
            raise Busy(math.ceil(max(self.seconds, 1.0) * waiting / self.decoders[model].most_rows))
        job = Job(rows, every)
        with self.changed:
            self.arrived.append((model, job))
            self.changed.notify()
        return job

    def stop(self) -> None:
        """End the thread after the token that it draws. Jobs that are not over fail."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join()

    # ---- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.ExitStack() as packed:
            for decoder in {id(each.model): each for each in self.decoders.values()}.values():
                packed.enter_context(packed_weights(decoder.model, FEWEST_TOKENS))
            while not self.stopping:
                self._wait()
                self._take()
                for name, decoder in self.decoders.items():
                    if decoder.busy:
                        self._step(name, decoder)
        for name, decoder in self.decoders.items():
            self._take()
            self._fail(name, decoder, "the server ends")

    def _wait(self) -> None:
        """Return once there is work."""
        if any(decoder.busy for decoder in self.decoders.values()):
            return
        with self.changed:
            found = self.changed.wait_for(lambda: self.arrived or self.stopping, IDLE)
        if found and not self.stopping:
            time.sleep(TOGETHER)

    def _take(self) -> None:
        while self.arrived:
            name, job = self.arrived.popleft()
            self.decoders[name].add(job.rows)
            self.since.setdefault(name, time.monotonic())
            self.jobs.update(dict.fromkeys(job.rows, job))

    def _step(self, name: str, decoder: Decoder) -> None:
        late = time.monotonic() - self.since.get(name, 0.0) > JOINING
        admit = late or len(decoder.waiting) >= SHARE * len(decoder.live)
        known = [*decoder.live, *decoder.waiting]
        try:
            rows = decoder.step(admit)
        except Exception as error:  # broken weights, no memory: the requests fail, and the server goes on
            logger.error("decoding with %s failed: %s", name, line_of(error))
            self._fail(name, decoder, str(error) if isinstance(error, UserError) else "the model failed")
            return
        if admit:
            self.since.pop(name, None)
            if decoder.waiting:
                self.since[name] = 0.0  # the batch was full
        self._tell(rows)
        for row in known:
            if row.reason == "cancelled":
                self._over(row)

    def _tell(self, rows: Sequence[Row]) -> None:
        """Wake the readers of rows that have a new token."""
        now, news = time.monotonic(), dict[Job, None]()
        self.generated += len(rows)
        for row in rows:
            if (job := self.jobs.get(row)) is None:  # it was cancelled while its token was drawn
                continue
            job.first = job.first or now
            if row.reason:
                self._over(row)
            if job.over:
                self.seconds += 0.1 * (now - job.begun - self.seconds)
            if job.over or (job.every and now - job.woken >= SMOOTH):
                news[job], job.woken = None, now
        self._wake(news)

    def _over(self, row: Row) -> None:
        if job := self.jobs.pop(row, None):
            job.left -= 1
            self.finished += 1

    def _fail(self, name: str, decoder: Decoder, message: str) -> None:
        """Fail all jobs of a decoder."""
        rows = [*decoder.live, *decoder.waiting]
        decoder.reset()
        self.since.pop(name, None)
        jobs = {self.jobs.pop(row): None for row in rows if row in self.jobs}
        for job in jobs:
            job.error = message
        self._wake(jobs)

    def _wake(self, jobs: Mapping[Job, None]) -> None:
        for loop in {job.loop for job in jobs}:
            own = [job for job in jobs if job.loop is loop]
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(wake, own)


def wake(jobs: Sequence[Job]) -> None:
    """Wake the readers of jobs, in their event loop."""
    for job in jobs:
        job.news.set()
