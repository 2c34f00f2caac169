"""Texts of completions: they continue the text of their prompt."""

import tiny

from nlf.data.prompts import as_prompts, numbered
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
