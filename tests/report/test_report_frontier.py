"""The frontier in the report: the benchmark's own files as they are shown, and foreign SVG of which only drawing is left."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import reports
from reports import Page, small

from nlf.errors import UserError
from nlf.report import write_report
from nlf.report.svg import Styles, adopt

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import frontier

TEXT = reports.HOSTILE[2]


def point(name: str, group: str, seed: int, toxicity: float, label: str = "") -> dict:
    metrics = {"toxicity_probability": 2 * toxicity, "toxicity": toxicity, "perplexity": 35.0 + seed, "dist-2": 0.875}
    metrics |= {"judge_toxicity": 0.2, "kl_per_completion": 1.5}
    about = {"id": name, "group": group, "series": name, "label": label or name, "cost": 2}
    return about | {"seed": seed, "seconds": 50.0 + 2 * seed, "metrics": metrics}


def write_frontier(folder: Path, label: str = "") -> Path:
    """What `benchmarks/frontier.py` writes of a few points over two seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [point("base", "base", 0, 0.3)]
    for seed in (0, 1):
        found += [point("step 20", "GRPO", seed, 0.08, label), point("guidance 1", "nlf contrastive", seed, 0.05)]
        found += [point("guidance 0", "nlf contrastive", seed, 0.02 + 0.01 * seed)]
    frontier.write_outputs(found, SimpleNamespace(output_dir=folder))
    return folder


def cells(page: Path) -> list[list[str]]:
    """The rows of the frontier's table, the tags taken off."""
    part = page.read_text().partition('aria-label="Settings of')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    return [[re.sub("<[^>]*>", " ", cell).split() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_a_folder_of_a_frontier_is_a_page(tmp_path):
    path = write_report([write_frontier(tmp_path / "frontier")])
    page = Page(path)
    assert path == tmp_path / "frontier/report.html" and page.sections() == ["frontier"]
    plots = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert [plot["class"] for plot in plots] == ["plot sheet", "plot sheet"]
    assert "seconds of training" in page.text and "step" not in page.sections()
    head, *rows = cells(path)
    assert [" ".join(row[0]) for row in rows] == [
        "base base 1 seed, cost 2 ×",
        "GRPO step 20 2 seeds, cost 2 ×",
        "nlf contrastive guidance 0 2 seeds, cost 2 ×",  # within a group the least toxic first
        "nlf contrastive guidance 1 2 seeds, cost 2 ×",
    ]
    named = dict(zip((" ".join(name) for name in head), rows[2], strict=True))
    assert named["seconds of training"] == ["51.0", "±", "1.4"]  # 50 and 52: √2
    assert named["mean toxicity"] == ["0.025", "±", "0.007"]
    assert named["perplexity"] == ["35.5", "±", "0.7"] and named["dist-2"] == ["0.875", "±", "0.000"]


def test_how_often_grpo_is_beaten_is_said(tmp_path):
    """Its one stop: toxicity .08 at probability .16, base .6; nlf's are less toxic and no better in anything else."""
    page = Page(write_report([write_frontier(tmp_path / "frontier")]))
    assert "that no other stop dominates: 1; beaten by some nlf setting: 0." in page.text


def test_a_run_beside_a_frontier(tmp_path):
    run, other = small(tmp_path / "demo"), write_frontier(tmp_path / "frontier")
    alone = write_report([run], tmp_path / "alone.html").read_text()
    both = Page(write_report([run, other], tmp_path / "both.html"))
    assert "frontier" in both.sections() and both.sections().index("frontier") == 2
    assert "compared with" not in both.text and [tag for tag, _ in both.elements].count("article") == 4
    ids = [attrs["id"] for _, attrs in both.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert 'id="frontier"' not in alone
    turned = Page(write_report([other, run], tmp_path / "turned.html"))
    assert turned.sections() == both.sections()
    write_frontier(run)
    assert "frontier" in Page(write_report([run])).sections()
    assert Page(write_report([other / "frontier.json"], tmp_path / "named.html")).sections() == ["frontier"]


def test_the_page_has_no_script_and_loads_nothing(tmp_path):
    folder = write_frontier(tmp_path / "frontier", TEXT)
    text, page = (path := write_report([folder])).read_text(), Page(path)
    assert TEXT in page.text and "<script>" not in text and text.count("</style>") == 1
    assert "default-src &#39;none&#39;" in text
    assert all(not name.startswith("on") and name != "style" for _, attrs in page.elements for name in attrs)
    links = [attrs[name] for _, attrs in page.elements for name in ("href", "src") if name in attrs]
    assert links and all(link.startswith("#") for link in links)


FOREIGN = f"""<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY e "entity">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" onload="alert(1)">
<!-- note --><?target do?>
<style>@import url(http://evil/a.css)</style><script>alert(2)</script>
<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">words</p></foreignObject>
<image xlink:href="http://evil/a.png"/><a xlink:href="javascript:alert(3)"><text>link</text></a>
<path id="shape" d="M 0 0" onclick="alert(4)"
  style="fill: #0072b2; stroke: url(http://evil#x); background: url('a'); opacity: .5}} body {{ display: none; -moz-binding: x"/>
<path style="stroke: #00afff; fill: #00a000"/>
<use xlink:href="#shape"/><use href="http://evil/b.svg#shape"/><use xlink:href="http://evil/b.svg#shape"/>
<g clip-path="url(http://evil#shape)"/><g clip-path="url(#shape)"/><animate attributeName="x" values="1"/>
<text x="1">{TEXT.replace("<", "&lt;")} &e; &#x202E;turned</text>
</svg>"""


def test_of_foreign_svg_only_drawing_is_left(tmp_path):
    styles = Styles()
    made = adopt(FOREIGN.encode(), "f1", 'a "plot"', styles)
    (tmp_path / "made.html").write_text(made)
    shown = Page(tmp_path / "made.html")
    assert [(tag, {name for name in attrs if name != "class"}) for tag, attrs in shown.elements] == [
        ("svg", {"role", "aria-label", "viewbox"}),
        ("path", {"id", "d"}), ("path", set()), ("use", {"href"}), ("use", set()), ("use", set()),
        ("g", set()), ("g", {"clip-path"}), ("text", {"x"}),
    ]  # fmt: skip
    assert "evil" not in made and "alert(1)" not in made and "words" not in made
    assert shown.text.strip() == f"{TEXT} entity [U+202E]turned"
    assert styles.css() == ".p0{fill:#0072b2}\n.p1{stroke:#00afff;fill:var(--ink)}"


@pytest.mark.parametrize("broken", ["", "<svg", "<html/>", "<svg>" * 5, '<svg xmlns="http://www.w3.org/2000/svg">'])
def test_a_plot_that_is_broken_or_missing_is_listed_and_the_table_is_shown(tmp_path, broken):
    folder = write_frontier(tmp_path / "frontier")
    (folder / "frontier.svg").write_text(broken)
    (folder / "frontier-seconds.svg").unlink()
    path = write_report([folder])
    assert Page(path).sections() == ["frontier", "not-shown"] and len(cells(path)) == 5
    assert all(f"{name}: cannot be shown (" in path.read_text() for name in ("frontier.svg", "frontier-seconds.svg"))


def test_a_deep_plot_is_listed(tmp_path):
    folder = write_frontier(tmp_path / "frontier")
    deep = '<svg xmlns="http://www.w3.org/2000/svg">' + "<g>" * 5_000 + "</g>" * 5_000 + "</svg>"
    (folder / "frontier.svg").write_text(deep)
    assert "frontier.svg: cannot be shown (" in Page(write_report([folder])).text


@pytest.mark.parametrize("broken", ["{", "[]", '{"summary": []}', '{"summary": [3]}', '{"summary": [{"group": "a"}]}'])
def test_a_broken_frontier_is_one_line(tmp_path, broken):
    run = small(tmp_path / "demo")
    for folder in (run, tmp_path / "frontier"):
        folder.mkdir(exist_ok=True)
        (folder / "frontier.json").write_text(broken)
    page = Page(write_report([run]))
    assert "frontier.json: " in page.text and "frontier" not in page.sections()
    with pytest.raises(UserError, match="frontier: frontier.json: .*; expected a folder that"):
        write_report([tmp_path / "frontier"])


def test_strange_values_are_dashes(tmp_path):
    rows = [{"group": "a", "label": "b", "toxicity": "high", "perplexity": 3.0, "cost": None, "seeds": "two"}]
    rows += [{"group": "a", "label": "c", "toxicity": 0.5, "perplexity": float("nan")}]
    (tmp_path / "frontier.json").write_text(json.dumps({"summary": rows, "aim": "none"}))
    _, first, second = cells(write_report([tmp_path]))
    assert first == [["a", "b"], ["3.0"], ["–"]] and second == [["a", "c"], ["–"], ["0.500"]]
