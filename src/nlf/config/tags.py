"""Knobs of the tags, the words that name the quantiles, and of several attributes with their own tags."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nlf.config.knobs import Options, Rule, knob
from nlf.config.rewards import RewardOptions
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, FEEDBACK, PROMPT, diagonal

QuantileRule = Literal["even", "published", "levels"]

TOKEN = re.compile(r"<\|[^<>|]+\|>")


def separator_of(template: str) -> str | None:
    """The token `<|…|>` between feedback and prompt in a template; None without exactly one such token."""
    found = TOKEN.findall(template.partition(FEEDBACK)[2].partition(PROMPT)[0])
    return found[0] if len(found) == 1 else None


def _are_tags(tags: list[str]) -> bool:
    different = len(tags) >= 2 and len(set(tags)) == len(tags) and all(tags)
    return different or (len(tags) == 1 and tags[0].endswith(".json"))


TAGS = Rule(_are_tags, "two or more different tags, best first")


@dataclass
class TagOptions(Options):
    """The words that name the quantiles, best first: the tags of one reward, or the joined tags of several attributes."""

    tags: list[str] = knob(
        list(DEFAULT_TAGS), "One tag for each quantile, best first: K tags make K quantiles.", rule=TAGS, short=True
    )
    tag_template: str = knob(
        "{feedback}<|separator|>{prompt}",
        "How feedback and prompt are joined. One token <|…|> between them joins the vocabulary: it starts as a copy of EOS "
        "and is never sampled.",
        short=True,
    )
    tag_tokens: bool = knob(False, "Make each tag one new token, as Quark does.")
    attributes: list[dict] | None = knob(
        None,
        "Several rewards with their own quantiles and tags: a list of {name, reward, tags, quantile_rule}, where "
        "quantile_rule may be left out. They replace reward_funcs and tags.",
    )
    attribute_template: str = knob(", and ", "The text that joins the tags of several attributes.")
    feedback_sampling: Literal["best", "all"] = knob(
        "best", "Sample prompts under the best tag of each attribute, or under all combinations in turn."
    )
    max_feedback_length: int = knob(
        64,
        "Most tokens of a judge's sentence; the sentence is cut there, and earlier where long prompts leave less room.",
        above=0,
    )

    @property
    def separator(self) -> str | None:
        """The token between feedback and prompt; None without exactly one such token."""
        return separator_of(self.tag_template)

    def check_together(self) -> None:
        super().check_together()
        if self.attributes and self.tag_tokens:
            raise UserError(
                "tag_tokens: the tags of several attributes are joined, so they are not single tokens; leave it out"
            )
        if self.feedback_sampling == "all" and not self.attributes:
            raise UserError("feedback_sampling all needs attributes; give attributes, or leave feedback_sampling out")


# ---- attributes ---------------------------------------------------------------------------------------------------


def join_attributes(options: Any) -> None:
    """Replace the rewards and tags of a run by the rewards and joined tags of its attributes.

    The joined tags run from the best tags of all attributes to the worst tags of all.

    Raises:
        UserError: an attribute is incomplete, or reward_funcs or tags contradict the attributes.
    """
    if options.attributes is None:
        return
    _check_attributes(options.attributes)
    joined = {
        "reward_funcs": [each["reward"] for each in options.attributes],
        "tags": diagonal([each["tags"] for each in options.attributes], options.attribute_template),
    }
    plain = {"reward_funcs": RewardOptions().reward_funcs, "tags": TagOptions().tags}
    for name, value in joined.items():
        if getattr(options, name) not in (plain[name], value):
            raise UserError(
                f"{name} {getattr(options, name)}: attributes name their own rewards and tags; leave {name} out"
            )
        setattr(options, name, value)


ATTRIBUTE = ("name", "reward", "tags", "quantile_rule")


def _check_attributes(attributes: list[dict]) -> None:
    if not attributes:
        raise UserError("attributes: an empty list; give one or more, or null")
    for n, attribute in enumerate(attributes, 1):
        _check_attribute(attribute, f"attribute {attribute.get('name', n)!r}")
    names = [attribute["name"] for attribute in attributes]
    if len(set(names)) < len(names):
        raise UserError(f"attributes {', '.join(map(str, names))}: two attributes have the same name; rename one")


def _check_attribute(attribute: dict, where: str) -> None:
    missing = [key for key in ATTRIBUTE[:3] if not attribute.get(key)]
    unknown = [key for key in attribute if key not in ATTRIBUTE]
    if missing or unknown:
        what = f"no {missing[0]}" if missing else f"unknown key {unknown[0]!r}"
        raise UserError(f"{where}: {what}; expected {', '.join(ATTRIBUTE[:3])} and, optionally, {ATTRIBUTE[3]}")
    tags, rule = attribute["tags"], attribute.get("quantile_rule", "even")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise UserError(f"{where}: tags {tags!r} where a list of texts was expected, best first")
    if len(set(tags)) < max(len(tags), 2):
        raise UserError(f"{where}: tags {tags!r} where two or more different tags were expected, best first")
    if rule not in get_args(QuantileRule):
        raise UserError(
            f"{where}: quantile_rule {rule!r} where one of {', '.join(get_args(QuantileRule))} was expected"
        )
