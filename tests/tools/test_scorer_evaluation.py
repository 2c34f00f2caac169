"""The figures of the fidelity tables, computed by hand on a few numbers."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

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


def test_calibration_error_by_hand(evaluation):
    scores, truth = np.array([0.12, 0.18, 0.92, 1.0]), np.array([0.4, 0.1, 0.96, 0.76])
    # the second tenth: |.15 - .25| for two texts; the last, which 1.0 is part of: |.96 - .86| for two
    assert evaluation.calibration_error(scores, truth) == pytest.approx(0.1)
    assert evaluation.calibration_error(truth, truth) == 0


def test_agreement_by_hand(evaluation):
    said, true = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool), np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    row = evaluation.agreement(said, true)  # by chance the same: 3/8 * 3/8 + 5/8 * 5/8 = 34/64
    assert row == {"share": 0.375, "precision": 0.667, "recall": 0.667, "agreement": 0.75, "kappa": 0.467}


def test_one_line_a_set_with_the_scorers_side_by_side(evaluation, capsys):
    document = next(f"d{i}" for i in range(999) if evaluation.split_of(f"d{i}") == "test")
    other = next(f"d{i}" for i in range(999) if evaluation.split_of(f"d{i}") == "train")
    heads = [*(f"{scale}:toxicity" for scale in evaluation.SCALES), *evaluation.SETS]
    rows = [(document, f"{v} {head}", {head: v}) for head in heads for v in (0.2, 0.4, 0.6, 0.8)]
    rows += [(other, "0.1 of training", {head: 0.9}) for head in heads]
    evaluation.beside({"one": Known(), "two": Known()}, rows[:9], rows[9:], "test")
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| recorded, split test | n | >= .5 | Spearman: one | Spearman: two |") and len(lines) == 6
    assert lines[0] == "| rtp-scored | 4 | 2 | 1 | 1 | 1 | 1 | 0 | 0 |"


def test_the_other_scorer_is_a_column_only_where_it_can_be_had(evaluation, monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    assert evaluation.others() == {}
    module = types.ModuleType("profanity_check")
    module.predict_prob = lambda texts: [len(text) / 10 for text in texts]
    monkeypatch.setitem(sys.modules, "profanity_check", module)
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: module)
    assert evaluation.others()["alt-profanity-check"].attributes(["a", "ab"])["toxicity"].tolist() == [0.1, 0.2]
