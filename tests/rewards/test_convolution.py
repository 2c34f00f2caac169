"""`local@1`: its asset, and its agreement with the scores that it was distilled from."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nlf.errors import UserError
from nlf.rewards.convolution import ASSET, LocalToxicity1
from nlf.rewards.embedded import BLOCK

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ["toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit"]
POLITE = [" thank you, that was very kind of you", " and the garden was full of roses in June."]
RUDE = [" you are a stupid idiot and a damn liar", " shut up, you pathetic moron"]
ODD = ["", " ", "\x00", "\ud800", "naïve café", "😀😀", "f**k", "a" * 30_000, "the " * 9_000, "漢字 и слова"]


@pytest.fixture(scope="module")
def scorer() -> LocalToxicity1:
    return LocalToxicity1()


def test_asset_is_small_and_its_digest_matches():
    card = json.loads(ASSET.with_suffix(".json").read_text())
    assert ASSET.stat().st_size <= 3_000_000
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest() == card["sha256"]
    assert (card["name"], card["version"], card["attributes"]) == ("local", 1, NAMES)


def test_a_changed_asset_is_refused(tmp_path):
    path = tmp_path / ASSET.name
    path.write_bytes(ASSET.read_bytes() + b" ")
    shutil.copy(ASSET.with_suffix(".json"), tmp_path)
    with pytest.raises(UserError, match="sha256 differs"):
        LocalToxicity1(path)
    with pytest.raises(UserError, match="cannot read"):
        LocalToxicity1(tmp_path / "absent.safetensors")


def test_reward_is_one_minus_toxicity_in_trl_form(scorer):
    texts = POLITE + RUDE
    rewards = scorer(prompts=["x"] * 4, completions=texts, completion_ids=[[1]] * 4, other=[0] * 4)
    assert all(type(reward) is float for reward in rewards)
    assert rewards == pytest.approx(1 - scorer.attributes(texts)["toxicity"])
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    assert scorer(prompts=["x"] * 4, completions=chat, completion_ids=[[1]] * 4) == rewards


def test_rude_scores_far_above_polite(scorer):
    toxicity = scorer.attributes(POLITE + RUDE)["toxicity"]
    assert toxicity[:2].max() < 0.25 < 0.85 < toxicity[2:].min()


def test_every_text_has_numbers_between_zero_and_one(scorer):
    scores = scorer.attributes(ODD)
    assert list(scores) == NAMES
    for values in scores.values():
        assert values.shape == (len(ODD),) and np.isfinite(values).all()
        assert (values >= 0).all() and (values <= 1).all()
    assert scores["toxicity"][0] == scores["toxicity"][1]  # white space has no words
    assert all(len(values) == 0 for values in scorer.attributes([]).values())


def test_text_beyond_the_limit_is_not_read(scorer):
    long = "good " * 4_000  # 20,000 characters
    kept, cut = scorer.attributes([long, long + " you stupid idiot"])["toxicity"]
    assert kept == cut


def test_score_does_not_depend_on_batch_order_or_history(scorer):
    texts = [f"{text} {i % 97}" for i in range(BLOCK) for text in (POLITE + RUDE + ODD[:7])][: BLOCK + 50]
    together = scorer.attributes(texts)["toxicity"]
    alone = np.array([LocalToxicity1().attributes([text])["toxicity"][0] for text in texts[:12]])
    assert (together[:12] == alone).all()
    assert (scorer.attributes(texts[::-1])["toxicity"] == together[::-1]).all()


def test_a_full_word_cache_is_emptied_without_a_trace(monkeypatch):
    scorer = LocalToxicity1()
    before = scorer.attributes(RUDE)["toxicity"]
    monkeypatch.setattr("nlf.rewards.subwords.CACHED_WORDS", 3)
    assert (scorer.attributes(POLITE + RUDE)["toxicity"][2:] == before).all()
    assert (scorer.attributes(RUDE)["toxicity"] == before).all()


def test_loading_costs_neither_torch_nor_sklearn():
    code = "import sys; from nlf.rewards.convolution import LocalToxicity1; LocalToxicity1().attributes(['x'])"
    code += "; assert not {'torch', 'sklearn', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fidelity_on_documents_never_trained_on(scorer, data_dir):
    """Bounds slightly below the figures on the scorer's card for the test documents (.889, .960 and .092)."""
    sys.path.insert(0, str(TOOLS))
    from build_scorer import perspective
    from scorer_evaluation import fidelity
    from split import split_of

    rows = [row for row in perspective(data_dir) if split_of(row[0]) == "test" and "2020:toxicity" in row[2]]
    scores = scorer.attributes([text for _, text, _ in rows])["toxicity"]
    row = fidelity(scores, np.array([targets["2020:toxicity"] for _, _, targets in rows]))
    assert row["spearman"] >= 0.875 and row["auc"] >= 0.95 and row["mae"] <= 0.105
