"""The OpenAI protocol for completions, as pure functions: a request becomes `Asked`, and finished rows an answer.

Fields of our own, which the `openai` client sends as `extra_body`: tag, negative_tag, guidance_scale, feedback, top_k,
min_tokens. Fields that a server without tools, images and penalties cannot obey are refused; those that change no
completion are taken and ignored. Sampling that a request leaves open is that of `nlf sample`.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

from nlf.config import Options, SampleRuleOptions, SamplingOptions, knob
from nlf.config.inherited import SEED
from nlf.config.sampling import MOST_GUIDANCE, TEMPERATURE
from nlf.data.prompts import Prompt
from nlf.errors import UserError, did_you_mean, shown
from nlf.serving import http

MOST_CHOICES, MOST_PROMPTS, MOST_STOPS, MOST_LOGPROBS = 128, 128, 4, 20
IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity", "reasoning_effort"),
}
NEUTRAL: dict[str, tuple] = {  # values by which a client says that it does not use a field
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0,)),
    **{"repetition_penalty": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},)},
    **{"tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "modalities": (["text"],)},
    "response_format": ({"type": "text"},),
}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
Json = dict[str, Any]


class Refused(http.Refused):
    """A request that gets OpenAI's error. `param` is the field that is wrong, `name` OpenAI's code of the mistake."""

    def __init__(
        self, code: int, message: str, *, param: str | None = None, name: str | None = None, after: int | None = None
    ):
        super().__init__(message)
        self.code, self.after = code, after
        kind = TYPES.get(
            code, "rate_limit_error" if code == 429 else "invalid_request_error" if code < 500 else "server_error"
        )
        self.payload = {"error": {"message": message, "type": kind, "param": param, "code": name}}


# ---- requests -----------------------------------------------------------------------------------------------------


@dataclass
class Fields(Options):
    """The fields that both kinds of requests have."""

    model: str | None = knob(None, "Name of a model of the server; null is its first.")
    n: int = knob(1, "Completions of each prompt.", above=0, most=MOST_CHOICES)
    seed: int | None = knob(None, "Seed of the sampling; null is a random one, which the answer tells.", rule=SEED)
    stop: list[str] | None = knob(None, "Texts before which a completion ends.")
    stream: bool = knob(False, "Answer token by token, as server-sent events.")
    stream_options: dict | None = knob(None, "include_usage: end the stream with the usage.")
    max_tokens: int | None = knob(None, "Most new tokens; null is the model's max_completion_length.", above=0)
    min_tokens: int = knob(0, "EOS cannot be sampled before this length.", least=0)
    temperature: float = knob(1.0, "See `nlf sample`.", rule=TEMPERATURE)
    top_p: float = knob(SampleRuleOptions.top_p, "See `nlf sample`.", above=0, most=1)
    top_k: int = knob(0, "See `nlf sample`.", least=0)
    tag: list[str] | None = knob(None, "The tag, or one for each attribute; null is the best.")
    negative_tag: list[str] | None = knob(None, "The tag that guidance moves away from; null is the worst.")
    guidance_scale: float = knob(0.0, "Strength of guidance.", least=0, most=MOST_GUIDANCE)
    feedback: str | None = knob(None, "Words of one's own in place of a tag.")


@dataclass
class TextFields(Fields):
    """The fields of /v1/completions."""

    logprobs: int | None = knob(None, "Number of likeliest tokens to tell.", least=0, most=MOST_LOGPROBS)


@dataclass
class ChatFields(Fields):
    """The fields of /v1/chat/completions."""

    logprobs: bool = knob(False, "Tell the log-probability of each token.")
    top_logprobs: int = knob(0, "Number of likeliest tokens to tell.", least=0, most=MOST_LOGPROBS)
    max_completion_tokens: int | None = knob(None, "The newer name of max_tokens.", above=0)


@dataclass(frozen=True)
class Asked:
    """A request, read.

    Attributes:
        model: A name; None = the first model.
        tag, negative: A tag, one tag for each attribute, or None for the default.
        options: The sampling rule, without the number of new tokens.
        max_tokens: Most new tokens; None = the request leaves them open.
        top: Number of likeliest tokens to tell; None = no log-probabilities.
        usage: A stream ends with the usage.
    """

    model: str | None
    prompts: list[Prompt]
    tag: str | list[str] | None
    negative: str | list[str] | None
    feedback: str | None
    options: dict[str, Any]
    max_tokens: int | None
    seed: int
    stop: list[str]
    stream: bool
    usage: bool
    top: int | None
    chat: bool

    def sampling(self, most: int) -> SamplingOptions:
        """The sampling rule, with `most` new tokens where the request leaves them open."""
        return SamplingOptions(max_completion_length=self.max_tokens or most, **self.options)


def read(body: Any, chat: bool) -> Asked:
    """A request as `Asked`.

    Raises:
        Refused: it has an unknown field, or a value that is not allowed.
    """
    if not isinstance(body, dict):
        raise Refused(400, f"The body is {shown(body, 60)} where a JSON object was expected.")
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    prompts = [messages_of(given.pop("messages", None))] if chat else texts_of(given.pop("prompt", None))
    kind = ChatFields if chat else TextFields
    _check_names(given, [f.name for f in fields(kind)], chat)
    try:
        asked = kind(**{name: value for name, value in given.items() if name not in NEUTRAL})
    except UserError as error:
        raise Refused(400, f"{error}", param=str(error).partition(":")[0]) from error
    return _asked(asked, prompts, chat)


def _asked(asked: Any, prompts: list[Prompt], chat: bool) -> Asked:
    stop = asked.stop or []
    if len(stop) > MOST_STOPS or not all(stop):
        raise Refused(400, f"stop: expected at most {MOST_STOPS} texts, none of them empty.", param="stop")
    if asked.feedback is not None and asked.tag is not None:
        raise Refused(400, "feedback: it takes the place of the tag; leave one of the two out.", param="feedback")
    top = asked.logprobs
    if chat:
        top = asked.top_logprobs if asked.logprobs or asked.top_logprobs else None
    longest = getattr(asked, "max_completion_tokens", None) or asked.max_tokens
    if longest and asked.min_tokens > longest:
        raise Refused(400, f"min_tokens: {asked.min_tokens} is above max_tokens {longest}.", param="min_tokens")
    options = {
        **{"num_generations": asked.n, "min_completion_length": asked.min_tokens, "temperature": asked.temperature},
        **{"top_p": asked.top_p, "top_k": asked.top_k, "guidance_scale": asked.guidance_scale},
    }
    return Asked(
        asked.model, prompts, _tag(asked.tag), _tag(asked.negative_tag), asked.feedback, options, longest,
        secrets.randbelow(2**31) if asked.seed is None else asked.seed, stop, asked.stream,
        bool((asked.stream_options or {}).get("include_usage")), top, chat,
    )  # fmt: skip


def _tag(words: list[str] | None) -> str | list[str] | None:
    """A list of one tag means the tag."""
    return words[0] if words and len(words) == 1 else words


def _check_names(given: Mapping[str, Any], known: Sequence[str], chat: bool) -> None:
    """Refuse unknown fields, and fields of the protocol that ask for what this server does not do."""
    for name, value in given.items():
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise Refused(400, f"{name}: this server does not support it; leave it out.", param=name)
        elif name not in known:
            names = sorted([*known, "messages" if chat else "prompt"])
            hint = did_you_mean(name, names) or f" the known fields are {', '.join(names)}."
            raise Refused(400, f"Unknown field {shown(name, 60)}:{hint}", param=name[:60])


def texts_of(prompt: Any) -> list[Prompt]:
    """The prompts of a request.

    Raises:
        Refused: they are no text and no list of texts.
    """
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or len(prompts) > MOST_PROMPTS or not all(isinstance(each, str) for each in prompts):
        raise Refused(
            400,
            f"prompt: expected a text, or a list of at most {MOST_PROMPTS} texts; token ids are not read.",
            param="prompt",
        )
    return list(prompts)


def messages_of(messages: Any) -> Prompt:
    """The conversation of a request.

    Raises:
        Refused: it is no list of messages, or a message holds something else than text.
    """
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        message = 'messages: expected a list such as [{"role": "user", "content": "…"}].'
        raise Refused(400, message, param="messages")
    return [{"role": each.get("role"), "content": _content(each.get("content"))} for each in messages]


def _content(content: Any) -> Any:
    """The text of a message; parts of text are joined, and other parts are refused."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "messages: a part is no text; this server reads text only.", param="messages")
    return "".join(map(str, texts))


# ---- stops --------------------------------------------------------------------------------------------------------


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held(text: str, stops: Sequence[str]) -> int:
    """The number of last characters that may be the beginning of a stop."""
    longest = max(map(len, stops), default=1) - 1
    ends = (text[-length:] for length in range(min(longest, len(text)), 0, -1))
    return next((len(end) for end in ends if any(stop.startswith(end) for stop in stops)), 0)


# ---- answers ------------------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """A finished completion, or a piece of one.

    Attributes:
        tokens: The text of each token, with log-probabilities only.
        log_probs: (log-probability, [(text, log-probability)]) of each token; None = not asked for.
        offset: Characters of the completion before this piece.
    """

    index: int
    text: str
    reason: str | None = None
    tokens: Sequence[str] = ()
    log_probs: Sequence[tuple[float, list[tuple[str, float]]]] | None = None
    offset: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def __call__(self) -> Json:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


def answer(head: Json, choices: Sequence[Choice], usage: Usage, chat: bool) -> Json:
    """The body of an answer. `head` is its id, time, model and seed."""
    kind = "chat.completion" if chat else "text_completion"
    return {**head, "object": kind, "choices": [_choice(each, chat) for each in choices], "usage": usage()}


def _choice(choice: Choice, chat: bool) -> Json:
    common = {"index": choice.index, "finish_reason": choice.reason, "logprobs": _log_probs(choice, chat)}
    if chat:
        return {**common, "message": {"role": "assistant", "content": choice.text, "refusal": None}}
    return {**common, "text": choice.text}


def chunk(head: Json, choices: Sequence[Choice], chat: bool, usage: Usage | None = None, begins: bool = False) -> Json:
    """The body of an event. `begins`: it is the first of each of these choices."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    written = [_piece(each, begins) if chat else _choice(each, False) for each in choices]
    return {**head, "object": kind, "choices": written, **({"usage": usage()} if usage else {})}


def _piece(choice: Choice, begins: bool) -> Json:
    role = {"role": "assistant"} if begins else {}
    delta = {**role, **({"content": choice.text} if choice.text or begins else {})}
    return {
        "index": choice.index,
        "delta": delta,
        "finish_reason": choice.reason,
        "logprobs": _log_probs(choice, True),
    }


def _log_probs(choice: Choice, chat: bool) -> Json | None:
    if choice.log_probs is None:
        return None
    pairs = list(zip(choice.tokens, choice.log_probs, strict=True))
    if chat:
        return {
            "content": [{**_told(t, p), "top_logprobs": [_told(*each) for each in best]} for t, (p, best) in pairs]
        }
    starts = accumulate(map(len, choice.tokens[:-1]), initial=choice.offset) if pairs else ()
    return {
        "tokens": list(choice.tokens),
        "token_logprobs": [_finite(p) for _, (p, _) in pairs],
        "top_logprobs": [_by_text(best) for _, (_, best) in pairs],
        "text_offset": list(starts),
    }


def _by_text(best: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The log-probability of each text: of several tokens with one text, such as parts of characters, the likeliest."""
    found: dict[str, float] = {}
    for text, log_p in best:
        found.setdefault(text, _finite(log_p))
    return found


def _told(text: str, log_p: float) -> Json:
    return {"token": text, "logprob": _finite(log_p), "bytes": list(text.encode(errors="replace"))}


def _finite(log_p: float) -> float:
    """OpenAI's number for a probability of 0."""
    return log_p if math.isfinite(log_p) else -9999.0
