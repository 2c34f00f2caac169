"""Conversations: where feedback goes, and the text that a chat template makes of the messages.

Feedback goes into the system message or to the head of the first user message. Values of `chat_template_kwargs` become
defaults in the template itself, so every rendering has them, also that of the saved model in other programs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from nlf.errors import UserError, did_you_mean, line_of
from nlf.method.tags import POSITIONS

# Templates with a clock (`strftime_now`) write this date, the one that Llama's templates write without a clock. So a
# conversation has the same ids every day: in a resumed run, in a resumed evaluation, and in two runs with one seed.
DATE = datetime(2024, 7, 26)
CLOCK = "strftime_now"
WRITTEN = {f"%{letter}": DATE.strftime(f"%{letter}") for letter in "dmHIMSjaAwbByYpfzZUWcxX"}
WRITTEN |= {f"%-{letter}": WRITTEN[f"%{letter}"].lstrip("0") or "0" for letter in "dmHIMSj"}
REPLACED = "".join(f"|replace({directive!r}, {value!r})" for directive, value in WRITTEN.items())
# Templates drop the line break after a block, so the template that follows keeps its white space.
FIXED_CLOCK = "{% macro " + CLOCK + "(format) %}{{ format" + REPLACED + " }}{% endmacro %}\n"

PLACES = {"system": "in the system message", "user": "at the head of the first user message"}  # of the feedback
A = {"system": "a system message", "user": "feedback in the first user message"}
THE = {"system": "the system message", "user": "the head of the first user message"}
TODO = "use a chat model whose template shows it, or prompts that are text"

# All that a template can raise: it is a program of the model's author, and works like Python on the messages.
TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# Python writes a value of JSON as Jinja reads it.
DEFAULT = "{{% set {0} = {1!r} if {0} is not defined or {0} is none else {0} %}}\n"
WORD = re.compile(r"[^\W\d]\w*")


# ---- messages -----------------------------------------------------------------------------------------------------


def with_feedback(messages: list[dict], feedback: str, position: str = "system") -> list[dict]:
    """The conversation with feedback.

    Args:
        position: "system": appended to the system message, or in a new one. "user": before the first user message.

    Raises:
        UserError: there is no user message for it.
    """
    if position == "user":
        place = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if place is None:
            raise UserError("it has no user message, which the feedback goes into")
        first = {**messages[place], "content": f"{feedback}\n\n{messages[place]['content']}"}
        return [*messages[:place], first, *messages[place + 1 :]]
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{feedback}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": feedback}, *messages]


def is_started(messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether the conversation ends with the start of the assistant's message, which the completion continues."""
    return messages[-1]["role"] == "assistant"


def shortened(messages: list[dict]) -> Iterator[list[dict]]:
    """The conversation, then without its oldest turn, its two oldest turns, …, down to the last turn.

    A turn begins with a user message. The system message at the start stays.
    """
    head = int(messages[0]["role"] == "system")
    yield messages
    starts = [i for i, message in enumerate(messages) if message["role"] == "user" and i > head]
    yield from ([*messages[:head], *messages[start:]] for start in starts)


# ---- the template -------------------------------------------------------------------------------------------------


def set_defaults(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any] | None, strict: bool = True) -> None:
    """Write values of variables into the chat template, as defaults: `apply_chat_template` can still give others.

    Args:
        values: `chat_template_kwargs`: variables of the template, such as `enable_thinking`; None = nothing.
        strict: Refuse variables that the template does not read; otherwise they are left out.

    Raises:
        UserError: the tokenizer has no chat template, or it reads no such variable.
    """
    known = tokenizer.chat_template
    if not values or not (known or strict):
        return
    if not known:
        raise UserError("chat_template_kwargs: the model has no chat template; leave them out, or use a chat model")
    templates = known if isinstance(known, dict) else {"default": known}
    read = {word for template in templates.values() for word in WORD.findall(template)}
    unknown = next((name for name in values if name not in read), None)
    if unknown and strict:
        raise UserError(
            f"chat_template_kwargs: the model's chat template has no variable {unknown!r};{did_you_mean(unknown, read)} "
            "name one that it reads, or leave it out"
        )
    lines = "".join(DEFAULT.format(name, value) for name, value in values.items() if name in read)
    made = {name: template if template.startswith(lines) else lines + template for name, template in templates.items()}
    tokenizer.chat_template = made if isinstance(known, dict) else made["default"]


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, with a fixed date if it has a clock.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        if several := tokenizer.chat_template:
            raise UserError(
                f"the model has the chat templates {', '.join(several)}, and none is its default; name one of them 'default' "
                "in its tokenizer's files, or use prompts that are text"
            ) from error
        raise UserError(
            "the model has no chat template, which conversations need; use a chat model, or prompts that are text"
        ) from error
    return FIXED_CLOCK + template if CLOCK in template else template


def has_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template that writes a date."""
    try:
        return CLOCK in tokenizer.get_chat_template()
    except ValueError:  # none, or several without a default
        return False


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict]) -> str:
    """The text of a conversation, up to the start of the answer, or to the end of the answer that is started.

    Raises:
        UserError: the tokenizer has no chat template, or its template fails on these messages.
    """
    template, started = template_of(tokenizer), is_started(messages)
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False,
                add_generation_prompt=not started, continue_final_message=started,
            )
        )  # fmt: skip
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UserError(f"the model's chat template fails on messages of {roles}: {line_of(error, 200)}") from error


def check_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], feedback: Sequence[str], position: str = "system"
) -> None:
    """Refuse a conversation that the chat template fails on, or in which it does not show the feedback.

    Args:
        feedback: The words that may be put into it, all different.
        position: See `with_feedback`.

    Raises:
        UserError: see above; the error does not name the prompt.
    """
    bare = render_bare(tokenizer, messages)
    if hidden := why_hidden(tokenizer, messages, feedback, position, bare):
        raise UserError(f"{hidden}; the tag goes into it: {TODO}")


def render_bare(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str:
    """The text of a conversation without feedback.

    Raises:
        UserError: the chat template fails on it, or makes an empty text of it.
    """
    bare = render(tokenizer, messages)
    if not bare.strip():
        raise UserError("the model's chat template makes an empty text of it; use another chat model")
    return bare


def why_hidden(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], feedback: Sequence[str], position: str, bare: str
) -> str | None:
    """Why the words of the feedback cannot be read at this position; None if they can.

    Args:
        bare: The text of the conversation without feedback.
    """
    try:
        texts = {render(tokenizer, with_feedback(messages, words, position)) for words in feedback}
    except UserError as error:
        return f"with {A[position]}, {error}"
    return f"the model's chat template leaves out {THE[position]}" if len({bare, *texts}) <= len(feedback) else None


def position_of(tokenizer: PreTrainedTokenizerBase, messages: list[dict], feedback: Sequence[str]) -> str:
    """The first position at which the chat template shows the words of the feedback in a conversation.

    Raises:
        UserError: it shows them at none, or fails on the conversation; the error does not name the prompt.
    """
    bare = render_bare(tokenizer, messages)
    hidden = {position: why_hidden(tokenizer, messages, feedback, position, bare) for position in POSITIONS}
    shown = next((position for position in POSITIONS if hidden[position] is None), None)
    if shown is None:
        raise UserError(f"the tag can be read nowhere: {'; '.join(map(str, hidden.values()))}; {TODO}")
    return shown


def check_messages(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> None:
    """Refuse a conversation that the chat template renders without one of its messages.

    Raises:
        UserError: see above; the error does not name the prompt.
    """
    bare = render(tokenizer, messages)
    for number, message in enumerate(messages):
        other = {**message, "content": f"{message['content']} and more"}
        if render(tokenizer, [*messages[:number], other, *messages[number + 1 :]]) == bare:
            raise UserError(
                f"the model's chat template leaves out message {number + 1}, of role {message['role']!r}; leave the "
                "message out, or write its text into a user message"
            )
