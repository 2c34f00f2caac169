"""The suite for scorers of toxicity: its texts, and each figure by hand on a hand-made scorer."""

import gzip
import json
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import scorer_suite
import suite_figures
import suite_texts
from sentences import PLACE, Sentences, read_sentences
from suite_figures import Share
from suite_texts import Functionality

NAN = float("nan")
SMALL = {"a", "an", "the", "people", "person", "men", "man", "women", "woman"}  # they say nothing about a group
TRAINING = suite_texts.FOLDER / "training_sentences.yaml"


class By:
    """A scorer by a rule from a text to its toxicity."""

    def __init__(self, rule):
        self.rule = rule

    def attributes(self, texts):
        return {"toxicity": np.array([self.rule(text) for text in texts], dtype=float)}


class Named(By):
    """A scorer that reads its two numbers from the text."""

    def attributes(self, texts):
        numbers = np.array([[float(number) for number in text.split()] for text in texts])
        return {"toxicity": numbers[:, 0], "identity_attack": numbers[:, 1]}


def numbers(*pairs):
    return [f"{one} {two}" for one, two in pairs]


# ---- the texts ---------------------------------------------------------------------------------------------------


def test_the_suite_is_large_and_about_half_of_it_is_not_hateful():
    kinds = suite_texts.functionalities(50)
    assert len(kinds) >= 40 and all(len(set(kind.texts)) == 50 for kind in kinds)
    assert 0.4 <= np.mean([kind.hateful for kind in kinds]) <= 0.6
    texts = [text for kind in kinds for text in kind.texts]
    assert len(set(texts)) == len(texts)


def test_equal_seeds_give_equal_texts():
    assert suite_texts.functionalities(9, seed=3) == suite_texts.functionalities(9, seed=3)
    assert suite_texts.functionalities(9, seed=3) != suite_texts.functionalities(9, seed=4)
    assert suite_texts.degenerate(1) == suite_texts.degenerate(1)


def test_an_article_fits_its_word():
    wrong = re.compile(r"\ba [aeio]|\ban (?!hour)[^aeio]", re.IGNORECASE)
    assert not [text for kind in suite_texts.functionalities(300) for text in kind.texts if wrong.search(text)]


def test_neutral_sentences_of_every_term():
    sentences = suite_texts.neutral()
    assert len(sentences) >= 40 and all(len(set(texts)) >= 20 for texts in sentences.values())
    assert "A deaf person sat beside me on the ferry." in sentences["deaf"]
    assert "There were deaf people at the wedding." in sentences["deaf"]
    assert "A Jew sat beside me on the ferry." in sentences["Jew"]  # a capital within stays
    assert not [text for texts in sentences.values() for text in texts if "{" in text]


def test_enough_texts_of_every_other_sort():
    own = suite_texts.own()
    assert len(set(own["clean"])) >= 100 and len(set(own["insults"])) >= 40
    assert len(own["languages"]) >= 10 and all(len(texts) == 3 for texts in own["languages"].values())
    families = suite_texts.degenerate()
    assert "" in families["empty"] and "#" * 20_000 in families["no letters, 20,000 characters"]
    assert len(families["one word"]) > 1000 and all(word.isalpha() for word in families["one word"])


def bare(word):
    """A word of a slot without article, number and words such as people."""
    words = re.findall(r"[\w'*]+", word.lower())
    return " ".join(word.removesuffix("s") for word in words if word not in SMALL).strip()


def shape(template):
    """A template with `_` for its slots, without case and punctuation."""
    return " ".join(re.findall(r"[\w'*]+", PLACE.sub("_", template).lower()))


def shapes(sentences: Sentences):
    return {shape(template) for kind in sentences.kinds for template in kind.templates}


def test_the_suite_shares_no_template_with_the_training_sentences_and_its_slot_words_are_nowhere_in_them():
    if not TRAINING.exists():
        pytest.skip("tools/training_sentences.yaml does not exist")
    suite, training = read_sentences(suite_texts.SENTENCES), read_sentences(TRAINING)
    parts = [*training.slots.values(), *(kind.templates for kind in training.kinds)]
    learnt = " | ".join(text for part in parts for text in part).lower()
    words = {bare(word) for slot in suite.slots.values() for word in slot}
    assert not [word for word in words if re.search(rf"\b{re.escape(word)}s?\b", learnt)]
    assert not shapes(suite) & shapes(training)
    own = suite_texts.own()
    assert not {shape(text) for name in ("neutral", "clean", "insults") for text in own[name]} & shapes(training)


def test_bare_words_and_shapes_by_hand():
    assert bare("a deaf person") == bare("Deaf people") == "deaf"
    assert shape("{Group} are bad!") == shape("{person} are  bad") == "_ are bad"


def test_recorded_texts_come_from_held_out_documents(tmp_path):
    from split import split_of

    held = next(f"d{i}" for i in range(999) if split_of(f"d{i}") == "validation")
    other = next(f"d{i}" for i in range(999) if split_of(f"d{i}") == "train")
    rows = []
    for group in (held, other):
        for i, (prompt, continuation) in enumerate(((0.5, 0.49), (0.1, 0.09), (None, 0.9))):
            parts = {"prompt": prompt, "continuation": continuation}
            rows.append({"group": group} | {k: {"text": f"{group} {k} {i}", "toxicity": v} for k, v in parts.items()})
    (tmp_path / "rtp-scored").mkdir()
    with gzip.open(tmp_path / "rtp-scored/train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    toxic, clean = suite_texts.recorded(tmp_path, "validation")
    assert toxic == [f"{held} prompt 0", f"{held} continuation 2"] and clean == [f"{held} continuation 1"]
    assert len(suite_texts.recorded(tmp_path, "validation", count=1)[0]) == 1


# ---- the figures -------------------------------------------------------------------------------------------------


def test_share_by_hand():
    # Wilson (1927), 8 of 10: (.8 + 1.92/10 ± 1.96·sqrt(.016 + .96/100)) / (1 + 3.84/10)
    assert str(Share(8, 10)) == "0.800 (0.49–0.94)"
    assert str(Share(0, 0)) == "–"
    assert suite_figures.flagged(np.array([0.5, 0.49, NAN])) == Share(1, 3, 1)


def test_suite_figures_by_hand():
    kinds = [
        Functionality("threat", True, numbers((0.9, 0.1), (0.4, 0.2))),
        Functionality("slur", True, numbers((0.6, 0.9), (NAN, 0.9))),
        Functionality("news", False, numbers((0.5, 0.1), (0.1, 0.2))),
    ]
    found = suite_figures.suite(Named(None), kinds)
    toxicity = found["toxicity"]
    assert toxicity.shares == {"threat": Share(1, 2), "slur": Share(1, 2, 1), "news": Share(1, 2)}
    assert toxicity.accuracies["slur"] == Share(1, 2, 1) and toxicity.accuracies["news"] == Share(1, 2)
    assert toxicity.balanced.value == 0.5  # half of the hateful, half of the others
    assert toxicity.auc.value == 5 / 8  # .9 and .6 beat both others, .4 beats one, the unscored text counts as 0
    assert toxicity.balanced.low == toxicity.balanced.high == 0.5  # every kind is half right
    attack = found["identity_attack"]
    assert attack.balanced.value == 0.75  # (2 of 4 + 2 of 2) / 2
    assert attack.auc.value == (0.5 + 1.5 + 2 + 2) / 8  # draws are half a pair
    assert (attack.balanced.low, attack.balanced.high) == (0.5, 1.0)  # both kinds drawn are threats, or slurs
    assert suite_figures.suite(Named(None), kinds) == found


def test_identity_figures_by_hand():
    scores = {"monk": [0.9, 0.5, 0.2, 0.2], "baker": [0.1, 0.1, 0.1, NAN]}
    sentences = {term: [f"{term} {i}" for i in range(4)] for term in scores}
    scorer = By(lambda text: scores[text.split()[0]][int(text.split()[1])])
    found = suite_figures.identity(scorer, sentences)
    assert found.shares == {"monk": Share(2, 4), "baker": Share(0, 4, 1)}
    assert found.means["monk"] == pytest.approx(0.45) and found.means["baker"] == pytest.approx(0.1)
    assert found.gap.value == 0.5 and found.gap.low == 0 and found.gap.high == 1
    assert found.ordered == ["monk", "baker"]


def test_survivors_by_hand():
    def folded(text):  # a scorer that undoes what Unicode's compatibility forms do, and no more
        plain = unicodedata.normalize("NFKC", text)
        return 0.5 if "nitwit" in plain else NAN if "\u200b" in plain else 0.1

    texts = ["You nitwit.", "A nitwit, still!", "A warm soup.", "Nothing here."]
    found = suite_figures.survivors(By(folded), texts, {"nitwit"}.__contains__)
    assert found["fullwidth"] == found["mathematical bold"] == Share(2, 2)
    assert found["leet"] == found["one letter masked"] == Share(0, 2)
    assert found["zero-width space"] == Share(0, 2, 2)  # hidden by what cannot be scored: it counts as not flagged
    kept = suite_figures.survivors(By(folded), ["soup nitwit"], {"soup"}.__contains__)
    assert set(kept.values()) == {Share(1, 1), Share(1, 1, 0)}
    assert suite_figures.survivors(By(folded), ["nitwit"], {"soup"}.__contains__)["leet"] == Share(0, 0)


def test_degenerate_figures_by_hand():
    clean = [f"{i} clean" for i in range(101)]  # scores .00 to 1.00: the 5th percentile is .05, the median .5
    scorer = By(lambda text: NAN if not text else 0.04 if text == "the" else min(len(text.split()), 40) / 100)
    scorer.rule = lambda text, rule=scorer.rule: int(text.split()[0]) / 100 if text.endswith("clean") else rule(text)
    families = {"one word": ["oh", "the"], "empty": [""], "some": ["a " * 5, "a " * 40, "the", ""]}
    (low, median), found = suite_figures.degenerate(scorer, families, clean)
    assert (low, median) == (pytest.approx(0.05), pytest.approx(0.5))
    assert found["one word"][:3] == (0.01, "oh", Share(2, 2)) and found["one word"].below_median == Share(2, 2)
    assert np.isnan(found["empty"].lowest) and found["empty"].below_low == Share(0, 1, 1)
    assert found["some"] == (0.04, "the", Share(1, 4, 1), Share(3, 4, 1))
    hacks = next(each for name, each in found.items() if "lowest words" in name)
    # each of the two words 2, 5, 20, 100 and 500 times: .02 twice, then .05 and more
    assert hacks.lowest == 0.02 and hacks.below_low == Share(2, 10)


def test_the_share_that_cannot_be_scored():
    scorer = By(lambda text: NAN if text.isdigit() else 0.5)
    assert suite_figures.unscored(scorer, {"one": ["1", "2", "a"], "two": ["b"]}) == {
        "one": Share(2, 3, 2),
        "two": Share(0, 1, 0),
    }


# ---- the command -------------------------------------------------------------------------------------------------

SCORER = """
class {name}:
    name = "{name}"
    def attributes(self, texts):
        return {{"toxicity": [0.25 + 0.5 * ("{word}" in text.lower()) for text in texts]}}
    def __call__(self, prompts, completions, completion_ids, **columns):
        return [1 - value for value in self.attributes(completions)["toxicity"]]
"""


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scorer_suite.py", *map(str, arguments)])
    scorer_suite.main()


def test_the_command_puts_scorers_side_by_side(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text(SCORER.format(name="Curse", word="fuck") + SCORER.format(name="All", word=""))
    names = [f"{file}:Curse", f"{file}:All"]
    run(monkeypatch, "--reward_funcs", *names, "--count", 4, "--tables", "suite", "identity", "long", "languages")
    lines = capsys.readouterr().out.splitlines()
    kinds = [line for line in lines if line.split("|")[2:3] in ([" yes "], [" no "])]
    assert len(kinds) == len(suite_texts.functionalities(1))
    total = next(line for line in lines if line.startswith("| All, toxicity"))
    assert "| 1.000 (0.96–1.00) | 1.000 (0.95–1.00) | 0.500 (0.50–0.50) | 0.500 (0.50–0.50) |" in total
    assert "| a kind sentence × 1,000 | 0.250 | 0.750 |" in lines and "| an insult | 0.750 | 0.750 |" in lines
    assert any(
        line.startswith("| deaf | 25 | 0.000 (0.00–0.13) | 0.250 | 0.00 | 1.000 (0.87–1.00) |") for line in lines
    )
    assert "| in German | 3 | 0 of 3 | 0 of 3 |" in lines


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--reward_funcs", "length"], "--reward_funcs length: the attribute toxicity was expected"),
        (["--reward_funcs", "locl"], "unknown reward 'locl'; did you mean 'local'"),
        (["--reward_funcs", "audit", "audit"], "is given twice"),
        (
            ["--reward_funcs", "audit", "--data", "nowhere"],
            "--data: no file nowhere/word-lists/surge_profanity_en.csv",
        ),
        (["--count", "0"], "--count 0: at least 1 was expected"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, said, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and not out and len(err.splitlines()) == 1 and said in err
