"""The auditor: its asset, its n-grams, and its agreement with scores that it was not trained on."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.rewards.audit import ASSET, BITS, AuditToxicity, ngrams, soft_maximum
from nlf.rewards.local import ASSET as LOCAL
from nlf.rewards.registry import resolve_reward

TOOLS = Path(__file__).resolve().parents[2] / "tools"
POLITE = [" thank you, that was very kind of you", " and the garden was full of roses in June."]
RUDE = [" you are a stupid idiot and a damn liar", " shut up, you pathetic moron"]
ODD = ["", " ", "\x00", "\ud800", "x", "naïve café", "😀😀", "f**k", "a" * 30_000, "the " * 9_000, "漢字 и слова"]
SCORER = AuditToxicity()


@pytest.fixture
def tools(monkeypatch):
    """Make the modules of tools/ importable; they need torch, scipy and scikit-learn."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(TOOLS))


def test_asset_is_small_and_its_digest_matches():
    card = json.loads(ASSET.with_suffix(".json").read_text())
    assert ASSET.stat().st_size <= 3_000_000
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest() == card["sha256"]
    assert (card["name"], card["version"], card["attributes"]) == ("audit", 1, ["toxicity"])


def test_the_asset_of_another_scorer_is_refused():
    with pytest.raises(UserError, match="is the asset of local@.*; expected audit@1"):
        AuditToxicity(LOCAL)


def test_its_name_resolves_and_its_reward_is_one_minus_toxicity():
    reward = resolve_reward("audit")
    assert reward.label == "audit@1" and not reward.remote
    texts = POLITE + RUDE
    rewards = SCORER(prompts=["x"] * 4, completions=texts, completion_ids=[[1]] * 4, other=[0] * 4)
    assert all(type(each) is float for each in rewards)
    assert rewards == pytest.approx(1 - SCORER.attributes(texts)["toxicity"])


def test_rude_scores_far_above_polite_and_nothing_below_the_middle():
    toxicity = SCORER.attributes([*POLITE, *RUDE, ""])["toxicity"]
    assert max(*toxicity[:2], toxicity[4]) < 0.3 < 0.6 < toxicity[2:4].min()


def test_every_text_has_a_number_between_zero_and_one():
    toxicity = SCORER.attributes(ODD)["toxicity"]
    assert toxicity.shape == (len(ODD),) and ((toxicity >= 0) & (toxicity <= 1)).all()
    assert toxicity[0] == toxicity[1]
    assert len(SCORER.attributes([])["toxicity"]) == 0
    for text in ODD:
        SCORER.attributes([text])  # a short text alone is shorter than the longest n-gram


@given(st.lists(st.text(max_size=40), max_size=8))
def test_a_score_does_not_depend_on_its_batch(texts):
    toxicity = SCORER.attributes(texts)["toxicity"]
    assert [SCORER.attributes([text])["toxicity"][0] for text in texts] == toxicity.tolist()


def test_case_is_not_read():
    shouted = [text.upper() for text in POLITE + RUDE]
    assert (SCORER.attributes(shouted)["toxicity"] == SCORER.attributes(POLITE + RUDE)["toxicity"]).all()


def test_loading_costs_neither_torch_nor_sklearn():
    code = "import sys; from nlf.rewards.audit import AuditToxicity; AuditToxicity().attributes(['x'])"
    code += "; assert not {'torch', 'sklearn', 'scipy', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ngrams_by_hand():
    kinds, owners = ngrams(["ab c", "", "AB"])
    (ones, of_ones), (_, of_twos), *characters = kinds
    assert owners.tolist() == [0, 0, 2]
    assert of_ones.tolist() == [0, 1, 2] and ones[0] == ones[2] != ones[1]
    assert of_twos.tolist() == [1]  # no pair spans two texts
    # " ab c " holds " a" "ab" "b " | " c" "c ", and " ab " holds " a" "ab" "b "
    pairs, of_pairs = characters[0]
    assert of_pairs.tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and pairs[:3].tolist() == pairs[5:].tolist()
    assert [len(rows) for rows, _ in characters] == [8, 4 + 2, 3 + 1, 2]
    assert all((rows >= 0).all() and (rows < 1 << BITS).all() for rows, _ in kinds)


def test_the_hash_of_a_stretch_does_not_depend_on_where_it_stands():
    (near, _), *_ = ngrams(["liar"])[0]
    (far, _), *_ = ngrams(["so " * 5_000 + "liar"])[0]
    assert far[-1] == near[0] != far[0]


def test_soft_maximum_by_hand():
    pooled = soft_maximum(np.log([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3)
    assert pooled == pytest.approx([np.log(2), 0, np.log(5)])


# ---- how it was made ------------------------------------------------------------------------------------------------


def test_what_is_fitted_is_what_is_scored(tools, tmp_path, monkeypatch):
    """Two programs add the same n-grams. The bug: the fit used the factor of a word and the scorer did not."""
    import build_audit

    monkeypatch.setattr(build_audit, "ITERATIONS", 20)
    texts, target = [*POLITE, *RUDE] * 2, np.array([0.1, 0.0, 1.0, 0.9] * 2)
    views, biases, logits = [], [], np.zeros(8)
    for by_word in (False, True):
        found, owners = build_audit.features(texts, by_word=by_word)
        weights, bias = build_audit.fit(found, owners, target, 0.1)
        logits += soft_maximum(found @ weights, owners, 8) + bias
        views.append(weights)
        biases.append(bias)
    card = {"name": "audit", "version": 1, "attributes": ["toxicity"]}
    line = np.array([[0, 1], [0, 1]], dtype=np.float32)
    build_audit.write(views, sum(biases), line, tmp_path / "a.safetensors", card)
    toxicity = AuditToxicity(tmp_path / "a.safetensors").attributes(texts)["toxicity"]
    assert toxicity == pytest.approx(1 / (1 + np.exp(-logits / 3)), abs=0.01)  # eight bits
    assert toxicity.std() > 0.1


def test_fitting_finds_the_slope(tools):
    """With two features in two texts each and almost no ridge the probabilities equal the targets."""
    import build_audit
    import scipy.sparse as sp

    found = sp.csr_matrix(np.array([[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]], dtype=np.float32))
    weights, bias = build_audit.fit(found, np.arange(4), np.array([0.9, 0.9, 0.2, 0.2]), 1e-9)
    assert 1 / (1 + np.exp(-(weights + bias))) == pytest.approx([0.9, 0.2], abs=1e-3)


def test_it_learns_from_nothing_that_local_learns_from(tools, data_dir):
    import build_audit
    from build_scorer import perspective
    from labelled_texts import local_texts
    from split import split_of, text_document

    rows = build_audit.training_rows(data_dir)
    assert len(rows) == sum(json.loads(ASSET.with_suffix(".json").read_text())["texts_per_source"].values())
    assert all(split_of(document) == "train" for document, *_ in rows)
    theirs = {text_document(row[1]) for row in (*perspective(data_dir), *local_texts(data_dir))}
    shared = [text for _, text, _ in rows if text_document(text) in theirs]
    assert (
        len([text for text in shared if len(text.split()) > 4]) <= 2
    )  # the others are one to four words, such as "lol"


def test_fidelity_on_continuations_never_trained_on(tools, data_dir):
    """Bounds slightly below the figures in docs/rewards.md for the test documents."""
    import build_audit
    from scorer_evaluation import fidelity

    texts, truth = build_audit.continuations(data_dir, "test")
    row = fidelity(SCORER.attributes(texts)["toxicity"], truth)
    assert row["spearman"] >= 0.75 and row["auc"] >= 0.85 and row["mae"] <= 0.15
