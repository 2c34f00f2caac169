"""OpenAI's moderation API as a reward: `openai-moderation`, or `openai-moderation:hate` for one category.

$OPENAI_BASE_URL names the server, as it does for OpenAI's own client; the default is https://api.openai.com/v1, which
needs a key in $OPENAI_API_KEY.
"""

import os
from collections.abc import Sequence

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.method.tags import degrees
from nlf.rewards.contract import Judgement
from nlf.rewards.remote import Ask, Refused, RemoteScorer, probability
from nlf.rewards.words import noun_of
from nlf.secrets import OPENAI_KEY, key_of
from nlf.services import OPENAI, OPENAI_URL, Rejected, api_url, bearer, post

MODEL = "omni-moderation-latest"
TOO_LONG = {"context_length_exceeded", "string_above_max_length"}


class Moderation(RemoteScorer):
    """Reward = 1 − the score of one category, or 1 − the highest score of all; every category is an attribute.

    Only the completion is sent.

    Args:
        category: The service's name of a category; None = for each text the category with the highest score.
        model: The service's name of the model.
        base_url: The server, whose endpoint is `base_url/moderations`; None = $OPENAI_BASE_URL, else OpenAI's. A URL
            without a path gets /v1.
        options: See `RemoteScorer`.

    Raises:
        UserError: the URL is wrong; or, at the first call, there is no key.
    """

    service = "openai-moderation"
    answer_type = dict

    def __init__(
        self,
        category: str | None = None,
        *,
        model: str = MODEL,
        base_url: str | None = None,
        options: RemoteOptions | None = None,
    ):
        super().__init__(options)
        self.category, self.version = category, model
        self.name = self.service if category is None else f"{self.service}:{category}"
        self.default_tags = degrees("Toxicity" if category is None else noun_of(category.replace("/", " ")))
        self.base_url = api_url(base_url or os.environ.get(OPENAI_URL) or OPENAI, OPENAI_URL)

    def ready(self) -> None:
        if self.base_url == OPENAI and not key_of(OPENAI_KEY):
            raise UserError(f"{self.name}: no key; set {OPENAI_KEY}, or {OPENAI_URL} to a server that needs no key")

    def requests(self, prompts: Sequence, completions: Sequence[str], **columns) -> list[Ask]:
        return [self._request(text) for text in completions]

    def _request(self, text: str) -> Ask:
        if not text.strip():
            self.count("empty text")
            return Ask.known(Judgement(None))
        return Ask(text, {"model": self.version, "input": text})

    async def ask(self, client, ask: Ask) -> dict:
        """The scores of one text by category."""
        try:
            payload = await post(client, f"{self.base_url}/moderations", ask.body, bearer(key_of(OPENAI_KEY)))
        except Rejected as error:
            said = error.payload.get("error")
            if isinstance(said, dict) and said.get("code") in TOO_LONG:
                raise Refused("text too long") from error
            raise self.mistake(error, f"{OPENAI_KEY}, {OPENAI_URL} and the model {self.version}") from error
        results = payload.get("results")
        first = results[0] if isinstance(results, list) and results else None
        scores = first.get("category_scores") if isinstance(first, dict) else None
        return scores if isinstance(scores, dict) else {}

    def read(self, answer) -> Judgement:
        found = answer if isinstance(answer, dict) else {}
        scores = {name: score for name, value in found.items() if (score := probability(value)) is not None}
        score = max(scores.values(), default=None) if self.category is None else scores.get(self.category)
        if score is None:
            self.count(f"no {self.category or 'category'} in the answer")
        return Judgement(None if score is None else 1 - score, scores)
