"""A run from a GGUF file records the file and its digest, resumes, and is evaluated against the model in the file."""

import json

import gguf_files
import pytest
import tiny
import yaml

from nlf.cli.main import main
from nlf.data.run_folder import MODEL_DIGEST
from nlf.models import names
from nlf.models.policy import load_model


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """Run `nlf train` on x.gguf; returns (exit code, lines of errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    gguf_files.write(tmp_path / "x.gguf")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    words = (
        "train --dataset prompts.jsonl --eval_dataset prompts.jsonl --reward_funcs tiny:vowels --output_dir run --use_cpu true"
        " --num_train_epochs 1 --steps_per_iteration 1 --per_device_train_batch_size 4 --prompts_per_iteration 4"
        " --max_completion_length 4 --eval_strategy no --disable_tqdm true"
    )

    def run(*flags, model="x.gguf"):
        capfd.readouterr()
        code = main([*words.split(), "--model_name_or_path", model, *flags])
        return code, [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]

    return run


def evaluate(capfd, *flags):
    capfd.readouterr()
    words = "evaluate --model run --max_prompts 2 --num_generations 2 --guidance_scales 0"
    code = main([*words.split(), *flags])
    return code, capfd.readouterr()


def test_a_run_names_the_file_and_its_digest(train, tmp_path, capfd):
    assert train("--plain", "true") == (0, [])
    digest = names.file_digest(tmp_path / "x.gguf")[:16]
    for folder in (tmp_path / "run", tmp_path / "run" / "plain"):
        facts = json.loads((folder / "run.json").read_text())
        assert facts["model_name_or_path"] == "x.gguf" and facts[MODEL_DIGEST] == digest
        assert yaml.safe_load((folder / "config.yaml").read_text())["model_name_or_path"] == "x.gguf"
    assert train("--plain", "true", "--resume_from_checkpoint", "true") == (0, [])
    assert evaluate(capfd)[0] == 0
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert results["models"]["base"]["name"] == "x.gguf"
    assert [system["id"] for system in results["systems"]] == ["base", "best-tag", "plain"]


def test_another_file_in_its_place_is_refused(train, tmp_path, capfd):
    assert train()[0] == 0
    gguf_files.write(tmp_path / "x.gguf", seed=1)
    code, errors = train("--resume_from_checkpoint", "true")
    assert code == 2 and "run was started with model_digest=" in errors[0]
    code, said = evaluate(capfd)
    assert code == 2 and "run was trained from x.gguf, which is another model now; name the right one with" in said.err
    (tmp_path / "x.gguf").unlink()
    code, said = evaluate(capfd)
    assert (
        code == 2
        and "run was trained from x.gguf, which is not there now; name its place with --base_model" in said.err
    )


def test_the_model_of_a_file_is_evaluated_beside_it(train, tmp_path, capfd):
    words = "evaluate --model x.gguf --prompts prompts.jsonl --max_prompts 2 --num_generations 2 --reward_funcs tiny:vowels"
    assert main(words.split()) == 0
    assert (tmp_path / "x" / "evaluation" / "results.json").is_file()


def test_a_dry_run_converts_nothing(train, tmp_path, capfd):
    capfd.readouterr()
    assert main(["train", "--dry_run", "--model_name_or_path", "x.gguf", "--dataset", "prompts.jsonl"]) == 0
    out = capfd.readouterr().out
    assert not (tmp_path / "cache").exists()
    parameters = sum(weight.numel() for weight in load_model("x.gguf")[0].parameters())
    (line,) = [line for line in out.splitlines() if line.startswith("parameters ")]
    assert line.split()[1] == f"{parameters:,}"


def test_the_recipe_of_a_name_asks_for_the_model_until_it_is_there(train, capfd):
    dry = ["train", "--dry_run", "--config", "toxicity-smollm2"]
    capfd.readouterr()
    assert main(dry) == 2
    assert "smollm2 has not been fetched yet: `nlf fetch smollm2`" in capfd.readouterr().err
    tiny.save(names.converted_folder(names.FETCHED["smollm2"].sha256), "llama")
    assert main(dry) == 0
    assert "20 of 64 completions" in capfd.readouterr().out


def test_a_run_from_a_name_records_the_name(train, tmp_path, capfd):
    assert train(model="smollm2") == (2, [line for line in train(model="smollm2")[1] if "`nlf fetch smollm2`" in line])
    tiny.save(names.converted_folder(names.FETCHED["smollm2"].sha256), "llama")
    assert train("--plain", "true", model="smollm2") == (0, [])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["model_name_or_path"] == "smollm2" and facts[MODEL_DIGEST] == names.FETCHED["smollm2"].sha256[:16]
    card = (tmp_path / "run" / "plain" / "README.md").read_text()
    assert {"base_model: HuggingFaceTB/SmolLM2-135M-Instruct", "license: apache-2.0"} <= set(card.splitlines())
    tiny.save(tmp_path / "smollm2", "llama", seed=1)  # now the name means this folder
    code, said = evaluate(capfd)
    assert code == 2 and "run was trained from smollm2, which is another model now" in said.err
