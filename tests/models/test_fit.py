"""A tokenizer and a model are made to fit each other, or refused."""

import json
from typing import ClassVar

import pytest
import runs
import tiny
import torch
from transformers import GenerationConfig, ProcessorMixin

from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.fit import fitted_tokenizer, objection
from nlf.models.policy import Policy, load_model, prepare_policy, save_policy
from nlf.training.trainer import ALTTrainer


@pytest.mark.parametrize(
    "fields",
    [
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "top_k": 5},
        {"do_sample": False, "min_p": 0.1},
        {"num_beams": 1, "early_stopping": True},
        {"num_beams": 1, "length_penalty": 2.0},
        {"use_cache": False, "cache_implementation": "static"},
        {"pad_token_id": -1},
    ],
)
def test_a_generation_config_that_could_not_be_saved_is_mended_before_training(tmp_path, fields):
    folder = tiny.save(tmp_path / "model", "llama")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    model, tokenizer = load_model(folder)
    save_policy(prepare_policy(model, tokenizer, TagScheme()), tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert objection(saved) is None and saved.eos_token_id == 0


def test_sampling_options_of_a_generation_config_are_kept():
    model = tiny.model("llama")
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.9, eos_token_id=0)
    fitted_tokenizer(model, tiny.tokenizer())
    assert model.generation_config.do_sample and model.generation_config.temperature == 0.9


def test_a_merged_adapter_is_saved_with_a_mended_generation_config(tmp_path):
    from peft import LoraConfig

    model = tiny.model("llama")
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.9)
    tokenizer = fitted_tokenizer(model, tiny.tokenizer())
    lora = LoraConfig(target_modules="all-linear")
    save_policy(prepare_policy(model, tokenizer, TagScheme(), peft_config=lora), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_tokenizer_object_without_padding_is_padded_with_eos(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    trainer = ALTTrainer(
        tiny.model(), tiny.vowels, runs.settings(tmp_path), train_dataset=tiny.PROMPTS, processing_class=tokenizer
    )
    assert trainer.processing_class.pad_token_id == 0


def test_no_eos_token_is_one_line_for_objects_and_folders(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="the tokenizer of GPT2LMHeadModel has no EOS token"):
        fitted_tokenizer(tiny.model(), tokenizer)
    tiny.model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no EOS token, so no completion would end"):
        load_model(str(tmp_path))


class Processor(ProcessorMixin):
    """A processor of text alone."""

    attributes: ClassVar = ["tokenizer"]
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def test_a_processor_is_its_tokenizer():
    tokenizer = tiny.tokenizer()
    assert fitted_tokenizer(tiny.model(), Processor(tokenizer)) is tokenizer
    with pytest.raises(UserError, match="processing_class of GPT2LMHeadModel is str"):
        fitted_tokenizer(tiny.model(), "gpt2")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_by_both_numbers(tmp_path):
    with pytest.raises(UserError, match="has 300 tokens and its model 280 rows"):
        fitted_tokenizer(tiny.model(vocab_size=280), tiny.tokenizer())
    tiny.model(vocab_size=280).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 300 tokens and its model 280 rows"):
        load_model(str(tmp_path))


def test_padded_vocabularies_and_a_padding_token_without_a_row_fit():
    fitted_tokenizer(tiny.model(vocab_size=320), tiny.tokenizer())
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # the usual recipe for Llama, without a resize
    fitted_tokenizer(tiny.model(), tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # Gemma 3's place of an image
    fitted_tokenizer(tiny.model(), tokenizer)


def test_a_token_of_the_chat_template_without_a_row_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="301 tokens and its model 300 rows: token '<|im_start|>' is 300"):
        fitted_tokenizer(tiny.model(), tokenizer)


def test_a_padding_token_without_a_row_trains_and_is_never_sampled(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    trainer = ALTTrainer(
        tiny.model(), tiny.vowels, runs.settings(tmp_path, num_train_epochs=1, steps_per_iteration=1),
        train_dataset=tiny.PROMPTS, processing_class=tokenizer,
    )  # fmt: skip
    assert {*trainer.policy.added_token_ids} == {300, 301}
    trainer.train()
    assert {300, 301} <= set(trainer.policy.banned_token_ids)


@pytest.mark.parametrize("ids", [[0, 999], -1, None, [0]])
def test_eos_ids_beyond_the_rows_are_left_out(ids):
    model = tiny.model()
    model.generation_config.eos_token_id = ids
    assert Policy(model, tiny.tokenizer()).eos_token_ids == (0,)


def test_a_padding_id_of_the_config_beyond_the_rows_is_mended():
    model = tiny.model("llama")
    model.config.pad_token_id = 300
    model.generation_config.pad_token_id = -1
    fitted_tokenizer(model, tiny.tokenizer())
    assert model.config.pad_token_id == 0 and model.generation_config.pad_token_id == 0


def test_an_encoder_decoder_object_is_refused():
    from transformers import BartConfig, BartForConditionalGeneration

    small = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 300}
    with torch.random.fork_rng():
        model = BartForConditionalGeneration(BartConfig(**small, **heads, **sizes))
    with pytest.raises(UserError, match="BartForConditionalGeneration.; expected a causal language model"):
        fitted_tokenizer(model, tiny.tokenizer())
