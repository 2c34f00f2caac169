"""A language model as judge, `judge:TEMPLATE`, through OpenAI's chat API, which many servers speak.

A template is a shipped YAML file (`nlf/assets/judges`) or your own YAML file. It holds the question and is of one of
two kinds:

| field | answer | reward | feedback in training |
| --- | --- | --- | --- |
| `categories` (ALT_LMC) | one of the categories, which stand best first | number of categories - 1 - index | the category, a tag of the run |
| `max_score` (ALT_LMU) | an analysis, a short sentence, a score | the score | the sentence |

Both rewards are levels, for `quantile_rule: levels`. The model's name comes from $NLF_JUDGE_MODEL or the template, the
server from $OPENAI_BASE_URL or the template, else it is OpenAI's. The cache keeps the text of an answer, so that later
versions can read it again; its key is model, template and texts, not the server's address.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.rewards.contract import Judgement
from nlf.rewards.remote import Ask, Refused, RemoteScorer
from nlf.rewards.templates import read_template
from nlf.secrets import OPENAI_KEY, key_of
from nlf.services import OPENAI, OPENAI_URL, Rejected, Retry, api_url, bearer, post

logger = logging.getLogger(__name__)

MODEL = "NLF_JUDGE_MODEL"
UNSTRUCTURED = re.compile(r"response.?format|json.?schema|structured|grammar|guided", re.I)
TOO_LONG = re.compile(r"context.?(?:length|size|window)|string_above_max|too long|too many tokens", re.I)
FILTERED = re.compile(r"content.?(?:filter|policy)", re.I)


class Judge(RemoteScorer):
    """A judge: its rewards are levels, and it writes feedback if its template asks for a sentence.

    Attributes:
        tags: The categories, which must be the run's `tags`; None for a judge that writes sentences.
        levels: The number of different rewards, 0 to levels - 1; a run needs the same number of tags.

    Args:
        argument: The name of a shipped template, or the path of a .yaml file.
        options: See `RemoteScorer`.

    Raises:
        UserError: the template is missing or malformed, no model is named, or the URL is malformed; or, at the first
            call, there is no key.
    """

    service = "judge"  # judges on one server share its rate
    answer_type = dict

    def __init__(self, argument: str, *, options: RemoteOptions | None = None):
        super().__init__(options)
        self.template = read_template(argument)
        self.tags, self.levels = self.template.categories, self.template.levels
        self.name = f"judge:{self.template.name}"
        self.model = os.environ.get(MODEL) or self.template.model
        if not self.model:
            raise UserError(f"{self.name}: no model is named; set {MODEL}, or `model` in the template")
        self.version = f"{Path(self.model).name}-{self.template.digest}"
        given, own = os.environ.get(OPENAI_URL), self.template.base_url
        self.base_url = api_url(given or own or OPENAI, OPENAI_URL if given else f"{self.name}: base_url")
        self.trusted = bool(given or not own)  # a template can come from anyone, so its server gets no key
        self.structured = self.template.structured  # until the server rejects it
        self.shown = False

    def ready(self) -> None:
        if self.base_url == OPENAI and not key_of(OPENAI_KEY):
            raise UserError(f"{self.name}: no key; set {OPENAI_KEY}, or {OPENAI_URL} to a server that needs no key")

    def settings(self) -> dict:
        return {"model": self.model, "template": self.template.digest}

    def requests(self, prompts: Sequence | None, completions: Sequence[str], **columns) -> list[Ask]:
        prompts = [""] * len(completions) if prompts is None else prompts
        return [self._request(_text(prompt), _text(text)) for prompt, text in zip(prompts, completions, strict=True)]

    def _request(self, prompt: str, completion: str) -> Ask:
        template, most = self.template, self.template.max_characters
        for what, text in (("prompt", prompt), ("completion", completion)):
            if len(text) > most:
                self.count(f"{what} cut to {most:,} characters")
        texts = [prompt[-most:], completion[:most]]
        told = {"temperature": template.temperature, "max_tokens": template.max_tokens, "seed": template.seed}
        told = {name: value for name, value in (told | template.extra_body).items() if value is not None}
        return Ask(texts, {"model": self.model, "messages": template.messages(*texts), **told})

    async def ask(self, client, ask: Ask) -> dict:
        """The text of one answer, `content`, and the reason why it ended, `finish_reason`."""
        structured, body = self.structured, ask.body
        if structured:
            schema = {"name": "judgement", "strict": True, "schema": self.template.schema}
            body = {**body, "response_format": {"type": "json_schema", "json_schema": schema}}
        headers = bearer(key_of(OPENAI_KEY)) if self.trusted else {}
        try:
            return _answer(await post(client, f"{self.base_url}/chat/completions", body, headers))
        except Rejected as error:
            raise self._failed(error, structured) from error
        except Retry as error:
            if error.answer is None:
                raise
            raise self._failed(error.answer, structured, error) from error

    def _failed(self, error: Rejected, structured: bool, again: Retry | None = None) -> Exception:
        """The exception for an error status: Retry, Refused, or a UserError that stops the run.

        Args:
            again: What another try may succeed after; None if it cannot.
        """
        inner = error.payload.get("error")
        reason = json.dumps(inner if isinstance(inner, dict) else error.payload)
        if structured and error.status in (400, 422, 500, 501) and UNSTRUCTURED.search(reason):
            self.structured = False
            return Retry("no structured output", 0.0)
        if again and "insufficient_quota" not in reason:
            return again
        if error.status in (400, 413, 422) and TOO_LONG.search(reason):
            return Refused("too long for the model")
        if error.status == 400 and FILTERED.search(reason):
            return Refused("withheld by the service")
        return self.mistake(error, f"{OPENAI_KEY}, {OPENAI_URL} and the model {self.model}")

    def read(self, answer) -> Judgement:
        content, ended = str(answer.get("content") or ""), answer.get("finish_reason")
        found = self.template.read(content)
        if found is None:
            why = {"length": "answer cut at max_tokens", "content_filter": "withheld by the service"}
            self.count(why.get(str(ended), "unreadable answer"))
            if not self.shown:
                self.shown = True
                logger.warning(f"{self.name}: {self.model} gave an unreadable answer: {content[:200]!r}")
        return found or Judgement(None)


def _answer(payload: dict) -> dict:
    """The part of a response that the cache keeps."""
    try:
        choice = payload["choices"][0]
        content, reason = choice["message"].get("content"), choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        raise Retry("an answer without a choice") from error
    return {
        "content": content if isinstance(content, str) else "",
        "finish_reason": reason if isinstance(reason, str) else None,
    }


def _text(text: str | Sequence[Mapping[str, str]] | None) -> str:
    """A text or conversation as one text that is valid UTF-8."""
    if not isinstance(text, str):
        text = "\n\n".join(f"{message['role']}: {message['content']}" for message in text or [])
    return text.encode(errors="replace").decode()
