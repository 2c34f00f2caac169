"""Figures and their intervals, on a few texts whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(TOOLS))
    return pytest.importorskip("bootstrap")


MEAN = {"mean": lambda x: float(x.mean())}


def test_auc_by_hand(tool):
    # of the four pairs of a positive and another text one is lost and one is a draw
    assert tool.auc(np.array([0.9, 0.2, 0.2, 0.4]), np.array([True, True, False, False])) == 2.5 / 4
    assert np.isnan(tool.auc(np.array([0.1, 0.2]), np.array([True, True])))


def test_correlations_by_hand(tool):
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 9.0])
    assert tool.pearson(x, 3 - 2 * x) == pytest.approx(-1)
    assert tool.spearman(x, y) == pytest.approx(4.5 / np.sqrt(5 * 4.5))  # ranks 1, 2, 3.5, 3.5
    assert np.isnan(tool.pearson(x, np.ones(4)))


def test_an_interval_draws_documents_not_texts(tool):
    """Two documents of equal texts: every resampling has a mean of 0, 1/2 or 1, as no draw of single texts would."""
    texts, documents = np.repeat([0.0, 1.0], 50), np.repeat(["a", "b"], 50)
    assert tool.intervals(MEAN, [texts], documents, 200)["mean"] == (0.0, 1.0)
    assert tool.intervals(MEAN, [texts], documents, 200) == tool.intervals(MEAN, [texts], documents, 200)


def test_the_texts_of_a_document_need_not_stand_together(tool):
    texts, documents = np.tile([0.0, 1.0], 50), np.tile([7, 3], 50)
    assert tool.intervals(MEAN, [texts], documents, 200)["mean"] == (0.0, 1.0)


def test_resamplings_without_a_value_are_left_out(tool):
    """Half of the resamplings of two documents have texts of one class only."""
    scores, positive = np.array([0.2, 0.8]), np.array([False, True])
    assert tool.intervals({"auc": tool.auc}, [scores, positive], np.arange(2), 100)["auc"] == (1.0, 1.0)


def test_a_figure_without_a_value_is_a_dash(tool):
    arrays = np.array([0.25, 0.75]), np.array([True, True])
    figures = {"auc": tool.auc, "mean": lambda scores, positive: float(scores.mean())}
    assert tool.cells(figures, arrays, np.array([0, 0]), 10) == {"auc": "–", "mean": ".500 (.500–.500)"}


@pytest.mark.parametrize(("value", "text"), [(0.8894, ".889"), (-0.05, "-.050"), (1.0, "1.000")])
def test_short_numbers(tool, value, text):
    assert tool.short(value) == text
