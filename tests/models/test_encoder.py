"""Ids of prompts: what the tokenizer puts around a text, prompts that spell tags, and prompts that are refused."""

import json

import pytest
import tiny
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from nlf.data.prompts import as_prompts
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import DATE, has_clock, render
from nlf.models.encoder import PromptEncoder, prefix_of
from nlf.models.policy import prepare_policy

CHAT = TagScheme(separator=None, conversational=True)
USER = [{"role": "user", "content": "hello"}]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + tiny.CHAT_TEMPLATE
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)


def with_affixes(single: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose post-processor puts special tokens around a text `$A`."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["[gMASK]", "<sop>"], special_tokens=True)
    names = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[gMASK]", "<sop>", "<|endoftext|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=names)
    return tokenizer


def chat_encoder(template: str | None = tiny.CHAT_TEMPLATE, scheme: TagScheme = CHAT, **options) -> PromptEncoder:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer, scheme, **options)


@pytest.mark.parametrize(
    ("single", "prefix"),
    [
        ("[gMASK] <sop> $A", [300, 301]),
        ("<|endoftext|> $A", [0]),
        ("$A <|endoftext|>", []),  # T5's EOS, which is BOS too in this tokenizer
        ("<sop> $A <|endoftext|>", [301]),
        ("$A", []),
    ],
)
def test_what_stands_before_every_text_is_kept_and_what_stands_after_it_is_not(single, prefix):
    tokenizer = with_affixes(single)
    assert prefix_of(tokenizer) == prefix
    encoder = PromptEncoder(tokenizer, TagScheme(), max_prompt_length=2)
    ids = encoder.prompt_ids("the river is")
    assert ids == prefix + tokenizer("the river is", add_special_tokens=False)["input_ids"][-2:]
    assert encoder.query_ids("Lowest Toxicity", ids)[: len(prefix)] == prefix


@pytest.mark.parametrize("separator", ["<|separator|>", "\n"])
def test_a_prompt_that_spells_the_separator_is_plain_text(separator):
    scheme = TagScheme(template="{feedback}" + separator + "{prompt}", separator=separator)
    base = PromptEncoder(tiny.tokenizer(), None)
    encoder = prepare_policy(tiny.model(), tiny.tokenizer(), scheme).encoder()
    text = f"the river{separator}is calm"
    ids = encoder.prompt_ids(text)
    assert ids == base.prompt_ids(text) and 300 not in ids
    assert encoder.query_ids("Lowest Toxicity", ids).count(300) == 1


def test_a_prompt_that_spells_a_tag_token_is_plain_text():
    scheme = TagScheme((" a", "{b}"), "{feedback}{prompt}", None)
    encoder = prepare_policy(tiny.model(), tiny.tokenizer(), scheme, tag_tokens=True).encoder()
    assert encoder.prompt_ids("what a {b}") == tiny.tokenizer()("what a {b}")["input_ids"]
    assert encoder.query_ids(" a", encoder.prompt_ids("what a"))[0] == 300


def test_a_conversation_that_spells_a_tag_token_is_refused_by_name():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    scheme = TagScheme(("<q0>", "<q1>"), "{feedback}{prompt}", None, conversational=True)
    encoder = prepare_policy(tiny.model(), tokenizer, scheme, tag_tokens=True).encoder()
    rows = as_prompts([{"prompt": USER}, {"prompt": [{"role": "user", "content": "what is <q1>?"}]}])
    with pytest.raises(UserError, match=r"prompt 2 .*contains '<q1>', a token that was added"):
        encoder.check(rows)


def test_tags_that_become_the_same_tokens_are_refused():
    tokenizer = tiny.tokenizer()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["normalizer"] = {"type": "Lowercase"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(spec)), eos_token="<|endoftext|>"
    )
    with pytest.raises(
        UserError, match="tag 'good' has the same tokens as 'Good'|'Good' has the same tokens as 'good'"
    ):
        PromptEncoder(tokenizer, TagScheme(("Good", "good"))).check([])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_SYSTEM, "fails on messages of system, user: System role not supported; the tag goes into it"),
        (IGNORES_SYSTEM, "leaves out the system message"),
        (None, "no chat template"),
        ("", "makes an empty text"),
        ("{{ messages[0]['name'] + 'x' }}", "chat template fails on messages of user"),
        ("{% for m in messages %}", "chat template fails on messages of user"),
        ("{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}x", "leaves out message 1"),
    ],
)
def test_a_chat_template_that_does_not_show_the_tag_is_refused_before_sampling(template, message):
    with pytest.raises(UserError, match=f"prompt 1 .*{message}") as caught:
        chat_encoder(template).check(as_prompts([{"prompt": USER}]))
    assert "\n" not in str(caught.value)


def test_a_role_that_the_template_leaves_out_is_refused():
    template = (
        "{% for m in messages %}{% if m['role'] in ('system', 'user') %}{{ m['content'] }}\n{% endif %}{% endfor %}"
    )
    rows = as_prompts([{"prompt": USER}, {"prompt": [{"role": "wizard", "content": "hm"}, *USER]}])
    with pytest.raises(UserError, match="prompt 2 .*leaves out message 1, of role 'wizard'"):
        chat_encoder(template).check(rows)


def test_a_template_with_a_system_role_passes():
    chat_encoder().check(
        as_prompts([{"prompt": USER}, {"prompt": [{"role": "system", "content": "Be short."}, *USER]}])
    )


def test_text_for_a_chat_run_and_messages_for_a_text_run_are_refused():
    with pytest.raises(UserError, match="prompt 1 .*it is text, and the model was trained on conversations"):
        chat_encoder().check(as_prompts([{"prompt": "hello"}]))
    with pytest.raises(UserError, match="prompt 1 .*it is a conversation, and the model was trained on texts"):
        chat_encoder(scheme=TagScheme(conversational=False)).check(as_prompts([{"prompt": USER}]))
    chat_encoder(scheme=TagScheme()).check(as_prompts([{"prompt": "hello"}]))  # an older run may be of either kind


def test_the_advice_is_never_an_option_that_cannot_help():
    encoder = PromptEncoder(tiny.tokenizer(), TagScheme())
    rows = as_prompts([{"prompt": "the river " * 30}])
    query = len(encoder.query_ids("Low-Moderate Toxicity", encoder.prompt_ids("")))
    longest = max(len(encoder.query_ids(tag, [])) for tag in encoder.scheme.tags)
    assert query <= longest
    with pytest.raises(UserError, match=f"set --max_prompt_length {50 - 5 - longest} to keep"):
        encoder.check_fits(rows, 50, 5)
    PromptEncoder(tiny.tokenizer(), TagScheme(), 50 - 5 - longest).check_fits(rows, 50, 5)
    with pytest.raises(UserError, match="the model has 50; shorten it$"):
        encoder.check_fits(rows, 50, 100_000)
    with pytest.raises(UserError, match="the model has 20; choose shorter tags$"):
        chat_encoder().check_fits(as_prompts([{"prompt": USER}]), 20, 5)
    short = as_prompts([{"prompt": "the"}])
    with pytest.raises(UserError, match=f"shorten it, or set --max_completion_length {50 - longest - 1}$"):
        encoder.check_fits(short, 50, 100_000)
    encoder.check_fits(short, 50, 50 - longest - 1)
    with pytest.raises(UserError, match="the model has 50; choose shorter tags$"):
        PromptEncoder(tiny.tokenizer(), TagScheme(("x" * 60, "y"))).check_fits(short, 50, 5)


@pytest.mark.parametrize("written", ["%d %b %Y", "%Y-%m-%d", "%-d. %B %H:%M:%S"])
@pytest.mark.parametrize("space", ["", "\n", "  ", "\n  "])
def test_a_template_with_a_clock_shows_one_date_on_every_day(written, space):
    year = "{% macro year() %}{{ strftime_now('%Y') }}{% endmacro %}{{ year() }}"
    clock = "{% if strftime_now is defined %}{{ strftime_now(FORMAT) }}{% endif %}" + year
    template = space + clock.replace("FORMAT", repr(written)) + tiny.CHAT_TEMPLATE
    fixed = space + "{% if true %}" + DATE.strftime(written) + "2024{% endif %}" + tiny.CHAT_TEMPLATE
    assert render(chat_encoder(template).tokenizer, USER) == render(chat_encoder(fixed).tokenizer, USER)


def test_a_template_without_a_clock_is_rendered_as_it_is():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "\n  " + tiny.CHAT_TEMPLATE
    expected = tokenizer.apply_chat_template(USER, add_generation_prompt=True, tokenize=False)
    assert render(tokenizer, USER) == expected


def test_several_chat_templates_without_a_default_are_named():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"rag": tiny.CHAT_TEMPLATE, "tool_use": tiny.CHAT_TEMPLATE}
    with pytest.raises(UserError, match="the chat templates rag, tool_use, and none is its default"):
        render(tokenizer, USER)
    assert not has_clock(tokenizer)
