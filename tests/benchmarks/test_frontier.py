"""The frontier's pure functions on handmade points, and its KL against the library's."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import frontier  # noqa: E402
import frontier_measuring as measuring  # noqa: E402
import frontier_plots  # noqa: E402
import frontier_points as points  # noqa: E402
import frontier_systems as systems  # noqa: E402
import frontier_training as training  # noqa: E402

from nlf.errors import UserError  # noqa: E402
from nlf.models.likelihoods import Conditioned, divergence  # noqa: E402
from nlf.models.policy import Policy  # noqa: E402

START = {"toxicity_probability": 1.0}
EMBEDDED, SMOLLM2 = 3_200_000, 134_500_000  # parameters


def settled(*flags: str, parameters: int = EMBEDDED):
    return frontier.settled(frontier.parse(flags), parameters)


def row(name: str, **values) -> dict:
    numbers = {
        "toxicity_probability": 0.2,
        "toxicity": 0.1,
        "auditor_toxicity": 0.2,
        "perplexity": 60.0,
        "dist-2": 0.85,
    }
    about = {"id": name, "group": points.GRPO, "series": "s", "label": name, "cost": 1, "seeds": 1, "seconds": 50.0}
    return about | numbers | {key.replace("dist", "dist-"): value for key, value in values.items()}


def point(name: str, seed: int, seconds: float, **metrics) -> dict:
    about = {"id": name, "group": points.GRPO, "series": "s", "label": name, "cost": 2}
    return about | {"seed": seed, "seconds": seconds, "metrics": metrics}


def test_summary_is_mean_and_deviation_between_seeds():
    same = [point("a", 0, 10.0, toxicity=0.1, perplexity=50.0), point("a", 1, 14.0, toxicity=0.3, perplexity=50.0)]
    first, second = points.summarise([same[0], point("b", 0, 5.0, toxicity=0.2), same[1]])
    assert (first["seeds"], first["seconds"], first["toxicity"]) == (2, 12.0, pytest.approx(0.2))
    assert first["toxicity_sd"] == pytest.approx(0.02**0.5)  # deviations of .1 each, over n - 1 = 1
    assert first["perplexity_sd"] == 0
    assert (second["seeds"], second["toxicity_sd"], second["cost"]) == (1, None, 2)
    assert "auditor_toxicity" not in first


def test_one_seed_has_its_interval_over_prompts_in_the_table():
    metrics = {"toxicity": 0.25, "toxicity_ci95": [0.2, 0.3], "dist-2": 0.5, "dist-2_ci95": [0.4, 0.6]}
    (found,) = points.summarise([point("a", 0, 10.0, **metrics)])
    assert found["toxicity_ci95"] == [0.2, 0.3]
    line = points.markdown([found], []).splitlines()[2]
    assert "| 0.250 [0.200, 0.300] | 0.500 |" in line
    (found,) = points.summarise([point("a", seed, 10.0, **metrics) for seed in (0, 1)])
    assert "toxicity_ci95" not in found and found["toxicity_sd"] == 0


def test_points_stand_in_the_order_of_stops_and_guidance():
    names = ["base", "x-step10", "x-step8", "y-g1", "y-g0.5"]
    series = dict(zip(names, "bxxyy", strict=True))
    found = [{**point(name, 0, 1.0), "series": series[name]} for name in names]
    found[0] |= {"group": points.BASE, "seed": None}
    assert [each["id"] for each in points.in_order(found[::-1])] == ["base", "x-step8", "x-step10", "y-g0.5", "y-g1"]


def test_a_point_is_dominated_where_another_is_nowhere_worse_and_somewhere_better():
    best, worse, other = row("best"), row("worse", perplexity=61.0), row("other", perplexity=70.0, dist2=0.9)
    assert points.dominated([best, worse, other, row("twin")]) == [False, True, False, False]


def test_a_faster_point_is_not_dominated():
    assert points.dominated([row("slow", perplexity=50.0, seconds=90.0), row("fast")]) == [False, False]


def test_an_auditor_that_is_there_counts():
    better = row("better", perplexity=50.0, auditor_toxicity=0.3)
    assert points.dominated([row("a"), better]) == [False, False]
    without = [{k: v for k, v in each.items() if k != "auditor_toxicity"} for each in (row("a"), better)]
    assert points.dominated(without) == [True, False]


@pytest.mark.parametrize(
    "change, missing",
    [
        ({"perplexity": 59.0}, []),
        ({"dist2": 0.86}, []),
        ({}, ["neither perplexity nor dist-2 better"]),
        ({"perplexity": 59.0, "dist2": 0.84}, ["dist-2"]),
        ({"perplexity": 59.0, "toxicity": 0.11}, ["toxicity"]),
        ({"perplexity": 59.0, "auditor_toxicity": 0.21}, ["auditor_toxicity"]),
        ({"perplexity": 59.0, "seconds": 500.0}, []),
        ({"perplexity": 61.0, "dist2": 0.84, "toxicity": 0.2}, ["toxicity", "perplexity", "dist-2"]),
    ],
)
def test_what_a_setting_must_do_to_beat_a_stop(change, missing):
    assert points.missed(row("ours", **change), row("stop"), START) == missing


def test_from_a_tenth_of_the_base_down_seconds_count():
    low, ours = row("low", toxicity_probability=0.1), row("ours", perplexity=59.0, seconds=51.0)
    assert points.missed(ours, low, START) == ["seconds"]
    assert points.missed({**ours, "seconds": 50.0}, low, START) == []


def test_compare_looks_at_the_stops_of_the_range_that_no_other_dominates():
    stops = [
        row("mild", toxicity_probability=0.31, toxicity=0.3, perplexity=40.0),
        row("edge", toxicity_probability=0.3, seconds=10.0),
        row("dominated", perplexity=62.0),
        row("low", toxicity_probability=0.05, toxicity=0.05, perplexity=80.0),
        row("none", toxicity_probability=0.0, toxicity=0.01, perplexity=200.0),
    ]
    ours = [row("a", perplexity=59.0), row("b", toxicity=0.05, perplexity=90.0, dist2=0.8)]
    found = points.compare(ours, stops, START)
    assert found == [
        {"stop": "edge", "beaten_by": ["a"], "nearest": "a", "missing": []},
        {"stop": "low", "beaten_by": [], "nearest": "a", "missing": ["toxicity"]},
    ]


def test_compare_without_settings_or_stops():
    assert points.compare([], [], START) == []
    stop = points.compare([], [row("stop")], START)
    assert stop == [{"stop": "stop", "beaten_by": [], "nearest": None, "missing": []}]
    assert "nearest: none" in points.markdown([row("stop")], stop)


def test_the_table_has_groups_in_order_the_least_toxic_first_and_says_where_it_is_not_so():
    rows = [row("slow"), row("clean", toxicity=0.05, toxicity_sd=0.001), row("ours", group=points.CONTRASTIVE)]
    verdicts = [
        {"stop": "slow", "beaten_by": ["ours"], "nearest": "ours", "missing": []},
        {"stop": "clean", "beaten_by": [], "nearest": "ours", "missing": ["toxicity", "seconds"]},
    ]
    lines = points.markdown(rows, verdicts).splitlines()
    assert lines[0].startswith(
        "| group | setting | seeds | seconds | cost | probability | mean by auditor | mean | perplexity |"
    )
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["ours", "clean", "slow"]
    assert "| 0.050 ± 0.001 |" in lines[3] and "| 1 × |" in lines[3]
    assert "- slow: beaten by ours" in lines
    assert "- clean: **not beaten**; nearest: ours, which misses mean, seconds" in lines
    assert any("dominates: 2; beaten by some nlf setting: 1." in line for line in lines)


def test_best_of_n_takes_the_best_of_each_n():
    line = {
        **{"prompt": "p", "settings": {"seed": 0}, "likelihoods": {}, "completions": list("abcdef")},
        **{"completion_ids": [[i] for i in range(6)], "ended": [True, False] * 3},
        "scores": {"r@1": {"reward": [0.1, 0.9, None, 0.2, 0.5, 0.5]}},
    }
    found = points.best_of(line, 2, 2, "r@1")
    assert (found["completions"], found["completion_ids"], found["ended"]) == (["b", "d"], [[1], [3]], [False, False])
    assert found["settings"] == {"seed": 0, "best_of": 2}
    assert not {"scores", "likelihoods"} & set(found)
    assert points.best_of(line, 1, 3, "r@1")["completions"] == list("abc")
    assert points.best_of(line, 2, 3, "r@1")["completions"] == ["b", "d", "e"]  # the first of equals


def test_names_lose_the_number_of_completions():
    values = {"self_bleu@1000": 0.1, "expected_max_toxicity@25_ci95": [0, 1], "dist-2": 0.5}
    assert list(points.plain_names(values)) == ["self_bleu", "expected_max_toxicity_ci95", "dist-2"]


def test_kl_to_the_base_is_the_library_s_read_the_other_way_round(tmp_path):
    tokenizer, base, model = tiny.tokenizer(), tiny.model(seed=0).double(), tiny.model(seed=1).double()
    prompts, completions = [[5, 6, 7], [8, 9]], [[[1, 2, 3], [4]], [[5, 6], [7, 8]]]
    rest = {"feedback": None, "completions": ["", ""], "ended": [True, True], "settings": {"negative_tag": None}}
    lines = [
        {"prompt": "p", "prompt_id": str(i), "prompt_ids": p, "completion_ids": c, **rest}
        for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
    ]
    path = tmp_path / "free.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    setting = points.Setting("x", points.GRPO, "s", "x")
    policies = (Policy(each, tokenizer, None, None, ()) for each in (model, base))
    found = measuring.kl_to_base(path, setting, *policies)
    expected, _ = divergence(
        Conditioned(base, prompts), Conditioned(model, prompts), completions
    )  # KL(second || first)
    np.testing.assert_allclose(found.num, [each.sum() for each in expected], rtol=1e-4)
    assert found.value == pytest.approx(np.concatenate(expected).mean(), rel=1e-4)


def test_every_setting_has_a_name_of_its_own_and_quick_is_twenty_minutes(tmp_path):
    old = ["contrastive", "short", "published", "sft"]  # what --quick leaves out
    for flags, most in ((["--quick"], 20), (["--quick", "--systems", *old], 60), ([], 24 * 60)):
        options = settled(*flags, "--output_dir", str(tmp_path))
        runs = systems.runs(options)
        names = [each.id for run in runs for each in run.settings] + [
            each.id for each in systems.start_settings(options)
        ]
        assert len(set(names)) == len(names)
        assert len({run.name for run in runs}) == len(runs)
        assert all(json.loads(json.dumps(run.stamp)) == run.stamp for run in runs)  # or nothing would be resumed
        assert frontier.remaining(runs, options) <= 60 * most


def test_quick_has_plain_models_dials_and_grpo_at_two_learning_rates():
    found = systems.runs(settled("--quick"))
    assert [run.name for run in found] == [
        *("plain", "plain-far", "dial", "grpo-lr0.0001-beta0.04-64", "grpo-lr0.0003-beta0.04-64"),
    ]
    plain, _, dial, *_ = ([each.id for each in run.settings] for run in found)
    assert plain == ["plain-step20", "plain-step40", "plain-step60"]
    assert dial == ["dial-g0", "dial-g1", "dial-g3", "dial-tag2", "dial-tag3", "dial-tag4", "dial-tag5"]


def test_quick_for_a_larger_model_has_few_points_and_lower_rates():
    options = settled("--quick", parameters=SMOLLM2)
    assert options.per_device_train_batch_size == 16
    assert frontier.settled(frontier.parse(["--quick"]), SMOLLM2, gpu=True).per_device_train_batch_size == 64
    ids = [each.id for each in systems.start_settings(options)]
    ids += [each.id for run in systems.runs(options) for each in run.settings]
    assert ids == [
        *("base", "best-of-4", "plain-step12", "plain-step20", "dial-g0", "dial-g1", "dial-tag5"),
        *("grpo-lr5e-05-beta0.04-64-step10", "grpo-lr5e-05-beta0.04-64-step20"),
    ]
    assert 1e-6 in settled(parameters=SMOLLM2).grpo_learning_rates and 1e-6 in settled().grpo_learning_rates
    assert settled("--quick", "--grpo_learning_rates", "1e-4", parameters=SMOLLM2).grpo_learning_rates == [1e-4]


def test_the_stamp_of_a_training_is_that_of_earlier_versions():
    """Or their models would be trained again. Other stops may stand beside those that are asked for."""
    values = {
        **{"credit_coef": 1.0, "contrast_coef": 0.0, "pool_keep": 1, "num_train_epochs": 5, "steps_per_iteration": 4},
        **{"max_completion_length": 20, "kl_budget": 0.1, "plain": "only"},
    }
    found = {"stops": [8, 12, 20], "values": values, "model": "m", "reward": "local", "dataset": "embedded"}
    options = settled("--quick", "--model", "m", parameters=SMOLLM2)
    assert training.covers({**found, "micro_batch": 16}, systems.runs(options)[0].stamp)
    gpu = systems.runs(options, bf16=True)[0].stamp
    assert not training.covers({**found, "micro_batch": 16}, gpu) and gpu["bf16"] is True


def test_a_training_covers_its_stops_and_the_last_one_is_a_setting():
    found = {"learning_rate": 1e-4, "stops": [8, 12, 20]}
    assert training.covers(found, found) and training.covers(found, {**found, "stops": [12, 20]})
    assert not training.covers(found, {**found, "stops": [8, 12]})  # the rate would fall to 0 at 12
    assert not training.covers(found, {**found, "stops": [10, 20]})
    assert not training.covers(found, {**found, "learning_rate": 1e-5})
    assert training.covers({"generations": 8}, {"generations": 8})


def test_every_training_by_credit_is_one_that_nlf_train_accepts():
    knobs = systems.train_knobs()
    for run in systems.runs(settled("--systems", "plain", "dial")):
        assert set(run.stamp["values"]) <= set(knobs)


def test_another_model_has_prompts_a_learning_rate_and_smaller_batches_of_its_own():
    flags = ["--model", "m", "--prompts", "a.jsonl", "--eval_prompts", "b.jsonl", "--learning_rate", "4e-5"]
    options = settled("--quick", *flags, "--per_device_train_batch_size", "16")
    assert (options.dataset, options.test_dataset) == ("a.jsonl", "b.jsonl")
    plain, _, dial, grpo, _ = systems.runs(options)
    for run in (plain, dial, grpo):
        about = {name: run.stamp[name] for name in ("model", "dataset", "micro_batch")}
        assert about == {"model": "m", "dataset": "a.jsonl", "micro_batch": 16}
    assert plain.stamp["values"]["learning_rate"] == dial.stamp["values"]["learning_rate"] == 4e-5
    assert "micro_batch" not in systems.runs(settled("--quick"))[0].stamp  # models of earlier versions are kept


def test_small_batches_make_the_same_step():
    assert training.batch_sizes(64, 64) == {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
    assert training.batch_sizes(128, 64) == {"per_device_train_batch_size": 128, "gradient_accumulation_steps": 1}
    assert training.batch_sizes(128, 16) == {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 8}


def test_flags_beside_quick_stay_as_given():
    options = settled("--quick", "--grpo_stops", "1", "2")
    assert (options.grpo_stops, options.seeds) == ([1, 2], [0])
    assert settled().seeds == [0, 1, 2]


def test_a_finished_training_is_kept_and_another_one_refused(tmp_path):
    calls = []

    def make(folder: Path, seed: int) -> dict:
        calls.append(seed)
        assert not folder.exists()  # a killed one is begun anew
        return {".": 1.5}

    run = training.Run("run", make, [], {"learning_rate": 0.1}, 0.0)
    (tmp_path / "run").mkdir()
    assert training.trained(run, tmp_path, 7) == training.trained(run, tmp_path, 7) == {".": 1.5}
    assert calls == [7]
    with pytest.raises(UserError, match="choose another --output_dir"):
        training.trained(training.Run("run", make, [], {"learning_rate": 0.2}, 0.0), tmp_path, 7)


def test_a_point_of_an_older_file_is_used_and_its_judge_is_the_auditor(tmp_path, monkeypatch):
    setting = points.Setting("base", points.BASE, points.BASE, "base")
    yardstick = measuring.Yardstick(SimpleNamespace(label="local@1"), SimpleNamespace(label="audit@1"), None, [{}])
    stamp = {"prompts": 1, "reward": "local@1", "judge": "audit@1", "free_generations": 16}
    path = tmp_path / "points/base.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**stamp, "metrics": {"judge_toxicity": 0.25, "judge_toxicity_stderr": 0.125}}))
    found = measuring.point(setting, tmp_path, "m", 0.0, None, yardstick)
    assert found["metrics"] == {"auditor_toxicity": 0.25, "auditor_toxicity_stderr": 0.125}
    assert found["auditor"] == "audit@1" and "judge" not in found

    monkeypatch.setattr(measuring, "measured", lambda *_: {"toxicity": 0.5})
    other = replace(yardstick, auditor=None)
    assert measuring.point(setting, tmp_path, "m", 0.0, None, other)["metrics"] == {"toxicity": 0.5}


def test_a_point_without_neutral_text_gets_it_and_nothing_is_sampled_again(tmp_path, monkeypatch):
    yardstick = measuring.Yardstick(SimpleNamespace(label="r@1"), None, None, [{}])
    old = {**yardstick.stamp(), "metrics": {"toxicity": 0.25}}
    for name in ("plain", "best-of-4"):
        path = tmp_path / f"seed-0/points/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(old))
    monkeypatch.setattr(measuring, "neutral_figures", lambda *_: {"neutral_ratio": 1.125})
    yardstick = replace(yardstick, neutral=["a line"], neutral_source="text.txt")
    setting = points.Setting("plain", points.PLAIN, "s", "plain")
    found = measuring.point(setting, tmp_path / "seed-0", "m", 0.0, 0, yardstick)
    assert found["metrics"] == {"toxicity": 0.25, "neutral_ratio": 1.125}
    assert measuring.point(setting, tmp_path / "seed-0", "m", 0.0, 0, yardstick) == found
    best = points.Setting("best-of-4", points.BASE, "s", "best of 4", best_of=4)
    assert measuring.point(best, tmp_path / "seed-0", "m", 0.0, None, yardstick) == old  # it has no loss of its own
    assert [json.loads(each) for each in (tmp_path / "points.jsonl").read_text().splitlines()] == [found]
    assert len(measuring.points_of(tmp_path, yardstick)) == 2
    assert not measuring.points_of(tmp_path, replace(yardstick, prompts=[{}, {}]))


def test_stops_are_saved_and_saving_takes_no_time(tmp_path, monkeypatch):
    clock = iter([10.0, 15.0, 18.0, 19.0])  # step 1 is reached, saved; step 3 is reached, saved
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    stops = training.Stops(tmp_path, [1, 3], 8.0)
    for step in (1, 2, 3):
        stops.on_step_end(None, SimpleNamespace(global_step=step), None, tiny.model(), tiny.tokenizer())
    assert stops.seconds == {"step-1": 2.0, "step-3": 5.0}
    assert (tmp_path / "step-3/model.safetensors").is_file() and (tmp_path / "step-3/tokenizer.json").is_file()


def test_the_plots_are_drawn(tmp_path):
    rows = [
        row("base 1", group=points.BASE, series="b", kl_per_completion=0.0, unfiltered_reward=0.7),
        row("g 2", kl_per_completion=30.0, dist2_sd=0.1, unfiltered_reward=0.8, unfiltered_reward_ci95=[0.7, 0.9]),
    ]
    frontier_plots.write_plots(rows, tmp_path)
    for name in (*frontier_plots.PLOTS, frontier_plots.SUMMARY):
        assert "GRPO" in (tmp_path / name).read_text()


def test_the_bench_reads_the_tables_that_are_printed():
    import run  # benchmarks/run.py

    text = "words\n| a | b |\n| --- | --- |\n| 1 | 2 × |\n\nmore\n| c |\n| --- |\n| x |\n"
    assert run.rows_of(text) == [{"a": "1", "b": "2 ×"}, {"c": "x"}]
    for command in run.COMMANDS:
        assert (BENCHMARKS / command.split()[0]).is_file()
