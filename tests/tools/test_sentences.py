"""Sentence files are checked when they are read, and every filling of a template comes once."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import sentences
from sentences import Kind, filled, fillings, read_sentences

from nlf.errors import UserError

SLOTS = {"group": ("women", "old people", "Poles"), "thing": ("bus",)}
FILES = sorted(Path(sentences.__file__).parent.glob("*_sentences.yaml"))


def kind(*templates: str) -> Kind:
    return Kind("example", False, templates, {})


def draw(*templates: str, count: int = 100, seed: int = 0) -> list[str]:
    return filled(kind(*templates), SLOTS, np.random.default_rng(seed), count)


def test_every_filling_comes_once():
    assert sorted(draw("{Group} wait.")) == ["Old people wait.", "Poles wait.", "Women wait."]
    assert fillings("{Group} wait.", SLOTS) == 3


def test_a_repeated_slot_has_the_same_word():
    assert sorted(draw("{group}, only {group}")) == [
        "Poles, only Poles",
        "old people, only old people",
        "women, only women",
    ]


def test_a_numbered_slot_has_another_word():
    texts = draw("{group} and {group2} by {thing}")
    assert len(texts) == len(set(texts)) == 6 == fillings("{group} and {group2} by {thing}", SLOTS)
    assert "women and Poles by bus" in texts and "women and women by bus" not in texts


def test_an_article_agrees_with_the_word():
    slots = {"adj": ("ugly", "useless", "old", "European", "honest", "poor")}
    texts = filled(kind("An {adj} bus and a man."), slots, np.random.default_rng(0), 6)
    assert sorted(text.split(" bus")[0] for text in texts) == [
        *("A European", "A poor", "A useless", "An honest", "An old", "An ugly"),
    ]


def test_no_sentence_comes_twice_from_two_templates():
    assert sorted(draw("{thing}", "bus", "a {thing}")) == ["a bus", "bus"]


def test_templates_take_turns():
    texts = draw("{group}", "x {group}", "{group} and {group2} and {group3}", count=6)
    assert sorted(len(text.split(" and ")) for text in texts) == [1, 1, 1, 1, 3, 3]


def test_count_and_seed_decide_the_sentences():
    first = draw("{group} and {group2}", count=4, seed=3)
    assert len(first) == 4 and first == draw("{group} and {group2}", count=4, seed=3)
    assert draw("{group}", count=0) == []


def test_a_slot_of_many_fillings_costs_only_what_is_drawn():
    slots = {"n": tuple(str(i) for i in range(500))}
    template = " ".join(f"{{n{i}}}" for i in range(2, 12))  # about 10 ** 27 fillings
    texts = filled(kind(template), slots, np.random.default_rng(0), 50)
    assert len(set(texts)) == 50 and all(len(set(text.split())) == 10 for text in texts)


KIND = "{name: a, hateful: true, templates: ['{group} x'], targets: {toxicity: 1}}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("slots: {group: [a]}\nkinds: []", "kinds is []; a list of kinds"),
        ("kinds: [1]", "slots must be given"),
        ("slots: {group: [a]}\nkinds: [1]", "kind 1 is 1; name, hateful and templates"),
        ("slots: {group: [a]}\nkind: []", "unknown name 'kind'; did you mean 'kinds'?"),
        ("slots: {group: []}\nkinds: [1]", "the slot 'group': [] was given; a list of at least one text"),
        ("slots: {group: [1984]}\nkinds: [1]", "1984 is not a text; put numbers"),
        ("slots: {group: [a, b, a]}\nkinds: [1]", "the slot 'group': 'a' is given twice"),
        ("slots: {group2: [a]}\nkinds: [1]", "the slot name 'group2' may have only lower-case letters"),
        (
            f"slots: {{grup: [a]}}\nkinds: [{KIND}]",
            "kind 1 (a): the template '{group} x' has the unknown slot 'group'; did you",
        ),
        (f"slots: {{group: [a]}}\nkinds: [{KIND}, {KIND}]", "the kind 'a' is given twice"),
        (
            f"slots: {{group: [a]}}\nkinds: [{KIND}, {KIND.replace('name: a', 'name: b')}]",
            "template '{group} x' is given twice",
        ),
        (
            f"slots: {{group: [a]}}\nkinds: [{KIND.replace(': 1', ': 1.5')}]",
            "the target toxicity is 1.5; a number from 0 to 1",
        ),
        (f"slots: {{group: [a]}}\nkinds: [{KIND.replace(': 1', ': .nan')}]", "the target toxicity is nan"),
        (f"slots: {{group: [a]}}\nkinds: [{KIND.replace(': 1', ': true')}]", "the target toxicity is True"),
        (
            f"slots: {{group: [a]}}\nkinds: [{KIND.replace('toxicity', 'toxic')}]",
            "targets: unknown name 'toxic'; did you mean",
        ),
        (f"slots: {{group: [a]}}\nkinds: [{KIND.replace('true', 'yes')}]", "hateful is 'yes'; true or false"),
        (
            f"slots: {{group: [a]}}\nkinds: [{KIND.replace('{group} x', '{group} {group2}')}]",
            "more words of one slot than",
        ),
        (f"slots: {{group: [a]}}\nkinds: [{KIND.replace('{group} x', '{group x')}]", "has a brace without a slot"),
        ("slots: {group: [a]}\nkinds: [{name: a, hateful: true}]", "kind 1 (a): templates must be given"),
        (
            "slots: {group: [a]}\nkinds: [{name: a, hateful: true, templates: []}]",
            "kind 1 (a): templates: [] was given",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, error):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        read_sentences(tmp_path / "s.yaml")
    assert error in str(raised.value) and "s.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_targets_may_be_left_out(tmp_path):
    (tmp_path / "s.yaml").write_text("slots: {a: [b]}\nkinds: [{name: k, hateful: false, templates: ['{a}', c]}]")
    assert read_sentences(tmp_path / "s.yaml") == ({"a": ("b",)}, (Kind("k", False, ("{a}", "c"), {}),))


@cache
def read_once(path: Path) -> sentences.Sentences:
    return read_sentences(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_is_read_and_every_kind_fills(path):
    slots, kinds = read_once(path)
    for kind in kinds:
        texts = filled(kind, slots, np.random.default_rng(0), len(kind.templates))
        assert len(texts) == len(set(texts)) == len(kind.templates)
        assert not any("{" in text or "}" in text for text in texts)


def training_file() -> sentences.Sentences:
    return read_once(Path(sentences.__file__).parent / "training_sentences.yaml")


def test_every_hateful_kind_to_learn_from_has_a_harmless_twin():
    kinds = {kind.name: kind for kind in training_file().kinds}
    for kind in filter(lambda kind: kind.hateful, kinds.values()):
        twin = kinds[f"{kind.name}-twin"]
        assert not twin.hateful and twin.targets["toxicity"] <= 0.3 and twin.targets["identity_attack"] <= 0.4
        assert kind.targets["toxicity"] >= 0.7 and kind.targets["identity_attack"] >= 0.5


def test_every_kind_to_learn_from_has_all_targets_and_many_templates():
    for kind in training_file().kinds:
        assert set(kind.targets) == set(sentences.ATTRIBUTES) and len(kind.templates) >= 20


def test_opposite_slots_share_no_word():
    slots = training_file().slots
    for bad, good in (
        ("bad", "good"),
        ("bads", "goods"),
        ("bad_one", "good_one"),
        ("hurt", "help"),
        ("dislike", "like"),
    ):
        assert not set(slots[bad]) & set(slots[good])
    assert min(len(slots[name]) for name in ("group", "person", "one", "adj")) >= 130
