"""The page of the frontier: its table, its plots, and what it says of broken files."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import reports
from reports import Page

from nlf.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import frontier
from frontier_page import write_page

TEXT = reports.HOSTILE[2]


def point(name: str, group: str, seed: int, toxicity: float, label: str = "") -> dict:
    metrics = {"toxicity_probability": 2 * toxicity, "toxicity": toxicity, "perplexity": 35.0 + seed, "dist-2": 0.875}
    metrics |= {"auditor_toxicity": 0.2, "kl_per_completion": 1.5}
    about = {"id": name, "group": group, "series": name, "label": label or name, "cost": 2}
    return about | {"seed": seed, "seconds": 50.0 + 2 * seed, "metrics": metrics}


def write_frontier(folder: Path, label: str = "") -> Path:
    """The files that `benchmarks/frontier.py` writes for a few points over two seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [point("base", "base", 0, 0.3)]
    for seed in (0, 1):
        found += [point("step 20", "GRPO", seed, 0.08, label), point("guidance 1", "nlf contrastive", seed, 0.05)]
        found += [point("guidance 0", "nlf contrastive", seed, 0.02 + 0.01 * seed)]
    frontier.write_outputs(found, SimpleNamespace(output_dir=folder))
    return folder


def cells(page: Path) -> list[list[str]]:
    """The words in each cell of the page's table."""
    part = page.read_text().partition('aria-label="Settings"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    return [[re.sub("<[^>]*>", " ", cell).split() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_the_benchmark_writes_its_page(tmp_path):
    path = write_frontier(tmp_path / "frontier") / "frontier.html"
    page, written = Page(path), path.read_bytes()
    assert page.sections() == ["frontier"]
    assert write_page(tmp_path / "frontier") == path and path.read_bytes() == written
    plots = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert [plot["class"] for plot in plots] == ["plot sheet"] * 3
    assert "seconds of training" in page.text
    head, *rows = cells(path)
    assert [" ".join(row[0]) for row in rows] == [
        "base base 1 seed, cost 2 ×",
        "nlf contrastive guidance 0 2 seeds, cost 2 ×",  # within a group the least toxic first
        "nlf contrastive guidance 1 2 seeds, cost 2 ×",
        "GRPO step 20 2 seeds, cost 2 ×",
    ]
    named = dict(zip((" ".join(name) for name in head), rows[1], strict=True))
    assert named["seconds of training"] == ["51.0", "±", "1.4"]  # 50 and 52: √2
    assert named["mean toxicity"] == ["0.025", "±", "0.007"]
    assert named["perplexity"] == ["35.5", "±", "0.7"] and named["dist-2"] == ["0.875", "±", "0.000"]


def test_how_often_grpo_is_beaten_is_said(tmp_path):
    """The one stop has toxicity .08 at probability .16, the base .6; nlf's settings are less toxic, else no better."""
    page = Page(write_page(write_frontier(tmp_path / "frontier")))
    assert "that no other stop dominates: 1; beaten by some nlf setting: 0." in page.text


def test_the_page_has_no_script_and_loads_nothing(tmp_path):
    folder = write_frontier(tmp_path / "frontier", TEXT)
    text, page = (path := write_page(folder)).read_text(), Page(path)
    assert TEXT in page.text and "<script>" not in text and text.count("</style>") == 1
    assert "default-src &#39;none&#39;" in text
    assert all(not name.startswith("on") and name != "style" for _, attrs in page.elements for name in attrs)
    links = [attrs[name] for _, attrs in page.elements for name in ("href", "src") if name in attrs]
    assert links and all(link.startswith("#") for link in links)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("broken", ["", "<svg", "<html/>", "<svg>" * 5, '<svg xmlns="http://www.w3.org/2000/svg">'])
def test_a_plot_that_is_broken_or_missing_is_listed_and_the_table_is_shown(tmp_path, broken):
    folder = write_frontier(tmp_path / "frontier")
    (folder / "frontier.svg").write_text(broken)
    (folder / "frontier-seconds.svg").unlink()
    path = write_page(folder)
    assert Page(path).sections() == ["frontier", "not-shown"] and len(cells(path)) == 5
    assert all(f"{name}: cannot be shown (" in path.read_text() for name in ("frontier.svg", "frontier-seconds.svg"))


def test_a_deep_plot_is_listed(tmp_path):
    folder = write_frontier(tmp_path / "frontier")
    deep = '<svg xmlns="http://www.w3.org/2000/svg">' + "<g>" * 5_000 + "</g>" * 5_000 + "</svg>"
    (folder / "frontier.svg").write_text(deep)
    assert "frontier.svg: cannot be shown (" in Page(write_page(folder)).text


@pytest.mark.parametrize("broken", ["{", "[]", '{"summary": []}', '{"summary": [3]}', '{"summary": [{"group": "a"}]}'])
def test_a_broken_frontier_is_one_line(tmp_path, broken):
    (tmp_path / "frontier.json").write_text(broken)
    with pytest.raises(UserError, match="frontier.json: (cannot be read|'summary' was expected)") as refused:
        write_page(tmp_path)
    assert "\n" not in str(refused.value) and not (tmp_path / "frontier.html").exists()


def test_the_auditor_of_older_files_is_named_judge(tmp_path):
    row = {"group": "a", "label": "b", "judge_toxicity": 0.25, "judge_toxicity_sd": 0.125}
    (tmp_path / "frontier.json").write_text(json.dumps({"summary": [row]}))
    head, first = cells(write_page(tmp_path))
    assert " ".join(head[1]) == "mean toxicity by the auditor" and first[1] == ["0.250", "±", "0.125"]


def test_one_seed_has_its_interval_over_prompts(tmp_path):
    row = {"group": "a", "label": "b", "toxicity": 0.25, "toxicity_sd": None, "toxicity_ci95": [0.2, 0.375]}
    (tmp_path / "frontier.json").write_text(json.dumps({"summary": [row]}))
    assert cells(write_page(tmp_path))[1][1] == ["0.250", "[0.200,", "0.375]"]


def test_strange_values_are_dashes(tmp_path):
    rows = [{"group": "a", "label": "b", "toxicity": "high", "perplexity": 3.0, "cost": None, "seeds": "two"}]
    rows += [{"group": "a", "label": "c", "toxicity": 0.5, "perplexity": float("nan")}]
    (tmp_path / "frontier.json").write_text(json.dumps({"summary": rows, "aim": "none"}))
    _, first, second = cells(write_page(tmp_path))
    assert first == [["a", "c"], ["–"], ["0.500"]]
    assert second == [["a", "b"], ["3.0"], ["–"]]  # last, since it has no toxicity
