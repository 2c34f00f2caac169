"""Every shipped recipe parses, describes a possible run, and holds the numbers it is there for."""

from pathlib import Path

import pytest
import yaml

import nlf
from nlf.cli.arguments import read_recipe, train_knobs
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
    resolved = settings(path.stem)
    options = train_options(values)
    assert resolved.output_dir == f"runs/{path.stem}"
    TagScheme(tuple(options.tags or DEFAULT_TAGS), options.tag_template, options.separator)
    args, model, data = build({**values, "output_dir": str(tmp_path), "use_cpu": True})
    for name, value in values.items():
        owner = next(each for each in (args, model, data) if hasattr(each, name))
        assert name == "output_dir" or getattr(owner, name) == value, name


def test_the_demo_is_the_defaults():
    values = yaml.safe_load((FOLDER / "toxicity-embedded.yaml").read_text(encoding="utf-8"))
    knobs = train_knobs()
    assert values.pop("tags") == list(DEFAULT_TAGS)  # the words of the default reward
    assert {n: v for n, v in values.items() if v != knobs[n].default} == {}


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


def test_accelerate_configs_are_of_the_installed_version():
    from accelerate.commands.config.config_args import load_config_from_file

    from nlf.cli.launch import accelerate_configs

    kinds = {name: load_config_from_file(str(p)).distributed_type.value for name, p in accelerate_configs().items()}
    assert kinds == {"fsdp2": "FSDP", "multi_gpu": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
