"""A GGUF file is a model like any other: converted once, whole or not at all, and refused in one line if it cannot be."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import gguf_files
import pytest
import runs
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nlf.data.locks import in_turn
from nlf.errors import UserError
from nlf.models import gguf, names, sources
from nlf.models.policy import load_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def file(tmp_path) -> Path:
    gguf_files.write(tmp_path / "x.gguf")
    return tmp_path / "x.gguf"


def refused(path, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def models(cache: Path) -> list[Path]:
    return [path.parent for path in cache.glob("*/config.json")]


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_and_the_tokenizer_are_those_of_the_file(tmp_path, cache, tied):
    expected = gguf_files.write(tmp_path / "x.gguf", tied)
    model, tokenizer = load_model(str(tmp_path / "x.gguf"))
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings == tied
    assert runs.same(dict(model.state_dict()), dict(expected.state_dict()))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert [tokenizer(text)["input_ids"] for text in tiny.SENTENCES] == [
        tiny.tokenizer()(text)["input_ids"] for text in tiny.SENTENCES
    ]
    assert model.config.name_or_path == str(tmp_path / "x.gguf")


def test_the_folder_is_an_ordinary_model_in_bf16(file, cache):
    load_model(str(file))
    (folder,) = models(cache)
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_file_is_converted_once_wherever_it_lies(file, tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, "nlf")
    load_model(str(file))
    (line,) = [each for each in caplog.messages if "converting" in each]
    assert line.startswith(f"converting {file} once into {cache}")
    moved = file.rename(tmp_path / "moved.gguf")
    load_model(str(moved))
    assert len([each for each in caplog.messages if "converting" in each]) == 1 and len(models(cache)) == 1


def test_another_file_of_the_same_name_is_another_model(file, cache):
    first, _ = load_model(str(file))
    gguf_files.write(file, seed=1)
    second, _ = load_model(str(file))
    assert not runs.same(dict(first.state_dict()), dict(second.state_dict())) and len(models(cache)) == 2


def test_files_beside_it_and_in_the_working_folder_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    expected = gguf_files.write(tmp_path / "models" / "model.gguf")
    (tmp_path / "models" / "tokenizer_config.json").write_text(
        '{"eos_token": "a", "tokenizer_class": "NoSuchTokenizer"}'
    )
    (tmp_path / "models" / "adapter_config.json").write_text("{}")
    gguf_files.write(tmp_path / "model.gguf", seed=1)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model("models/model.gguf")
    assert runs.same(dict(model.state_dict()), dict(expected.state_dict()))
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "y.gguf", "y.gguf: no such file; expected a folder")


def test_a_file_of_another_kind(tmp_path, cache):
    (tmp_path / "x.gguf").write_text("<html>sign in first</html>")
    refused(tmp_path / "x.gguf", "x.gguf is not a GGUF file; expected a folder")
    assert not cache.exists()


@pytest.mark.parametrize("part", [0.001, 0.1, 0.6, 0.99])
def test_a_cut_off_file(file, part, cache):
    file.write_bytes(file.read_bytes()[: max(int(file.stat().st_size * part), 10)])
    refused(file, "x.gguf: a damaged or cut-off GGUF file .*; get it again")
    assert not cache.exists()


def test_an_architecture_that_transformers_cannot_read(tmp_path, cache):
    gguf_files.write(tmp_path / "x.gguf", architecture="rwkv7")
    refused(tmp_path / "x.gguf", "cannot convert .*x.gguf: GGUF model with architecture rwkv7 is not supported")
    assert not models(cache)


def test_the_package_that_reads_the_files_is_missing(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(file, r"x.gguf: GGUF files need the package gguf: `pip install gguf`")


def test_a_disk_that_is_too_small_is_found_before_the_conversion(file, monkeypatch, cache):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    monkeypatch.setattr(gguf, "_read", lambda path: pytest.fail("converted"))
    refused(file, f"cannot write {cache}/gguf-.* 0.06 GB are needed, and 0.00 GB are free; .*NLF_CACHE")


def test_a_full_disk(file, cache, capfd):
    """A limit on file size stands in for a full disk. Nothing half-written is taken for a model."""

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            load_model(str(file))
        except UserError as error:
            print(error, flush=True)
            os._exit(2)

    process = runs.fork.Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 2
    assert f"cannot write {cache}/gguf-" in capfd.readouterr().out
    assert not models(cache) and not list(cache.glob("*/.saving-*"))
    load_model(str(file))


@pytest.mark.parametrize("call", ["save_pretrained", "os.replace"])
def test_a_killed_conversion_starts_over(file, cache, call):
    """Killed while it writes into its temporary folder, or between two files that it moves out of it."""

    def child():
        if call == "os.replace":
            runs.on_call(os, "replace", 2)
        else:
            save = gguf._save
            gguf._save = lambda *given: (save(*given), runs.die())
        load_model(str(file))

    runs.killed(child, 120)
    assert not models(cache)
    load_model(str(file))
    assert len(models(cache)) == 1 and not list(cache.glob("*/.saving-*"))


def test_two_at_once_wait_for_one_another(file, cache, caplog):
    caplog.set_level(logging.INFO, "nlf")
    folder, ready = names.converted_folder(names.file_digest(file)), runs.fork.Event()

    def child():
        with in_turn(folder, ""):
            ready.set()
            time.sleep(1)
            tiny.save(folder, "llama")

    process = runs.fork.Process(target=child)
    process.start()
    assert ready.wait(60)
    load_model(str(file))
    process.join()
    assert [each for each in caplog.messages if "converted by another command; waiting for it" in each]
    assert not [each for each in caplog.messages if each.startswith("converting")]


def test_a_cache_that_cannot_be_written(file, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("not a folder")
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "occupied"))
    refused(file, f"cannot write .*: {os.strerror(errno.ENOTDIR)}; move away what is there")


# ---- names --------------------------------------------------------------------------------------------------------


def test_a_name_that_has_not_been_fetched():
    refused(
        "smollm2", r"smollm2 has not been fetched yet: `nlf fetch smollm2` gets it .*\(93 MB, licence Apache-2.0\)"
    )
    refused("gemma3-270m", r"`nlf fetch gemma3-270m`.*\(238 MB, licence Gemma\)")


def test_a_name_means_the_converted_file_with_its_digest(caplog):
    caplog.set_level(logging.INFO, "nlf")
    sources._tell_licence.cache_clear()
    tiny.save(names.converted_folder(names.FETCHED["smollm2"].sha256), "llama")
    model, _ = load_model("smollm2")
    load_model("smollm2")
    assert model.config.name_or_path == "smollm2"
    assert caplog.messages == [
        "smollm2: HuggingFaceTB/SmolLM2-135M-Instruct, licence Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)"
    ]


def test_a_model_folder_of_that_name_is_a_path_and_said_to_be_one(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nlf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2" / "evaluation").mkdir(parents=True)  # what `nlf evaluate --model smollm2` leaves is no model
    refused("smollm2", "has not been fetched yet")
    tiny.save(tmp_path / "smollm2")
    load_model("smollm2")
    assert "smollm2: the folder of this name, not the model that `nlf fetch` gets" in caplog.messages
    assert names.gguf_digest("smollm2") is None and names.origin_of("smollm2") == "smollm2"
