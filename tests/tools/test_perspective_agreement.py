"""The tables of agreement with Perspective, on a few texts whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from nlf.rewards import Reward
from nlf.serving.scoring import AttributeScorer

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """The tool; it needs torch, scipy and scikit-learn."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(TOOLS))
    return pytest.importorskip("perspective_agreement")


class Ends:
    """The number at the end of the text is its toxicity; no score without one."""

    name, version = "ends", 1

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [1.0] * len(completions)

    def attributes(self, texts):
        last = [text.rstrip(".").split()[-1] for text in texts]
        return {"toxicity": np.array([float(word) if word[0] in "01" else np.nan for word in last])}


def rows(tool, split: str, pairs) -> list:
    """Texts with a score and a recorded score, each in a document of its own in the split."""
    documents = [name for name in map(str, range(1000)) if tool.split_of(name) == split]
    named = zip(documents, pairs, strict=False)
    return [(document, f"text {score}", {"2020:toxicity": truth}) for document, (score, truth) in named]


def test_pairs_leave_out_and_count_what_has_no_score(tool):
    scorer = AttributeScorer(Reward(Ends()))
    found = tool.pairs_of(
        scorer, [*rows(tool, "test", [(0.5, 0.25), ("?", 0.5)]), *rows(tool, "validation", [(1, 1)])], "test"
    )
    assert list(found) == [("2020", "toxicity")]
    pairs = found["2020", "toxicity"]
    assert (pairs.scores.tolist(), pairs.truth.tolist(), pairs.unscored) == ([0.5], [0.25], 1)


def test_the_tables(tool, monkeypatch):
    monkeypatch.setattr(tool, "LEAST", 2)
    scorer = AttributeScorer(Reward(Ends()))
    truth = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    data = [*rows(tool, "test", [(t / 2, t) for t in truth]), *rows(tool, "validation", [(t / 2, t) for t in truth])]
    pairs, other = tool.pairs_of(scorer, data, "test"), tool.pairs_of(scorer, data, "validation")
    ((*names, spearman, auc, same),) = tool.by_attribute(pairs, 50)
    assert names == ["2020", "TOXICITY", "6", "0"]
    assert spearman == "1.000 (1.000–1.000)" == auc
    assert same.startswith(".667 (")  # at .5 the halves of .6 and .8 fall on the other side
    table = {cells[1]: cells for cells in tool.by_threshold(pairs, other)}
    assert table["0.5"][2:7] == ["50%", "0.50", "1.000", ".333", ".333"]
    assert table["0.5"][7:] == ["0.25", "1.000", "1.000", "1.000"]
    assert next(iter(tool.old_to_new(other))) == ["2020", "TOXICITY", "0.17", "0.25", "0.33", "0.33", "–"]


def test_agreement_by_hand(tool):
    said, true = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool), np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    row = tool.agreement(said, true)  # by chance the same: 3/8 * 3/8 + 5/8 * 5/8 = 34/64
    assert row == {"share": 0.375, "precision": 0.667, "recall": 0.667, "agreement": 0.75, "kappa": 0.467}
