"""Sampling by a server: any endpoint that speaks OpenAI's `/v1/completions`, for evaluation.

Servers differ in what they take. One probe, a single token after the first prompt, finds the richest of these forms that
the server accepts; the form is kept and logged:

| prompt | beside OpenAI's fields | spoken by |
| --- | --- | --- |
| token ids | top_k, min_tokens, stop_token_ids, return_token_ids | vLLM; those that ignore what they do not know |
| text | the same | |
| text | `generation_config`, which holds everything | `transformers serve`; without it that server is greedy, or filters |
| token ids, then text | nothing, so only without top_k and min_completion_length | OpenAI's |

Token ids are the record: where the server returns them (`token_ids` of vLLM) they are kept as they are. Where it returns
text alone, that is tokenised again, EOS added where the server says that it stopped, and a warning says so: the ids need
not be those that were sampled. A prompt sent as text is warned of where the server reads it as other tokens.

A request is one completion, with a seed of its own made of (seed, iteration, request key, index): it repeats where the
server honours seeds, whatever it makes of `n`. Guidance needs logits and is refused.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

from nlf.config import refuse_guidance
from nlf.errors import UserError
from nlf.sampling import Request, check_lengths, seed_of
from nlf.services import Rejected, Retry, checked_url, key_of, post, retrying, run, said, timed, together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlf.config import SamplingOptions

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
TRIES = 8  # of one request
BACKOFF = 1.0  # seconds of the first pause at most; doubled for each next one
UNKNOWN_FORM = (400, 415, 422)  # statuses that another form of the request may mend
OTHER_TOKENS = "a prompt that is sent as text is read as other tokens than its ids; expect other completions"
TEXT_ALONE = "it returns text alone: completions are tokenised again, and may not be the ids that were sampled"


@dataclass(frozen=True)
class Form:
    """How a request is written."""

    ids: bool  # the prompt as token ids, else as text
    extra: str  # what stands beside OpenAI's fields: "vllm", "transformers" or ""

    def __str__(self) -> str:
        return f"prompts as {'token ids' if self.ids else 'text'}" + (f", {self.extra}'s fields" if self.extra else "")


FORMS = (Form(True, "vllm"), Form(False, "vllm"), Form(False, "transformers"), Form(True, ""), Form(False, ""))


class ServerSampler:
    """Samples by asking a server.

    Args:
        url: Where `/completions` is; one without a path gets /v1.
        model: The server's name of the model.
        tokenizer: The model's, for prompts and completions that travel as text.
        eos_token_ids: Ids that end a completion (and are kept in it).
        banned_token_ids: Ids that are never sampled.
        context: Tokens that the model reads at most.
        concurrency: Requests under way at a time.
        timeout: Seconds that one request may take.

    Raises:
        UserError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        eos_token_ids: Sequence[int],
        banned_token_ids: Sequence[int] = (),
        context: float = float("inf"),
        concurrency: int = 16,
        timeout: float = 600.0,
    ):
        url = checked_url(url, "sampler_url")
        self.url = f"{url if urlsplit(url).path else f'{url}/v1'}/completions"
        self.model, self.tokenizer, self.label = model, tokenizer, f"server:{model}"
        self.eos, self.banned, self.context = list(eos_token_ids), list(banned_token_ids), context
        self.concurrency, self.timeout = concurrency, timeout
        self.form: Form | None = None
        self.told: set[str] = set()

    def sample(
        self,
        requests: Sequence[Request],
        options: "SamplingOptions",
        *,
        seed: int,
        iteration: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """See `nlf.sampling.Sampler`.

        Raises:
            UserError: a prompt that is empty or does not fit the context; guidance; a server that cannot be reached,
                rejects the request, or fails again and again.
        """
        refuse_guidance("server", options.guidance_scale)
        check_lengths([(r.input_ids,) for r in requests], options.max_completion_length, self.context)
        results = [[[] for _ in range(options.num_generations)] for _ in requests]
        jobs = [
            (i, j, seed_of(seed, iteration, request.key, j))
            for i, request in enumerate(requests)
            for j in range(options.num_generations)
        ]
        if jobs:
            run(self._all(requests, options, iter(jobs), results, progress or (lambda n: None)))
        return results

    def close(self) -> None:
        """Nothing is kept between calls."""

    async def _all(self, requests, options, jobs: Iterator[tuple[int, int, int]], results, progress) -> None:
        """Fill `results`, (request, index) by (request, index)."""
        async with httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_connections=None)) as client:
            self.form = self.form or await self._probe(client, requests[0].input_ids, options)
            prompts = [self._prompt(request.input_ids) for request in requests]

            async def work() -> None:
                for i, j, seed in jobs:
                    body = self._body(self.form, prompts[i], options, seed)
                    results[i][j] = self._read(await self._ask(client, body), requests[i].input_ids)
                    progress(1)

            await together(min(self.concurrency, len(results) * options.num_generations), work)

    async def _probe(self, client: httpx2.AsyncClient, ids: Sequence[int], options: "SamplingOptions") -> Form:
        """The first form that the server accepts, and whose ids it reads as they are."""
        refusal = ""
        for form in FORMS:
            if not form.extra and (options.top_k or options.min_completion_length):
                refusal += " (beside which top_k and min_completion_length have no place)"
                break
            body = self._body(form, list(ids) if form.ids else self._text(ids), options, 0, tokens=1)
            try:
                answer = await self._ask(client, body, forms=True)
            except Rejected as error:
                refusal = f"HTTP {error.status}: {said(error.payload, [key_of(KEY)])}"
                continue
            if form.ids and _read_tokens(answer) not in (None, len(ids)):
                refusal = "it reads token ids as something else"
                continue
            logger.info(f"{self.url}: {form}")
            return form
        raise UserError(f"{self.url} takes none of the forms of a request that are known here: {refusal}")

    def _body(self, form: Form, prompt, options: "SamplingOptions", seed: int, tokens: int | None = None) -> dict:
        """What is sent for one completion."""
        tokens = tokens or options.max_completion_length
        least = min(options.min_completion_length, tokens)
        greedy = options.temperature == 0
        body = {
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

    async def _ask(self, client: httpx2.AsyncClient, body: dict, forms: bool = False) -> dict:
        """The answer, tried again as often as it makes sense.

        Args:
            forms: Leave it to the caller where another form of the request may help.

        Raises:
            UserError: it cannot be had. Rejected: with `forms`.
        """
        headers = {"Authorization": f"Bearer {key}"} if (key := key_of(KEY)) else {}
        failures: Counter[str] = Counter()

        def failed(error: Retry) -> None:
            failures[error.reason] += 1
            if forms and error.reason == "ConnectError":
                raise UserError(f"{self.url} cannot be reached: is the server running there?") from error

        async def attempt() -> dict:
            answer = await timed(post(client, self.url, body, headers), self.timeout)
            if not isinstance(_choice(answer), dict):
                raise Retry("an answer without a choice")
            return answer

        try:
            return await retrying(TRIES, BACKOFF, random.uniform, failed=failed)(attempt)
        except Rejected as error:
            if forms and error.status in UNKNOWN_FORM:
                raise
            raise UserError(
                f"{self.url} rejects the request for model {self.model!r}: HTTP {error.status}: "
                f"{said(error.payload, [key])}; check sampler_url, sampler_model and {KEY}"
            ) from error
        except Retry as error:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in failures.most_common())
            raise UserError(
                f"{self.url} has no answer after {TRIES} tries ({reasons}); does it serve {self.model!r}? Finished "
                "completions are kept: run again to go on"
            ) from error

    def _prompt(self, ids: Sequence[int]) -> list[int] | str:
        """The prompt as it is sent."""
        return list(ids) if self.form.ids else self._text(ids)

    def _text(self, ids: Sequence[int]) -> str:
        """The text that a server reads as these ids: without the BOS that its tokenizer puts there itself."""
        text = self.tokenizer.decode(ids)
        bare = self.tokenizer.decode(ids[1:]) if ids[0] == self.tokenizer.bos_token_id else text
        for each in (text, bare):
            if self.tokenizer(each)["input_ids"] == list(ids):
                return each
        self._tell(OTHER_TOKENS)
        return text

    def _read(self, answer: dict, prompt_ids: Sequence[int]) -> list[int]:
        """The ids of a completion, with the EOS that ended it."""
        choice, read = _choice(answer), _read_tokens(answer)
        if read not in (None, len(prompt_ids)):
            self._tell(OTHER_TOKENS)
        ids = choice.get("token_ids")
        if ids is None:
            self._tell(TEXT_ALONE)
            ids = self.tokenizer(choice.get("text") or "", add_special_tokens=False)["input_ids"]
        ended = choice.get("finish_reason") == "stop" and not (ids and ids[-1] in self.eos)
        return [*ids, self.eos[0]] if ended else list(ids)

    def _tell(self, what: str) -> None:
        """A warning, once."""
        if what not in self.told:
            self.told.add(what)
            logger.warning(f"{self.url}: {what}")


def _choice(answer: dict):
    """The first choice of an answer; None where there is none."""
    choices = answer.get("choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _read_tokens(answer: dict) -> int | None:
    """How many tokens the server has read; None where it does not say."""
    usage = answer.get("usage")
    return usage.get("prompt_tokens") if isinstance(usage, dict) else None
