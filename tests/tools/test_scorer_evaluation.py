"""The figures of the fidelity tables, computed by hand on a few numbers."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nlf.rewards.contract import Share

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def evaluation(monkeypatch):
    """The tool; it needs torch, scipy and scikit-learn."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(TOOLS))
    return pytest.importorskip("scorer_evaluation")


class Known:
    """A scorer that reads its score from the text."""

    def attributes(self, texts):
        return {"toxicity": np.array([float(text.split()[0]) for text in texts])}


def test_a_text_that_one_scorer_cannot_score_is_left_out_for_all(evaluation):
    truth = np.array([0.1, 0.4, 0.6, 0.9, 0.2])
    scores = np.stack([truth, np.where(truth == 0.2, np.nan, 1 - truth)], axis=1)
    mean = {"mean": lambda scores, truth: float((scores - truth).mean())}
    row = evaluation.figured(mean, scores, truth, np.zeros(5))
    assert row == [4, 1, ".000 (.000–.000)", ".000 (.000–.000)"]


def test_one_line_a_set_with_the_scorers_side_by_side(evaluation, capsys):
    documents = [f"d{i}" for i in range(999) if evaluation.split_of(f"d{i}") == "test"]
    other = next(f"d{i}" for i in range(999) if evaluation.split_of(f"d{i}") == "train")
    heads = [*(f"{scale}:toxicity" for scale in evaluation.SCALES), *evaluation.SETS]
    values = [0.2, 0.3, 0.4, 0.6, 0.7, 0.8]
    rows = [(d, f"{v} {head}", {head: v}) for head in heads for d, v in zip(documents, values, strict=False)]
    rows += [(other, "0.1 of training", {head: 0.9}) for head in heads]
    evaluation.beside({"one": Known(), "two": Known()}, rows[:9], rows[9:], "test")
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| recorded, split test | >= .5 | n | cannot be scored | Spearman: one | Spearman: two |")
    one = "1.000 (1.000–1.000)"
    assert lines[0] == f"| rtp-scored | 3 | 6 | 0 | {' | '.join([one] * 4)} | .000 (.000–.000) | .000 (.000–.000) |"
    assert len(lines) == 6


def test_shares_point_at_marked_characters(evaluation):
    text = "you utter fool today"
    shares = [Share(0, 3, 0.5), Share(4, 9, -1.0), Share(10, 14, 2.0), Share(15, 20, 0.1)]
    found = evaluation.pointed(shares, [(4, 14)], text)
    # pairs of a marked and another word: utter loses both, fool wins both; 4 of the 12 raised characters are marked
    assert found == (0.5, 1.0, 0.5, pytest.approx(2 * 4 / (10 + 12)))
    assert evaluation.pointed(shares, [(0, 20)], text) is None
    assert evaluation.pointed([], [(0, 20)], text) is None


class ByWords:
    """Its score is a twentieth of the number of words; the text `a` has none."""

    def attributes(self, texts):
        return {"toxicity": np.array([np.nan if text == "a" else len(text.split()) / 20 for text in texts])}

    def score_prefixes(self, text, ends):
        return self.attributes([text[:end] for end in ends])


def test_prefixes_of_clean_and_toxic_texts(evaluation, capsys):
    document = next(f"d{i}" for i in range(999) if evaluation.split_of(f"d{i}") == "test")
    clean, toxic = [" ".join([word] * 10) for word in "ab"], " ".join(["c"] * 12)
    texts = {**dict.fromkeys(clean, 0.05), toxic: 0.9, toxic.upper(): 0.3, "too short": 0.9}
    rows = [(document, text, {"2020:toxicity": value}) for text, value in texts.items()]
    evaluation.prefixes(ByWords(), rows, "test")
    out = capsys.readouterr().out
    assert "| below .1 | 2 | 2 | 0 | 0.100 (0.100–0.100) | 0.000 (0.00–0.66) |" in out
    assert "| below .1 | 1 | 2 | 1 | 0.050 (0.050–0.050) |" in out
    assert "| at .5 or more | all | 1 | 0 | 0.600 (0.600–0.600) | 1.000 (0.21–1.00) |" in out
    assert "largest difference from the score of the prefix alone: 0\n" in out


def test_the_other_scorer_is_a_column_only_where_it_can_be_had(evaluation, monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    assert evaluation.others() == {}
    module = types.ModuleType("profanity_check")
    module.predict_prob = lambda texts: [len(text) / 10 for text in texts]
    monkeypatch.setitem(sys.modules, "profanity_check", module)
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: module)
    assert evaluation.others()["alt-profanity-check"].attributes(["a", "ab"])["toxicity"].tolist() == [0.1, 0.2]
