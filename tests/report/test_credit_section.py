"""Credit in the report: which rollouts are shown, the colour and number of each token, and files that cannot be read."""

import re
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st
from reports import Page, ids_of, rollout
from reports import write_credit as write

from nlf.data.rollouts import part_path
from nlf.report import write_report
from nlf.report.credit import FILE, MOST_TOKENS, RANKS, SHADES, pieces, shade, tokens

BACKEND = reports.tokenizer()
EOS = BACKEND.token_to_id("<|endoftext|>")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run without rollouts, and without a log, whose plots take seconds."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model_name_or_path: embedded\n")
    BACKEND.save(str(tmp_path / "run/tokenizer.json"))
    return tmp_path / "run"


def credit_of(run: Path) -> str:
    """The HTML of the section."""
    return write_report([run]).read_text().partition('<section id="credit"')[2].partition("</section>")[0]


def texts(html: str) -> list[str]:
    """The completions, without their markup."""
    found = re.findall(r'<div class="text">(.*?)</div>', html, re.DOTALL)
    return [re.sub("<[^>]*>", "", each).strip() for each in found]


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_character_stay_together_and_their_credit_is_the_sum():
    ids = ids_of("a€b")
    assert len(ids) == 5  # € has three bytes
    found = list(pieces(ids, BACKEND.decode))
    assert found == [("a", 1), ("€", 3), ("b", 1)]
    shown = tokens(found, [1.0, 0.5, 0.25, 0.25, -2.0])
    assert [(each.text, each.credit, each.shade) for each in shown] == [
        ("a", "+1.000", "up2"),
        ("€", "+1.000", "up2"),
        ("b", "−2.000", "down3"),
    ]


def test_a_token_without_text_belongs_to_the_one_before_it():
    assert list(pieces([*ids_of("a"), EOS, EOS], BACKEND.decode)) == [("a", 3)]
    assert list(pieces([EOS], BACKEND.decode)) == [] == list(pieces([], BACKEND.decode))


def test_a_completion_that_ends_within_a_character_keeps_its_end():
    assert list(pieces(ids_of("a€")[:3], BACKEND.decode)) == [("a", 1), ("\ufffd", 2)]


def test_the_space_before_the_first_word_is_found_with_the_tokens_of_the_prompt():
    """A tokenizer such as Llama 2's drops it from the start of a text."""

    def decode(ids: list[int]) -> str:
        return "".join(f" w{i}" for i in ids).removeprefix(" ")

    assert list(pieces([3, 4], decode)) == [("w3", 1), (" w4", 1)]
    assert list(pieces([3, 4], decode, [1, 2])) == [(" w3", 1), (" w4", 1)]


@given(st.lists(st.integers(0, BACKEND.get_vocab_size() - 1), max_size=12))
def test_pieces_are_the_text_and_all_of_its_tokens(ids):
    found = list(pieces(ids, BACKEND.decode))
    text = BACKEND.decode(ids)
    assert "".join(each for each, _ in found) == text
    assert sum(count for _, count in found) == (len(ids) if text else 0)


def test_a_shade_for_each_step_of_size_and_none_for_little_credit():
    assert [shade(value) for value in (0.0, 0.2, -0.2, *SHADES)] == ["", "", "", "up1", "up2", "up3", "up4"]
    assert [shade(-value) for value in SHADES] == ["down1", "down2", "down3", "down4"]


# ---- the section ----------------------------------------------------------------------------------------------------


def test_best_median_and_worst_of_the_first_and_last_iteration(run):
    for iteration in (0, 1, 2):
        rewards = [0.25, None, 0.75, 0.5]
        write(run, iteration, [rollout(f"i{iteration}r{i}", reward) for i, reward in enumerate(rewards)])
    html = credit_of(run)
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", html) == ["Iteration 1", "Iteration 3"]
    assert texts(html) == ["i0r2", "i0r3", "i0r0", "i2r2", "i2r3", "i2r0"]
    assert re.findall(r'"score">(.*?)<small>(.*?)<', html) == [*zip(("0.75", "0.50", "0.25"), RANKS, strict=True)] * 2


def test_each_token_has_its_colour_and_its_number(run):
    write(run, 0, [rollout("xyz", 0.5)], [[0.3, -3.25, 0.0]])
    html = credit_of(run)
    assert '<span class="up1" title="+0.300">x</span><span class="down4" title="−3.250">y</span>' in html
    assert '<span title="+0.000">z</span></bdi>' in html
    assert html.count("<article") == 1  # one rollout is not shown three times


def test_what_is_not_known_to_be_harmless_is_blurred(run):
    rows = [rollout("mild", 0.9, 0.29), rollout("rude", 0.5, 0.3), rollout("unknown", 0.1, None)]
    write(run, 0, rows)
    blurred = ['class="veil"' in each for each in re.findall(r'<div class="text">(.*?)</div>', credit_of(run))]
    assert blurred == [False, True, True]


def test_a_long_completion_is_cut(run):
    write(run, 0, [rollout("x" * (MOST_TOKENS + 5), 0.5)])
    assert texts(credit_of(run)) == ["x" * MOST_TOKENS + " … (5 more tokens)"]


def test_the_plain_stage_has_a_heading_of_its_own_and_messages_are_read(run):
    messages = '[{"role": "user", "content": "Hello?"}]'
    write(run, 0, [rollout("tagged", 0.5, feedback="Best")])
    write(run / "plain", 0, [rollout("plain", 0.5, prompt=messages)])
    BACKEND.save(str(run / "plain/tokenizer.json"))
    html = credit_of(run)
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", html) == ["Iteration 1", "Plain iteration 1"]
    assert "<small><bdi>Best</bdi></small>" in html and "<bdi>user: Hello?</bdi>" in html


def test_a_run_without_credit_has_no_section(run):
    write(run, 0, [rollout("x", 0.5)]).unlink()
    page = Page(write_report([run]))
    assert "credit" not in page.sections() and "not-shown" not in page.sections()


def test_rollouts_that_are_all_unscored_are_no_section(run):
    write(run, 0, [rollout("x", None)])
    assert "credit" not in Page(write_report([run])).sections()


def test_hostile_text_stays_text(run):
    for i, text in enumerate(reports.HOSTILE[:5]):
        write(run, 0, [rollout(text, 0.5, prompt=text, feedback=text)])
        page = Page(write_report([run], run.parent / f"{i}.html"))
        assert page.text.count(text) >= 3
        assert not {tag for tag, _ in page.elements} & {"script", "img"}
        assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
        links = [attrs["href"] for _, attrs in page.elements if "href" in attrs]
        assert all(link.startswith("#") for link in links)


def test_bidirectional_overrides_are_made_visible(run):
    write(run, 0, [rollout("a\u202eb", 0.5)])
    html = credit_of(run)
    assert "[U+202E]" in html and "\u202e" not in html


@pytest.mark.parametrize(
    "credit, said",
    [
        ([[0.5], [0.5]], "credit of 2 rollouts, and there are 1"),
        ([[0.5, 0.5]], "credit of 2 tokens for a completion of 1"),
        ([None], "credit of 0 tokens for a completion of 1"),
    ],
)
def test_credit_of_other_rollouts_is_listed_and_the_rest_is_shown(run, credit, said):
    write(run, 0, [rollout("x", 0.5)], credit)
    write(run, 1, [rollout("y", 0.5)])
    page = Page(write_report([run]))
    assert f"credit of iteration 1: rollouts/iteration-0000/{FILE}: {said}" in page.text
    assert texts(credit_of(run)) == ["y"]


def test_broken_files_are_listed(run):
    file = write(run, 0, [rollout("x", 0.5)])
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    assert f"iteration-0000/{FILE}: cannot be read" in Page(write_report([run])).text
    pq.write_table(pa.table({"other": [1]}), file)
    assert f"iteration-0000/{FILE}: cannot be read" in Page(write_report([run])).text
    file.write_bytes(whole)
    part_path(run, 0, 0).unlink()
    assert "credit of iteration 1: rollouts/iteration-0000: no rollouts" in Page(write_report([run])).text


def test_without_its_tokenizer_a_run_uses_that_of_a_checkpoint(run):
    write(run, 0, [rollout("x", 0.5)])
    (run / "checkpoint-4").mkdir()
    (run / "tokenizer.json").rename(run / "checkpoint-4/tokenizer.json")
    assert texts(credit_of(run)) == ["x"]
    (run / "checkpoint-4/tokenizer.json").write_text("{")
    assert "tokenizer.json: cannot be read" in Page(write_report([run])).text
    (run / "checkpoint-4/tokenizer.json").unlink()
    assert "tokenizer.json: no such file; its tokens cannot be told apart" in Page(write_report([run])).text


# ---- colours --------------------------------------------------------------------------------------------------------


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_on_every_shade_in_both_themes(theme):
    """WCAG 2 asks for 4.5 to 1."""
    css = resources.files("nlf.report").joinpath("page.css").read_text()
    named = re.findall(r"--(\w+): #(\w{6});", css.split("prefers-color-scheme: dark")[theme])
    colours = {name: tuple(int(hexa[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, hexa in named}
    rule = r"\.(?:up|down)\d { background: color-mix\(in srgb, var\(--(s\d)\) (\d+)%, transparent\)"
    shades = re.findall(rule, css)
    assert len(shades) == 2 * len(SHADES)
    for name, percent in shades:
        share = int(percent) / 100
        ground = tuple(share * a + (1 - share) * b for a, b in zip(colours[name], colours["paper"], strict=True))
        light, dark = sorted((luminance(colours["ink"]), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, percent)
