"""The share of completions without a score stands in every table, and a line warns above 2 %."""

import json

import pytest
import tiny

from nlf.cli.main import main
from nlf.config import ScoreOptions
from nlf.evaluation import metrics
from nlf.evaluation.evaluate import comparison, differences_to_first, with_intervals
from nlf.evaluation.score import score_command
from nlf.evaluation.unscored import of_systems, warning

SCORER = """
class Scorer:
    name, version, none_is_worst = "mine", 1, True
    def __call__(self, completions, **kwargs):
        return [None if "ß" in text or {mute} else 0.5 for text in completions]
    def attributes(self, texts):
        return {{"toxicity": [float("nan") if "ß" in text or {mute} else 0.5 for text in texts]}}
"""


def test_two_percent_needs_no_warning_and_more_does():
    assert warning("local@1", 2, 100) is None and warning("local@1", 60, 3000) is None
    assert warning("local@1", 0, 0) is None
    assert warning("local@1", 61, 3000).startswith(
        "warning: local@1 could not score 61 of 3,000 completions (2.0 %): "
    )


@pytest.mark.parametrize("unscored", [2, 3])
def test_the_table_of_scores_has_the_share(tmp_path, monkeypatch, unscored):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SCORER.format(mute=False))
    texts = [{"text": "weiß" if i < unscored else "white"} for i in range(100)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    said = score_command(ScoreOptions(path="t.jsonl", reward_funcs=["mine.py:Scorer"], batch_size=50))
    assert f"{unscored} ({unscored}.0 %)" in said.splitlines()[2] and said.splitlines()[2].split()[-1] == "0.5"
    assert ("warning: mine@1 could not score 3 of 100 texts" in said) == (unscored == 3)


def line(toxicity, number):
    """A prompt with completions of these toxicities by `local@1`."""
    scores = {"reward": [None if t is None else 1 - t for t in toxicity], "attributes": {"toxicity": toxicity}}
    ids = [[1]] * len(toxicity)
    texts = {"completions": ["a"] * len(toxicity), "completion_ids": ids, "ended": [True] * len(toxicity)}
    return {"prompt": "p", "prompt_id": str(number), "prompt_ids": [1, 2], **texts, "scores": {"local@1": scores}}


def entry(name, *lines):
    """A system of `results.json`, with the numbers that it was made from."""
    found = metrics.measure([line(each, i) for i, each in enumerate(lines)], scores=["local@1"])
    about = {"id": name, "name": name, "tag": None, "prompts": "x", "reversed": False}
    numbers = {"num_generations": 2, "n_samples": {"effective": 2}}
    return {**about, **numbers, "counts": found.counts, "metrics": with_intervals(found)}, found


def test_a_model_that_writes_what_cannot_be_scored_does_not_look_clean():
    """The trap: nothing is toxic where nothing is scored."""
    base = entry("base", [0.9, 0.1], [0.2, 0.4])
    clean, partly = entry("clean", [None, None], [None, None]), entry("partly", [None, None], [0.3, None])
    systems = [each[0] for each in (base, clean, partly)]
    rows = [row.split(" | ") for row in comparison({"systems": systems}).splitlines()]
    assert rows[0][2:5] == ["toxicity probability", "expected max", "mean toxicity"] and rows[0][5] == "unscored"
    assert rows[3][2:5] == ["–"] * 3 and rows[3][5].startswith("1.000 ")
    assert rows[4][3].startswith("0.300 ") and rows[4][5].startswith("0.750 ")  # over the one prompt that has a score
    assert partly[0]["counts"]["unscored_prompts/local@1"] == 1
    assert [text.partition(" (")[0] for text in of_systems(systems, ["local@1"])] == [
        "warning: clean: local@1 could not score 4 of 4 completions",
        "warning: partly: local@1 could not score 3 of 4 completions",
    ]
    assert clean[0]["metrics"]["toxicity"] is clean[0]["metrics"]["expected_max_toxicity@2"] is None
    difference = differences_to_first([base, clean])[0]["metrics"]["toxicity"]
    assert difference["difference"] is None and difference["p_value"] is None


@pytest.mark.parametrize("mute", [True, False])
def test_the_command_shows_the_share_and_warns(tmp_path, monkeypatch, capsys, mute):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base", "llama")
    (tmp_path / "mine.py").write_text(SCORER.format(mute=mute))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS[:3]))
    flags = ["--num_generations", "2", "--max_completion_length", "3", "--reward_funcs", "mine.py:Scorer"]
    assert main(["evaluate", "--model", "base", "--prompts", "prompts.jsonl", "--output_dir", "out", *flags]) == 0
    table = capsys.readouterr().out.splitlines()
    assert " unscored |" in table[0] and (" 1.000 (1.000–1.000) |" if mute else " 0.000 (0.000–0.000) |") in table[2]
    assert any("warning: no tag: mine@1 could not score 6 of 6" in text for text in table) == mute
    values = json.loads((tmp_path / "out/results.json").read_text())["systems"][0]["metrics"]
    assert values["toxicity"] == (None if mute else 0.5) and values["unscored_fraction"] == float(mute)
