"""Weights that travel: what a run leaves is a model of transformers' own, in the form and the type of its start."""

import json
import logging
import subprocess
import sys

import pytest
import tiny
import torch
from runs import make, weights
from transformers import AutoModelForCausalLM

from nlf.cli.main import main
from nlf.models.policy import Policy, load_model, save_policy

IDS = torch.tensor([[1, 2, 3, 4, 5, 250, 7]])
SIZES = (
    "--steps_per_iteration 1 --num_train_epochs 2 --prompts_per_iteration 4 --num_generations 2 --max_prompts 8 "
    "--max_completion_length 3 --per_device_train_batch_size 4 --eval_strategy no --use_cpu true --plain only"
)
ELSEWHERE = """
import sys
sys.modules["nlf"] = None  # as where the package is not installed
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
out = model.generate(**tokenizer("the weather", return_tensors="pt"), max_new_tokens=4, do_sample=False)
told = pipeline("text-generation", folder)("the weather", max_new_tokens=4, do_sample=False)[0]["generated_text"]
assert tokenizer.decode(out[0]) == told, told
print(model.dtype, model.config.vocab_size, len(tokenizer))
"""


def stored(folder, dtype=torch.bfloat16) -> str:
    """Save a model as others do: weights of a type, a generation config, and a file that only other programs read."""
    model = tiny.model("llama").to(dtype)
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9)
    model.save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None  # training gives it one
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"pieces of sentences")
    (folder / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    return str(folder)


def trained(folder, *flags):
    """The folders of a start and of the plain run from it."""
    start = stored(folder / "start")
    words = f"train --model_name_or_path {start} --output_dir {folder / 'run'} --reward_funcs length {SIZES}"
    assert main([*words.split(), *flags]) == 0
    return folder / "start", folder / "run" / "plain"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All weights were trained."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """An adapter was trained."""
    return trained(tmp_path_factory.mktemp("adapted"), "--use_peft", "true")


def read(path) -> dict:
    return json.loads(path.read_text())


# ---- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["whole", "adapted"])
def test_the_tokenizer_of_a_plain_model_is_that_of_its_start_byte_for_byte(run, request):
    start, plain = request.getfixturevalue(run)
    names = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja"}
    assert {path.name for path in start.iterdir()} >= names
    assert [name for name in names if (plain / name).read_bytes() != (start / name).read_bytes()] == []


@pytest.mark.parametrize(("run", "dtype"), [("whole", "float32"), ("adapted", "bfloat16")])
def test_a_plain_model_has_the_configurations_of_its_start_and_nothing_of_ours(run, dtype, request):
    start, plain = request.getfixturevalue(run)
    assert read(plain / "config.json") == read(start / "config.json") | {"dtype": dtype}
    assert read(plain / "generation_config.json") == read(start / "generation_config.json")
    names = {path.name for path in plain.iterdir()}
    assert "tags.json" not in names and not [name for name in names if name.endswith((".py", ".bin", ".pt"))]
    # vLLM reads every safetensors file of a folder
    assert [name for name in names if name.endswith(".safetensors")] == ["model.safetensors"]
    shapes = [{name: tensor.shape for name, tensor in weights(folder).items()} for folder in (start, plain)]
    assert shapes[0] == shapes[1]


def test_a_plain_model_works_where_this_package_is_not_installed(adapted):
    command = [sys.executable, "-c", ELSEWHERE, str(adapted[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch.bfloat16", "300", "300"]


def test_a_tokenizer_that_was_changed_is_written_as_it_is(tmp_path):
    """The trap: the start's files know nothing of the change."""
    start = stored(tmp_path / "start")
    changes = {"chat": {"chat_template": "{{ messages }}"}, "bos": {"bos_token": "the"}}
    for name, change in changes.items():
        model, tokenizer = load_model(start)
        for attribute, value in change.items():
            setattr(tokenizer, attribute, value)
        save_policy(Policy(model, tokenizer), tmp_path / name)
        again = load_model(str(tmp_path / name))[1]
        assert {attribute: getattr(again, attribute) for attribute in change} == change


def test_a_tokenizer_from_python_is_written(tmp_path):
    make(tmp_path, plain="only", credit_coef=1.0, contrast_coef=0.0, eval_strategy="no", num_train_epochs=1).train()
    assert len(load_model(str(tmp_path / "plain"))[1]) == len(tiny.tokenizer())


# ---- the type of the weights --------------------------------------------------------------------------------------


def test_an_adapter_is_merged_into_the_type_of_its_base(adapted):
    from peft import PeftModel

    start, plain = adapted
    found = weights(plain)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    with torch.no_grad():
        before = base(input_ids=IDS).logits
        policy = PeftModel.from_pretrained(base, plain / "adapter").eval()(input_ids=IDS).logits
        merged = load_model(str(plain))[0].eval()(input_ids=IDS).logits
    apart = (merged - policy).abs().max()
    assert apart < 2**-7 * policy.abs().max() < (policy - before).abs().max()  # bfloat16 rounds to 2^-8 of a number


def test_all_weights_are_saved_in_the_type_in_which_they_were_trained(whole):
    assert {tensor.dtype for tensor in weights(whole[1]).values()} == {torch.float32}


def test_an_adapter_of_a_float32_base_is_merged_in_float32(tmp_path):
    """Also where the weights are held in the smaller type: nothing is gained by another rounding, nor by widening."""
    for held in ("float32", "bfloat16"):
        model, tokenizer = load_model(stored(tmp_path / held, torch.float32), dtype=held)
        policy = adapted_policy(model, tokenizer)
        save_policy(policy, tmp_path / f"{held}-merged", as_stored=True)
        assert {str(tensor.dtype) for tensor in weights(tmp_path / f"{held}-merged").values()} == {f"torch.{held}"}


def test_vllm_samples_the_type_that_is_trained(tmp_path):
    model, tokenizer = load_model(stored(tmp_path / "start"))
    save_policy(adapted_policy(model, tokenizer), tmp_path / "handed")
    assert {tensor.dtype for tensor in weights(tmp_path / "handed").values()} == {torch.float32}


def adapted_policy(model, tokenizer) -> Policy:
    from peft import LoraConfig

    from nlf.models.policy import prepare_policy

    return prepare_policy(model, tokenizer, None, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2))


@pytest.mark.parametrize(
    ("dtype", "flags", "told"),
    [
        (
            "bfloat16",
            [],
            "is stored in bfloat16; training holds its weights in float32, and leaves a model in float32",
        ),
        ("bfloat16", ["--use_peft", "true"], "holds its weights in float32, and merges the adapter into bfloat16"),
        ("bfloat16", ["--dtype", "auto"], None),
        ("float32", [], None),
    ],
)
def test_training_in_a_larger_type_is_said_in_one_line(tmp_path, caplog, dtype, flags, told):
    start = stored(tmp_path / "start", getattr(torch, dtype))
    words = f"train --model_name_or_path {start} --output_dir {tmp_path / 'run'} --reward_funcs length {SIZES}"
    with caplog.at_level(logging.WARNING, logger="nlf"):
        assert main([*words.split(), *flags]) == 0
    found = [record.message for record in caplog.records if "is stored in" in record.message]
    assert len(found) == (told is not None)
    assert told is None or (told in found[0] and found[0].startswith(start))
