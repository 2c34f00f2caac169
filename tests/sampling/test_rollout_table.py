"""Texts of completions: they continue the text of their prompt. Where their prefixes end."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.data.prompts import as_prompts, numbered
from nlf.method.credit import MOST_PLACES
from nlf.method.tags import TagScheme
from nlf.models.policy import Policy
from nlf.sampling import Request
from nlf.sampling.rollout_table import PromptSampler


class Always:
    """A sampler that always completes with the same ids."""

    def __init__(self, ids: list[int]):
        self.ids = ids

    def sample(self, requests: list[Request], options, **kwargs) -> list[list[list[int]]]:
        return [[self.ids] for _ in requests]


def completion_of(tokenizer, prompt, ids: list[int]) -> str:
    policy = Policy(tiny.model("llama", vocab_size=len(tokenizer)), tokenizer, TagScheme())
    options = type("Options", (), {"guidance_scale": 0.0, "num_generations": 1, "max_completion_length": 9})()
    sampler = PromptSampler(policy, policy.encoder(), Always(ids), options, 0)
    return sampler.table(numbered(as_prompts([{"prompt": prompt}])), [None])["completion"][0].as_py()


def test_a_completion_keeps_the_space_to_its_prompt():
    tokenizer = tiny.llama_tokenizer()
    ids = tokenizer("is warm", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "is warm" and tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    assert completion_of(tokenizer, "the weather", ids) == " is warm"


def test_byte_level_completions_are_their_own_text():
    tokenizer = tiny.tokenizer()
    for ids in (tokenizer(" is warm<|endoftext|>")["input_ids"], [200, 100, 3], []):
        assert completion_of(tokenizer, "the weather", ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_answer_in_a_conversation_starts_with_its_first_word():
    tokenizer = tiny.llama_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    ids = tokenizer("is warm", add_special_tokens=False)["input_ids"]
    assert completion_of(tokenizer, [{"role": "user", "content": "the weather"}], ids) == "is warm"


def test_a_completion_that_continues_a_started_answer_keeps_its_space():
    tokenizer = tiny.llama_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    ids = tokenizer("is warm", add_special_tokens=False)["input_ids"]
    talk = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "the weather"}]
    assert completion_of(tokenizer, talk, ids) == " is warm"


# ---- where the prefixes of completions end ------------------------------------------------------------------------


class Given:
    """A sampler with given completions of one prompt."""

    def __init__(self, completions: list[list[int]]):
        self.completions = completions

    def sample(self, requests: list[Request], options, **kwargs) -> list[list[list[int]]]:
        return [self.completions for _ in requests]


def with_places(tokenizer, prompt, *completions: list[int]) -> list[dict]:
    """The rollouts of completions whose prefixes are scored."""
    policy = Policy(tiny.model("llama", vocab_size=len(tokenizer)), tokenizer, TagScheme())
    options = type("Options", (), {"guidance_scale": 0.0, "num_generations": len(completions)})()
    sampler = PromptSampler(policy, policy.encoder(), Given([*completions]), options, 0, prefixes=True)
    return sampler.table(numbered(as_prompts([{"prompt": prompt}])), [None]).to_pylist()


def beginnings(row: dict) -> list[str]:
    """The prefixes that rewards see."""
    return [row["completion"][:end] for end in row["prefix_ends"]]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


SPLIT = " a 😀 年中, café"  # characters of several byte-level tokens


def test_each_token_of_a_short_completion_ends_a_prefix_and_eos_does_not():
    tokenizer = tiny.tokenizer()
    ids = ids_of(tokenizer, " is warm")
    ended, open_, only, empty = with_places(tokenizer, "the weather", [*ids, 0], ids, [0], [])
    assert ended["prefix_tokens"] == open_["prefix_tokens"] == [*range(1, len(ids) + 1)]
    assert beginnings(ended) == [tokenizer.decode(ids[:t]) for t in range(1, len(ids) + 1)]
    assert beginnings(ended)[-1] == ended["completion"] == " is warm"
    for row in (only, empty):
        assert row["prefix_tokens"] == row["prefix_ends"] == [] and row["completion"] == ""


def test_a_character_counts_once_its_last_token_is_there():
    tokenizer = tiny.tokenizer()
    ids = ids_of(tokenizer, SPLIT)
    assert len(ids) > len(SPLIT)
    (row,) = with_places(tokenizer, "the weather", ids)
    assert row["completion"] == SPLIT
    for text, end in zip(beginnings(row), row["prefix_tokens"], strict=True):
        assert text == tokenizer.decode(ids[:end]).rstrip("\ufffd")


def test_completions_keep_the_space_to_their_prompt_in_every_prefix():
    tokenizer = tiny.llama_tokenizer()
    ids = ids_of(tokenizer, "is warm and calm")
    (row,) = with_places(tokenizer, "the weather", ids)
    assert tokenizer.decode(ids[:1]) != beginnings(row)[0] and beginnings(row)[0].startswith(" ")
    expected = [f" {tokenizer.decode(ids[:end])}" for end in row["prefix_tokens"]]
    assert beginnings(row) == expected and expected[-1] == row["completion"] == " is warm and calm"


def test_an_answer_in_a_conversation_has_prefixes_of_its_own_text():
    tokenizer = tiny.llama_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    ids = ids_of(tokenizer, "is warm")
    (row,) = with_places(tokenizer, [{"role": "user", "content": "the weather"}], ids)
    assert beginnings(row) == [tokenizer.decode(ids[:end]) for end in row["prefix_tokens"]]


@pytest.mark.parametrize("count", [64, 200, 500])
@pytest.mark.parametrize("make", [tiny.tokenizer, tiny.llama_tokenizer])
def test_long_completions_have_up_to_32_prefixes_which_end_between_words(make, count):
    tokenizer = make()
    ids = ids_of(tokenizer, " " + " ".join(tiny.SENTENCES * 20))[:count]
    (row,) = with_places(tokenizer, "the weather", ids)
    text, tokens = row["completion"], row["prefix_tokens"]
    gaps = np.diff([0, *tokens])
    assert len(ids) == count == tokens[-1] and gaps.min() > 0 and gaps.max() < max(4 * count / MOST_PLACES, 12)
    if make is tiny.tokenizer:  # tokens of the other one join the ends and beginnings of words
        assert len(tokens) == min(text.count(" "), MOST_PLACES)
        assert all(text[end] == " " and text[end - 1] != " " for end in row["prefix_ends"][:-1])
    seam = ids_of(tokenizer, "the weather")
    assert beginnings(row) == [
        tokenizer.decode([*seam, *ids[:end]]).removeprefix(tokenizer.decode(seam)) for end in tokens
    ]


def test_a_long_text_without_spaces_is_cut_evenly():
    tokenizer = tiny.tokenizer()
    ids = ids_of(tokenizer, "年中" * 40)
    (row,) = with_places(tokenizer, "the weather", ids)
    assert len(row["prefix_tokens"]) == MOST_PLACES
    assert np.ptp(np.diff(row["prefix_tokens"])) <= 1
    assert beginnings(row) == [tokenizer.decode(ids[:end]).rstrip("\ufffd") for end in row["prefix_tokens"]]


@given(st.lists(st.lists(st.integers(0, 299), max_size=45), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_places_and_ends_of_any_tokens_rise_up_to_the_whole(completions):
    """Random bytes, special tokens among them, and an EOS in the middle."""
    for row in with_places(tiny.tokenizer(), "the weather", *completions):
        own = len(row["completion_ids"]) - row["ended"]
        tokens, ends = row["prefix_tokens"], row["prefix_ends"]
        assert len(tokens) == len(ends) == min(own, MOST_PLACES)
        assert tokens == sorted(set(tokens)) and ends == sorted(ends)
        assert not own or (tokens[-1] == own and ends[-1] == len(row["completion"]))


def test_an_id_beyond_the_vocabulary_has_a_place():
    tokenizer = tiny.tokenizer()
    (row,) = with_places(tokenizer, "the weather", [10, len(tokenizer) + 5])
    assert row["prefix_tokens"] == [1, 2]


def test_without_rewards_of_prefixes_places_are_null():
    tokenizer = tiny.tokenizer()
    policy = Policy(tiny.model("llama", vocab_size=len(tokenizer)), tokenizer, TagScheme())
    options = type("Options", (), {"guidance_scale": 0.0, "num_generations": 1})()
    table = PromptSampler(policy, policy.encoder(), Always([5]), options, 0).table(
        numbered(as_prompts([{"prompt": "a"}])), [None]
    )
    assert table["prefix_tokens"].null_count == table["prefix_ends"].null_count == 1
