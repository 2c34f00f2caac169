"""TRL's names and ours mean the same: on the command line, in files of settings, and in runs of earlier versions."""

import pytest
import yaml

from nlf.cli import commands
from nlf.cli.arguments import read_recipe, train_knobs
from nlf.cli.train import settings_of, train_parser, train_settings_knobs
from nlf.data.run_folder import changed_settings, run_settings, todays


def given(command, *argv):
    return command.given([*argv], command.knobs())


@pytest.mark.parametrize("flag", ["--model", "--model_name_or_path", "--model-name-or-path"])
def test_every_command_takes_its_model_under_both_names(flag):
    for command in (commands.SAMPLE, commands.EVALUATE, commands.DISTILL):
        assert given(command, flag, "runs/x") == {"model": "runs/x"}
    from nlf.cli.arguments import parse_flags

    knobs = train_settings_knobs()
    assert parse_flags(train_parser(knobs), [flag, "gpt2"], knobs)["model_name_or_path"] == "gpt2"


def test_where_a_command_measures_or_starts_from_a_model_that_is_the_model():
    """`model_revision` belongs to the same model."""
    found = given(commands.PERPLEXITY, "samples", "--model_name_or_path", "gpt2")
    assert found == {"path": "samples", "eval_model": "gpt2"}
    found = given(commands.IMPORT, "x.pth", "--model_name_or_path", "gpt2")
    assert found == {"checkpoint": "x.pth", "base_model": "gpt2"}


def test_a_file_of_settings_may_name_the_data_set_as_before(tmp_path):
    for name in ("dataset", "dataset_name"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({name: "me/prompts", "dataset_config": "small", "dataset_streaming": True}))
        found = read_recipe(path, train_knobs())
        assert found == {"dataset_name": "me/prompts", "dataset_config": "small", "dataset_streaming": True}
        assert settings_of(str(path), {}, train_settings_knobs()) == found


def test_a_run_that_recorded_its_data_set_under_the_old_name_is_the_same_run(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset: me/prompts\n")
    assert run_settings(tmp_path) == {"dataset_name": "me/prompts"}
    old = todays({"dataset": "me/prompts", "dataset_streaming": False})
    assert changed_settings(old, {"dataset_name": "me/prompts", "dataset_streaming": True}) == []
    changed = changed_settings(old, {"dataset_name": "me/others"})
    assert changed == [("dataset_name", "me/prompts", "me/others")]
