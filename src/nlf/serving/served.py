"""The models that `nlf serve` offers, and the answers to requests, without HTTP."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nlf.config import ServeOptions
from nlf.config.objective import LENGTH
from nlf.data.prompts import Prompt
from nlf.data.run_folder import DISTILLED, PLAIN, is_plain_run, model_folder, run_settings, trained_run
from nlf.errors import UserError, did_you_mean
from nlf.evaluation.run_defaults import recorded_base
from nlf.evaluation.sample import EVALUATION
from nlf.evaluation.systems import load_for_commands, slug
from nlf.evaluation.writer import Writer, writer_of
from nlf.sampling.continuous import Row, rows_of
from nlf.sampling.text import TextStream, seam_of
from nlf.serving.engine import Busy, Engine, Job
from nlf.serving.metrics import Metrics
from nlf.serving.openai import Asked, Choice, Json, Refused, Usage, answer, chunk, cut, held
from nlf.serving.rating import Rater

logger = logging.getLogger(__name__)

TAGGED, BASE = "tagged", "base"


# ---- models -------------------------------------------------------------------------------------------------------


def folders_of(options: ServeOptions) -> dict[str, str]:
    """The model of each name that can be served, the default first.

    Raises:
        UserError: `models` names a model that is not there.
    """
    model = model_folder(options.model)
    run = run_settings(Path(model))
    name = PLAIN if is_plain_run(model) else TAGGED if Path(model, "tags.json").is_file() else slug(Path(model).name)
    found = {name or "model": model}
    for other in (PLAIN, DISTILLED):
        if Path(model, other, "config.json").is_file():
            found[other] = str(Path(model, other))
    try:
        if run and (base := recorded_base(run, model)):
            found[BASE] = base
    except UserError as error:
        logger.warning("%s is served without its base: %s", model, error)
    for wanted in options.models or ():
        if wanted not in found:
            known = ", ".join(found)
            raise UserError(f"models: {model} has no model {wanted!r}{did_you_mean(wanted, found)}; there is {known}")
    return {name: found[name] for name in options.models or found}


def writers_of(options: ServeOptions) -> dict[str, Writer]:
    """The models, loaded.

    Raises:
        UserError: a model cannot be loaded.
    """
    length = trained_run(model_folder(options.model)).get(LENGTH)  # of all models of a run
    return {
        name: replace(writer_of(load_for_commands(path, options, digest=False), path), length=length)
        for name, path in folders_of(options).items()
    }


# ---- completions --------------------------------------------------------------------------------------------------


class Written:
    """The text of a row as it grows, up to a stop.

    Attributes:
        reason: OpenAI's finish_reason; None = more may come.
        tokens: Tokens read, those of a stop included.
    """

    def __init__(
        self, index: int, row: Row, tokenizer: PreTrainedTokenizerBase, seam: list[int], stops: Sequence[str]
    ):
        self.index, self.row, self.stops, self.tokenizer = index, row, stops, tokenizer
        self.stream, self.sent, self.tokens = TextStream(tokenizer, seam), 0, 0
        self.reason: str | None = None

    def more(self) -> Choice | None:
        """The piece that has come since the last call; None if there is nothing to tell."""
        if self.reason:
            return None
        reason = self.row.reason  # read before the tokens, which are then complete
        new, told = self.row.out[self.tokens :], self.row.log_probs[self.tokens :]
        self.stream.add(new)
        if reason:
            self.stream.finish()
        text, stopped = cut(self.stream.text, self.stops)
        if stopped:
            self.row.cancel()
        self.reason = "stop" if stopped else reason
        end = len(text) if self.reason else len(text) - held(text, self.stops)
        choice = Choice(self.index, text[self.sent : end], self.reason, offset=self.sent)
        self.sent, self.tokens = max(end, self.sent), self.tokens + len(new)
        if self.row.top is not None:
            told = told[: len(new)]
            choice.tokens = self._texts(new[: len(told)])
            choice.log_probs = [
                (
                    each.chosen,
                    list(zip(self._texts([i for i, _ in each.best]), [p for _, p in each.best], strict=True)),
                )
                for each in told
            ]
        return choice if choice.text or choice.reason or choice.log_probs else None

    def _texts(self, ids: Sequence[int]) -> list[str]:
        return self.tokenizer.batch_decode([[i] for i in ids]) if ids else []


class Work:
    """A request that is being answered."""

    def __init__(
        self, asked: Asked, model: str, job: Job, written: list[Written], prompt_tokens: int, metrics: Metrics
    ):
        self.asked, self.job, self.written = asked, job, written
        self.prompt_tokens, self.metrics = prompt_tokens, metrics
        prefix = "chatcmpl" if asked.chat else "cmpl"
        self.head: Json = {
            **{"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model},
            **{"seed": asked.seed},
        }

    async def whole(self) -> Json:
        """The answer.

        Raises:
            UserError: the engine failed.
        """
        pieces: dict[int, list[Choice]] = {each.index: [] for each in self.written}
        async for choices in self._pieces():
            for choice in choices:
                pieces[choice.index].append(choice)
        return answer(self.head, [joined(each) for each in pieces.values()], self.usage, self.asked.chat)

    async def events(self) -> AsyncIterator[Json]:
        """The bodies of the events of a stream.

        Raises:
            UserError: the engine failed.
        """
        chat = self.asked.chat
        if chat:
            yield chunk(self.head, [Choice(each.index, "") for each in self.written], chat, begins=True)
        async for choices in self._pieces():
            for choice in choices:
                yield chunk(self.head, [choice], chat)
        if self.asked.usage:
            yield chunk(self.head, [], chat, self.usage)

    async def _pieces(self) -> AsyncIterator[list[Choice]]:
        try:
            async for _ in self.job.progress():
                yield [choice for each in self.written if (choice := each.more())]
                if all(each.reason for each in self.written):
                    break
        finally:
            self.job.cancel()
            self._count()

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, sum(each.tokens for each in self.written))

    def _count(self) -> None:
        now = time.monotonic()
        self.metrics.tokens["prompt"] += self.prompt_tokens
        self.metrics.tokens["completion"] += self.usage.completion
        self.metrics.request.add(now - self.job.begun)
        if self.job.first is not None:
            self.metrics.first_token.add(self.job.first - self.job.begun)


def joined(pieces: Sequence[Choice]) -> Choice:
    """The pieces of a completion as one."""
    told = [each for piece in pieces for each in piece.log_probs or ()]
    wants = any(piece.log_probs is not None for piece in pieces)
    return Choice(
        pieces[0].index,
        "".join(piece.text for piece in pieces),
        pieces[-1].reason,
        [token for piece in pieces for token in piece.tokens],
        told if wants else None,
    )


class Service:
    """The answers to requests."""

    def __init__(self, writers: Mapping[str, Writer], options: ServeOptions, key: str = ""):
        self.writers, self.key, self.most_tokens = dict(writers), key, options.max_tokens
        self.rater = Rater(model_folder(options.model), next(iter(writers.values())).policy.tokenizer)
        decoders = {name: writer.decoder(options.max_batch) for name, writer in writers.items()}
        self.engine, self.metrics = Engine(decoders, options.max_waiting), Metrics()
        self.created = int(time.time())

    def begin(self, asked: Asked) -> Work:
        """Start to answer a request.

        Raises:
            Refused: the request cannot be answered, or too many others wait.
        """
        name = self.known(asked.model)
        writer = self.writers[name]
        try:
            rows, written, prompt_tokens = self._rows(asked, name, writer)
        except UserError as error:
            raise Refused(400, str(error)) from error
        try:
            job = self.engine.submit(name, rows, every=asked.stream or bool(asked.stop))
        except Busy as error:
            raise Refused(429, str(error), name="rate_limit_exceeded", after=error.after) from error
        return Work(asked, name, job, written, prompt_tokens, self.metrics)

    def _rows(self, asked: Asked, name: str, writer: Writer) -> tuple[list[Row], list[Written], int]:
        words = writer.words("best" if asked.tag is None else asked.tag, asked.feedback)
        prompts = writer.prompts(asked.prompts)
        options = writer.guided(asked.sampling(writer.usual_length(prompts)), asked.negative)
        if options.max_completion_length > self.most_tokens:
            raise UserError(
                f"max_tokens: {options.max_completion_length} is over this server's limit of {self.most_tokens}"
            )
        requests = writer.requests(prompts, words, options)
        rows: list[Row] = []
        written: list[Written] = []
        for prompt, request in zip(prompts, requests, strict=True):
            seam = seam_of(prompt.row["prompt"], writer.prompt_ids(prompt))
            own = rows_of(request, options, seed=asked.seed, iteration=EVALUATION, top=asked.top)
            self.engine.decoders[name].check(own[:1])
            rows += own
            start = len(written)
            written += [
                Written(start + j, row, writer.policy.tokenizer, seam, asked.stop) for j, row in enumerate(own)
            ]
        return rows, written, sum(len(request.input_ids) for request in requests)

    def known(self, model: str | None) -> str:
        """The name of the model that a request means.

        Raises:
            Refused: there is no such model.
        """
        if model is None:
            return next(iter(self.writers))
        if model not in self.writers:
            message = f"The model {model[:60]!r} does not exist; this server has {', '.join(self.writers)}."
            raise Refused(404, message, param="model", name="model_not_found")
        return model

    def model(self, name: str) -> Json:
        """What /v1/models tells of a model."""
        writer = self.writers[name]
        attributes = {each.name: list(each.tags) for each in writer.attributes}
        context = self.engine.decoders[name].context
        return {
            **{"id": name, "object": "model", "created": self.created, "owned_by": "nlf"},
            **{"root": writer.policy.identity.name, "tags": list(writer.tags), "attributes": attributes},
            **{"max_model_len": context if context < float("inf") else None, "conversational": writer.chats},
        }

    @property
    def settings(self) -> Json:
        """What the page shows: the models and the limits."""
        models = [self.model(name) for name in self.writers]
        writer = next(iter(self.writers.values()))
        prompt: Prompt = [{"role": "user", "content": "A prompt."}] if writer.chats else "A prompt."
        length = writer.usual_length(writer.prompts([prompt]))
        return {"models": models, "max_completion_length": length, "max_tokens": self.most_tokens}

    def stop(self) -> None:
        """Give up what is not done."""
        self.engine.stop()
        self.rater.stop()

    def gauges(self) -> dict[str, tuple[str, int]]:
        """The numbers of now, for the metrics."""
        return {
            "nlf_completions_running": ("Completions that are being decoded.", self.engine.live),
            "nlf_completions_waiting": ("Completions that wait for a place in the batch.", self.engine.waiting),
        }
