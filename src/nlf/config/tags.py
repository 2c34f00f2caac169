"""Knobs of the tags, the words that name the quantiles, and of several attributes with their own tags."""

import keyword
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from nlf.config.knobs import PLAIN, Options, Rule, knob
from nlf.config.rewards import RewardOptions
from nlf.errors import UserError, shown
from nlf.method.tags import FEEDBACK, PROMPT, SEPARATOR, diagonal

QuantileRule = Literal["even", "published", "levels"]


def _are_tags(tags: list[str]) -> bool:
    return len(tags) >= 2 and len(set(tags)) == len(tags) and all(tags)


TAGS = Rule(_are_tags, "two or more different tags, best first")
TAGS_OR_FILE = Rule(lambda tags: _are_tags(tags) or (len(tags) == 1 and tags[0].endswith(".json")), TAGS.expected)

TEMPLATE_GIVEN = {"messages", "add_generation_prompt", "continue_final_message"}  # what every rendering gives


def _are_variables(values: dict[str, Any]) -> bool:
    return all(n.isidentifier() and not keyword.iskeyword(n) and n not in TEMPLATE_GIVEN for n in values)


VARIABLES = Rule(_are_variables, "an object with names of variables other than messages and add_generation_prompt")


@dataclass
class ChatOptions(Options):
    """Prompts that are conversations."""

    feedback_position: Literal["auto", "system", "user"] = knob(
        "auto",
        "Where a conversation holds its feedback. system: in the system message. user: at the head of the first user message. "
        "auto: in the system message if the chat template shows one, else at the head of the first user message.",
    )
    chat_template_kwargs: dict | None = knob(
        None,
        "Variables of the model's chat template, such as '{\"enable_thinking\": false}'. They become defaults in the template "
        "that is saved with the model.",
        rule=VARIABLES,
    )


@dataclass
class TagOptions(Options):
    """The words that name the quantiles, best first: the tags of one reward, or the joined tags of several attributes."""

    tags: list[str] | None = knob(
        None,
        "One tag for each quantile, best first; K tags make K quantiles. Null: the reward's own words, or words made from "
        "its name.",
        rule=TAGS,
        short=True,
    )
    tag_template: str = knob(
        "{feedback}<|separator|>{prompt}",
        "How the feedback (a tag) and the prompt are joined.",
        short=True,
    )
    separator: str | None = knob(
        "<|separator|>",
        "Token added to the vocabulary. Its embedding starts as a copy of EOS's, and it is never sampled. A separator that is a "
        "token already, such as EOS, is read as that token and can still be sampled. Null adds none.",
    )
    tag_tokens: bool = knob(
        False,
        "Add each tag to the vocabulary as one new token, as Quark does. A tag that is a token already is read as that token.",
    )
    attributes: list[dict] | None = knob(
        None,
        "Several rewards, each with its own quantiles and tags: a list of {name, reward, tags, quantile_rule}, where "
        "quantile_rule is optional. They replace reward_funcs and tags.",
    )
    attribute_template: str = knob(", and ", "The text that joins the tags of several attributes.")
    feedback_sampling: Literal["best", "all"] = knob(
        "best",
        "best: sample prompts under the best tag of each attribute. all: take all combinations of tags in turn.",
    )
    max_feedback_length: int = knob(
        64,
        "Most tokens of a judge's sentence. A longer sentence is cut, and so is one that long prompts leave no room for.",
        above=0,
    )

    def check_together(self) -> None:
        super().check_together()
        if self.attributes and self.tag_tokens:
            raise UserError(
                "tag_tokens: the tags of several attributes are joined, so they are not single tokens; leave it out"
            )
        if self.separator not in (None, SEPARATOR) and self.separator not in self.tag_template:
            raise UserError(
                f"separator {self.separator!r} is not in tag_template {self.tag_template!r}, so nothing would read it; put it "
                f"between {FEEDBACK} and {PROMPT}, or leave separator out"
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
    attributes = attributes_of(options.attributes)
    joined = {
        "reward_funcs": [each.reward for each in attributes],
        "tags": diagonal([each.tags for each in attributes], options.attribute_template),
    }
    plain = {"reward_funcs": RewardOptions().reward_funcs, "tags": None}
    for name, value in joined.items():
        if getattr(options, name) not in (plain[name], value):
            raise UserError(
                f"{name} {getattr(options, name)}: attributes name their own rewards and tags; leave {name} out"
            )
        setattr(options, name, value)


class Attribute(NamedTuple):
    """One of several rewards, with its own tags, best first, and its own rule of quantiles; None = the run's rule."""

    name: str
    reward: str
    tags: list[str]
    quantile_rule: str | None = None


def attributes_of(attributes: list[dict]) -> list[Attribute]:
    """Attributes as a recipe writes them, after `join_attributes` has checked them, as records."""
    return [Attribute(**each) for each in attributes]


ATTRIBUTE = Attribute._fields


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
    for key in ATTRIBUTE[:2]:  # Python may give a function as the reward
        if isinstance(attribute[key], PLAIN) and not isinstance(attribute[key], str):
            raise UserError(f"{where}: {key} {shown(attribute[key])} where a text was expected")
    tags, rule = attribute["tags"], attribute.get("quantile_rule", "even")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise UserError(f"{where}: tags {tags!r} where a list of texts was expected, best first")
    if len(set(tags)) < max(len(tags), 2):
        raise UserError(f"{where}: tags {tags!r} where two or more different tags were expected, best first")
    if rule not in get_args(QuantileRule):
        raise UserError(
            f"{where}: quantile_rule {rule!r} where one of {', '.join(get_args(QuantileRule))} was expected"
        )
