"""Scores for the page of `nlf serve`: of completions, and of their beginnings, by the rewards of the run.

Only rewards that read nothing but texts, on this machine, are offered: a page must not send texts elsewhere or spend money.
"""

import asyncio
import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlf.config import EvaluateOptions
from nlf.data.pool import read_iteration
from nlf.data.prompts import Prompt
from nlf.errors import UserError, line_of
from nlf.evaluation.run_defaults import Scorers, scorers_of
from nlf.method.quantize import total
from nlf.rewards.contract import Place, as_completion, check_calls, score
from nlf.serving.openai import Json, Refused, messages_of, texts_of

logger = logging.getLogger(__name__)

MOST_COMPLETIONS, MOST_ENDS = 128, 4096  # of a request
MOST_CHARACTERS = 2**22  # of all beginnings of a request; a scorer may read each of them anew
MOST_WAITING = 32  # requests
USUAL = (5, 95)  # percentiles of the first iteration's rewards, between which the page has its colours


@dataclass(frozen=True)
class Question:
    """Completions of a prompt, and for each the ends of its beginnings, in characters."""

    prompt: Prompt
    completions: list[str]
    ends: list[list[int]]


def question_of(body: Any) -> Question:
    """A request for scores.

    Raises:
        Refused: it has an unknown field, or a value that is not allowed.
    """
    if not isinstance(body, dict) or set(body) - {"prompt", "messages", "completions", "ends"}:
        raise Refused(400, "Expected an object with prompt or messages, completions, and perhaps ends.")
    prompts = [messages_of(body["messages"])] if "messages" in body else texts_of(body.get("prompt"))
    if len(prompts) > 1:
        raise Refused(400, "prompt: expected one text.", param="prompt")
    texts, ends = body.get("completions"), body.get("ends")
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_COMPLETIONS:
        message = f"completions: expected a list of 1 to {MOST_COMPLETIONS} texts."
        raise Refused(400, message, param="completions")
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "completions: expected texts.", param="completions")
    ends = [[] for _ in texts] if ends is None else ends
    if not _fit(ends, texts):
        message = (
            f"ends: expected for each completion a list of places in its text, in order; {MOST_ENDS} at most, and "
            f"{MOST_CHARACTERS} characters before them."
        )
        raise Refused(400, message, param="ends")
    return Question(prompts[0], texts, ends)


def _fit(ends: Any, texts: Sequence[str]) -> bool:
    if not isinstance(ends, list) or len(ends) != len(texts) or not all(isinstance(own, list) for own in ends):
        return False
    inside = all(
        all(type(end) is int and 0 <= end <= len(text) for end in own) and own == sorted(own)
        for own, text in zip(ends, texts, strict=True)
    )
    return inside and sum(map(len, ends)) <= MOST_ENDS and sum(map(sum, ends)) <= MOST_CHARACTERS


class Rater:
    """Scores completions in a thread of its own. The scorers are loaded when the first request comes.

    Args:
        model: The folder of the run, or a model that is no run.
        tokenizer: Gives the token ids that rewards are called with.
    """

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.thread, self.waiting = ThreadPoolExecutor(1, "rating"), 0

    async def about(self) -> Json:
        """The names of the scorers, perhaps none; whether they score beginnings; and two usual rewards, low and high."""
        return await self._run(self._about)

    async def scores(self, question: Question) -> Json:
        """The rewards, attributes and rewards of beginnings of completions; null = cannot be scored.

        Raises:
            Refused: the run has no scorer for texts, or too many requests wait.
        """
        return await self._run(self._scores, question)

    def stop(self) -> None:
        """Give up what waits; what is being scored is scored first."""
        self.thread.shutdown(cancel_futures=True)

    async def _run(self, does: Any, *given: Any) -> Any:
        if self.waiting >= MOST_WAITING:
            raise Refused(429, "too many texts wait to be scored", name="rate_limit_exceeded", after=1)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, does, *given)
        finally:
            self.waiting -= 1

    # ---- in the thread --------------------------------------------------------------------------------------------

    @functools.cached_property
    def _scorers(self) -> Scorers | None:
        try:
            found = scorers_of(EvaluateOptions(model=self.model), self.model)
            check_calls(found.rewards, ())
        except UserError as error:
            logger.warning("the page shows no scores: %s", error)
            return None
        if remote := [reward.label for reward in found.rewards if reward.remote]:
            logger.warning("the page shows no scores: %s would send texts to another machine", ", ".join(remote))
            return None
        return found

    def _about(self) -> Json:
        if self._scorers is None:
            return {"scorers": [], "beginnings": False, "low": 0.0, "high": 1.0}
        low, high = self._usual()
        rewards = self._scorers.rewards
        return {
            **{"scorers": [reward.label for reward in rewards], "low": low, "high": high},
            "beginnings": all(reward.prefixes for reward in rewards),
        }

    def _usual(self) -> tuple[float, float]:
        """A low and a high reward: those of the run's first iteration, else 0 and 1."""
        try:
            rewards = np.array(read_iteration(Path(self.model), 0, ["reward"])["reward"].to_pylist(), dtype=float)
        except UserError:  # a model that is no run, or a run without its rollouts
            rewards = np.empty(0)
        known = rewards[np.isfinite(rewards)]
        low, high = np.percentile(known, USUAL).tolist() if len(known) else (0.0, 1.0)
        return (low, high) if high > low else (low, low + 1)

    def _scores(self, question: Question) -> Json:
        if self._scorers is None:
            raise Refused(404, "This run has no scorer that can score a text.")
        prompts = [question.prompt] * len(question.completions)
        completions = [as_completion(question.prompt, text) for text in question.completions]
        ids = [self._ids(text) for text in question.completions]
        try:
            found = score(self._scorers.rewards, self._scorers.weights, prompts, completions, ids, {})
            beginnings = self._beginnings(question, ids) if any(question.ends) else question.ends
        except Exception as error:  # of any scorer; its message can quote the text
            logger.error("the scorer failed (%s)", line_of(error) if isinstance(error, UserError) else type(error))
            raise Refused(500, "the scorer failed") from error
        return {
            **{"rewards": found.reward.tolist(), "beginnings": beginnings},
            "attributes": {name: values.tolist() for name, values in found.attributes.items()},
        }

    def _beginnings(self, question: Question, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """The rewards of the beginnings of each completion."""
        assert self._scorers is not None
        texts = question.completions
        if not all(reward.prefixes for reward in self._scorers.rewards):
            raise UserError("a reward of this run cannot score beginnings")
        places = [
            [Place(end, len(self._ids(text[:end]))) for end in own]
            for text, own in zip(texts, question.ends, strict=True)
        ]
        prompts = [question.prompt] * len(texts)
        by_reward = [reward.prefix_rewards(prompts, texts, ids, places, {}) for reward in self._scorers.rewards]
        return [total(own, self._scorers.weights).tolist() for own in zip(*by_reward, strict=True)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
