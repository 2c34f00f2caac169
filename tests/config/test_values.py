"""One rule for the values of knobs, from flags, YAML and Python alike: the type, finite numbers, bounds."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from nlf import config
from nlf.cli.arguments import convert, train_knobs
from nlf.config.values import numbers_in
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS

COMMANDS = {**config.COMMAND_OPTIONS, "train": config.TrainOptions}
BELOW_0 = {"reward_weights", "entropy_coef"}  # a reward may count against, and entropy may cost
NUMBERS = [
    (name, f.name, str(getattr(f.type, "__name__", f.type)))
    for name, options in COMMANDS.items()
    for f in fields(options)
    if any(kind in str(f.type) for kind in ("int", "float"))
]


@pytest.mark.parametrize(("command", "name", "kind"), NUMBERS)
def test_no_knob_of_any_command_takes_nan_infinity_or_a_negative_number(command, name, kind):
    for number in (math.nan, math.inf, -math.inf, 1e39, 10**40, *([] if name in BELOW_0 else [-1])):
        value = [number] * 5 if "list" in kind else number
        with pytest.raises(UserError, match=rf"^{name}: "):
            COMMANDS[command](**{name: value})


def test_a_number_may_stand_in_text_because_yaml_reads_1e_4_as_text():
    assert config.TrainOptions(beta="1e-4").beta == 1e-4
    assert config.TrainOptions(quantile_weights=["1e0", 1, "2", 1, 1.5]).quantile_weights == [1.0, 1, 2.0, 1, 1.5]
    knob = train_knobs()["lr_scheduler_kwargs"]
    assert convert(knob, {"min_lr": "1e-5", "name": "auto"}) == {"min_lr": 1e-5, "name": "auto"}


def test_a_count_is_a_whole_number_and_never_a_boolean():
    for whole in (2, 2.0, "2", "2.0", np.int64(2), np.float32(2), torch.tensor(2)):
        found = config.TrainOptions(num_generations=whole).num_generations
        assert found == 2 and type(found) is int
    for wrong in (2.5, "2.5", True, False, "two", None, [2, 3], "nan"):
        with pytest.raises(UserError, match="^num_generations: .* where int was expected$"):
            config.TrainOptions(num_generations=wrong)


def test_numbers_of_numpy_and_torch_are_numbers():
    options = config.TrainOptions(
        beta=np.float64(0.5), temperature=torch.tensor(0.5), quantile_weights=np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    )
    assert (options.beta, options.temperature, options.quantile_weights) == (0.5, 0.5, [1.0, 2.0, 1.0, 1.0, 1.0])
    assert type(options.quantile_weights) is list and type(options.beta) is float
    with pytest.raises(UserError, match="beta"):
        config.TrainOptions(beta=np.float32("nan"))


def test_python_values_of_other_types_are_one_line():
    for values in ({"beta": True}, {"tags": 5}, {"separator": 5}, {"use_peft": "maybe"}, {"reward_funcs": [5]}):
        with pytest.raises(UserError) as caught:
            config.TrainOptions(**values)
        assert str(caught.value).startswith(f"{next(iter(values))}: ") and "\n" not in str(caught.value)
    assert config.TrainOptions(reward_funcs=len).reward_funcs == [len]  # Python may give functions
    assert config.TrainOptions(dataset_name=Path("x.jsonl"), tags=("a", "b")).dataset_name == "x.jsonl"


def test_numbers_inside_mappings_and_lists_are_found():
    assert [*numbers_in({"a": [1, {"b": math.inf}], "c": True, "d": "5"})] == [1, math.inf]
    knob = train_knobs()["lr_scheduler_kwargs"]
    with pytest.raises(UserError, match="^r.yaml:3: lr_scheduler_kwargs: .* where a finite number"):
        convert(knob, {"a": [math.nan]}, "r.yaml:3: ")
    with pytest.raises(UserError, match="^attribute 'x': reward"):
        config.TrainOptions(attributes=[{"name": "x", "reward": 5, "tags": ["a", "b"]}])
    with pytest.raises(UserError, match="^attributes: "):
        config.TrainOptions(attributes=[5])


def test_the_temperature_is_0_or_what_float32_can_divide_by():
    assert config.TrainOptions(temperature=0).temperature == 0
    with pytest.raises(UserError, match="temperature: 1e-30"):
        config.TrainOptions(temperature=1e-30)


def test_text_that_no_file_can_hold_is_refused():
    with pytest.raises(UserError, match="tag_template"):
        config.TrainOptions(tag_template="{feedback}\ud800{prompt}")


def test_the_default_quantile_weights_follow_the_number_of_tags():
    weights = lambda **values: config.TrainOptions(**values).quantile_weights  # noqa: E731
    assert weights() == [2.5, 1.0, 1.0, 1.0, 2.5]  # until the reward has chosen the tags
    assert weights(tags=list("abcde")) == [2.5, 1.0, 1.0, 1.0, 2.5]
    assert weights(tags=["good", "bad"]) == [2.5, 2.5]
    assert weights(tags=["a", "b", "c", "d"]) == [2.5, 1.0, 1.0, 2.5]
    attributes = [{"name": "x", "reward": "local", "tags": ["a", "b", "c"]}]
    assert weights(attributes=attributes) == [2.5, 1.0, 2.5]
    assert weights(quantile_weights=None, tags=["a", "b"]) is None
    for given in ([2.5, 1.0, 1.0, 1.0, 2.5], [], [1.0], "outer", 5):
        with pytest.raises(UserError, match="quantile_weights"):
            weights(quantile_weights=given, tags=["good", "bad"])


def test_a_parser_of_transformers_leaves_the_types_of_knobs_alone():
    """HfArgumentParser writes simpler types into the fields: `dict | str | None` becomes `str`."""
    from transformers import HfArgumentParser

    from nlf import ALTConfig

    parser = HfArgumentParser(ALTConfig)
    words = ["--use_cpu", "true", "--quantile_weights", "1", "2", "3", "--tags", "a", "b", "c"]
    for args in (parser.parse_args_into_dataclasses(words)[0], ALTConfig(use_cpu=True, reward_weights=None)):
        assert len(args.quantile_weights) == len(args.tags or DEFAULT_TAGS) and args.lr_scheduler_kwargs is None
