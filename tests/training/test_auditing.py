"""Auditors in training: logged at every evaluation, never trained on, and a line where the reward rises without them."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from runs import lines, make, same, settings, weights

from nlf.cli.dry_run import Counts, scorer_calls
from nlf.cli.main import main
from nlf.config import RewardOptions, TrainOptions
from nlf.data.checkpoints import loop_state
from nlf.errors import UserError
from nlf.evaluation.intervals import over_completions
from nlf.rewards.auditors import auditors_of
from nlf.rewards.registry import SHIPPED, resolve_reward
from nlf.training.auditing import AuditWatch, change, prompt_means, rose
from nlf.training.evaluation import kept_random_state

# ---- the rule, by hand --------------------------------------------------------------------------------------------


def test_a_change_is_paired_by_prompt():
    """Changes .1, .3, .2: mean .2, standard deviation .1, standard error .1 / root 3."""
    assert change([0.5, 0.1, 0.0], [0.6, 0.4, 0.2]) == pytest.approx((0.2, 0.1 / math.sqrt(3)))
    assert rose([0.5, 0.1, 0.0], [0.6, 0.4, 0.2])
    assert not rose([0.0, 0.0], [0.3, -0.1])  # mean .1, standard error .2


def test_unknown_prompts_are_left_out_and_too_few_never_rise():
    assert change([0.5, None, 0.0, 1.0], [0.6, 0.4, 0.2, None])[0] == pytest.approx(0.15)
    for before, after in (([0.1], [0.9]), ([0.1, 0.2], [0.9]), ([], [])):
        assert math.isnan(change(before, after)[0]) and not rose(before, after)


def watched(rewards: list[float], audits: list[float], watch: AuditWatch | None = None) -> list[list[str]]:
    """The lines of evaluations on four prompts whose means lie a little around the given numbers."""
    watch, noise = watch or AuditWatch(), [-0.02, 0.0, 0.01, 0.01]
    return [
        watch.add({"reward": [r + x for x in noise], "audit@1": [a - x for x in noise]})
        for r, a in zip(rewards, audits, strict=True)
    ]


def test_it_warns_once_when_the_reward_rises_twice_and_the_auditor_does_not():
    said = watched([0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.5, 0.45, 0.44, 0.43])
    assert [len(each) for each in said] == [0, 0, 1, 0, 0]
    assert said[2][0].startswith(
        "warning: over two evaluations the reward rose from 0.500 to 0.700, but the auditor audit@1 did not: 0.500 to 0.450; "
    )
    assert "look at samples" in said[2][0] and "\n" not in said[2][0]


def test_it_warns_again_when_it_happens_again():
    said = watched([0.5, 0.6, 0.7, 0.7, 0.8, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert [len(each) for each in said] == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("rewards", "audits"),
    [
        ([0.5, 0.6, 0.7], [0.5, 0.55, 0.51]),  # the auditor rises over the span
        ([0.5, 0.6, 0.6], [0.5, 0.4, 0.3]),  # the reward rises once
        ([0.5, 0.7, 0.6], [0.5, 0.4, 0.3]),
        ([0.5, 0.6], [0.5, 0.4]),
    ],
)
def test_it_does_not_warn_otherwise(rewards, audits):
    assert not any(watched(rewards, audits))


def test_noise_does_not_warn():
    """Changes within the standard error of the reward are no rise."""
    watch = AuditWatch()
    for mean in ([0.5, 0.5], [0.9, 0.2], [1.0, 0.2]):
        assert not watch.add({"reward": mean, "audit@1": [0.1, 0.1]})


def test_a_resumed_run_says_the_same():
    watch = AuditWatch()
    watched([0.5, 0.6, 0.7], [0.5, 0.5, 0.5], watch)
    again = AuditWatch(**json.loads(json.dumps(watch.state())))
    assert watched([0.8], [0.5], watch) == watched([0.8], [0.5], again) == [[]]
    assert again.state() == watch.state()


def test_the_reward_of_several_rewards_is_their_sum():
    ratios = {"reward/local@1": [0.0], "reward/sum": [0.25], "reward/audit@1": [0.75]}
    found = SimpleNamespace(ratios={name: over_completions(np.array([v])) for name, v in ratios.items()})
    assert prompt_means(found, ["audit@1"]) == {"reward": [0.25], "audit@1": [0.75]}


# ---- which auditors -----------------------------------------------------------------------------------------------


def toxic_terms(completions, **kwargs):
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("rewards", "named", "expected"),
    [
        (["local"], None, ["audit"]),
        (["length", "local"], None, ["audit"]),
        ([toxic_terms], None, ["audit"]),  # its name says what it measures
        (["audit"], None, []),
        (["sentiment"], None, []),
        (["sentiment"], ["local", "audit"], ["local", "audit"]),
        (["local"], [], []),
    ],
)
def test_the_auditors_follow_the_reward_unless_they_are_named(rewards, named, expected):
    found = auditors_of(named, [resolve_reward(each) for each in rewards])
    assert [auditor.name for auditor in found] == expected


def test_an_auditor_that_is_a_reward_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^audit_funcs 'local': the run trains on it, so it cannot audit the run; "):
        auditors_of(["audit", "local"], [resolve_reward("local")])
    with pytest.raises(UserError, match=f"names '{SHIPPED['audit'].newest}' twice"):
        auditors_of(["audit", "audit"], [resolve_reward("local")])


def test_flags_yaml_and_python_name_them_alike(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("nlf.cli.train.run", lambda values: (seen.append(values.get("audit_funcs")), []))
    file = tmp_path / "r.yaml"
    for text in ("[local, audit]", "local,audit"):
        file.write_text(f"reward_funcs: sentiment\naudit_funcs: {text}\n")
        assert main(["train", "--config", str(file)]) == 0
    assert main(["train", "--reward_funcs", "sentiment", "--audit_funcs", "local", "audit"]) == 0
    assert main(["train", "--reward_funcs", "sentiment", "--audit_funcs", "local,audit"]) == 0
    assert seen == [["local", "audit"]] * 4
    assert RewardOptions(audit_funcs=["none"]).audit_funcs == RewardOptions(audit_funcs=[]).audit_funcs == []
    assert RewardOptions(audit_funcs="null").audit_funcs is RewardOptions().audit_funcs is None
    assert settings(tmp_path, audit_funcs=[toxic_terms]).audit_funcs == [toxic_terms]


def test_a_dry_run_counts_auditors_in_evaluations_only():
    n = Counts(
        prompts=1, iterations=2, steps=1, batch=1, per_iteration=50, evaluations=2, eval_prompts=5, evaluated=10
    )
    assert scorer_calls(TrainOptions(), n) == "120"  # 110 by local, 10 by audit
    assert scorer_calls(TrainOptions(audit_funcs=["none"]), n) == "110"


def test_a_dry_run_counts_the_requests_of_remote_auditors(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "key")
    n = Counts(
        prompts=1, iterations=1, steps=1, batch=1, per_iteration=100, evaluations=1, eval_prompts=36, evaluated=36
    )
    told = scorer_calls(TrainOptions(reward_funcs=["length"], audit_funcs=["perspective"], rate_limit=1.0), n)
    assert told == "172; 36 of them remote, 0.0 hours at 1 a second"


# ---- a run --------------------------------------------------------------------------------------------------------


def restless(completions, **kwargs):
    """An auditor that draws from every global random state."""
    return [random.random() + np.random.random() + float(torch.rand(1)) for _ in completions]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    make(folder, audit_funcs=["length", restless], num_completions_to_print=1).train()
    return folder


def test_each_evaluation_logs_the_auditors_and_no_rollout_knows_them(audited):
    evaluations = [row for row in lines(audited) if "eval_reward" in row]
    assert len(evaluations) == 2
    for row in evaluations:
        assert {"eval_reward/length@1", "eval_reward/restless", "eval_unscored/length@1"} <= row.keys()
    assert not any("length@1" in name for row in lines(audited) if "eval_reward" not in row for name in row)
    for path in (audited / "rollouts").rglob("*.json*"):
        assert "restless" not in path.read_text() and "length@1" not in path.read_text(), path


def test_they_change_no_bit_of_the_run(audited, tmp_path):
    """The trap: an auditor that draws random numbers moves the dropout of later steps."""
    make(tmp_path).train()
    assert same(weights(audited), weights(tmp_path))


def test_the_run_records_them_and_its_checkpoints_what_they_said(audited):
    config, facts = (yaml.safe_load((audited / name).read_text()) for name in ("config.yaml", "run.json"))
    assert config["audit_funcs"] == ["length", f"{__name__}:restless"]
    assert facts["auditors"] == ["length@1", "restless"] and facts["rewards"] == ["vowels"]
    seen = loop_state(audited / "checkpoint-6")["audited"]["seen"]
    assert [list(each) for each in seen] == [["reward", "length@1", "restless"]] * 2


def test_a_run_resumes_under_other_auditors(audited, tmp_path):
    """They change no result; and a checkpoint of an earlier version says nothing of them."""
    make(tmp_path, audit_funcs=["length"], num_train_epochs=1, lr_scheduler_type="constant").train()
    marker = tmp_path / "checkpoint-3/nlf.json"
    state = json.loads(marker.read_text())
    state.pop("audited")
    marker.write_text(json.dumps(state))
    make(tmp_path, lr_scheduler_type="constant").train(resume_from_checkpoint=True)
    assert [row["step"] for row in lines(tmp_path) if "eval_reward" in row] == [3, 6]


def test_an_auditor_chooses_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="metric_for_best_model 'reward/length@1' is an auditor's"):
        make(
            tmp_path, audit_funcs=["length"], load_best_model_at_end=True,
            metric_for_best_model="eval_reward/length@1", greater_is_better=True,
        )  # fmt: skip


def test_the_random_states_are_restored_after_a_failure_too():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(ValueError, match="stop"), kept_random_state():
        restless(["a", "b"])
        raise ValueError("stop")
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
