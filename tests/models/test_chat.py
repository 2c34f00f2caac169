"""Conversations: where feedback goes in the templates of well-known models, variables, turns that are cut, started answers."""

import chat_templates
import pytest
import tiny

from nlf.data.prompts import as_prompts
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import render, set_defaults, shortened, with_feedback
from nlf.models.encoder import PromptEncoder, feedback_position

TAGS = TagScheme().tags
USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "Good day."}
AGAIN = {"role": "user", "content": "and you?"}
SYSTEM = {"role": "system", "content": "Be short."}
START = {"role": "assistant", "content": "Well, the"}


def tokenizer_with(template: str | None):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(template: str, position: str, **options) -> PromptEncoder:
    scheme = TagScheme(separator=None, conversational=True, feedback_position=position)
    return PromptEncoder(tokenizer_with(template), scheme, **options)


def rows_of(*conversations: list[dict]):
    return as_prompts([{"prompt": list(messages)} for messages in conversations])


@pytest.mark.parametrize("name", chat_templates.KNOWN)
def test_feedback_can_be_read_in_the_templates_of_well_known_models(name):
    template, expected = chat_templates.KNOWN[name]
    rows = rows_of([USER], [USER, ANSWER, AGAIN])
    assert feedback_position(tokenizer_with(template), rows, TAGS) == expected
    encoder = encoder_of(template, expected)
    encoder.check(rows)
    for row in rows:
        ids = encoder.prompt_ids(row["prompt"])
        read = [encoder.tokenizer.decode(encoder.query_ids(tag, ids, row["prompt"])) for tag in TAGS]
        assert all(tag in text and "hello" in text for tag, text in zip(TAGS, read, strict=True))
        assert not any(tag in encoder.tokenizer.decode(ids) for tag in TAGS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            chat_templates.FIXED,
            "nowhere: .*leaves out the system message; .*leaves out the head of the first user message",
        ),
        (None, "prompt 1 .*no chat template, which conversations need"),
    ],
)
def test_a_template_that_shows_the_words_nowhere_is_refused_in_one_line(template, message):
    with pytest.raises(UserError, match=message) as caught:
        feedback_position(tokenizer_with(template), rows_of([USER]), TAGS)
    assert "\n" not in str(caught.value)


def test_a_started_answer_may_need_another_position():
    """The trap: Mistral's template shows the system message before the last user message, which must then come last."""
    tokenizer, rows = tokenizer_with(chat_templates.MISTRAL), rows_of([USER], [USER, START])
    assert feedback_position(tokenizer, rows, TAGS) == "user"
    encoder_of(chat_templates.MISTRAL, "user").check(rows)


def test_one_conversation_that_needs_the_user_message_decides_for_all():
    """The template shows a system message in conversations of one turn only."""
    template = "{% for m in messages %}{% if m['role'] != 'system' or messages|length == 2 %}{{ m['content'] }}\n{% endif %}{% endfor %}"
    rows = rows_of([USER], [USER, ANSWER, AGAIN])
    assert feedback_position(tokenizer_with(template), rows[:1], TAGS) == "system"
    assert feedback_position(tokenizer_with(template), rows, TAGS) == "user"


def test_a_position_that_is_asked_for_is_checked():
    tokenizer, rows = tokenizer_with(chat_templates.GEMMA), rows_of([USER])
    assert feedback_position(tokenizer, rows, TAGS, "system") == "system"
    with pytest.raises(UserError, match="prompt 1 .*System role not supported"):
        encoder_of(chat_templates.GEMMA, "system").check(rows)
    encoder_of(chat_templates.PHI, "user").check(rows)


def test_the_words_stand_before_the_first_user_message():
    assert with_feedback([SYSTEM, USER, ANSWER, AGAIN], "Best", "user") == [
        SYSTEM, {"role": "user", "content": "Best\n\nhello"}, ANSWER, AGAIN,
    ]  # fmt: skip
    assert with_feedback([SYSTEM, USER], "Best")[0]["content"] == "Be short.\n\nBest"
    with pytest.raises(UserError, match="no user message"):
        with_feedback([SYSTEM], "Best", "user")


# ---- variables of the template ------------------------------------------------------------------------------------


def test_variables_become_defaults_of_the_template():
    tokenizer = tokenizer_with(chat_templates.QWEN_3)
    assert "think" not in render(tokenizer, [USER])
    values = {"enable_thinking": False, "tools": [{"name": "it's \"%}\n é", "strict": True, "more": None}]}
    set_defaults(tokenizer, values)
    text = render(tokenizer, [USER])
    assert text.endswith("<think>\n\n</think>\n\n") and '"strict": true, "more": null' in text and "é" in text
    told = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert told.endswith("assistant\n")
    before = tokenizer.chat_template
    set_defaults(tokenizer, values)
    assert tokenizer.chat_template == before
    set_defaults(tokenizer, {"enable_thinking": True})
    assert render(tokenizer, [USER]).endswith("assistant\n")


def test_a_date_can_be_given():
    tokenizer = tokenizer_with(chat_templates.LLAMA_3)
    set_defaults(tokenizer, {"date_string": "1 Jan 2030"})
    assert "Today Date: 1 Jan 2030" in render(tokenizer, [USER])


def test_a_variable_that_the_template_does_not_read_is_refused_by_name():
    tokenizer = tokenizer_with(chat_templates.QWEN_3)
    with pytest.raises(UserError, match="no variable 'enable_thinkin'; did you mean 'enable_thinking'?"):
        set_defaults(tokenizer, {"enable_thinkin": False})
    set_defaults(tokenizer, {"enable_thinkin": False}, strict=False)
    assert tokenizer.chat_template == chat_templates.QWEN_3
    with pytest.raises(UserError, match="no chat template"):
        set_defaults(tokenizer_with(None), {"enable_thinking": False})


def test_each_of_several_templates_gets_the_variables():
    tokenizer = tokenizer_with(chat_templates.QWEN_3)
    tokenizer.chat_template = {"default": chat_templates.QWEN_3, "other": chat_templates.PHI}
    set_defaults(tokenizer, {"enable_thinking": False})
    assert all(template.startswith("{% set enable_thinking") for template in tokenizer.chat_template.values())
    assert "<think>" in render(tokenizer, [USER])


# ---- long conversations -------------------------------------------------------------------------------------------

LONG = [SYSTEM, USER, ANSWER, AGAIN, ANSWER, {"role": "user", "content": "so?"}]


def test_turns_are_dropped_from_the_oldest_on():
    assert [*shortened(LONG)] == [LONG, [SYSTEM, *LONG[3:]], [SYSTEM, *LONG[5:]]]
    assert [*shortened([ANSWER, USER, START])] == [[ANSWER, USER, START], [USER, START]]
    assert [*shortened([USER])] == [[USER]]


def test_a_long_conversation_is_cut_at_whole_turns_the_same_for_policy_and_reference():
    whole = encoder_of(tiny.CHAT_TEMPLATE, "system")
    wanted = [SYSTEM, *LONG[3:]]
    limit = len(whole.prompt_ids(wanted))
    assert limit < len(whole.prompt_ids(LONG))
    cut = encoder_of(tiny.CHAT_TEMPLATE, "system", max_prompt_length=limit)
    cut.check(rows_of(LONG))
    assert cut.prompt_ids(LONG) == whole.prompt_ids(wanted)
    assert cut.query_ids("Best", cut.prompt_ids(LONG), LONG) == whole.query_ids("Best", [], wanted)
    last = len(whole.prompt_ids([SYSTEM, LONG[-1]]))
    with pytest.raises(
        UserError, match=f"prompt 2 .*its last turn has {last} tokens, over max_prompt_length {last - 1}"
    ):
        encoder_of(tiny.CHAT_TEMPLATE, "system", max_prompt_length=last - 1).check(rows_of([AGAIN], LONG))


def test_the_first_user_message_that_is_left_holds_the_words():
    whole = encoder_of(chat_templates.GEMMA, "user")
    wanted = LONG[3:]
    cut = encoder_of(chat_templates.GEMMA, "user", max_prompt_length=len(whole.prompt_ids(wanted)))
    text = cut.tokenizer.decode(cut.query_ids("Best", [], LONG[1:]))
    assert "Best\n\nand you?" in text and "hello" not in text


def test_the_advice_for_a_conversation_over_the_context_is_to_drop_turns_where_that_helps():
    encoder = encoder_of(tiny.CHAT_TEMPLATE, "system")
    needed = max(len(encoder.query_ids(tag, [], LONG)) for tag in TAGS) + 5
    with pytest.raises(UserError, match="set --max_prompt_length ([0-9]+) to keep its latest turns") as caught:
        encoder.check_fits(rows_of(LONG), needed - 1, 5)
    limit = int(str(caught.value).split("--max_prompt_length ")[1].split()[0])
    encoder_of(tiny.CHAT_TEMPLATE, "system", max_prompt_length=limit).check_fits(rows_of(LONG), needed - 1, 5)


# ---- a started answer ---------------------------------------------------------------------------------------------


def test_a_started_answer_is_continued():
    tokenizer = tokenizer_with(chat_templates.PHI)
    assert render(tokenizer, [USER, START]) == "<|user|>\nhello<|end|>\n<|assistant|>\nWell, the"
    assert render(tokenizer, [USER]) == "<|user|>\nhello<|end|>\n<|assistant|>\n"
