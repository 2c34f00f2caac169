"""Conversations: feedback in the system message, and the text that a chat template makes of the messages."""

from collections.abc import Sequence
from datetime import datetime

import jinja2
from transformers import PreTrainedTokenizerBase

from nlf.errors import UserError, line_of

# Templates with a clock (`strftime_now`) write this date, the one that Llama's templates write without a clock. So a
# conversation has the same ids every day: in a resumed run, in a resumed evaluation, and in two runs with one seed.
DATE = datetime(2024, 7, 26)
CLOCK = "strftime_now"
WRITTEN = {f"%{letter}": DATE.strftime(f"%{letter}") for letter in "dmHIMSjaAwbByYpfzZUWcxX"}
WRITTEN |= {f"%-{letter}": WRITTEN[f"%{letter}"].lstrip("0") or "0" for letter in "dmHIMSj"}
REPLACED = "".join(f"|replace({directive!r}, {value!r})" for directive, value in WRITTEN.items())
# Templates drop the line break after a block, so the template that follows keeps its white space.
FIXED_CLOCK = "{% macro " + CLOCK + "(format) %}{{ format" + REPLACED + " }}{% endmacro %}\n"

# All that a template can raise: it is a program of the model's author, and works like Python on the messages.
TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def with_feedback(messages: list[dict], feedback: str) -> list[dict]:
    """The conversation with the feedback appended to its system message, or in a new one."""
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{feedback}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": feedback}, *messages]


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
    """The text of a conversation, up to the start of the answer.

    Raises:
        UserError: the tokenizer has no chat template, or its template fails on these messages.
    """
    template = template_of(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, add_generation_prompt=True, tokenize=False
            )
        )
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UserError(f"the model's chat template fails on messages of {roles}: {line_of(error, 200)}") from error


def check_rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict], feedback: Sequence[str]) -> None:
    """Refuse a conversation that the chat template fails on, or whose system message it refuses or leaves out.

    Args:
        feedback: The words that may be put into the system message, all different.

    Raises:
        UserError: see above; the error does not name the prompt.
    """
    bare = render(tokenizer, messages)
    if not bare.strip():
        raise UserError("the model's chat template makes an empty text of it; use another chat model")
    todo = "the tag goes into it: use a chat model whose template has a system role, or prompts that are text"
    try:
        texts = {render(tokenizer, with_feedback(messages, words)) for words in feedback}
    except UserError as error:
        raise UserError(f"with a system message, {error}; {todo}") from error
    if len({bare, *texts}) <= len(feedback):
        raise UserError(f"the model's chat template leaves out the system message; {todo}")


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
