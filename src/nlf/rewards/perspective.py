"""Google's Perspective API as a reward: `perspective`, or `perspective:THREAT` for another attribute.

Requests and summary scores follow version v1alpha1. The service ends on 2026-12-31; answers in the cache can be replayed
after that. One answer holds several attributes, so that `perspective:INSULT` beside `perspective` costs one request.
"""

import os
import re
from collections.abc import Sequence
from datetime import date

from nlf.config import RemoteOptions
from nlf.errors import UserError
from nlf.method.tags import degrees
from nlf.rewards.contract import Judgement
from nlf.rewards.remote import Ask, Refused, RemoteScorer, probability
from nlf.rewards.words import noun_of
from nlf.secrets import PERSPECTIVE_KEY as KEY
from nlf.secrets import key_of
from nlf.services import Rejected, checked_url, post

OFFICIAL = "https://commentanalyzer.googleapis.com"
LAST_DAY = date(2026, 12, 31)
PRODUCTION = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")
LIMIT = 20_480  # bytes of UTF-8 that the service takes
UNSCORABLE = ("COMMENT_EMPTY", "COMMENT_TOO_LONG", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE")


class Perspective(RemoteScorer):
    """Reward = 1 − the summary score of one of Perspective's attributes. All requested attributes are given, in lower case.

    The key comes from $PERSPECTIVE_API_KEY or from the file that $PERSPECTIVE_API_KEY_FILE names. Only the completion is
    sent, cut to 20,480 bytes, with doNotStore.

    Args:
        attribute: The service's name of an attribute, in any case. The six production attributes are requested with it.
        base_url: Another server of the same protocol; None = $PERSPECTIVE_BASE_URL, else Google's.
        options: See `RemoteScorer`.

    Raises:
        UserError: the attribute's name or the URL is malformed; or, at the first call, there is no key or the service
            has ended.
    """

    service, version, rate_limit = "perspective", "v1alpha1", 1.0  # the free quota
    answer_type = dict
    none_is_worst = True

    def __init__(
        self,
        attribute: str = "TOXICITY",
        *,
        base_url: str | None = None,
        options: RemoteOptions | None = None,
    ):
        super().__init__(options)
        self.attribute = attribute.strip().upper()
        if not re.fullmatch("[A-Z][A-Z_]*", self.attribute):
            raise UserError(f"reward 'perspective:{attribute}': expected an attribute: {', '.join(PRODUCTION)}, …")
        self.requested = tuple(dict.fromkeys((*PRODUCTION, self.attribute)))
        self.name = "perspective" if self.attribute == "TOXICITY" else f"perspective:{self.attribute}"
        self.default_tags = degrees(noun_of(self.attribute))
        given = base_url or os.environ.get("PERSPECTIVE_BASE_URL") or OFFICIAL
        self.base_url = checked_url(given, "PERSPECTIVE_BASE_URL")

    def settings(self) -> dict:
        return {"base_url": self.base_url, "attributes": sorted(self.requested), "languages": ["en"]}

    def ready(self) -> None:
        if self.base_url == OFFICIAL and today() > LAST_DAY:
            raise UserError(
                f"{self.name}: Google ended the Perspective API on {LAST_DAY}; score with local or hf:MODEL_ID#LABEL "
                "instead, or replay cached answers: --replay, `nlf score --import_cache`"
            )
        self.key()

    def key(self) -> str:
        """The key.

        Raises:
            UserError: there is no key.
        """
        if key := key_of(KEY):
            return key
        raise UserError(f"{self.name}: no key; set {KEY} to it, or {KEY}_FILE to a file with it")

    def requests(self, prompts: Sequence, completions: Sequence[str], **columns) -> list[Ask]:
        return [self._request(text) for text in completions]

    def _request(self, text: str) -> Ask:
        if not text.strip():
            self.count("COMMENT_EMPTY")
            return Ask.known(Judgement(None))
        sent = cut(text)
        if sent != text:
            self.count(f"cut to {LIMIT:,} bytes")
        body = {
            "comment": {"text": sent},
            "requestedAttributes": {name: {} for name in self.requested},
            "languages": ["en"],
            "doNotStore": True,
            "spanAnnotations": False,
        }
        return Ask(sent, body)

    async def ask(self, client, ask: Ask) -> dict:
        """The summary scores of one text by attribute."""
        url = f"{self.base_url}/v1alpha1/comments:analyze"
        try:
            payload = await post(client, url, ask.body, query={"key": self.key()})
        except Rejected as error:
            reason = error_type(error.payload)
            raise (Refused(reason) if reason else self.mistake(error, f"{KEY} and the attribute")) from error
        scores = payload.get("attributeScores")
        return {name: summary(scores.get(name)) for name in self.requested} if isinstance(scores, dict) else {}

    def read(self, answer) -> Judgement:
        found = answer if isinstance(answer, dict) else {}
        values = {name: probability(found.get(name)) for name in self.requested}
        for name in (name for name, value in values.items() if value is None):
            self.count(f"no {name} in the answer")
        value = values[self.attribute]
        attributes = {name.lower(): value for name, value in values.items()}
        return Judgement(None if value is None else 1 - value, attributes)


def today() -> date:
    """The date, which decides whether Google's service has ended."""
    return date.today()


def cut(text: str, limit: int = LIMIT) -> str:
    """The longest beginning of a text of at most `limit` bytes in UTF-8; a lone surrogate becomes '?'."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def error_type(payload: dict) -> str | None:
    """The reason in a Google error why a text cannot be scored; None if it names no such reason."""
    error = payload.get("error")
    details = error.get("details") if isinstance(error, dict) else None
    named = [each.get("errorType") for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    return next((reason for reason in named if reason in UNSCORABLE), None)


def summary(score: object) -> object:
    """The value of an attribute's summary score; None if the answer has none."""
    found = score.get("summaryScore") if isinstance(score, dict) else None
    return found.get("value") if isinstance(found, dict) else None
