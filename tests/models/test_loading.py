"""Files that are damaged, lack tensors or belong to another kind of model are refused in one line."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from nlf.errors import UserError
from nlf.models.policy import load_model
from nlf.models.reading import output_layer


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(tiny.save(tmp_path / "model", "llama"))


def refused(folder, said: str, **options) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(folder), **options)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def without(folder: Path, *names: str) -> None:
    """Take tensors out of the file."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name not in names}
    save_file(tensors, path, metadata={"format": "pt"})


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tensor_that_the_files_lack_is_not_made_at_random(folder):
    without(folder, "model.layers.0.mlp.up_proj.weight")
    refused(folder, "its files have no 'model.layers.0.mlp.up_proj.weight', so its answers would be random")


def test_a_missing_head_is_not_made_at_random(folder):
    without(folder, "lm_head.weight")
    refused(folder, "its files have no 'lm_head.weight'")


def test_many_missing_tensors_are_counted(folder):
    path = folder / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    refused(folder, "its files have no 'lm_head.weight', .* and 18 more")


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "llama", "bloom", "gpt_neox", "opt", "mamba"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_and_ignored_names_are_no_false_alarm(tmp_path, kind, tied, caplog):
    model = tiny.any_model(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # several files and their index
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    assert torch.equal(output_layer(loaded).weight, output_layer(model).weight) and "not used" not in caplog.text


def test_the_embedded_model_is_no_false_alarm(caplog):
    load_model("embedded")
    assert not caplog.text


def test_a_tensor_of_no_layer_is_told_of(folder, caplog):
    path = folder / "model.safetensors"
    save_file({**load_file(path), "v_head.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    load_model(str(folder))
    assert "not used, because no layer has these names: 'v_head.weight'" in caplog.text


def test_a_classifier_is_no_base_model(tmp_path):
    config = AutoConfig.for_model(**tiny.ARCHITECTURES["gpt2"], vocab_size=300, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "it is a GPT2ForSequenceClassification, not a causal language model")


def test_an_encoder_decoder_model_is_refused(tmp_path):
    AutoConfig.for_model("bart", architectures=["BartForConditionalGeneration"]).save_pretrained(tmp_path)
    refused(tmp_path, "encoder-decoder model .BartForConditionalGeneration.")
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    refused(tmp_path, "encoder-decoder model")


def test_a_cut_off_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:9000])
    refused(folder, "damaged or cut-off safetensors file")


def test_shapes_that_do_not_fit_are_named(folder):
    edit(folder / "config.json", vocab_size=999)
    refused(folder, r"'lm_head.weight' is \(300, 16\) in its files, and \(999, 16\) by config.json")


def test_a_missing_shard_is_named(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    refused(tmp_path, "cannot load a causal language model")


def test_a_kernel_whose_package_is_missing_is_named(folder):
    refused(folder, "FlashAttention2|flash_attn", attn_implementation="flash_attention_2")
    refused(folder, "nonsense", attn_implementation="nonsense")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00", b""])
def test_damaged_json_is_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    try:
        load_model(str(folder))
    except UserError as error:
        assert "\n" not in str(error) and "cannot load a causal language model" in str(error)


def test_a_pickle_that_is_damaged_or_runs_code_is_one_line(folder):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    for content in (b"", b"\x80\x02", pickle.dumps({"x": shutil.rmtree})):
        path.write_bytes(content)
        refused(folder, "cannot load a causal language model")


def test_a_missing_vocabulary_is_said(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "cannot load a causal language model")


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("config.json", "name .*run, which holds the merged model"),
        ("config.yaml", "resume it with --resume_from_checkpoint true"),
        ("notes.txt", "merge it with peft's merge_and_unload"),
    ],
)
def test_the_checkpoint_of_a_lora_run_names_the_folder_of_the_merged_model(tmp_path, beside, said):
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "run" / "checkpoint-1"
    get_peft_model(tiny.model("llama"), LoraConfig(target_modules="all-linear")).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (tmp_path / "run" / beside).write_text("")
    refused(folder, said)
