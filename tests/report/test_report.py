"""The report as text: its sections and numbers, its notes on broken input, and foreign text that stays text."""

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st
from reports import Page, small

from nlf.config import ReportOptions
from nlf.data.generations import read_lines, text_digest
from nlf.errors import UserError
from nlf.report import report_command, tables, write_report
from nlf.report.plots import steps
from nlf.report.reading import read_runs
from nlf.report.results import MAIN_METRICS, aligned, featured, main_metric, others
from nlf.report.samples import BLANK_LINES, Scored, pieces, read_all, read_samples, scored_by, side_by_side, veils
from nlf.report.wording import clean, clip, family, number, p_value, title
from nlf.rewards.contract import Share, shares


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and evaluated run with its page."""
    folder = reports.write_run(tmp_path_factory.mktemp("runs") / "demo", prompts=12)
    write_report([folder], num_samples=8)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Page(run / "report.html")


# ---- contents -------------------------------------------------------------------------------------------------------


def test_every_section_is_there(page):
    assert page.sections() == [
        *("results", "trade-off", "control", "text", "training", "samples", "details", "not-shown"),
    ]


def test_numbers_of_the_results_are_there_with_intervals_and_differences(run, page):
    results = json.loads((run / "evaluation" / "results.json").read_text())
    metrics = results["systems"][1]["metrics"]
    low, high = metrics["toxicity_ci95"]
    assert f"{metrics['toxicity']:.3f}" in page.text and f"[{low:.3f}, {high:.3f}]" in page.text
    gap = results["differences"][0]["metrics"]["toxicity"]["difference"]
    assert f"−{-gap:.3f}" in page.text and "p < 0.001" in page.text and "better" in page.text


def test_the_title_says_what_the_run_is_in_plain_words(page):
    assert "embedded, steered by words from “Lowest Toxicity” to “Maximum Toxicity”" in page.text
    assert "for the base" in page.text and "for the best tag with guidance 1; perplexity is" in page.text


def test_the_page_needs_nothing_from_elsewhere_and_has_no_script(run, page):
    assert not [
        tag for tag, _ in page.elements if tag in {"script", "link", "img", "iframe", "object", "embed", "base"}
    ]
    links = [attrs[name] for _, attrs in page.elements for name in ("href", "src") if name in attrs]
    assert links and all(link.startswith("#") for link in links)
    assert not [attrs for _, attrs in page.elements if any(name == "style" or name.startswith("on") for name in attrs)]
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv"))
    assert (
        policy.startswith("default-src 'none'; style-src 'sha256-")
        and "unsafe" not in policy
        and "script" not in policy
    )


def test_plots_are_drawn_in_the_themes_colours_and_their_ids_are_unique(run, page):
    text = (run / "report.html").read_text()
    plots = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(plots) >= 10 and all(attrs["aria-label"] for attrs in plots)
    assert "#00a0" not in text and "#000000" not in text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    used = set(re.findall(r'(?:xlink:)?href="#([\w-]+)"|url\(#([\w-]+)\)', text))
    assert len(ids) == len(set(ids)) and {a or b for a, b in used} <= set(ids)


def test_guided_systems_are_joined_in_the_order_of_g_and_labelled(page):
    assert all(f"g = {g}" in page.text for g in ("0.5", "1", "2"))
    told = next(
        attrs["aria-label"] for tag, attrs in page.elements if "against perplexity" in attrs.get("aria-label", "")
    )
    points = [re.sub(r" \S+ at \S+$", "", point) for point in told.partition(": ")[2].split("; ")]
    assert points == ["best tag", "g = 0.5", "g = 1", "g = 2", *reports.TAGS[1:], "base"]


def test_samples_stand_side_by_side_worst_median_best(page):
    assert [tag for tag, _ in page.elements].count("article") == 8
    assert (
        "8 prompts drawn at random; of each system the worst, the median and the best of 25 completions by score."
        in page.text
    )


def test_the_shown_completions_are_the_worst_the_median_and_the_best(run):
    found, scored = read_runs([run])[0], Scored("toxicity", False)
    samples = read_all(found, scored, 8, 0)
    chosen, shown = side_by_side(found, "embedded", samples, scored)
    assert [system["id"] for system in chosen] == ["base", "best-tag", "best-tag-guidance-1"] and len(shown) == 8
    for system, texts in zip(chosen, shown[0].texts, strict=True):
        row = next(iter(samples[system["id"]].picked.values()))
        toxicity = row["scores"]["local@1"]["attributes"]["toxicity"]
        assert [text.rank for text in texts] == ["worst", "median", "best"]
        assert [text.score for text in texts] == [max(toxicity), sorted(toxicity)[12], min(toxicity)]
        assert [text.text for text in texts] == [row["completions"][toxicity.index(text.score)] for text in texts]


def test_secrets_in_settings_stay_private(page):
    assert "hf_private" not in page.text and page.text.count("(kept private)") == 2


def test_the_same_input_gives_the_same_bytes(run, tmp_path):
    assert write_report([run], tmp_path / "a.html", num_samples=8).read_bytes() == (run / "report.html").read_bytes()


def test_size_stays_small(run):
    assert (run / "report.html").stat().st_size < 400_000


def test_the_command_says_where_the_page_is(tmp_path):
    folder = small(tmp_path / "demo")
    options = ReportOptions(runs=[str(folder)], num_samples=2)
    assert report_command(options).startswith(f"wrote {folder / 'report.html'} (0.")
    options.output = str(tmp_path / "else.html")
    report_command(options)
    assert (tmp_path / "else.html").is_file()


# ---- kinds of runs --------------------------------------------------------------------------------------------------


def test_a_run_that_was_only_trained_says_the_command_to_evaluate_it(tmp_path):
    folder = tmp_path / "a run"
    reports.write_training(folder)
    page = Page(write_report([folder]))
    assert f"nlf evaluate --model '{folder}' --sweep_tags" in page.text
    assert page.sections() == ["results", "training", "details"]


def test_attributes_have_curves_and_quantiles_of_their_own(tmp_path):
    folder = tmp_path / "run"
    reports.write_training(folder)
    edges = {f"attribute/wit/quantile/{q}/{end}": q + (end == "high") for q in (0, 1) for end in ("low", "high")}
    rows = [{"step": step, "iteration": step, "reward/wit": 0.25, **edges} for step in (0, 1)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    page = Page(write_report([folder]))
    assert "Reward wit" in page.text and "Quantiles of wit, by reward" in page.text
    assert "Quantiles of the pool, by reward" in page.text


def test_an_evaluation_without_training_has_no_curves(tmp_path):
    reports.write_evaluation(tmp_path / "hub", reports.systems(), prompts=3)
    page = Page(write_report([tmp_path / "hub"]))
    assert "training" not in page.sections() and "results" in page.sections()


@pytest.mark.parametrize("name", ["evaluation", "evaluation/results.json"])
def test_the_folder_of_an_evaluation_stands_for_its_run(tmp_path, name):
    reports.write_training(small(tmp_path / "demo"))
    page = Page(write_report([tmp_path / "demo" / name]))
    assert (tmp_path / "demo" / "evaluation" / "report.html").is_file()
    assert "training" in page.sections() and page.text.strip().startswith("demo: embedded, steered by words")


def test_several_runs_are_told_apart_in_tables_and_plots(tmp_path):
    runs = [small(tmp_path / parent / "run") for parent in ("one", "two")]
    page = Page(write_report(runs, tmp_path / "both.html"))
    assert "one/run" in page.text and "two/run" in page.text and "compared with 1 other run" in page.text
    assert {attrs.get("class", "").strip() for tag, attrs in page.elements if tag == "span"} >= {"s1", "s2"}


def test_a_run_with_other_metrics_is_in_the_tables_and_noted_as_missing_in_the_plot(tmp_path):
    runs = [small(tmp_path / "first"), small(tmp_path / "second", copies=3)]
    page = Page(write_report(runs, tmp_path / "both.html"))
    assert "second: trade-off on embedded: no system has both perplexity and toxicity_probability@5" in page.text


def test_prompt_sources_are_kept_apart_and_share_the_samples(tmp_path):
    rows = reports.systems(guidance=(1.0,), sweep=False) + reports.systems("stories", (1.0,), False)
    folder = reports.write_run(tmp_path / "demo", rows, prompts=8)
    page = Page(write_report([folder], num_samples=6))
    assert "On embedded (8 × 25 completions)" in page.text and "On stories (8 × 25 completions)" in page.text
    assert [tag for tag, _ in page.elements].count("article") == 6


def test_positive_completions_are_the_main_metric_of_sentiment_and_reversed_tags_swap_better_and_worse(tmp_path):
    rows = [{**s, "mean": 1 - s["mean"]} for s in reports.systems(guidance=(), sweep=False)]
    rows += [{**s, "id": f"reversed-{s['id']}", "reversed": True} for s in reports.systems(guidance=(), sweep=False)]
    reports.write_evaluation(tmp_path, rows, attribute="positive", prompts=20)
    page = Page(write_report([tmp_path], num_samples=2))
    assert "On embedded, tags reversed (20 × 25 completions), share of positive completions is" in page.text
    assert "share of positive completions (higher is better)" in page.text
    assert "share of positive completions (lower is better)" in page.text
    assert "The number beside a completion is its score (positive)." in page.text


def test_a_plain_reward_is_enough(tmp_path):
    reports.write_evaluation(tmp_path, reports.systems(guidance=(1.0,)), attribute=None, prompts=3)
    page = Page(write_report([tmp_path], num_samples=2))
    assert "Reward against perplexity, embedded" in page.text
    assert "The number beside a completion is its score (reward)." in page.text


def test_a_model_without_base_or_tags_is_shown_alone(tmp_path):
    alone = reports.system("no-tag", "no tag", 0.3, tag=None)
    reports.write_evaluation(tmp_path, [alone], prompts=3, tags=None, models={"policy": {"name": "gpt2"}})
    page = Page(write_report([tmp_path]))
    assert "gpt2, measured" in page.text and "against the base" not in page.text


def test_texts_are_blurred_unless_a_scorer_found_them_harmless():
    assert [veils(toxicity) for toxicity in (0.0, 0.29, 0.3, 0.9, None)] == [False, False, True, True, True]


# ---- words that made a score ----------------------------------------------------------------------------------------

WORDS = [(0, 3, 0.1), (4, 9, 0.25), (10, 14, 1.5), (15, 20, 2.0), (21, 26, -3.0)]
TEXT = "the small boat < & > was late"


def explained(folder: Path, words: list, texts: list[str]) -> Path:
    """A small run of systems with one completion of each prompt: these texts, with these recorded shares of words."""
    for path in (small(folder, prompts=len(texts), copies=1) / "evaluation").glob("*.jsonl"):
        rows = []
        for row, each, text in zip(read_lines(path), words, texts, strict=True):
            scores = {**row["scores"]["local@1"], "of": text_digest([text]), "words": [each]}
            rows.append({**row, "completions": [text], "scores": {"local@1": scores}})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_words_are_marked_by_their_recorded_shares(tmp_path):
    path = write_report([explained(tmp_path / "demo", [WORDS], [TEXT])])
    shown = path.read_text(encoding="utf-8")
    assert (
        '<bdi>the <mark class="m1" title="share +0.25">small</mark> '
        '<mark class="m2" title="share +1.5">boat</mark> '
        '<mark class="m3" title="share +2">&lt; &amp; &gt;</mark> was late</bdi>'
    ) in shown
    assert (
        "Underlined words raise what local@1 measures: a thin line is a share of the logit of 0.25" in Page(path).text
    )


def test_without_recorded_words_the_samples_are_as_ever(page):
    assert "mark" not in [tag for tag, _ in page.elements] and "Underlined words" not in page.text


def test_words_that_are_no_words_of_the_text_are_not_marked(tmp_path):
    words = [None, 3, [[0, 900, 1.0]], [["a", "b", "c"]], [[3, 2, 1.0]]]
    page = Page(write_report([explained(tmp_path / "demo", words, [TEXT] * 5)]))
    assert TEXT in page.text and "mark" not in [tag for tag, _ in page.elements]


def test_marks_stay_at_their_words_where_blank_lines_are_left_out_and_the_text_is_cut():
    text = "one\n \n\ntwo\n\nthree four"
    words = [Share(text.index(word), text.index(word) + len(word), 3.0) for word in ("two", "three", "four")]
    found = pieces(text, words, limit=10)
    assert [piece.text for piece in found if piece.mark] == ["two", "th"]
    assert "".join(piece.text for piece in found) == "one\ntwo\nth … (8 more characters)"


PIECES = st.text(st.sampled_from("ab \n\t<&\u202e\U0001f600"), max_size=30)


@given(PIECES, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.floats(-5, 5))), st.integers(1, 40))
def test_marks_never_change_the_shown_text(text, spans, limit):
    words = shares([span for span in spans if span[0] < span[1] <= len(text)], text)
    found = pieces(text, words, limit)
    assert "".join(piece.text for piece in found) == clip(BLANK_LINES.sub("\n", text), limit)
    assert all(piece.text for piece in found) and all(bool(piece.mark) == bool(piece.share) for piece in found)


def test_hostile_text_with_marks_is_the_same_text(tmp_path):
    """The trap: pieces that are made safe one by one could add up to markup."""
    every_second = [[(at, at + 1, 3.0) for at in range(0, len(text[:900]), 2)] for text in reports.HOSTILE]
    kinds = {"marked": every_second, "plain": [[]] * len(every_second)}
    paths = [write_report([explained(tmp_path / kind, kinds[kind], reports.HOSTILE)]) for kind in kinds]
    marked, plain = (section(path, "samples", between="") for path in paths)
    said, _, note = marked.partition(" Underlined words")
    assert said + note.partition("see its share.")[2] == plain
    marked, plain = ({tag for tag, _ in Page(path).elements} for path in paths)
    assert marked - plain == {"mark"}


DISTILLED = reports.system("distilled", "distilled", 0.05, tag=None)


def section(page: Path, name: str, between: str = " ") -> str:
    """The text of one section of a page; `between` stands in place of each tag."""
    part = page.read_text(encoding="utf-8").split(f'id="{name}"')[1].split("</section>")[0]
    return " ".join(re.sub("<[^>]+>", between, part).split())


def test_the_distilled_model_leads_and_is_no_tag(tmp_path):
    path = write_report([reports.write_run(tmp_path / "demo", [*reports.systems(), DISTILLED], prompts=8)])
    page = Page(path)
    assert "then distilled into a plain model" in page.text
    assert re.search(r"toxicity probability @25 is [\d.]+ for the distilled model, [\d.]+ for the base,", page.text)
    results = section(path, "results")
    assert results.index("distilled") < results.index("base") < results.index("best tag")
    assert "distilled" not in section(path, "control") and "The diamond is the distilled model" in page.text
    heads = re.findall(r"<h4><bdi>(.*?)</bdi>", path.read_text(encoding="utf-8"))
    assert heads[:4] == ["distilled", "base", "best tag", "best tag, guidance 1"]


def test_a_student_stands_beside_its_guided_teacher(tmp_path):
    teacher = reports.system(
        "teacher", "teacher", 0.1, tag=reports.TAGS[2], guidance_scale=8.0, negative_tag=reports.TAGS[4]
    )
    rows = [reports.system("base", "base", 0.3, model="base", tag=None), teacher]
    rows.append(reports.system("student", "student", 0.05, tag=None))
    reports.write_evaluation(tmp_path, rows, prompts=4)
    path = write_report([tmp_path])
    assert all(name in section(path, "results") for name in ("student", "teacher", "base"))
    assert [s["name"] for s in featured(read_runs([tmp_path])[0].systems)] == ["student", "base", "teacher"]


def test_the_reward_of_the_first_run_stays_beside_a_run_with_another_scorer(tmp_path):
    polite, demo = tmp_path / "polite", tmp_path / "demo"
    rows = reports.systems(guidance=(1.0,), sweep=False)
    reports.write_evaluation(polite, rows, attribute=None, prompts=6, scorers=["politeness"])
    reports.write_evaluation(demo, rows, prompts=6)
    path = write_report([polite, demo], tmp_path / "both.html")
    results = section(path, "results")
    assert "reward, politeness" in results and "toxicity probability @25, local@1" in results
    assert "reward, local@1" in results and "Reward, politeness against perplexity" in section(path, "trade-off")
    assert "reward, politeness is" in Page(path).text
    reward = json.loads((polite / "results.json").read_text())["systems"][0]["metrics"]["reward"]
    assert f"{reward:.3f}" in results


def test_what_could_not_be_scored_has_a_column_and_above_two_percent_a_sentence(tmp_path):
    folder = reports.write_run(tmp_path / "demo", reports.systems(guidance=(), sweep=False), prompts=4)
    found = json.loads((folder / "evaluation" / "results.json").read_text())
    for each, unscored in zip(found["systems"], (2, 3), strict=True):
        each["counts"] = {"completions": 100, "unscored/local@1": unscored}
        each["metrics"] |= {"unscored_fraction": unscored / 100, "unscored_fraction_ci95": [0, 0.1]}
    change(folder, systems=found["systems"])
    page = Page(write_report([folder]))
    assert (
        "Warning: best tag: local@1 could not score 3 of 100 completions (3.0 %): figures are over the rest"
        in page.text
    )
    assert page.text.count("could not score") == 1 and "share unscored" in section(folder / "report.html", "results")


def test_rows_on_fewer_prompts_stand_under_a_line_that_says_so(tmp_path):
    folder = reports.write_run(tmp_path / "demo", reports.systems(guidance=()), prompts=4)
    found = json.loads((folder / "evaluation" / "results.json").read_text())
    for each in found["systems"]:
        each["n_samples"] = {"original": 100, "effective": 40 if each["name"].startswith("tag ") else 100}
    change(folder, systems=found["systems"])
    control = section(write_report([folder]), "control")
    assert control.index("100 prompts") < control.index("best tag") < control.index("first 40 of 100 prompts")
    assert control.count("first 40 of 100 prompts") == 1
    assert "first 40 of 100 prompts" not in section(folder / "report.html", "results")


def test_a_table_that_a_phone_cuts_says_so(page, run):
    css = (run / "report.html").read_text(encoding="utf-8")
    assert "Swipe the table sideways to see all 5 columns." in page.text
    assert ".swipe { display: none; }" in css and "no-repeat scroll" in css


# ---- what cannot be shown -------------------------------------------------------------------------------------------


def listed(folder: Path) -> str:
    """The notes on a run's page about things that are not shown."""
    found = read_runs([folder])[0]
    read_all(found, Scored("toxicity", False), 2, 0)
    return "\n".join(found.missing)


def test_a_missing_generations_file_is_listed_and_the_rest_is_shown(tmp_path):
    folder = small(tmp_path / "demo")
    (folder / "evaluation" / "generations-base.jsonl").unlink()
    page = Page(write_report([folder]))
    assert "scores and samples of base on embedded: cannot read" in page.text and "samples" in page.sections()


def test_a_cut_off_generations_file_is_listed_with_its_line(tmp_path):
    folder = small(tmp_path / "demo")
    path = folder / "evaluation" / "generations-best-tag.jsonl"
    path.write_bytes(path.read_bytes()[:-50])
    assert re.fullmatch(
        r"scores and samples of best tag on embedded: .*generations-best-tag\.jsonl:4: broken JSON.*", listed(folder)
    )


def test_a_file_that_stops_early_is_listed_and_one_with_more_lines_is_read_as_far_as_the_results_go(tmp_path):
    folder = small(tmp_path / "demo")
    for name, kept in (("base", 3), ("best-tag", 8)):
        path = folder / "evaluation" / f"generations-{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join((lines * 2)[:kept]))
    assert "base on embedded: generations-base.jsonl: 3 lines, expected 4" in listed(folder)
    assert "best tag on embedded:" not in listed(folder)


@pytest.mark.parametrize(
    "broken",
    [{"completions": "text"}, {"completion_ids": [[1]]}, {"completions": [1] * 5}, {"completion_ids": [1] * 5}],
)
def test_lines_that_are_no_generations_are_listed(tmp_path, broken):
    folder = small(tmp_path / "demo")
    edit(folder / "evaluation" / "generations-base.jsonl", lambda row: {**row, **broken})
    assert "generations-base.jsonl:1: completion" in listed(folder)


def test_scores_of_other_texts_are_not_shown(tmp_path):
    folder = small(tmp_path / "demo")
    path = folder / "evaluation" / "generations-base.jsonl"
    edit(path, lambda row: {**row, "completions": [text + "!" for text in row["completions"]]})
    assert np.isnan(read_samples(path, Scored("toxicity", False), 1, 0).scores).all()


def test_a_broken_line_of_the_log_is_listed(tmp_path):
    folder = small(tmp_path / "demo")
    reports.write_training(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"loss": 1.')
    assert "metrics.jsonl: line 19 of 19 is broken" in listed(folder)
    assert len(read_runs([folder])[0].log) == 18


def test_broken_settings_are_listed(tmp_path):
    folder = small(tmp_path / "demo")
    (folder / "config.yaml").write_text("a: [1")
    assert "config.yaml:1: not YAML" in listed(folder)


def test_what_the_evaluation_skipped_is_listed(page):
    assert "the other tags are sampled on the first 40 prompts of each source" in page.text


def change(folder: Path, **keys) -> Path:
    path = folder / "evaluation" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schema_version": 2}, r"results.json: schema_version is 2, this nlf reads 1"),
        ({"schema_version": None}, "schema_version is None"),
        ({"systems": []}, "'systems' was expected to be a list of one or more"),
        ({"systems": [3]}, r"systems\[0\] was expected to be an object"),
        ({"systems": [{"id": "a"}]}, r"systems\[0\].name is None"),
        ({"differences": None}, "'differences' has a wrong type: None"),
        ({"differences": [{}]}, r"differences\[0\] was expected"),
        ({"higher_is_better": []}, "'higher_is_better' has a wrong type"),
    ],
)
def test_other_results_are_refused_in_one_line(tmp_path, keys, message):
    folder = change(small(tmp_path / "demo"), **keys)
    with pytest.raises(UserError, match=message) as refused:
        write_report([folder])
    assert "\n" not in str(refused.value) and not (folder / "report.html").exists()


def test_cut_off_results_are_refused(tmp_path):
    path = small(tmp_path / "demo") / "evaluation" / "results.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"results.json: broken JSON .* run `nlf evaluate` again"):
        write_report([tmp_path / "demo"])


def test_folders_with_nothing_to_show_are_refused(tmp_path):
    with pytest.raises(UserError, match="neither results.json nor metrics.jsonl"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        write_report([tmp_path / "none"])
    with pytest.raises(UserError, match="no run is named"):
        write_report([])
    folder = small(tmp_path / "demo")
    with pytest.raises(UserError, match="the same run is named twice"):
        write_report([folder, folder])


@pytest.mark.parametrize("name", ["", "frontier.json"])
def test_a_frontier_is_refused_with_the_page_to_open(tmp_path, name):
    (tmp_path / "frontier.json").write_text("{}")
    with pytest.raises(
        UserError, match="holds a frontier, not a run; open .*/frontier.html, or write it with"
    ) as refused:
        write_report([tmp_path / name])
    assert "\n" not in str(refused.value)


# ---- foreign text ---------------------------------------------------------------------------------------------------


def edit(path: Path, change) -> None:
    """Apply `change` to every line of a file."""
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in read_lines(path)))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return write_report([reports.write_hostile(tmp_path_factory.mktemp("hostile"))])


def test_markup_in_any_text_stays_text(hostile):
    text, page = hostile.read_text(encoding="utf-8"), Page(hostile)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "math", "object", "link", "base"}
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert "<script>" not in text and text.count("</style>") == 1
    assert "<script>alert" in page.text and "onerror=alert" in page.text
    links = [attrs[name] for _, attrs in page.elements for name in ("href", "src", "xlink:href") if name in attrs]
    assert all(link.startswith("#") for link in links)


def test_unseen_characters_are_made_visible(hostile):
    text = hostile.read_text(encoding="utf-8")
    assert "[U+0007]" in text and "[U+202E]" in text and "[U+D800]" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)


@given(st.text(st.characters()))
def test_cleaned_text_can_always_be_written(text):
    made = clean(text)
    made.encode()
    assert clean(made) == made and (made == text or any(not c.isprintable() for c in text))


def test_a_name_with_dollars_is_no_formula(tmp_path):
    rows = [reports.system("base", "base", 0.3, model="base"), reports.system("tag", "$\\frac{", 0.2, tag="$\\frac{")]
    reports.write_evaluation(tmp_path, rows, prompts=3, tags=["$\\frac{", "b"])
    assert "$\\frac{" in Page(write_report([tmp_path])).text


# ---- the parts ------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_contrast_in_both_themes(theme):
    """WCAG 2 asks for 4.5 to 1 for text and 3 to 1 for drawings."""
    css = resources.files("nlf.report").joinpath("page.css").read_text().split("prefers-color-scheme: dark")[theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6});", css))
    for name, least in [
        *zip(("ink", "muted", "accent", "better", "worse"), [4.5] * 5, strict=True),
        *((f"s{i}", 3) for i in range(1, 7)),
    ]:
        for ground in ("paper", "raised"):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


def test_words_for_numbers():
    assert [number(v) for v in (0.1234, -0.5, None, float("nan"), True, 12345.678)] == [
        *("0.123", "−0.500", "–", "–", "–", "12,345.678"),
    ]
    assert number(35.41712, "perplexity") == "35.4" and number(0.1, sign=True) == "+0.100"
    assert number(2.5e9, "perplexity") == "2.5e+09"
    assert [p_value(p) for p in (0.0004, 0.0121, None)] == ["p < 0.001", "p = 0.012", ""]
    assert clip("abcdef", 3) == "abc … (3 more characters)" and clip("abc", 3) == "abc"


def test_metrics_are_known_by_their_family():
    name = "toxicity_probability@25>=0.7/local@1"
    assert family(name) == "toxicity_probability" and title(name) == "toxicity probability @25 ≥ 0.7, local@1"
    assert title("corpus_dist-2") == "corpus dist-2" and title("reward") == "reward"


def test_systems_find_their_places():
    rows = reports.systems(guidance=(2.0, 0.5))
    assert [s["guidance_scale"] for s in aligned(rows)] == [0, 0.5, 2]
    assert [s["name"] for s in featured(rows)] == ["base", "best tag", "best tag, guidance 0.5"]
    assert [s["tag"] for s in others(rows)] == reports.TAGS[1:]
    assert [s["name"] for s in featured([rows[0]])] == ["base"] and aligned([rows[0]]) == others([rows[0]]) == []


def test_the_main_metric_is_the_highest_rank_that_has_a_number():
    assert main_metric([{"metrics": {"reward": 1.0, "toxicity_probability@9": None, "toxicity": 0.1}}]) == "toxicity"
    assert main_metric([{"metrics": {}}]) is None
    several = {"reward/politeness": 1.0, "reward/audit@1": 0.9, "toxicity_probability@25": 0.1}
    assert main_metric([{"metrics": several}]) == "reward/politeness"
    assert [scored_by(name).name for name in (*MAIN_METRICS, None)] == [
        *("toxicity", "positive", "toxicity", "toxicity", "positive", "reward", "reward"),
    ]


def test_samples_are_the_same_prompts_for_every_system(tmp_path):
    reports.write_evaluation(tmp_path, reports.systems(guidance=(), sweep=False), prompts=50, copies=2)
    keys = [
        list(read_samples(tmp_path / f"generations-{name}.jsonl", Scored("toxicity", False), 7, 3).picked)
        for name in ("base", "best-tag")
    ]
    assert keys[0] == keys[1] and len(keys[0]) == 7
    others = read_samples(tmp_path / "generations-base.jsonl", Scored("toxicity", False), 7, 4).picked
    assert set(others) != set(keys[0])


def test_text_digests_of_the_made_up_runs_are_true(run):
    row = next(read_lines(run / "evaluation" / "generations-base.jsonl"))
    assert row["scores"]["local@1"]["of"] == text_digest(row["completions"])


def test_colours_of_tags_go_from_best_to_worst():
    assert steps(5) == ["t1", "t3", "t4", "t5", "t7"]  # 0, 1.5, 3, 4.5 and 6 steps of 6; halves round to even
    assert steps(1) == ["t1"] and steps(2) == ["t1", "t7"] and steps(0) == []


@pytest.mark.parametrize("text", ["<!doctype html>mine", "my notes"])
def test_a_page_of_another_program_is_not_overwritten_and_one_of_ours_is(run, tmp_path, text):
    path = tmp_path / "page.html"
    path.write_text(text)
    with pytest.raises(UserError, match="page.html is there already and would be overwritten; move it away"):
        write_report([run], path)
    assert path.read_text() == text
    path.write_text("")  # as mktemp makes it
    page = write_report([run], path).read_text()
    assert write_report([run], path).read_text() == page


# ---- auditors -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run trained on local@1 and audited by audit@1, whose toxicity is .2 above that of local@1 for each completion."""
    folder = reports.write_run(tmp_path_factory.mktemp("audited") / "demo", prompts=4, copies=5)
    path = folder / "evaluation/results.json"
    results = json.loads(path.read_text())
    results |= {"scorers": ["local@1", "audit@1"], "auditors": ["audit@1"]}
    results |= {"trained_on": ["local@1"], "audited_by": ["audit@1"], "noise_floor": {}}
    results["noise_floor"]["audit@1"] = {"toxicity_probability@5": 0.125}
    for system in results["systems"]:
        own = {name: value for name, value in system["metrics"].items() if name.startswith(("reward", "toxicity"))}
        parts = [re.fullmatch(r"(.*?)(_stderr|_ci95)?", name).groups(default="") for name in own]
        system["metrics"] |= {f"{a}/audit@1{b}": v for (a, b), v in zip(parts, own.values(), strict=True)}
        lines = folder / "evaluation" / system["generations"]
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        for row in rows:
            local = row["scores"]["local@1"]
            higher = [min(score + 0.2, 1) for score in local["attributes"]["toxicity"]]
            row["scores"]["audit@1"] = {**local, "attributes": {"toxicity": higher}}
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(json.dumps(results))
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in log:
        if "eval_reward" in row:
            row |= {"eval_reward/audit@1": 0.6, "eval_toxicity_probability@25/audit@1": 0.95}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    (folder / "run.json").write_text(json.dumps({"rewards": ["local@1"], "auditors": ["audit@1"]}))
    return read_runs([folder])[0]


def test_an_auditors_figures_lead_the_report_and_both_are_named(audited):
    titles = [column.title for column in tables.headline([audited], "embedded").columns]
    assert titles[:2] == [
        "toxicity probability @5, audit@1 (auditor)",
        "toxicity probability @5, local@1 (trained on)",
    ]
    assert [title for title in titles if "mean" in title] == [
        *("mean toxicity, audit@1 (auditor)", "mean toxicity, local@1 (trained on)"),
    ]
    said = tables.headings([audited])[1][1]
    assert ", toxicity probability @5, audit@1 (auditor) is " in said and "(noise floor 0.125)" in said
    assert "; by local@1 (trained on) it is " in said


def test_samples_are_ranked_by_the_auditor(audited):
    scored = scored_by(main_metric(audited.systems, audited.headlines), audited.headlines)
    assert scored == Scored("toxicity", False, "audit@1") and scored.name == "toxicity by audit@1"
    file = audited.evaluation / "generations-base.jsonl"
    plain = read_samples(file, Scored("toxicity", False), 1, 0).scores
    assert read_samples(file, scored, 1, 0).scores == pytest.approx(np.minimum(plain + 0.2, 1))


def test_an_auditors_curves_come_first_and_are_not_taken_for_the_rewards(audited):
    from nlf.report.figures import _values, curves
    from nlf.report.plots import Drawing

    titles = [plot.title for plot in curves([audited], Drawing())]
    assert titles[:3] == ["Toxicity probability, audit@1 (auditor)", "Reward, audit@1 (auditor)", "Reward"]
    assert _values(audited.log, ("eval_reward",), "audit@1", ["audit@1"])[1] == [0.6, 0.6, 0.6]
    assert _values(audited.log, ("eval_reward",), None, ["audit@1"])[1] == pytest.approx([0.7, 0.74, 0.78])
