"""Sample from a server: any endpoint that speaks OpenAI's `/v1/completions`. For evaluation, not for training.

Servers differ in the requests that they accept. A probe, one token after the first prompt, finds the first of these
forms that the server accepts; the sampler keeps that form and logs it:

| prompt | fields beside OpenAI's | spoken by |
| --- | --- | --- |
| token ids | top_k, min_tokens, stop_token_ids, return_token_ids | vLLM, and servers that ignore unknown fields |
| text | the same fields | |
| text | `generation_config`, which holds the whole rule | `transformers serve`, greedy or filtering without it |
| token ids, then text | none, so without top_k and min_completion_length | OpenAI's server |

Token ids are the record. If the server returns them (vLLM's `token_ids`), the sampler keeps them unchanged. If the
server returns text only, the text is tokenised again, with EOS if the server says that the completion stopped, and a
warning says that the new ids may differ from the sampled ids. Another warning appears if the server tokenizes a text
prompt differently.

A request is one completion, with a seed from (seed, iteration, request key, index). So samples repeat on every server
that honours seeds, whatever its meaning of `n`. Guidance needs logits and is refused.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2
from transformers import PreTrainedTokenizerBase

from nlf.config import SamplingOptions, refuse_guidance
from nlf.errors import UserError
from nlf.sampling import Completions, Progress, Request, Requests, Vocabulary, check_lengths, seed_of
from nlf.secrets import OPENAI_KEY, key_of, masked
from nlf.services import (
    Rejected,
    Retry,
    Waits,
    api_url,
    bearer,
    new_client,
    post,
    retrying,
    run,
    said,
    timed,
    together,
)

logger = logging.getLogger(__name__)

TRIES = 8  # tries of one request
BACKOFF = 1.0  # most seconds of the first pause; each pause doubles the limit
UNKNOWN_FORM = (400, 415, 422)  # statuses after which another form of the request may succeed
OTHER_TOKENS = "the server tokenizes text prompts differently; completions will differ"
TEXT_ALONE = (
    "the server returns text only; completions are tokenised again, and their ids may differ from the sampled ids"
)


@dataclass(frozen=True)
class Form:
    """The form of a request.

    Attributes:
        ids: Send the prompt as token ids; False = as text.
        extra: The server whose fields are sent beside OpenAI's: "vllm", "transformers" or "".
    """

    ids: bool
    extra: str

    def __str__(self) -> str:
        return f"prompts as {'token ids' if self.ids else 'text'}" + (f", {self.extra}'s fields" if self.extra else "")


class Job(NamedTuple):
    """One completion to ask for: the numbers of the request and of the completion, and its seed."""

    request: int
    completion: int
    seed: int


FORMS = (Form(True, "vllm"), Form(False, "vllm"), Form(False, "transformers"), Form(True, ""), Form(False, ""))


class ServerSampler:
    """Samples by asking a server.

    Args:
        url: The URL before `/completions`; a URL without a path gets /v1.
        model: The server's name of the model.
        tokenizer: The model's tokenizer, for prompts and completions that travel as text.
        vocabulary: The model's EOS ids, banned ids, context and number of ids.
        concurrency: Most requests at a time.
        timeout: Seconds that one request may take.

    Raises:
        UserError: the URL is malformed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        *,
        concurrency: int = 16,
        timeout: float = 600.0,
    ):
        self.url = f"{api_url(url, 'sampler_url')}/completions"
        self.model, self.tokenizer, self.label = model, tokenizer, f"server:{model}"
        self.eos, self.banned = list(vocabulary.eos), list(vocabulary.banned)
        self.context, self.size = vocabulary.context, vocabulary.size
        self.concurrency, self.timeout = concurrency, timeout
        self.form: Form | None = None  # found by the first call
        self.told: set[str] = set()  # warnings so far
        self.waits = Waits(self.url)

    def sample(
        self, requests: Requests, options: SamplingOptions, *, seed: int, iteration: int, progress: Progress = None
    ) -> Completions:
        """See `nlf.sampling.Sampler`.

        Raises:
            UserError: a prompt is empty or does not fit the context, the options ask for guidance, or the server cannot be
                reached, rejects the request, or fails again and again.
        """
        refuse_guidance("server", options.guidance_scale)
        check_lengths([(r.input_ids,) for r in requests], options.max_completion_length, self.context)
        results: Completions = [[[] for _ in range(options.num_generations)] for _ in requests]
        jobs = [
            Job(i, j, seed_of(seed, iteration, request.key, j))
            for i, request in enumerate(requests)
            for j in range(options.num_generations)
        ]
        if jobs:
            run(self._fill(results, requests, options, iter(jobs), progress or (lambda n: None)))
        return results

    def close(self) -> None:
        """Nothing is kept between calls."""

    async def _fill(
        self,
        results: list[list[list[int]]],
        requests: Sequence[Request],
        options: SamplingOptions,
        jobs: Iterator[Job],
        progress: Callable[[int], None],
    ) -> None:
        """Fill `results`, (request, index) by (request, index)."""
        async with new_client() as client:
            form = self.form = self.form or await self._probe(client, requests[0].input_ids, options)
            prompts = [self._prompt(form, request.input_ids) for request in requests]

            async def work() -> None:
                for i, j, seed in jobs:
                    body = self._body(form, prompts[i], options, seed)
                    results[i][j] = self._read(await self._ask(client, body), requests[i].input_ids)
                    progress(1)

            await together(min(self.concurrency, len(results) * options.num_generations), work)

    async def _probe(self, client: httpx2.AsyncClient, ids: Sequence[int], options: SamplingOptions) -> Form:
        """The first form that the server accepts without changing the number of token ids."""
        refusal = ""
        for form in FORMS:
            if not form.extra and (options.top_k or options.min_completion_length):
                refusal += " (this form cannot carry top_k and min_completion_length)"
                break
            body = self._body(form, self._prompt(form, ids), options, 0, tokens=1)
            try:
                answer = await self._ask(client, body, forms=True)
            except Rejected as error:
                refusal = f"HTTP {error.status}: {said(error.payload)}"
                continue
            if form.ids and _read_tokens(answer) not in (None, len(ids)):
                refusal = "the server does not read token ids as such"
                continue
            logger.info(f"{self.url}: {form}")
            return form
        raise UserError(f"{self.url} accepts none of the request forms that nlf knows: {refusal}")

    def _body(
        self, form: Form, prompt: list[int] | str, options: SamplingOptions, seed: int, tokens: int | None = None
    ) -> dict[str, Any]:
        """The body of the request for one completion of `tokens`, or else `max_completion_length`, new tokens."""
        tokens = tokens or options.max_completion_length
        least = min(options.min_completion_length, tokens)
        greedy = options.temperature == 0
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": seed,
        }
        if self.banned and form.extra != "transformers":
            body["logit_bias"] = {str(i): -100 for i in self.banned}
        if form.extra == "vllm":
            body |= {"top_k": options.top_k, "min_tokens": least, "stop_token_ids": self.eos, "return_token_ids": True}
        if form.extra == "transformers":
            body["generation_config"] = json.dumps(
                {
                    "do_sample": not greedy,
                    "max_new_tokens": tokens,
                    "min_new_tokens": least or None,
                    "eos_token_id": self.eos,
                    "pad_token_id": self.eos[0],
                    "suppress_tokens": self.banned or None,
                    **({} if greedy else {"top_k": options.top_k}),
                }
            )
        return body

    async def _ask(self, client: httpx2.AsyncClient, body: dict[str, Any], forms: bool = False) -> dict[str, Any]:
        """The server's answer, after several tries if needed.

        Args:
            forms: Raise Rejected if another form of the request may succeed.

        Raises:
            UserError: the server has no answer, or rejects the request.
        """
        headers = bearer(key_of(OPENAI_KEY))
        failures: Counter[str] = Counter()

        def failed(error: Retry) -> None:
            failures[error.reason] += 1
            if forms and error.reason == "ConnectError":
                raise UserError(f"{self.url} cannot be reached: is the server running there?") from error

        async def attempt() -> dict:
            answer = masked(await timed(post(client, self.url, body, headers), self.timeout))
            if not self._is_choice(_choice(answer)):
                raise Retry("an answer without a choice")
            return answer

        try:
            return await retrying(TRIES, BACKOFF, random.uniform, failed=failed, waits=self.waits)(attempt)
        except Rejected as error:
            if forms and error.status in UNKNOWN_FORM:
                raise
            raise UserError(
                f"{self.url} rejects the request for model {self.model!r}: HTTP {error.status}: "
                f"{said(error.payload)}; check sampler_url, sampler_model and {OPENAI_KEY}"
            ) from error
        except Retry as error:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in failures.most_common())
            raise UserError(
                f"{self.url} has no answer after {TRIES} tries ({reasons}); does it serve {self.model!r}? Finished "
                "completions are kept; run again to continue"
            ) from error

    def _is_choice(self, choice: Any) -> bool:
        """Whether a choice holds a completion: token ids of the model, or else a text."""
        if not isinstance(choice, dict):
            return False
        ids, text = choice.get("token_ids"), choice.get("text")
        if ids is None:
            return text is None or isinstance(text, str)
        return isinstance(ids, list) and all(type(i) is int and 0 <= i < self.size for i in ids)

    def _prompt(self, form: Form, ids: Sequence[int]) -> list[int] | str:
        """The prompt as the form sends it."""
        return list(ids) if form.ids else self._text(ids)

    def _text(self, ids: Sequence[int]) -> str:
        """The text that a server reads as these ids, without a BOS that its tokenizer adds itself."""
        text = self._decoded(ids)
        bare = self._decoded(ids[1:]) if ids[0] == self.tokenizer.bos_token_id else text
        for each in (text, bare):
            if self.tokenizer(each)["input_ids"] == list(ids):
                return each
        self._tell(OTHER_TOKENS)
        return text

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def _read(self, answer: dict[str, Any], prompt_ids: Sequence[int]) -> list[int]:
        """The ids of a completion, with the EOS that ended it."""
        choice, read = _choice(answer), _read_tokens(answer)
        if read not in (None, len(prompt_ids)):
            self._tell(OTHER_TOKENS)
        ids = choice.get("token_ids")
        if ids is None:
            self._tell(TEXT_ALONE)
            ids = self._tokens(choice.get("text") or "")
        elif (text := masked(written := self._decoded(ids))) != written:
            ids = self._tokens(text)
        ended = choice.get("finish_reason") == "stop" and not (ids and ids[-1] in self.eos)
        return [*ids, self.eos[0]] if ended else list(ids)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tell(self, what: str) -> None:
        """Log a warning once."""
        if what not in self.told:
            self.told.add(what)
            logger.warning(f"{self.url}: {what}")


def _choice(answer: dict[str, Any]) -> Any:
    """The first choice of an answer; None without choices."""
    choices = answer.get("choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _read_tokens(answer: dict[str, Any]) -> int | None:
    """Number of prompt tokens that the server read; None if the server does not report it."""
    usage = answer.get("usage")
    return usage.get("prompt_tokens") if isinstance(usage, dict) else None
