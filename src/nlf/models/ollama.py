"""The Modelfile of a model for Ollama: its template, with the tag in it.

Ollama has templates of its own language and knows no tags. The wording around the messages is found by rendering the chat
template on marks, and tried on another conversation, so that a template that cannot be written this way is refused.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import render, template_of

HEAD = "# Written by nlf export."  # the start of a file that is ours
MARKS = ("\u2042system\u2042", "\u2042first\u2042", "\u2042answer\u2042", "\u2042second\u2042")
INSTEAD = "leave out --ollama: llama.cpp reads the chat template in the GGUF file"


@dataclass(frozen=True)
class Turns:
    """The wording of a chat template around the messages.

    Attributes:
        start: What stands before the first user message of a conversation without system message.
        system: Before and after the system message; None = the template has no place of its own for it.
        user, assistant: Before and after these messages.
        answer: What starts the answer.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def render(self, messages: list[dict]) -> str:
        """The conversation in this wording."""
        texts = [] if messages[0]["role"] == "system" else [self.start]
        for message in messages:
            before, after = getattr(self, message["role"])
            texts += [before, message["content"], after]
        return "".join([*texts, self.answer])


def modelfile(
    gguf: str, tokenizer: PreTrainedTokenizerBase, scheme: TagScheme | None, tag: str | None, adds_bos: bool
) -> str:
    """The text of a Modelfile.

    Args:
        gguf: The name of the GGUF file beside it.
        tag: The tag before every prompt; None = the bare prompt.
        adds_bos: Whether llama.cpp puts BOS before a text; the template then has none.

    Raises:
        UserError: the chat template cannot be written for Ollama, or a text has three quotation marks.
    """
    conversational = bool(tokenizer.chat_template) and (scheme is None or scheme.conversational is not False)
    if conversational:
        bos = str(tokenizer.bos_token) if adds_bos else ""
        position = scheme.feedback_position if scheme and tag is not None else ""
        template = _chat_template(turns_of(tokenizer), bos, tag or "", position)
    else:
        before, after = scheme.pieces(tag) if scheme and tag is not None else ("", "")
        template = f"{_escaped(before)}{{{{ .Prompt }}}}{_escaped(after)}"
    if '"""' in template:
        raise UserError(f'the template for Ollama would hold """, which ends it; {INSTEAD}')
    said = f" The tag {tag!r} is before every prompt." if tag is not None else ""
    separator = scheme.separator if scheme and scheme.separator in tokenizer.get_added_vocab() else None
    stop = (
        f'PARAMETER stop "{separator}"\n' if separator else ""
    )  # for versions that do not read which tokens are banned
    return f'{HEAD}{said}\nFROM ./{gguf}\nTEMPLATE """{template}"""\n{stop}'


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The wording of a chat template.

    Raises:
        UserError: the template writes something else than wording around messages.
    """
    _, first, answer, second = MARKS
    talk = [_message("user", first), _message("assistant", answer), _message("user", second)]
    head, between, to_second, end = _cut(render(tokenizer, talk), first, answer, second)
    whole = _without_answer(tokenizer, talk)
    after_user = _cut(whole, second)[-1]
    opening = _without_prefix(end, after_user)
    after_answer = _cut(_without_answer(tokenizer, talk[:2]), answer)[-1]
    before_user = _without_prefix(to_second, after_answer)
    start = head.removesuffix(before_user)
    turns = Turns(
        start, None, (before_user, after_user), (_without_prefix(between, after_user), after_answer), opening
    )
    system = _system(tokenizer, turns)
    turns = Turns(turns.start, system, turns.user, turns.assistant, turns.answer)
    _try(tokenizer, turns)
    return turns


def _system(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> tuple[str, str] | None:
    """The wording around a system message; None if it is a part of the first user message, or refused."""
    try:
        text = render(tokenizer, [_message("system", MARKS[0]), _message("user", MARKS[1])])
    except UserError:
        return None
    expected = turns.user[0] + MARKS[1] + turns.user[1] + turns.answer
    if text.count(MARKS[0]) != 1 or not text.endswith(expected):
        return None
    before, after = text.removesuffix(expected).split(MARKS[0])
    return before, after


def _try(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> None:
    """Compare the wording with the chat template on other conversations."""
    talk = [_message(role, f"{role} says {i}.") for i, role in enumerate(("user", "assistant") * 2 + ("user",))]
    starts = [[], [_message("system", "Be brief.")]] if turns.system else [[]]
    for start in starts:
        if turns.render([*start, *talk]) != render(tokenizer, [*start, *talk]):
            raise _not_wording()


def _chat_template(turns: Turns, bos: str, tag: str, position: str) -> str:
    """The template in Ollama's language, for conversations of any length."""
    if position == "system" and turns.system is None:
        raise UserError(f"the chat template shows no system message, which the tag goes into; {INSTEAD}")
    shown = _escaped(tag)
    start = _escaped(turns.start.removeprefix(bos))
    if turns.system:
        before, after = _escaped(turns.system[0].removeprefix(bos)), _escaped(turns.system[1])
        tagged = position == "system"
        start = f"{before}{shown}{after}" if tagged else start
        end = f"\n\n{shown}" if tagged else ""
        start = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{end}{after}{{{{ else }}}}{start}{{{{ end }}}}"
    user, assistant = (tuple(map(_escaped, each)) for each in (turns.user, turns.assistant))
    first = "{{ if $first }}" + shown + "\n\n{{ end }}{{ $first = false }}" if position == "user" else ""
    return (
        ("{{ $first := true }}" if first else "") + start + "{{ range .Messages }}"
        + '{{ if eq .Role "user" }}' + user[0] + first + "{{ .Content }}" + user[1]
        + '{{ else if eq .Role "assistant" }}' + assistant[0] + "{{ .Content }}" + assistant[1]
        + "{{ end }}{{ end }}" + _escaped(turns.answer)
    )  # fmt: skip


def _escaped(text: str) -> str:
    """A text in a template of Ollama."""
    return text.replace("{{", '{{ "{{" }}')


def _message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _without_answer(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str:
    """The conversation up to the end of its last message."""
    return str(tokenizer.apply_chat_template(messages, chat_template=template_of(tokenizer), tokenize=False))


def _cut(text: str, *marks: str) -> list[str]:
    """The pieces of a text around marks, each of which it has once, in this order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise _not_wording()
        before, text = text.split(mark)
        pieces.append(before)
    return [*pieces, text]


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise _not_wording()
    return text.removeprefix(prefix)


def _not_wording() -> UserError:
    return UserError(
        f"this chat template does more than put words around messages, as Ollama's templates do; {INSTEAD}"
    )
