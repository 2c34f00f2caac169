"""Knobs that training had and has no more: neutral values are dropped, others refused in a line that helps."""

import pytest
import yaml

from nlf import config
from nlf.cli.arguments import convert, retired_knobs
from nlf.cli.main import main
from nlf.data import run_folder
from nlf.errors import UserError

OLD = {  # what every config.yaml of before held, at the defaults of then
    "guidance_scale": 0.0, "negative_tag": None, "eval_negative_tag": None, "eval_tag": None,
    "eval_min_completion_length": 0, "eval_max_completion_length": 20, "eval_top_k": 0, "eval_guidance_scale": 0.0, "eval_temperature": 1.0,
    "adaptive_entropy": False, "entropy_horizon": 2500, "data_parallel_size": 1,
    "max_tries": 8, "max_failures_in_a_row": 5, "lora_dropout": 0.0, "cache_dir": None,
    "sampling_batch_tokens": None,
}  # fmt: skip


def test_defaults_of_before_are_dropped():
    assert set(OLD) == set(config.RETIRED)
    assert config.current({**OLD, "target_entropy": 40.0, "beta": 1.0}) == {"target_entropy": None, "beta": 1.0}


@pytest.mark.parametrize(
    "values",
    [
        {"eval_max_completion_length": 64, "max_completion_length": 64},
        {"eval_tag": "Lowest Toxicity"},
        {"eval_tag": "a", "tags": ["a", "b"]},
        {"eval_negative_tag": "b", "tags": ["a", "b"]},
        {"entropy_horizon": 9, "adaptive_entropy": False},
        {"entropy_horizon": 9, "horizon": 9, "adaptive_entropy": True, "target_entropy": 40.0},
        {"adaptive_entropy": True, "target_entropy": 40.0},
        {"lora_dropout": 0.1},
    ],
)
def test_a_value_that_means_what_holds_today_is_dropped(values):
    kept = {name: value for name, value in values.items() if name not in config.RETIRED}
    assert config.current(values) == kept


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"guidance_scale": 1.0},
            "guidance_scale 1.0 is no longer a setting of training: guided rollouts lose the contrast",
        ),
        ({"negative_tag": "x"}, "`nlf sample` takes --negative_tag"),
        ({"eval_negative_tag": "x"}, "`nlf evaluate` takes --negative_tag"),
        ({"eval_tag": "x"}, "`nlf evaluate` takes --tag"),
        ({"eval_min_completion_length": 3}, "`nlf evaluate` takes --min_completion_length"),
        ({"eval_max_completion_length": 9}, "`nlf evaluate` takes --max_completion_length"),
        ({"eval_top_k": 5}, "eval_top_p"),
        ({"eval_guidance_scale": 1.0}, "evaluates without guidance, and `nlf evaluate` takes --guidance_scales"),
        ({"adaptive_entropy": True}, "set target_entropy"),
        ({"entropy_horizon": 9, "target_entropy": 40.0}, "horizon serves beta and entropy_coef"),
        ({"data_parallel_size": 2}, "one process for each GPU"),
        ({"max_tries": 3}, "tries a request 8 times"),
        ({"max_failures_in_a_row": 3}, "5 failures in a row"),
        ({"lora_dropout": 0.1, "disable_dropout": False}, "peft_config"),
        ({"cache_dir": "x"}, "set $NLF_CACHE"),
        ({"eval_temperature": 0.0}, "evaluates at temperature 1"),
        ({"sampling_batch_tokens": 9}, "leave it out"),
    ],
)
def test_another_value_is_refused_with_what_to_use(values, words):
    from nlf.training.config import ALTConfig

    with pytest.raises(UserError) as caught:
        config.current(values)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if "disable_dropout" not in values:
        with pytest.raises(UserError, match="no longer a setting of training"):
            ALTConfig(**values)


def test_every_retired_knob_is_read_by_its_type():
    for name, knob in retired_knobs().items():
        assert convert(knob, "null" if OLD[name] is None else str(OLD[name])) == OLD[name], name


def test_flags_and_recipes_hold_retired_knobs(tmp_path, capsys):
    recipe = tmp_path / "old.yaml"
    recipe.write_text(yaml.safe_dump({**OLD, "target_entropy": 40.0}), encoding="utf-8")
    assert main(["train", "--config", str(recipe), "--dry_run", "--no_adaptive_entropy"]) == 0
    capsys.readouterr()
    assert main(["train", "--config", str(recipe), "--dry_run", "--guidance-scale", "1"]) == 2
    assert "`nlf evaluate` takes --guidance_scales" in capsys.readouterr().err
    recipe.write_text("eval_top_k: 5\n", encoding="utf-8")
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 2
    assert "eval_top_k 5 is no longer a setting of training" in capsys.readouterr().err


def test_a_recipe_may_hold_retired_knobs_that_change_no_result(tmp_path, caplog):
    from nlf.cli.train import settings_of, train_settings_knobs

    recipe, knobs = tmp_path / "old.yaml", train_settings_knobs()
    recipe.write_text("max_tries: 3\ncache_dir: x\nbeta: 2.0\n", encoding="utf-8")
    assert settings_of(str(recipe), {}, knobs) == {"beta": 2.0}
    (line,) = caplog.messages
    assert f"{recipe}: max_tries, cache_dir: these are no longer settings of training" in line
    with pytest.raises(UserError, match="max_tries 3 is no longer a setting of training"):
        settings_of(str(recipe), {"max_tries": 3}, knobs)


def test_the_old_length_of_evaluation_is_told_once(caplog):
    values = {"eval_max_completion_length": 20, "max_completion_length": 61}
    assert config.current(values) == config.current(values) == {"max_completion_length": 61}
    assert caplog.messages == [
        "eval_max_completion_length is retired: evaluation now samples max_completion_length tokens, 61"
    ]


def test_a_flag_of_today_beats_an_old_recipe(tmp_path):
    from nlf.cli.train import settings_of, train_settings_knobs

    recipe = tmp_path / "old.yaml"
    recipe.write_text("adaptive_entropy: false\ntarget_entropy: 40.0\n", encoding="utf-8")
    values = settings_of(str(recipe), {"target_entropy": 30.0}, train_settings_knobs())
    assert values == {"target_entropy": 30.0}
    recipe.write_text("adaptive_entropy: true\neval_top_k: 5\n", encoding="utf-8")
    values = settings_of(str(recipe), {"target_entropy": 30.0, "eval_top_k": 0}, train_settings_knobs())
    assert values == {"target_entropy": 30.0}


def test_retired_knobs_are_not_in_the_help_and_not_proposed(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help", "all"])
    out = capsys.readouterr().out
    assert not [name for name in config.RETIRED if f"--{name} " in out]
    assert main(["train", "--entropy_horizn", "3"]) == 2
    assert "entropy_horizon" not in capsys.readouterr().err


def test_an_old_run_resumes_unless_a_retired_knob_changed_it(tmp_path):
    now = {"beta": 2.0, "target_entropy": None, "sampler": "hf"}
    old = {**OLD, "beta": 2.0, "target_entropy": 40.0, "sampling_batch_tokens": 512}

    def claim(**changes):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(old | changes), encoding="utf-8")
        run_folder.claim(tmp_path, now, {"train_prompts": "of the run"}, resume=True)

    (tmp_path / "run.json").write_text('{"train_prompts": "of the run"}')
    claim()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8")) == now
    with pytest.raises(UserError, match="cannot be resumed: eval_top_k 5 is no longer a setting"):
        claim(eval_top_k=5)
    with pytest.raises(UserError, match="started with beta=1.0"):
        claim(beta=1.0)


def test_the_words_of_a_recipe_beside_another_reward_are_said(tmp_path, caplog):
    from nlf.cli.train import settings_of, train_settings_knobs

    recipe, knobs = tmp_path / "config.yaml", train_settings_knobs()
    recipe.write_text("reward_funcs: [local]\ntags: [Kind, Rude]\n")
    settings_of(str(recipe), {"reward_funcs": ["local"]}, knobs)
    settings_of(str(recipe), {"reward_funcs": ["length"], "tags": ["Long", "Short"]}, knobs)
    assert not caplog.records
    settings_of(str(recipe), {"reward_funcs": ["length"]}, knobs)
    assert "tags, best first: Kind, Rude" in caplog.text and "--tags null" in caplog.text
