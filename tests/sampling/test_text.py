"""The text of a completion that grows token by token is the text of the whole."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.sampling.text import TextStream, completion_texts, seam_of

TOKENIZERS = {"bytes": tiny.tokenizer(), "llama": tiny.llama_tokenizer()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 118), max_size=20), st.lists(st.integers(0, 118), max_size=4))
def test_pieces_make_the_whole(name, ids, seam):
    tokenizer = TOKENIZERS[name]
    stream = TextStream(tokenizer, seam)
    pieces = [stream.add([token]) for token in ids] + [stream.finish()]
    assert "".join(pieces) == stream.text == completion_texts(tokenizer, [seam], [ids])[0]


def test_a_character_of_several_tokens_comes_whole():
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("é€", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5
    stream = TextStream(tokenizer, [])
    assert [stream.add([token]) for token in ids] == ["", "é", "", "", "€"]


def test_the_space_after_the_prompt_is_kept():
    tokenizer = TOKENIZERS["llama"]
    prompt, word = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the river", "river"))
    stream = TextStream(tokenizer, seam_of("the river", prompt))
    assert "".join(stream.add([token]) for token in word) + stream.finish() == " river"
    assert seam_of([{"role": "user", "content": "the river"}], prompt) == []
