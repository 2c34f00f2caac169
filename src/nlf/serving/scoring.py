"""Scores of requests: a scorer's attributes under Perspective's names, and texts of many requests scored together."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nlf.errors import UserError
from nlf.rewards import Reward
from nlf.rewards.contract import score
from nlf.rewards.registry import resolve_reward
from nlf.serving.protocol import Question, Refused, Scores, offered_by
from nlf.serving.texts import MOST_SPANS, Span, sentences

logger = logging.getLogger(__name__)

TRIAL = "A short text."  # scored once at the start, to learn which attributes the scorer has
SHARE = 0.25  # of the logit; the report marks words from the same share on
MOST_TEXTS = 512  # scored in one call
MOST_WAITING = 20_000  # texts; further requests are turned away until some are scored

Waiting = tuple[Sequence[str], asyncio.Future]  # the texts of a request, and where its scores go


class AttributeScorer:
    """Scores of texts under Perspective's names of attributes.

    Attributes:
        label: `name@version` of the scorer.
        offered: The names, upper case.
        cut: Gives the spans of a text that `spanAnnotations` scores, in order and without overlap: the words that raise the
            score, of a scorer that explains, else sentences.

    Raises:
        UserError: the scorer has none of Perspective's attributes, or cannot score.
    """

    def __init__(self, reward: Reward):
        self.reward, self.label = reward, reward.label
        self.cut: Callable[[str], list[Span]] = self._raising if reward.explains else sentences
        self.offered = offered_by(self.label, list(self._measured([TRIAL])))

    def _raising(self, text: str) -> list[Span]:
        """The words that raise what the scorer explains by SHARE or more; of very many those that raise it most."""
        found = [word for word in self.reward.explain(text) if word.share >= SHARE]
        most = sorted(sorted(found, key=lambda word: -word.share)[:MOST_SPANS])
        return [(word.start, word.end) for word in most]

    def _measured(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays `(len(texts),)` of all attributes; NaN = cannot be scored."""
        count = len(texts)
        return score([self.reward], None, [""] * count, texts, [[]] * count, {}).attributes

    def __call__(self, texts: Sequence[str]) -> list[Scores | None]:
        """The scores of each text; None = the text cannot be scored. An unknown attribute is missing."""
        measured = self._measured(texts)
        columns = {name: measured[name.lower()].tolist() for name in self.offered if name.lower() in measured}
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(texts))]
        known = [{name: value for name, value in row.items() if value == value} for row in rows]
        return [row or None for row in known]


def scorer_of(names: Sequence[str]) -> AttributeScorer:
    """The scorer of `--reward_funcs`.

    Raises:
        UserError: there are several, or the scorer cannot be served.
    """
    if len(names) != 1:
        raise UserError(
            f"reward_funcs {', '.join(map(str, names))}: Perspective's answer has one score for each attribute; name one "
            "scorer"
        )
    return AttributeScorer(resolve_reward(names[0]))


class Batcher:
    """Scores the texts that wait in one call, in a thread of its own, so that the event loop stays free.

    While a call runs, further texts gather for the next one. If a call fails, each request is tried alone: one bad text
    fails its own request only.
    """

    def __init__(self, scorer: Callable[[Sequence[str]], list[Scores | None]]):
        self.scorer = scorer
        self.thread = ThreadPoolExecutor(1, "scoring")
        self.waiting: deque[Waiting] = deque()
        self.worker: asyncio.Task | None = None

    async def __call__(self, texts: Sequence[str]) -> list[Scores | None]:
        """The scores of the texts of one request.

        Raises:
            Refused: too many texts wait, or the scorer failed.
        """
        if sum(len(others) for others, _ in self.waiting) > MOST_WAITING:
            raise Refused(503, "The service is currently unavailable.")
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((texts, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def read(self, reading: Callable[[], Question]) -> Question:
        """What a function returns that asks the scorer, in the scorer's thread.

        Raises:
            Refused: by the function, or because the scorer failed.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, reading)
        except Refused:
            raise
        except Exception as error:  # of any scorer; its message can quote the text
            logger.error("the scorer failed to explain a text (%s)", type(error).__name__)
            raise Refused(500, "Internal error encountered.") from error

    async def _work(self) -> None:
        while self.waiting:
            picked: list[Waiting] = []
            count = 0
            while self.waiting and (not picked or count + len(self.waiting[0][0]) <= MOST_TEXTS):
                picked.append(self.waiting.popleft())
                count += len(picked[-1][0])
            if not await self._scored(picked):
                for one in picked:
                    if not await self._scored([one]) and not one[1].done():
                        one[1].set_exception(Refused(500, "Internal error encountered."))

    async def _scored(self, requests: Sequence[Waiting]) -> bool:
        """Score requests in one call and hand out their scores; False if the scorer failed."""
        texts = [text for own, _ in requests for text in own]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.thread, self.scorer, texts)
        except Exception as error:  # of any scorer; its message can quote the text
            logger.error("the scorer failed on %d texts (%s)", len(texts), type(error).__name__)
            return False
        for own, future in requests:
            scores, found = found[: len(own)], found[len(own) :]
            if not future.done():  # the client may have gone
                future.set_result(scores)
        return True
