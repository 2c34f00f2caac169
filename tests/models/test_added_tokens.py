"""Tokens that tags add: only they are banned, they are recorded, and models with other tokens are refused."""

import json

import pytest
import tiny
import yaml
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from nlf.errors import UserError
from nlf.method.tags import TagScheme, read_file
from nlf.models.added_tokens import load_tags
from nlf.models.policy import load_policy, prepare_policy, save_policy

WORD = TagScheme(("river", " the"))  # " the" is a token of the tiny vocabulary


def older(folder, **settings):
    """Turn a folder into one that an older version wrote: its tags.json has three fields."""
    path = folder / "tags.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: fields[name] for name in ("tags", "template", "separator")}))
    if settings:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def saved(tmp_path, scheme, **options):
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), scheme, **options)
    save_policy(policy, tmp_path)
    return policy


def test_a_tag_that_is_a_word_of_the_vocabulary_is_still_sampled(tmp_path):
    policy = saved(tmp_path, WORD)
    word = policy.tokenizer.get_vocab()["Ġthe"]
    assert policy.tokenizer(" the")["input_ids"] == [word]
    scheme = TagScheme(("Ġthe", "b"))  # the name of the token in the vocabulary
    (tmp_path / "named").mkdir()
    save_policy(prepare_policy(tiny.model(), tiny.tokenizer(), scheme), tmp_path / "named")
    for folder in (tmp_path, tmp_path / "named"):
        assert load_policy(str(folder)).banned_token_ids == (300,) == load_policy(str(folder)).added_token_ids
        assert read_file(folder)[1] == ["<|separator|>"]
        older(folder)
        assert load_policy(str(folder)).added_token_ids == (300,)


def test_a_tag_token_that_is_a_word_of_the_vocabulary_is_not_added(tmp_path):
    policy = saved(tmp_path, TagScheme(("a", "<q1>"), "{feedback}{prompt}", None), tag_tokens=True)
    assert policy.added_token_ids == (300,) and policy.tokenizer.convert_ids_to_tokens(300) == "<q1>"
    assert load_policy(str(tmp_path)).banned_token_ids == (300,)


def test_tag_tokens_of_an_older_run_stay_banned(tmp_path):
    saved(tmp_path, TagScheme(("<q0>", "<q1>"), "{feedback}{prompt}", None), tag_tokens=True)
    older(tmp_path)
    assert load_policy(str(tmp_path)).banned_token_ids == (300, 301)


@pytest.mark.parametrize("separator", ["<|endoftext|>", ":", "a"])
def test_a_separator_that_is_a_token_already_is_not_banned(tmp_path, separator):
    scheme = TagScheme(("good", "bad"), "{feedback}" + separator + "{prompt}", separator) if separator != "a" else None
    scheme = scheme or TagScheme(("X", "Y"), "{feedback}a{prompt}", "a")
    policy = saved(tmp_path, scheme)
    assert policy.added_token_ids == policy.banned_token_ids == ()
    assert len(policy.tokenizer) == 300
    older_run = load_policy(str(tmp_path))
    assert older_run.banned_token_ids == () and older_run.model.generation_config.suppress_tokens is None
    older(tmp_path)
    assert load_policy(str(tmp_path)).banned_token_ids == ()


def test_suppressed_eos_of_an_older_run_is_not_saved_again(tmp_path):
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme())
    policy.model.generation_config.suppress_tokens = [0, 5]
    save_policy(policy, tmp_path)
    assert load_policy(str(tmp_path)).model.generation_config.suppress_tokens == [5, 300]


def test_eos_is_sampled_where_ids_have_gaps():
    tokenizer = tiny.tokenizer()
    model = tiny.model(vocab_size=320)
    policy = prepare_policy(model, tokenizer, TagScheme())
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if i < 290} | {"<eos>": 310}

    class Gaps:
        eos_token_id = 310

        def get_vocab(self):
            return vocabulary

        def __len__(self):
            return len(vocabulary)

    policy.tokenizer, policy.added_token_ids = Gaps(), ()
    policy.__dict__.pop("_token_ids", None)
    assert policy.banned_token_ids == (*range(290, 310), *range(311, 320))


def test_a_new_token_never_takes_the_id_of_another():
    vocabulary = {letter: i for i, letter in enumerate("abcdefgh")} | {"<eos>": 9, "z": 10}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    with pytest.raises(UserError, match=r"ids have gaps, and the new token '<\|separator\|>' got the id of 'z'"):
        prepare_policy(tiny.model(vocab_size=16), tokenizer, TagScheme())


def test_a_second_training_keeps_the_ban_of_the_first(tmp_path):
    saved(tmp_path, TagScheme())
    first = load_policy(str(tmp_path))
    again = prepare_policy(first.model, first.tokenizer, TagScheme(("good", "bad"), "{feedback}: {prompt}", None))
    assert again.added_token_ids == (300,)
    save_policy(again, tmp_path / "again")
    assert read_file(tmp_path / "again")[1] == ["<|separator|>"]


def test_a_token_without_a_row_is_never_sampled_and_its_row_starts_as_eos(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny.model()
    tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    base = load_policy(str(tmp_path / "base"))
    policy = prepare_policy(model, tokenizer, TagScheme())
    assert set(policy.added_token_ids) == {300, 301} == set(policy.banned_token_ids)
    table = policy.model.get_input_embeddings().weight
    assert bool((table[300] == table[0]).all() and (table[301] == table[0]).all())
    assert policy.has_tokens_of(base) and base.encoder().prompt_ids("is [PAD]") == policy.encoder().prompt_ids(
        "is [PAD]"
    )


def test_a_tokenizer_with_ordinary_tokens_beyond_the_model_is_refused():
    with pytest.raises(UserError, match="has 300 tokens and its model 280 rows"):
        prepare_policy(tiny.model(vocab_size=280), tiny.tokenizer(), TagScheme())


def test_a_reference_with_other_tokens_is_refused(tmp_path):
    other = tiny.tokenizer()
    other.add_tokens(["<|im_start|>"], special_tokens=True)
    reference = tiny.model(vocab_size=301)
    reference.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    reference = load_policy(str(tmp_path)).model
    with pytest.raises(UserError, match="has another vocabulary"):
        prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme(), reference_model=reference)
    with pytest.raises(UserError, match="has another vocabulary"):  # built in memory, and smaller
        prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme(), reference_model=tiny.model(vocab_size=290))
    tiny.save(tmp_path / "same")
    reference = load_policy(str(tmp_path / "same")).model
    assert prepare_policy(tiny.model(seed=1), tiny.tokenizer(), TagScheme(), reference_model=reference)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"separator": "<|separator|>"}, True), ({"separator": None}, False), ({"dataset": "x"}, True), ({}, None)],
)
def test_an_older_chat_run_is_known_by_its_settings(tmp_path, settings, expected):
    saved(tmp_path, TagScheme(separator=None))
    older(tmp_path, **settings)
    assert load_tags(str(tmp_path), tiny.tokenizer())[0].conversational is expected


def test_an_older_text_run_is_known_by_its_separator(tmp_path):
    saved(tmp_path, TagScheme())
    older(tmp_path, separator="<|separator|>")
    assert load_tags(str(tmp_path), tiny.tokenizer())[0].conversational is False
