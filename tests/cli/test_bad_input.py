"""Everything a person can get wrong with `nlf train` is one line on stderr, exit code 2, and nothing half-written."""

import json
import multiprocessing
import resource
import signal

import pytest
import tiny

from nlf.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def train(tmp_path, model, capfd):
    """Run `nlf train` with some flags changed; returns (exit code, stderr lines that are not progress)."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))

    def run(**flags):
        values = {
            **{
                "model_name_or_path": model,
                "dataset": prompts,
                "eval_dataset": prompts,
                "reward_funcs": "tiny:vowels",
            },
            **{"output_dir": tmp_path / "run", "num_train_epochs": 1, "steps_per_iteration": 1, "use_cpu": "true"},
            **{"per_device_train_batch_size": 4, "prompts_per_iteration": 4, "max_completion_length": 4},
            **{"max_eval_prompts": 2, "eval_num_generations": 2, "disable_tqdm": "true"},
        }
        words = []
        for name, value in {**values, **flags}.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        capfd.readouterr()
        code = main(["train", *words])
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]
        return code, errors

    return run


def broken(completions, **kwargs):
    return [float("nan")] * len(completions)


def short(completions, **kwargs):
    return [0.0]


CASES = {
    "missing file": ({"dataset": "./nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    "unknown reward": ({"reward_funcs": "lokal"}, "did you mean 'local'"),
    "single tag": ({"tags": ["Only"], "quantile_weights": "null"}, "two or more different tags"),
    "NaN reward": ({"reward_funcs": "test_bad_input:broken"}, "reward 'broken' returned nan"),
    "too few numbers": ({"reward_funcs": "test_bad_input:short"}, "reward 'short' returned 1 values for"),
    "no such model": ({"model_name_or_path": "./no-model"}, "cannot load a causal language model from './no-model'"),
    "no such reward module": ({"reward_funcs": "nowhere.mod:f"}, "no module 'nowhere.mod'"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(train, tmp_path, name):
    flags, expected = CASES[name]
    code, errors = train(**flags)
    assert code == 2 and len(errors) == 1 and expected in errors[0], errors
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list(tmp_path.glob("run/rollouts/*/part-*"))


FILES = {
    "broken line": ('{"prompt": "a b"}\n{"prompt": \n', ":2: broken JSON"),
    "no prompt field": ('{"text": "a b"}\n', ":1: no field 'prompt'; there are 'text'"),
    "empty file": ("", "no prompts in it"),
    "empty prompt": ('{"prompt": "a b"}\n{"prompt": " "}\n', ":2: field 'prompt' is empty"),
    "wrong type": ('{"prompt": 3}\n', ":1: field 'prompt' is int"),
    "prompt over the context": (json.dumps({"prompt": "the river " * 60}) + "\n", "--max_prompt_length"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_prompt_files(train, tmp_path, name):
    content, expected = FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    code, errors = train(dataset=path)
    assert code == 2 and len(errors) == 1 and expected in errors[0], errors


def test_a_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, errors = train(output_dir=tmp_path / "file" / "run")
    assert code == 2 and len(errors) == 1 and "cannot write" in errors[0]


def test_a_full_disk(train, tmp_path):
    """The file-size limit stands in for a full disk: writes fail half-way with an OSError."""

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        raise SystemExit(train()[0])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 2
    assert not list(tmp_path.glob("run/rollouts/*/part-*")) and not (tmp_path / "run" / "model.safetensors").exists()


def test_the_same_folder_twice(train):
    assert train()[0] == 0
    code, errors = train()
    assert code == 2 and "--resume_from_checkpoint true" in errors[0]
    code, errors = train(resume_from_checkpoint="true", learning_rate="0.1")
    assert code == 2 and "learning_rate" in errors[0]
