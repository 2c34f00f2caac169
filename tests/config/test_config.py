"""The knobs: each has a home, a line of help and its rules, and the command line knows what ALTConfig knows."""

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlf import config
from nlf.cli.arguments import INHERITED, SNAPSHOT, convert, inherited_knobs, train_knobs
from nlf.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import training_arguments

OURS = """
model_name_or_path model_revision dtype attn_implementation trust_remote_code ref_model_name_or_path use_peft load_in_4bit load_in_8bit lora_r
lora_alpha lora_target_modules disable_dropout dataset_name dataset_config dataset_streaming eval_dataset dataset_prompt_column dataset_train_split
dataset_test_split max_prompts max_eval_prompts max_prompt_length feedback feedback_columns feedback_epochs feedback_share reward_funcs reward_weights audit_funcs reward_normalization
replay rate_limit max_concurrency request_timeout tags tag_template separator tag_tokens attributes attribute_template feedback_sampling
max_feedback_length feedback_position chat_template_kwargs num_generations max_completion_length min_completion_length temperature top_p top_k sampler
sampler_compile tensor_parallel_size gpu_memory_utilization eval_num_generations eval_top_p
prompts_per_iteration steps_per_iteration pool_keep quantile_scope quantile_rule quantile_weights prompts_per_part
plain distill nll_coef contrast_coef credit_coef credit credit_lambda beta entropy_coef kl_direction reference_device
kl_budget adaptive_kl target_kl target_entropy horizon num_completions_to_print log_completions
""".split()
SHORT = """
model_name_or_path dtype use_peft dataset_name eval_dataset dataset_prompt_column max_prompts max_prompt_length feedback feedback_columns
feedback_epochs reward_funcs
reward_weights audit_funcs tags tag_template num_generations max_completion_length temperature top_p sampler eval_num_generations
prompts_per_iteration steps_per_iteration pool_keep quantile_weights plain distill nll_coef contrast_coef credit_coef beta
entropy_coef kl_budget output_dir num_train_epochs learning_rate per_device_train_batch_size gradient_accumulation_steps bf16 seed report_to
""".split()


def test_the_knobs_of_training_are_these():
    assert sorted(f.name for f in fields(config.TrainOptions)) == sorted(OURS)
    assert len(OURS) <= 82


def test_the_short_help_shows_these():
    assert sorted(name for name, knob in train_knobs().items() if knob.short) == sorted(SHORT)
    assert len(SHORT) <= 42


def test_every_knob_has_one_home_and_a_line_of_help():
    for groups, whole in [
        (config.OPTION_GROUPS, config.TrainOptions),
        *((groups, config.COMMAND_OPTIONS[name]) for name, groups in config.COMMAND_GROUPS.items()),
    ]:
        seen = set()
        for group, options in groups.items():
            for f in fields(options):
                assert f.name not in seen, f"{f.name} of {group} is defined twice"
                assert f.metadata["help"].endswith((".", ")")), f.name
                seen.add(f.name)
        assert seen == {f.name for f in fields(whole)}, "the class of a command has the knobs of its groups"


def test_sampling_of_training_of_evaluation_and_of_commands():
    options = config.TrainOptions(max_completion_length=9, temperature=0.5, top_p=0.8)
    assert config.sampling_options(options) == config.SamplingOptions(
        max_completion_length=9, temperature=0.5, top_p=0.8
    )
    assert config.eval_sampling_options(options) == config.SamplingOptions(
        num_generations=25, max_completion_length=9, top_p=0.9
    )
    for command in (config.SampleOptions(max_completion_length=20), config.EvaluateOptions(max_completion_length=20)):
        assert config.sampling_options(command) == config.SamplingOptions(num_generations=25, top_p=0.9)


def test_the_sampling_rule_keeps_its_order():
    """Stamps of rollouts digest it, so runs of before resume only while names and order stay."""
    assert vars(config.sampling_options(config.TrainOptions(max_completion_length=20))) == {
        "num_generations": 4, "max_completion_length": 20, "min_completion_length": 0, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "guidance_scale": 0.0, "negative_tag": None,
    }  # fmt: skip
    assert [f.name for f in fields(config.SamplingOptions)][-2:] == ["guidance_scale", "negative_tag"]


def test_lists_are_not_shared_between_instances():
    first, second = config.RewardOptions(), config.RewardOptions()
    first.reward_funcs.append("more")
    assert second.reward_funcs == ["local"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_p": 0.0}, "top_p: 0.0 where a number above 0, 1 at most"),
        ({"rate_limit": 0.0}, "rate_limit: 0.0 where 0.001 or more"),
        ({"quantile_rule": "odd"}, "even, published, levels"),
        ({"reward_normalization": "max"}, "none, zscore, rank"),
        ({"quantile_rule": "published", "quantile_scope": "prompt"}, "set quantile_scope pool"),
        ({"quantile_rule": "levels", "reward_normalization": "rank"}, "set reward_normalization none"),
        ({"eval_top_p": 1.5}, "eval_top_p: 1.5"),
        ({"num_generations": 0}, "num_generations: 0"),
        ({"beta": -1.0}, "beta: -1.0 where 0 or more"),
        ({"beta": float("nan")}, "beta: nan where a finite number"),
        ({"target_kl": float("inf")}, "target_kl: inf where a finite number"),
        ({"quantile_weights": [1.0, float("inf"), 1.0, 1.0, 1.0]}, "where a finite number"),
        ({"dtype": "int8"}, "dtype: 'int8' where one of float32, bfloat16, float16, auto"),
        ({"kl_direction": "sideways"}, "forward, reverse"),
        ({"tags": ["only"]}, "two or more"),
        ({"tags": ["same", "same"]}, "different"),
        ({"reward_funcs": []}, "at least one"),
        ({"quantile_weights": [0.0, 0.0]}, "not all 0"),
        ({"quantile_weights": [1.0], "tags": ["a", "b"]}, "1 numbers for 2 tags"),
        ({"reward_weights": [1.0, 2.0], "reward_funcs": ["local"]}, "2 numbers for 1 reward_funcs"),
        ({"min_completion_length": 5, "max_completion_length": 4}, "above max_completion_length (4)"),
        ({"feedback_sampling": "all"}, "feedback_sampling all needs attributes"),
        ({"tags": ["tags.json"]}, "two or more different tags"),  # a file is for models that have been trained
        ({"separator": "<x>"}, "separator '<x>' is not in tag_template"),
    ],
)
def test_a_senseless_value_is_refused_by_name(values, words):
    with pytest.raises(UserError) as caught:
        config.TrainOptions(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "first", "other"),
    [
        ({"serve": True, "explain": True}, "--serve", "--explain"),
        ({"serve": True, "path": "x.jsonl"}, "--serve", "the file"),
        ({"serve": True, "write_as": "perspective"}, "--serve", "--as"),
        ({"serve": True, "export_cache": "c.jsonl"}, "--serve", "--export_cache"),
        ({"export_cache": "c.jsonl", "import_cache": "d.jsonl"}, "--export_cache", "--import_cache"),
        ({"export_cache": "c.jsonl", "path": "x.jsonl"}, "--export_cache", "the file"),
        ({"import_cache": "c.jsonl", "format": "rtp"}, "--import_cache", "--format"),
        ({"write_as": "perspective", "path": "x.jsonl", "format": "quark"}, "--as", "--format"),
        ({"write_as": "perspective", "path": "x.jsonl", "explain": True}, "--as", "--explain"),
    ],
)
def test_nlf_score_does_one_thing_at_a_time(values, first, other):
    """The trap: the second flag was silently ignored."""
    with pytest.raises(UserError) as caught:
        config.ScoreOptions(**values)
    assert str(caught.value) == (
        f"{first} adds no scores to a file, so {other} does not go with it; leave out {other}, or {first}"
    )


def test_nlf_score_takes_what_goes_together():
    config.ScoreOptions(path="x.jsonl", explain=True, format="rtp")
    config.ScoreOptions(path="x.jsonl", write_as="perspective", output="y.jsonl")
    config.ScoreOptions(list=True, path="x.jsonl", serve=True)
    with pytest.raises(UserError, match="output: it is the file of --as perspective"):
        config.ScoreOptions(path="x.jsonl", output="y.jsonl")


def test_a_sampler_without_logits_is_not_guided():
    for options in (config.SampleOptions, config.EvaluateOptions):
        name = "guidance_scale" if options is config.SampleOptions else "guidance_scales"
        scales = (1.0, 0.0) if options is config.SampleOptions else ([0.0, 1.0], [0.0])
        options(sampler="vllm", **{name: scales[1]})
        with pytest.raises(UserError, match="sampler vllm cannot be guided"):
            options(sampler="vllm", **{name: scales[0]})
    with pytest.raises(UserError, match="sampler_url is missing"):
        config.SamplerOptions(sampler="server")


def test_the_options_of_remote_rewards_among_others():
    given = SimpleNamespace(rate_limit=2.0, replay=True, beta=1)
    assert config.remote_options(given) == config.RemoteOptions(rate_limit=2.0, replay=True)
    for command in ("score", "evaluate"):
        assert config.RemoteOptions in config.COMMAND_GROUPS[command].values()


def test_null_switches_off_and_is_not_checked():
    config.TrainOptions(quantile_weights=None, tags=["a", "b"], pool_keep=None, prompts_per_iteration=None)


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
        ("target_entropy", "null", None),
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


def test_the_snapshot_is_that_of_the_installed_transformers(tmp_path):
    training_arguments.write(tmp_path / "now.json")
    now, kept = (tmp_path / "now.json").read_text("utf-8"), SNAPSHOT.read_text("utf-8")
    assert now == kept, "run `python tools/training_arguments.py`"


def test_inherited_help_and_defaults_are_what_transformers_has():
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
