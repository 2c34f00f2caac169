"""Every shipped recipe parses, describes a possible run, and holds the numbers it is there for."""

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

import nlf
from nlf.cli.arguments import read_recipe, train_knobs
from nlf.cli.main import main
from nlf.config.objective import COEFFICIENTS, DEFAULTS, fill_in_length, learning_rate
from nlf.data.prompts import kind_of, load_prompts
from nlf.method.tags import DEFAULT_TAGS, TagScheme

FOLDER = Path(nlf.__file__).parent / "assets" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


class Settings(dict):
    """Every setting of a recipe, by name."""

    __getattr__ = dict.__getitem__


def settings(name: str) -> Settings:
    knobs = train_knobs()
    values = read_recipe(FOLDER / f"{name}.yaml", knobs)
    return Settings({n: values.get(n, knob.default) for n, knob in knobs.items()})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses(path, tmp_path):
    from nlf.cli.train import build, train_options

    values = read_recipe(path, train_knobs())
    every = settings(path.stem)
    options = train_options(values)
    assert every.output_dir == f"runs/{path.stem}"
    TagScheme(tuple(options.tags or DEFAULT_TAGS), options.tag_template, options.separator)
    args, model, data = build({**values, "output_dir": str(tmp_path), "use_cpu": True})
    for name, value in values.items():
        owner = next(each for each in (args, model, data) if hasattr(each, name))
        assert name == "output_dir" or getattr(owner, name) == value, name


def test_the_demo_is_the_defaults(tmp_path):
    values = yaml.safe_load((FOLDER / "toxicity-embedded.yaml").read_text(encoding="utf-8"))
    assert values.pop("tags") == list(DEFAULT_TAGS)  # the words of the default reward
    assert values.pop("output_dir") == train_knobs()["output_dir"].default
    alone = resolved({}, tmp_path)
    assert {n: (v, alone[n]) for n, v in values.items() if v != alone[n]} == {}


def resolved(values: dict, folder: Path) -> dict:
    """Every setting of a run with these values, as training sees it; the folder holds no run."""
    from nlf.cli.train import build

    args, model, data = build({**values, "output_dir": str(folder), "use_cpu": True})
    if data.dataset_name == "embedded":
        fill_in_length(args, kind_of(load_prompts(data.dataset_name)))
    return {name: value for part in (args, model, data) for name, value in vars(part).items()}


def test_the_recipe_of_smollm2_is_a_short_run_by_credit_in_batches_of_64(tmp_path):
    found = Settings(resolved(read_recipe(FOLDER / "toxicity-smollm2.yaml", train_knobs()), tmp_path))
    assert found.num_train_epochs * found.steps_per_iteration == 20
    assert found.per_device_train_batch_size * found.gradient_accumulation_steps == 64
    assert found.prompts_per_iteration * found.num_generations == found.steps_per_iteration * 64
    assert (found.credit_coef, found.kl_budget, found.beta) == (1.0, 0.1, None)
    assert (found.contrast_coef, found.nll_coef, found.learning_rate) == (0.0, 0.0, None)


LOOP = (
    *("nll_coef", "contrast_coef", "credit_coef", "beta", "kl_budget", "prompts_per_iteration", "steps_per_iteration"),
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "logging_steps", "plain"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("toxicity-embedded-contrastive", (0, 1, 0, 2, None, 512, 40, 3, 5e-4, "cosine", 5, 5, "false")),
        ("toxicity-embedded-published", (1, 0, 0, 0.05, None, 256, 60, 7, 1e-3, "linear", 0, 5, "false")),
        ("toxicity-gpt2-large", (1, 0, 0, 0.05, None, None, 2000, 16, 1e-5, "linear", 1600, 100, "false")),
        ("toxicity-quark", (1, 0, 0, 0.05, None, None, 2000, 16, 1e-5, "linear", 1600, 100, "false")),
        ("dialogue-categories", (1, 0, 0, 0, None, 2048, 512, 3, 2e-5, "linear", 0.05, 50, "false")),
        ("steerlm-attributes", (1, 0, 0, 0, None, 2048, 512, 3, 2e-5, "linear", 0.05, 50, "false")),
        ("summarization-freetext", (1, 0, 0, 0.05, None, 2048, 2560, 6, 2e-5, "linear", 0.05, 100, "false")),
    ],
)
def test_a_recipe_without_credit_means_what_it_meant_before_credit_was_the_default(name, expected, tmp_path):
    found = resolved(read_recipe(FOLDER / f"{name}.yaml", train_knobs()) | {"bf16": False}, tmp_path)
    assert dict(zip(LOOP, (found[each] for each in LOOP), strict=True)) == dict(zip(LOOP, expected, strict=True))


def test_the_settings_of_an_earlier_run_mean_what_they_meant(tmp_path):
    """Such a `config.yaml` holds every knob of its day, and nothing of credit, budgets and plain models."""
    own = {"nll_coef": 0.0, "contrast_coef": 1.0, "beta": 2.0, "adaptive_kl": False, "prompts_per_iteration": 512}
    own |= {"steps_per_iteration": 40, "num_train_epochs": 3, "learning_rate": 5e-4, "lr_scheduler_type": "cosine"}
    own |= {"warmup_steps": 5, "quantile_rule": "even"}
    found = resolved(own, tmp_path / "a")
    assert {name: found[name] for name in own} == own
    assert (found["credit_coef"], found["kl_budget"], found["plain"]) == (0, None, "false")
    published = own | {"nll_coef": 1.0, "contrast_coef": 0.0, "prompts_per_iteration": None}
    found = resolved(published, tmp_path / "b")
    assert {name: found[name] for name in own} == published


@pytest.mark.parametrize("name", ["toxicity-embedded", "sentiment-embedded"])
def test_the_recipes_with_credit(name, tmp_path):
    found = resolved(read_recipe(FOLDER / f"{name}.yaml", train_knobs()), tmp_path)
    defaults = {each: default.credit for each, default in DEFAULTS.items()}
    assert {each: found[each] for each in defaults} == defaults
    assert [found[each] for each in COEFFICIENTS] == [0, 0, 1]
    assert found["plain"] == "false"


REAL = {  # the parameters of each recipe's model, as its configuration has them, and whether an adapter is trained
    "sentiment-smollm2": (134_515_008, False),
    "toxicity-gemma3-270m": (268_098_176, False),
    "toxicity-7b-lora": (7_615_616_512, True),
}


@pytest.mark.parametrize("name", REAL)
def test_the_recipes_of_real_models_are_one_short_run_by_credit(name, tmp_path):
    path = FOLDER / f"{name}.yaml"
    found = resolved(read_recipe(path, train_knobs()), tmp_path)
    sizes = ("num_train_epochs", "prompts_per_iteration", "num_generations", "steps_per_iteration", "kl_budget")
    assert [found[each] for each in sizes] == [5, 64, 4, 4, 0.1]
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 64
    assert [found[each] for each in COEFFICIENTS] == [0, 0, 1]
    parameters, lora = REAL[name]
    assert found["learning_rate"] is None and found["use_peft"] is lora
    told = re.search(r"^learning_rate: null # by the model's size.*: (\S+)$", path.read_text(encoding="utf-8"), re.M)
    assert told and float(told[1]) == learning_rate(parameters, lora)


@pytest.mark.parametrize("name", REAL)
def test_a_dry_run_of_a_real_model(name, tmp_path, capsys):
    model = tiny.save(tmp_path / "model", "llama")
    assert main(["train", "--config", name, "--dry_run", "--model_name_or_path", model]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "5 iterations of 64 × 4 completions and 4 steps of 64 (in bf16" in told["credit"]
    assert told["completions"].strip() == "256 an iteration, 1,280 in all"
    assert told["optimizer steps"].strip().startswith("20 of 64 completions")
    assert ("trained (adapters)" in told["parameters"]) == REAL[name][1]


def test_the_recipe_of_one_card_trains_an_adapter(tmp_path, caplog):
    """Gradient checkpointing over a base in bf16 that gets no gradients: the adapter must get some."""
    model = tiny.model("llama").bfloat16()
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    small = "--num_train_epochs 1 --prompts_per_iteration 4 --max_prompts 8 --max_completion_length 4 --use_cpu true"
    small += " --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --reward_funcs length --tags null"
    words = (
        f"train --config toxicity-7b-lora --model_name_or_path {tmp_path / 'model'} --output_dir {tmp_path / 'run'}"
    )
    assert main(f"{words} {small}".split()) == 0
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["grad_norm"] > 0 for row in logged if "loss" in row)
    merged = load_file(tmp_path / "run/model.safetensors")
    start = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], start)


def test_the_published_experiment_number_by_number():
    s = settings("toxicity-gpt2-large")
    assert s.num_train_epochs * s.steps_per_iteration == 32_000
    assert s.per_device_train_batch_size * 32_000 - 1_023_969 == 31  # its last episodes do not fill a batch
    assert (s.learning_rate, s.lr_scheduler_type, s.warmup_steps, s.adam_epsilon) == (1e-5, "linear", 1600, 1e-8)
    assert s.max_grad_norm == 0  # off
    assert (s.max_completion_length, s.min_completion_length, s.temperature, s.top_p, s.top_k) == (20, 3, 1, 1, 50)
    assert (s.nll_coef, s.contrast_coef, s.beta, s.entropy_coef) == (1, 0, 0.05, 0.06)
    assert (s.kl_direction, s.quantile_rule, s.quantile_weights) == ("forward", "published", None)
    assert (s.prompts_per_iteration, s.num_generations, len(s.tags)) == (None, 1, 5)


def test_quark_differs_from_the_published_experiment_in_the_condition_only():
    ours, quark = settings("toxicity-gpt2-large"), settings("toxicity-quark")
    different = {name for name in ours if ours[name] != quark[name]}
    assert different == {"output_dir", "tags", "tag_tokens", "tag_template", "separator", "kl_direction"}


USER = [{"role": "user", "content": "the river"}]
LOGGED = {  # a row of the data set, the rows and tags that a dry run shows, and its first example
    "preferences-hh": (
        {"chosen": "\n\nHuman: the river\n\nAssistant: calm", "rejected": "\n\nHuman: the river\n\nAssistant: dull"},
        ["4 completions from 2 rows of texts: pairs", "'Better response' 2 (50.0%); 'Worse response' 2 (50.0%)"],
        "Better response. Human: the river Assistant: ⟶ calm<|endoftext|>",
    ),
    "ratings-helpsteer2": (
        {"prompt": "the river", "response": "calm", **dict.fromkeys(["helpfulness", "correctness", "coherence"], 3)}
        | {"complexity": 1, "verbosity": 0},
        [
            "2 completions from 2 rows of conversations: ratings in helpfulness, correctness, coherence, complexity, verbosity"
        ],
        "Coherence, ",
    ),
    "thumbs": (
        {"prompt": USER, "completion": [{"role": "assistant", "content": "calm"}], "label": True},
        ["2 completions from 2 rows of conversations: labels", "'Good response' 1 (50.0%); 'Bad response' 1 (50.0%)"],
        "<system>Good response <user>the river <assistant> ⟶ calm<|endoftext|>",
    ),
}


@pytest.mark.parametrize("name", LOGGED)
def test_the_recipes_of_logged_feedback_run_dry(name, tmp_path, capsys):
    from nlf.cli.main import main

    row, words, example = LOGGED[name]
    model = tiny.save(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    path = tmp_path / "logs.jsonl"
    other = row | ({"label": False} if "label" in row else {})
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, other)), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", "--config", name, "--feedback", str(path), "--model_name_or_path", model, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    for each in [*words, example]:
        assert each in shown


def test_accelerate_configs_are_of_the_installed_version():
    from accelerate.commands.config.config_args import load_config_from_file

    from nlf.cli.launch import accelerate_configs

    kinds = {name: load_config_from_file(str(p)).distributed_type.value for name, p in accelerate_configs().items()}
    assert kinds == {"fsdp2": "FSDP", "multi_gpu": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
