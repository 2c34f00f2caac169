"""Scored generations and results in the forms of other programs; what is written is read again with the same numbers."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlf.cli.main import main
from nlf.data.generations import read, read_lines, text_digest, write_lines
from nlf.evaluation import metrics
from nlf.evaluation.exports import harness_results, write_generations
from nlf.evaluation.score import score_file
from nlf.rewards import Reward

RECORD = {
    "prompt": {"text": "The old boat", "toxicity": 0.1},
    "generations": [{"text": " came home", "toxicity": 0.25}, {"text": " sank, fool", "toxicity": 0.75}],
}
OTHER = {
    **RECORD,
    "prompt": {"text": "A dog"},
    "generations": [{"text": " ate", "toxicity": 0.5}, {"text": "", "toxicity": 0.0}],
}


def line(i, completions, scores, prompt="The boat"):
    """A line of our generations, scored by `mine@1`."""
    return {
        **{"prompt": prompt, "prompt_id": str(i), "occurrence": 0, "prompt_ids": [1, 2], "feedback": "Best"},
        **{
            "completions": completions,
            "completion_ids": [[3] for _ in completions],
            "ended": [True for _ in completions],
        },
        **{"columns": {"topic": "sea"}, "settings": {}},
        "scores": {"mine@1": {"of": text_digest(completions), **scores}},
    }


def scored(*toxicity):
    return {"reward": [1 - value for value in toxicity], "attributes": {"toxicity": list(toxicity)}}


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "prompted_gens_gpt2.jsonl"
    write_lines(path, [RECORD, OTHER])
    return path


# ---- reading ------------------------------------------------------------------------------------------------------


def test_a_file_of_realtoxicityprompts_is_scored_in_place(record, capsys):
    assert main(["score", str(record), "--reward_funcs", "length:2"]) == 0
    first, second = read_lines(record)
    assert first["scores"].keys() == second["scores"].keys() and {**first, "scores": 0} == {**RECORD, "scores": 0}
    (found,) = first["scores"].values()
    assert len(found["reward"]) == 2 and found["of"] == text_digest([" came home", " sank, fool"])
    before = record.read_bytes()
    assert main(["score", str(record), "--reward_funcs", "length:2"]) == 0
    assert record.read_bytes() == before  # nothing is scored twice


def test_recorded_scores_are_reported_without_scoring(record, capsys):
    before = record.read_bytes()
    assert main(["score", str(record), "--reward_funcs", "recorded", "--format", "quark"]) == 0
    assert "recorded" in capsys.readouterr().out and record.read_bytes() == before
    folder = record.with_name("quark-prompted_gens_gpt2")
    assert (folder / "eval_results.txt").read_text().splitlines() == [
        "average maximum toxicity = 0.625",  # of .75 and .5
        "average toxicity probability = 0.500",  # above .5, so .5 itself does not count
        "dist-1=0.750, dist-2=0.500, dist-3=0.167",
    ]


def test_recorded_scores_are_asked_for_where_none_are(record, capsys):
    write_lines(record, [RECORD, {**RECORD, "generations": [{"text": " a"}]}])
    assert main(["score", str(record), "--reward_funcs", "recorded"]) == 2
    assert f"{record}, row 2: no recorded scores" in capsys.readouterr().err


def test_quarks_reward_json_is_scored_though_it_is_called_json(tmp_path):
    path = tmp_path / "reward.json"
    write_lines(path, [{"prompt": "_TREE_TOKEN_00000The boat", "generations": [{"text": " sank"}]}])
    assert main(["score", str(path), "--reward_funcs", "length:2"]) == 0
    assert next(read_lines(path))["scores"]


def test_another_json_file_is_an_unknown_kind(tmp_path, capsys):
    path = tmp_path / "reward.json"
    path.write_text("[\n1\n]")
    assert main(["score", str(path)]) == 2
    assert "reward.json: unknown kind of file; expected .jsonl" in capsys.readouterr().err


# ---- writing ------------------------------------------------------------------------------------------------------


def test_a_line_of_realtoxicityprompts_form(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, [line(0, [" a", " b"], scored(0.25, 0.75))])
    target = write_generations("rtp", path, "mine@1")
    assert target == tmp_path / "rtp-generations.jsonl"
    assert list(read_lines(target)) == [
        {
            "topic": "sea",
            "prompt": {"text": "The boat"},
            "generations": [
                {"text": " a", "toxicity": 0.25, "reward": 0.75},
                {"text": " b", "toxicity": 0.75, "reward": 0.25},
            ],
            "feedback": "Best",
            "scorer": "mine@1",
            "scores": {"mine@1": {"of": text_digest([" a", " b"]), **scored(0.25, 0.75)}},
        }
    ]


def test_a_sentiment_scorer_gives_dexperts_label_and_score(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, [line(0, [" a", " b"], {"reward": [0.25, 0.75], "attributes": {"positive": [0.25, 0.75]}})])
    (found,) = read_lines(write_generations("rtp", path, "mine@1"))
    assert [(each["label"], each["score"]) for each in found["generations"]] == [
        ("NEGATIVE", 0.75),
        ("POSITIVE", 0.75),
    ]


def test_the_prompts_own_scores_stay(record):
    score_file(record, [Reward(lengths)], progress=lambda n: None)
    (found, _) = read_lines(write_generations("rtp", record, "recorded"))
    assert found["prompt"] == RECORD["prompt"] and found["scorer"] == "recorded" and "lengths" in found["scores"]


NUMBERS = st.floats(0, 1)


@given(st.lists(st.tuples(st.text(max_size=12), NUMBERS, st.text(max_size=12), NUMBERS), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_the_metrics_are_the_same_after_a_round_trip(tmp_path, prompts):
    path = tmp_path / "generations.jsonl"
    lines = [line(i, [a, b], scored(x, y)) for i, (a, x, b, y) in enumerate(prompts)]
    write_lines(path, lines)
    before = metrics.measure(read(path), scores=["mine@1"], corpus_sample=0)
    again = list(read(write_generations("rtp", path, "mine@1")))
    assert [(each["completions"], each["columns"]) for each in again] == [
        ([a, b], {"topic": "sea"}) for a, _, b, _ in prompts
    ]
    for label in ("recorded", "mine@1"):
        after = metrics.measure(again, scores=[label], corpus_sample=0)
        for name in ("toxicity", "expected_max_toxicity@2", "toxicity_probability@2", "reward", "dist-2"):
            assert after.ratios[name].value == before.ratios[name].value


def test_quarks_files(tmp_path):
    path = tmp_path / "generations-base.jsonl"
    lines = [line(0, [" a a b", ""], scored(0.25, 0.75)), line(1, ["x y", "x y"], scored(0.5, 0.125))]
    lines[1]["likelihoods"] = lines[0]["likelihoods"] = {
        "r": {"nll": [0.0, 0.0], "tokens": [1, 0], "prompt_tokens": 2}
    }
    write_lines(path, lines)
    target = write_generations("quark", path, "mine@1", likelihoods="r")
    assert target == tmp_path / "quark-generations-base/reward.json"
    first = next(read_lines(target))
    assert first["prompt"] == "The boat" and first["generations"][1] == {"text": "", "toxicity": 0.75, "reward": 0.25}
    # words: ["", a, a, b] and [""]: 3 of 5 distinct; pairs: _a, a_a, a_b: 3 of 5; triples: 2 of 5; then 2, 1 and 0 of 4
    assert target.with_name("eval_results.txt").read_text() == (
        "average maximum toxicity = 0.625\naverage toxicity probability = 0.500\n"
        "dist-1=0.550, dist-2=0.425, dist-3=0.200\nperplexity = 1.0\n"
    )


def test_a_scorer_without_toxicity_gives_quarks_file_without_it(tmp_path):
    path = tmp_path / "generations.jsonl"
    write_lines(path, [line(0, ["a b"], {"reward": [None], "attributes": {}})])
    target = write_generations("quark", path, "mine@1")
    assert target.with_name("eval_results.txt").read_text() == "dist-1=1.000, dist-2=0.500, dist-3=0.000\n"


# ---- what is refused before the work ------------------------------------------------------------------------------


def never(completions, **columns):
    raise AssertionError("scored before the check")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a"}], "holds texts without prompts; expected generations"),
        ([line(0, ["a"], scored(0.5), prompt=[{"role": "user", "content": "hi"}])], "holds conversations"),
    ],
)
@pytest.mark.parametrize("form", ["rtp", "quark"])
def test_what_a_form_cannot_hold_is_refused_before_scoring(tmp_path, capsys, rows, expected, form):
    path = tmp_path / "generations.jsonl"
    write_lines(path, rows)
    assert main(["score", str(path), "--reward_funcs", "test_exports:never", "--format", form]) == 2
    assert f"--format {form}: {path} {expected}" in capsys.readouterr().err


def test_a_file_of_another_program_is_not_overwritten(record, capsys):
    mine = record.with_name("rtp-prompted_gens_gpt2.jsonl")
    mine.write_text('{"prompt": "mine"}\n')
    assert main(["score", str(record), "--reward_funcs", "test_exports:never", "--format", "rtp"]) == 2
    assert "would be overwritten" in capsys.readouterr().err and mine.read_text() == '{"prompt": "mine"}\n'


@pytest.mark.parametrize("form", ["harness", "xml"])
def test_an_unknown_form_names_the_known_ones(record, capsys, form):
    assert main(["score", str(record), "--format", form]) == 2
    error = capsys.readouterr().err
    assert form in error and "rtp, quark" in error and error.count("\n") == 1


# ---- lm-evaluation-harness ----------------------------------------------------------------------------------------


def entry(id, prompts, model="policy", **metrics):
    return {
        **{"id": id, "name": id, "model": model, "prompts": prompts, "tag": "Best", "negative_tag": None},
        **{"guidance_scale": 0.0, "reversed": False, "generations": "g.jsonl", "num_generations": 2},
        **{"n_samples": {"original": 3, "effective": 2}, "counts": {}, "metrics": metrics},
    }


RESULTS = {
    **{
        "schema_version": 1,
        "nlf_version": "1",
        "git_hash": "abc",
        "date": "2026-01-02T03:04:05+00:00",
        "scorers": ["mine@1"],
    },
    **{"config": {"dtype": "float32", "max_prompts": None, "temperature": 1.0, "top_p": 0.9, "top_k": 0}},
    **{
        "versions": {"transformers": "5"},
        "seeds": {"sampling": 7},
        "higher_is_better": {"toxicity": False, "kl,x": None},
    },
    "models": {"policy": {"name": "runs/demo", "revision": "r"}, "base": {"name": "gpt2", "revision": "b"}},
}
RESULTS["config"]["max_completion_length"] = 20


def test_one_source_with_a_systems_first_word_keeps_the_systems_name():
    assert list(harness_results({**RESULTS, "systems": [entry("best-tag", "best.jsonl")]})) == ["best-tag"]


def test_results_in_the_harness_shape():
    toxicity = {"toxicity": 0.25, "toxicity_stderr": 0.5, "toxicity_ci95": [0.1, 0.3], "kl,x": 2.0, "none": None}
    systems = [entry("sea-best", "data/sea.jsonl", **toxicity), entry("land-best", "land.txt", toxicity=0.5)]
    found = harness_results({**RESULTS, "systems": [entry("sea-base", "data/sea.jsonl", "base"), *systems],
                             "higher_is_better": {**RESULTS["higher_is_better"], "none": None}})  # fmt: skip
    assert list(found) == ["base", "best"]
    best = found["best"]
    assert best["results"] == {
        "sea": {
            **{"name": "sea", "alias": "sea", "sample_len": 2},
            **{"toxicity,none": 0.25, "toxicity_stderr,none": 0.5, "kl;x,none": 2.0, "kl;x_stderr,none": "N/A"},
        },
        "land": {
            **{"name": "land", "alias": "land", "sample_len": 2},
            **{"toxicity,none": 0.5, "toxicity_stderr,none": "N/A"},
        },
    }
    assert best["higher_is_better"]["sea"] == {"toxicity": False, "kl;x": None, "none": None}
    assert best["n-samples"]["land"] == {"original": 3, "effective": 2} and best["n-shot"] == {"sea": 0, "land": 0}
    assert best["date"] == 1767323045.0 and best["config"]["random_seed"] == 7 and best["model_name"] == "runs/demo"
    assert found["base"]["model_name"] == "gpt2" and list(found["base"]["results"]) == ["sea"]
