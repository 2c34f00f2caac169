"""The figures of a run's auditor come first, and say so; those of the scorer that it was trained on stand beside them."""

import json

import pytest
import yaml

from nlf.config import EvaluateOptions
from nlf.evaluation.evaluate import FLOOR, comparison
from nlf.evaluation.headlines import headlines
from nlf.evaluation.metrics import scorer_of
from nlf.evaluation.run_defaults import scorers_of
from nlf.report.results import main_metric
from nlf.rewards.registry import SHIPPED

OWN = {"reward": 0.9, "toxicity": 0.1, "expected_max_toxicity@25": 0.3, "toxicity_probability@25": 0.05}
AUDITED = {f"{name}/audit@1": value + 0.02 for name, value in OWN.items()}
REST = {"perplexity": 36.0, "dist-2": 0.9}
ROLES = {
    "scorers": ["local@1", "audit@1"],
    "auditors": ["audit@1"],
    "trained_on": ["local@1"],
    "audited_by": ["audit@1"],
}


def results(values: dict, **more) -> dict:
    """The content of a results.json with one system."""
    metrics = values | {f"{name}_ci95": [value, value] for name, value in values.items()}
    metrics |= {f"{name}_stderr": 0.0 for name in values}
    system = {"name": "best tag", "tag": None, "prompts": "x", "reversed": False, "metrics": metrics}
    return {"systems": [{**system, "n_samples": {"effective": 4}, "num_generations": 25}], **more}


def heads(found: dict) -> list[str]:
    return [cell.strip() for cell in comparison(found).splitlines()[0].split("|")[3:-1]]


def test_an_auditors_columns_come_first_and_both_are_named():
    assert heads(results(OWN | AUDITED | REST, **ROLES)) == [
        "toxicity probability, audit@1 (auditor)",
        "toxicity probability, local@1 (trained on)",
        "expected max, audit@1 (auditor)",
        "expected max, local@1 (trained on)",
        "mean toxicity, audit@1 (auditor)",
        "mean toxicity, local@1 (trained on)",
        "perplexity",
        "dist-2",
    ]


def test_so_they_do_in_the_results_of_earlier_versions():
    old = {name: ROLES[name] for name in ("scorers", "auditors")}
    assert heads(results(OWN | AUDITED | REST, **old)) == heads(results(OWN | AUDITED | REST, **ROLES))


def test_scorers_of_a_model_that_no_run_trained_keep_their_order():
    named = {f"{name}/local@1": value for name, value in OWN.items()}
    order = ["toxicity probability, local@1", "toxicity probability, audit@1"]
    assert heads(results(named | AUDITED, scorers=["local@1", "audit@1"], audited_by=[], trained_on=[]))[:2] == order
    assert heads(results(OWN, scorers=["local@1"]))[0] == "toxicity probability"


def test_an_auditor_of_something_else_stays_last_with_its_mean():
    """A run trained on politeness: its toxicity is no headline."""
    roles = {"scorers": ["politeness", "audit@1"], "auditors": ["audit@1"], "trained_on": ["politeness"]}
    found = results({"reward": 0.5} | AUDITED | REST, **roles, audited_by=[])
    assert heads(found) == ["reward", "perplexity", "dist-2", "mean toxicity, audit@1"]
    del found["audited_by"], found["trained_on"]
    assert heads(found) == ["reward", "perplexity", "dist-2", "mean toxicity, audit@1"]


def test_the_auditor_of_a_reward_without_attributes_comes_first():
    roles = {
        "scorers": ["clean", "audit@1"],
        "auditors": ["audit@1"],
        "trained_on": ["clean"],
        "audited_by": ["audit@1"],
    }
    assert heads(results({"reward": 0.5} | AUDITED, **roles)) == [
        "toxicity probability, audit@1 (auditor)", "expected max, audit@1 (auditor)", "mean toxicity, audit@1 (auditor)",
        "reward, clean (trained on)",
    ]  # fmt: skip


def test_a_metric_belongs_to_the_scorer_of_its_group():
    names = [
        "reward/local@1",
        "toxicity",
        "insult",
        "reward/length@1",
        "reward/sum",
        "reward/audit@1",
        "toxicity/audit@1",
    ]
    assert scorer_of([*names, "toxicity_stderr", "perplexity", "dist-2", "self_bleu@9"], ["local@1"]) == {
        "reward/local@1": "local@1", "toxicity": "local@1", "insult": "local@1", "reward/length@1": "length@1",
        "reward/sum": "sum", "reward/audit@1": "audit@1", "toxicity/audit@1": "audit@1",
    }  # fmt: skip


def test_the_auditor_decides_a_comparison():
    found = results(OWN | AUDITED | REST, **ROLES)
    assert main_metric(found["systems"], headlines(found)) == "toxicity_probability@25/audit@1"
    assert main_metric(found["systems"]) == "toxicity_probability@25"


# ---- the noise floor ----------------------------------------------------------------------------------------------


def test_the_table_shows_the_noise_floor_of_the_scorers_that_have_one():
    floor = {"audit@1": {"recorded_below": 0.1, "toxicity_probability@25": 0.24, "expected_max_toxicity@25": 0.4}}
    lines = comparison(results(OWN | AUDITED, **ROLES, noise_floor=floor)).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "noise floor",
        "",
        "0.240",
        "",
        "0.400",
        "",
        "",
        "",
    ]
    assert lines[-1] == FLOOR


def test_a_floor_of_another_number_of_completions_is_not_shown():
    floor = {"audit@1": {"toxicity_probability@10": 0.24}}
    assert "noise floor" not in comparison(results(OWN | AUDITED, **ROLES, noise_floor=floor))
    assert "noise floor" not in comparison(results(OWN | AUDITED, **ROLES))


# ---- from a run's record ------------------------------------------------------------------------------------------


def roles_of(folder, facts: dict, config: dict, **options) -> tuple:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(facts))
    found = scorers_of(EvaluateOptions(model=str(folder), **options), str(folder))
    return [scorer.label for scorer in found.all], list(found.trained_on), list(found.audited_by)


AUDIT = SHIPPED["audit"].newest


@pytest.mark.parametrize("facts", [{"rewards": ["local@1"], "auditors": [AUDIT]}, {"rewards": ["local@1"]}])
def test_a_run_and_its_older_record_name_both(tmp_path, facts):
    both = (["local@1", AUDIT], ["local@1"], [AUDIT])
    assert roles_of(tmp_path, facts, {"reward_funcs": ["local"]}) == both
    assert roles_of(tmp_path, facts, {"reward_funcs": ["local"]}, reward_funcs=["local", "audit"]) == both


def test_a_run_is_evaluated_by_the_auditors_that_it_names(tmp_path):
    facts = {"rewards": ["length@1"], "auditors": ["repetition@1"]}
    config = {"reward_funcs": ["length"], "audit_funcs": ["repetition"]}
    labels, trained, audited = roles_of(tmp_path, facts, config)
    assert (labels, trained, audited) == (["length@1", "repetition@1", AUDIT], ["length@1"], ["repetition@1"])


def test_an_auditor_that_cannot_be_loaded_is_said_in_one_line(tmp_path):
    from nlf.errors import UserError

    with pytest.raises(UserError, match="an auditor of .*gone.py.*; name the scorers with --reward_funcs") as caught:
        roles_of(tmp_path, {"rewards": ["length@1"]}, {"reward_funcs": ["length"], "audit_funcs": ["gone.py:f"]})
    assert "\n" not in str(caught.value)
