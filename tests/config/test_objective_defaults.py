"""The objective that a run has where the person names none, and the defaults that follow it."""

from types import SimpleNamespace

import pytest

from nlf import config
from nlf.config.objective import COEFFICIENTS, DEFAULTS, learning_rate, take_recorded
from nlf.errors import UserError

TAGS = ["good", "bad"]
CREDIT, CONTRAST, NLL = (0, 0, 1), (0, 1, 0), (1, 0, 0)


def made(**values) -> config.TrainOptions:
    return config.TrainOptions(**values)


def coefficients(options) -> tuple:
    return tuple(getattr(options, name) for name in COEFFICIENTS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, CREDIT),
        ({"nll_coef": 0, "contrast_coef": 0}, CREDIT),
        ({"reward_funcs": ["local", "sentiment"]}, CREDIT),
        ({"reward_funcs": ["local", "judge:helpfulness"]}, CONTRAST),
        ({"quantile_rule": "levels"}, CONTRAST),
        ({"attributes": [{"name": "x", "reward": "local", "tags": TAGS}]}, CONTRAST),
        ({"credit_coef": 0}, CONTRAST),
        ({"nll_coef": 1}, NLL),
        ({"contrast_coef": 1}, CONTRAST),
        ({"quantile_rule": "levels", "credit_coef": 1}, CREDIT),
        ({"nll_coef": 1, "contrast_coef": 0.5, "credit_coef": 2}, (1, 0.5, 2)),
        ({"plain": "only"}, CREDIT),
        ({"plain": "only", "quantile_rule": "levels"}, CREDIT),
        ({"plain": "only", "contrast_coef": 1}, (0, 1, 1)),  # a plain model has no tags to contrast
        ({"nll_coef": None, "contrast_coef": None, "credit_coef": None}, CREDIT),
    ],
)
def test_the_objective(values, expected):
    assert coefficients(made(**values)) == expected


@pytest.mark.parametrize(
    ("values", "beta", "budget"),
    [
        ({}, None, 0.1),
        ({"beta": 0.3}, 0.3, None),
        ({"beta": 0}, 0, None),
        ({"adaptive_kl": True}, 2.0, None),
        ({"kl_budget": 0.2}, None, 0.2),
        ({"contrast_coef": 1}, 2.0, None),
        ({"contrast_coef": 1, "kl_budget": 0.2}, None, 0.2),
        ({"contrast_coef": 1, "beta": 5, "kl_budget": None}, 5, None),
    ],
)
def test_the_leash(values, beta, budget):
    options = made(**values)
    assert (options.beta, options.kl_budget) == (beta, budget)


def test_a_budget_and_a_weight_contradict_each_other():
    with pytest.raises(UserError) as caught:
        made(beta=0.3, kl_budget=0.1)
    assert str(caught.value) == (
        "kl_budget 0.1 and beta 0.3: a budget chooses the weight of the KL by itself; leave one of them out"
    )


def test_the_sizes_of_the_loop_follow_and_can_be_given():
    for options, column in ((made(), "credit"), (made(nll_coef=1), "other")):
        for name in ("prompts_per_iteration", "steps_per_iteration"):
            assert getattr(options, name) == getattr(DEFAULTS[name], column)
    options = made(prompts_per_iteration=None, steps_per_iteration=7)  # null is all prompts
    assert (options.prompts_per_iteration, options.steps_per_iteration) == (None, 7)
    assert made(steps_per_iteration=None).steps_per_iteration == DEFAULTS["steps_per_iteration"].credit


def test_what_was_left_open_follows_rewards_that_come_later():
    """From Python, ALTTrainer gets the rewards after the settings are made."""
    options = made(steps_per_iteration=7)
    config.fill_in(options, judged=True)
    assert coefficients(options) == CONTRAST
    assert (options.prompts_per_iteration, options.steps_per_iteration) == (512, 7)
    assert (options.beta, options.kl_budget) == (2.0, None)
    options.complete()  # as after the tags are chosen
    assert coefficients(options) == CONTRAST
    config.fill_in(options, judged=False)
    assert coefficients(options) == CREDIT
    assert (options.prompts_per_iteration, options.steps_per_iteration) == (64, 7)


def test_a_resumed_run_keeps_what_it_recorded_where_nothing_is_given():
    recorded = {
        "nll_coef": 0.0,
        "contrast_coef": 1.0,
        "beta": 2.0,
        "prompts_per_iteration": None,
        "num_train_epochs": 9,
    }

    def left_open():
        return SimpleNamespace(**dict.fromkeys([*COEFFICIENTS, *DEFAULTS]) | {"prompts_per_iteration": 64})

    options = left_open()
    take_recorded(options, recorded)
    assert (options.nll_coef, options.contrast_coef, options.credit_coef) == (0.0, 1.0, None)
    assert (options.beta, options.kl_budget, options.num_train_epochs) == (2.0, None, 9)
    assert options.prompts_per_iteration == 64 and options.learning_rate is None
    options = left_open()
    options.kl_budget, options.credit_coef = (
        0.1,
        1.0,
    )  # given: they are compared with the record later, not mixed with it
    take_recorded(options, recorded)
    assert (options.nll_coef, options.contrast_coef, options.beta) == (None, None, None)


@pytest.mark.parametrize(
    ("parameters", "lora", "rate"),
    [
        (3_000_000, False, 2e-4),
        (2_812_032, False, 2.1e-4),  # 2e-4 √1.0668 = 2.066e-4
        (134_515_008, False, 3e-5),  # 2e-4 √.0223 = 2.987e-5
        (134_515_008, True, 3e-4),
        (12_000_000, False, 1e-4),
        (3_000_000_000, False, 6.3e-6),
    ],
)
def test_the_learning_rate_falls_with_the_root_of_the_size(parameters, lora, rate):
    assert learning_rate(parameters, lora) == rate


def test_the_line_of_choices():
    options = made(num_generations=8)
    step = config.Step(64, 16, "float32")
    assert config.choices(options, 3e-5, 15, step, 134_515_008) == (
        "credit: learning rate 3e-05 for 134.5 M parameters, 15 iterations of 64 × 8 completions and 4 steps of 64 (16 at "
        "once, in float32), KL budget 0.1 nats a token (docs/method.md)"
    )
    options = made(beta=0.2, prompts_per_iteration=None)
    assert config.choices(options, 1e-4, 2.5, config.Step(128, None, "bf16")) == (
        "credit: learning rate 0.0001, 2.5 iterations of all prompts × 4 completions and 4 steps of 128 (in bf16), beta 0.2 "
        "(docs/method.md)"
    )


def test_the_precision_in_words():
    found = [config.precision(*knobs) for knobs in ((True, False), (False, True), (False, False))]
    assert found == ["bf16", "fp16", "float32"]
    left_open = config.TRAINING_DEFAULTS["bf16"]
    assert config.precision(left_open, False) == "bf16 on a GPU that computes in it, else float32"
    assert config.precision(left_open, True) == "fp16"


@pytest.mark.parametrize(
    ("parameters", "whole", "expected"),
    [
        (2_812_032, 10e6, 64),  # the embedded model
        (10_000_000, 10e6, 64),
        (10_000_001, 10e6, 32),
        (134_515_008, 10e6, 16),  # 64 √(10 / 134.5) = 17.4
        (268_098_176, 10e6, 8),  # 12.4
        (7_615_616_512, 10e6, 2),  # 2.3
        (134_515_008, 160e6, 64),
        (1_711_376_384, 160e6, 16),  # 19.6
        (7_615_616_512, 160e6, 8),  # 9.3
        (10**12, 10e6, 1),  # 0.2
    ],
)
def test_a_step_is_cut_where_the_model_is_large(parameters, whole, expected):
    assert config.at_once(parameters, whole) == expected


def test_the_batch_where_it_is_open():
    first, second = (config.TRAINING_DEFAULTS[name] for name in config.BATCH)
    for given, filled in (
        ((first, second), (64, 1)),
        ((8, second), (8, 1)),
        ((first, 4), (64, 4)),
        ((None, None), (64, 1)),
    ):
        assert config.batch(dict(zip(config.BATCH, given, strict=True))) == dict(
            zip(config.BATCH, filled, strict=True)
        )
