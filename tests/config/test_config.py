"""The knobs: every one has help, the rules quote its name, and the command line knows what ALTConfig knows."""

from dataclasses import MISSING, fields
from types import SimpleNamespace

import pytest

from nlf import config
from nlf.cli.arguments import INHERITED, convert, inherited_knobs, train_knobs
from nlf.errors import UserError


def test_every_knob_has_one_home_and_a_line_of_help():
    seen = set()
    for group, options in config.OPTION_GROUPS.items():
        for f in fields(options):
            assert f.name not in seen, f"{f.name} of {group} is defined twice"
            assert f.metadata["help"].endswith((".", ")")), f.name
            seen.add(f.name)


def test_evaluation_has_the_sampling_knobs_with_its_own_defaults():
    names = {f.name for f in fields(config.EvalSamplingOptions)}
    assert names == {f"eval_{f.name}" for f in fields(config.SamplingOptions)}
    options = config.EvalSamplingOptions()
    assert (options.eval_num_generations, options.eval_top_p, options.eval_temperature) == (25, 0.9, 1.0)
    assert config.sampling_options(options, "eval_") == config.SamplingOptions(num_generations=25, top_p=0.9)


def test_lists_are_not_shared_between_instances():
    first, second = config.TagOptions(), config.TagOptions()
    first.tags.append("more")
    assert len(second.tags) == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"rate_limit": 0.0}, "rate_limit: 0.0 where a number above 0"),
        ({"quantile_rule": "odd"}, "even, published, levels"),
        ({"reward_normalization": "max"}, "none, zscore, rank"),
        ({"quantile_rule": "published", "quantile_scope": "prompt"}, "set quantile_scope pool"),
        ({"eval_top_p": 1.5}, "eval_top_p: 1.5"),
        ({"num_generations": 0}, "num_generations: 0"),
        ({"kl_direction": "sideways"}, "forward, reverse"),
        ({"tags": ["only"]}, "two or more"),
        ({"tags": ["same", "same"]}, "different"),
        ({"reward_funcs": []}, "at least one"),
        ({"quantile_weights": [0.0, 0.0]}, "not all 0"),
        ({"quantile_weights": [1.0], "tags": ["a", "b"]}, "1 numbers for 2 tags"),
        ({"reward_weights": [1.0, 2.0], "reward_funcs": ["local"]}, "2 numbers for 1 reward_funcs"),
        ({"min_completion_length": 5, "max_completion_length": 4}, "above max_completion_length (4)"),
        ({"eval_min_completion_length": 5, "eval_max_completion_length": 4}, "above eval_max_completion_length"),
    ],
)
def test_a_senseless_value_is_refused_by_name(values, words):
    with pytest.raises(UserError) as caught:
        config.check(SimpleNamespace(**values))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_options_of_remote_rewards_among_others():
    given = SimpleNamespace(rate_limit=2.0, replay=True, beta=1)
    assert config.remote_options(given) == config.RemoteOptions(rate_limit=2.0, replay=True)
    for command in ("score", "evaluate"):
        assert config.RemoteOptions in config.COMMAND_GROUPS[command].values()


def test_null_switches_off_and_is_not_checked():
    config.check(SimpleNamespace(quantile_weights=None, tags=["a", "b"], pool_keep=None, prompts_per_iteration=None))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", 1, 1),
        ("pool_keep", "null", None),
        ("pool_keep", "3", 3),
        ("quantile_weights", ["1", "2.5"], [1.0, 2.5]),
        ("quantile_weights", ["null"], None),
        ("reward_funcs", "local", ["local"]),
        ("report_to", "none", "none"),
        ("report_to", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ("use_peft", "True", True),
        ("bf16", True, True),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("separator", "null", None),
        ("run_name", "7", "7"),
    ],
)
def test_flags_and_yaml_values_are_read_alike(name, given, value):
    assert convert(train_knobs()[name], given) == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("learning_rate", None),
        ("num_generations", 1.5),
        ("num_generations", ["1", "2"]),
        ("use_peft", "maybe"),
        ("quantile_scope", "world"),
        ("tags", 5),
        ("model_name_or_path", 5),
    ],
)
def test_a_wrong_type_names_knob_value_and_expectation(name, given):
    knob = train_knobs()[name]
    with pytest.raises(UserError) as caught:
        convert(knob, given, "recipe.yaml:3: ")
    message = str(caught.value)
    assert message.startswith(f"recipe.yaml:3: {name}: ")
    assert repr(given) in message
    assert "expected" in message


def test_help_read_from_source_is_what_transformers_has():
    from transformers import TrainingArguments

    real = {f.name: f for f in fields(TrainingArguments) if f.init}
    read = inherited_knobs()
    assert set(read) == set(real)
    for name, knob in read.items():
        if knob.default is not None and name not in config.TRAINING_DEFAULTS and real[name].default is not MISSING:
            assert knob.default == real[name].default, name
        assert knob.help == real[name].metadata.get("help", "").replace("%%", "%"), name


def test_defaults_shown_are_the_defaults_of_altconfig():
    from nlf.training.config import ALTConfig

    real = {f.name: f for f in fields(ALTConfig)}
    for name, knob in train_knobs().items():
        if knob.group in ("Model", "Data") or (knob.group == INHERITED and knob.default is None):
            continue
        f = real[name]
        assert knob.default == (f.default if f.default_factory is MISSING else f.default_factory()), name
    assert set(train_knobs()) >= set(real), "a field of ALTConfig that the command line does not know"
