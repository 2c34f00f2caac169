"""Versions of the embedded scorers: a name alone is the newest, and a run keeps the version that it recorded."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from runs import make, same, weights

from nlf.cli.main import main
from nlf.config import EvaluateOptions
from nlf.data import run_folder
from nlf.data.rollouts import iteration_dir
from nlf.errors import UserError
from nlf.evaluation.run_defaults import scorers_of
from nlf.rewards import registry
from nlf.rewards.convolution import LocalToxicity1
from nlf.rewards.local import LocalToxicity
from nlf.rewards.registry import recorded_spec, recorded_version, resolve_reward, without_version

VERSIONS = [*registry.SHIPPED["local"].paths]


def test_a_name_alone_is_the_newest_version_and_an_exact_name_is_that_version():
    assert resolve_reward("local").label == VERSIONS[-1]
    for exact, kind in zip(VERSIONS, (LocalToxicity1, LocalToxicity), strict=True):
        assert resolve_reward(exact).label == exact and isinstance(resolve_reward(exact).function, kind)
        assert recorded_spec(resolve_reward(kind())) == recorded_spec(resolve_reward(kind)) == exact
    assert recorded_spec(resolve_reward("nlf.rewards.local:LocalToxicity")) == VERSIONS[-1]


@pytest.mark.parametrize("name", ["local@99", "local@", "local@1.5", "local@two"])
def test_an_unknown_version_is_refused_with_the_versions_that_there_are(name):
    expected = f"reward {name!r}: there is no such version of local; there is {', '.join(VERSIONS)}"
    with pytest.raises(UserError, match=f"^{expected}$"):
        resolve_reward(name)


def test_today_every_embedded_scorer_answers_to_the_name_of_each_version():
    for name in ("local", "audit", "sentiment"):
        shipped = registry.SHIPPED[name]
        assert resolve_reward(name).label == shipped.newest
        assert [resolve_reward(exact).label for exact in shipped.paths] == [*shipped.paths]


def test_the_list_of_scorers_shows_the_versions(capsys):
    assert main(["score", "--list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert ", ".join(VERSIONS) in rows["local"] and "@" not in rows["length[:WORDS]"]


def test_what_a_run_recorded_is_what_it_is_continued_with():
    assert recorded_version("local", "local@1") == "local@1"
    assert recorded_version("local@2", "local@1") == "local@2"  # the person names another version
    assert recorded_version("local", None) == recorded_version("local", "mine@1") == "local"
    assert recorded_version("length", "length@1") == "length"  # is named without a version
    assert recorded_version("nlf.rewards.local:LocalToxicity", "local@1") == "local@1"
    assert [without_version(spec) for spec in ("local@2", "regex:a@b", "length")] == ["local", "regex:a@b", "length"]


@pytest.mark.parametrize("flag", ["local@99", "audit@0"])
def test_an_unknown_version_is_one_line_before_a_text_is_scored(flag, tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n')
    assert main(["score", str(path), "--reward_funcs", flag]) == 2
    err = capsys.readouterr().err
    assert f"reward {flag!r}: there is no such version" in err and err.count("\n") == 1
    assert path.read_text() == '{"text": "a"}\n'


# ---- runs -----------------------------------------------------------------------------------------------------------


def as_older_versions_recorded(folder) -> None:
    """Write the name alone, without a version, wherever a run records its rewards by name."""

    def bare(value):
        if isinstance(value, dict):
            return {
                key: [each.partition("@")[0] for each in v] if key == "reward_funcs" else bare(v)
                for key, v in value.items()
            }
        return value

    config = Path(folder, run_folder.CONFIG)
    config.write_text(yaml.safe_dump(bare(yaml.safe_load(config.read_text())), sort_keys=False))
    for marker in Path(folder).glob("checkpoint-*/nlf.json"):
        marker.write_text(json.dumps(bare(json.loads(marker.read_text()))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on `local@1`."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder, reward="local@1").train()
    return folder


def test_a_new_run_records_the_exact_version(whole):
    settings = run_folder.run_settings(whole)
    assert settings["reward_funcs"] == settings["rewards"] == ["local@1"]


def test_an_older_run_goes_on_with_its_version_to_the_same_bits(whole, tmp_path):
    """The trap: `local` names another scorer now, and the pool mixes the rewards of two."""
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-6")
    shutil.rmtree(iteration_dir(folder, 1))  # the second iteration is sampled and scored again
    as_older_versions_recorded(folder)
    make(folder, reward="local").train(resume_from_checkpoint=True)
    assert same(weights(folder), weights(whole))
    assert run_folder.run_settings(folder)["reward_funcs"] == ["local@1"]
    for iteration in (0, 1):
        assert all(
            Path(iteration_dir(folder, iteration), path.name).read_bytes() == path.read_bytes()
            for path in iteration_dir(whole, iteration).iterdir()
        )


def test_another_version_is_refused_as_a_changed_reward(whole):
    as_older_versions_recorded(whole)
    with pytest.raises(
        UserError, match=r"was started with rewards=\['local@1'\], now it is \['local@2'\]; resume with"
    ):
        make(whole, reward="local@2").train(resume_from_checkpoint=True)


def test_an_older_run_is_evaluated_with_its_version_unless_another_is_named(whole):
    as_older_versions_recorded(whole)
    labels = [each.label for each in scorers_of(EvaluateOptions(model=str(whole)), str(whole)).rewards]
    named = scorers_of(EvaluateOptions(model=str(whole), reward_funcs=["local@2"]), str(whole)).rewards
    assert (labels, [each.label for each in named]) == (["local@1"], ["local@2"])


def test_a_version_that_is_not_installed_is_refused(whole, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"reward_funcs": ["local@9"]}))
    (tmp_path / "run.json").write_text(json.dumps({"rewards": ["local@9"]}))
    with pytest.raises(
        UserError, match="cannot be loaded: reward 'local@9': there is no such version of local; there is"
    ):
        scorers_of(EvaluateOptions(model=str(tmp_path)), str(tmp_path))
