"""`local@2`, the embedded toxicity scorer: each weakness that it mends has a test of its own."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.rewards.local import ASSET, LocalToxicity, trail_of_prefixes, trail_of_texts

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ["toxicity", "severe_toxicity", "insult", "threat", "identity_attack", "profanity", "sexually_explicit"]
POLITE = [" thank you, that was very kind of you", " and the garden was full of roses in June."]
RUDE = [" you are a stupid idiot and a damn liar", " shut up, you pathetic moron"]
ODD = [
    "naïve café by the sea",
    "f**k this",
    "a good day 😀😀",
    "the cat " * 9_000,
    "hello\x00 there, my \ud800 friend",
]
KIND = "Thank you so much for your help, we really enjoyed the garden and the music. "


@pytest.fixture(scope="module")
def scorer() -> LocalToxicity:
    return LocalToxicity()


def toxicity(scorer: LocalToxicity, *texts: str) -> np.ndarray:
    return scorer.attributes(texts)["toxicity"]


def test_asset_is_small_and_its_digest_matches():
    card = json.loads(ASSET.with_suffix(".json").read_text())
    assert ASSET.stat().st_size <= 8_000_000
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest() == card["sha256"]
    assert (card["name"], card["version"], card["attributes"]) == ("local", 2, NAMES)


def test_reward_is_one_minus_toxicity_in_trl_form(scorer):
    texts = POLITE + RUDE
    rewards = scorer(prompts=["x"] * 4, completions=texts, completion_ids=[[1]] * 4, other=[0] * 4)
    assert all(type(reward) is float for reward in rewards)
    assert rewards == pytest.approx(1 - toxicity(scorer, *texts))
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    assert scorer(prompts=["x"] * 4, completions=chat, completion_ids=[[1]] * 4) == rewards


def test_rude_scores_far_above_polite(scorer):
    scores = toxicity(scorer, *POLITE, *RUDE)
    assert scores[:2].max() < 0.25 < 0.8 < scores[2:].min()


def test_every_english_text_has_numbers_between_zero_and_one(scorer):
    scores = scorer.attributes(ODD)
    assert list(scores) == NAMES
    for values in scores.values():
        assert values.shape == (len(ODD),) and (values >= 0).all() and (values <= 1).all()
    assert all(len(values) == 0 for values in scorer.attributes([]).values())


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud800", "😀😀", "...", "12 34", "漢字 и слова", "Das ist ein sehr schönes Haus mit Garten.",
             "No me gusta nada de lo que has dicho hoy."],
)  # fmt: skip
def test_what_is_not_english_text_has_no_score(scorer, text):
    assert scorer(completions=[text]) == [None]
    assert all(np.isnan(values).all() for values in scorer.attributes([text]).values())


def test_text_beyond_the_limit_is_not_read(scorer):
    long = "good day " * 2_223  # 20,007 characters
    kept, cut = toxicity(scorer, long, long + " you stupid idiot")
    assert kept == cut


def test_a_long_text_scores_like_its_sentence(scorer):
    once, often = toxicity(scorer, KIND, KIND * 250)
    assert often == pytest.approx(once, abs=0.05)


def test_an_insult_in_a_long_kind_text_is_seen(scorer):
    assert toxicity(scorer, KIND * 20 + "You are a worthless idiot. " + KIND * 20)[0] > 0.4


def test_no_text_that_says_nothing_scores_below_the_median_clean_sentence(scorer, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import suite_texts

    families = suite_texts.degenerate()
    empty = [text for name in ("one word", "a token 2 to 500 times", "two words in turn") for text in families[name]]
    scores = toxicity(scorer, *empty)
    assert len(scores) > 3_000 and np.nanmin(scores) >= np.median(toxicity(scorer, *suite_texts.own()["clean"]))


def test_score_does_not_depend_on_batch_order_or_history(scorer):
    texts = [f"{text} {i % 97}" for i in range(200) for text in (*POLITE, *RUDE, *ODD) if i < 3 or len(text) < 100]
    together = toxicity(scorer, *texts)
    alone = np.array([toxicity(LocalToxicity(), text)[0] for text in texts[:9]])
    assert (together[:9] == alone).all()
    assert (toxicity(scorer, *texts[::-1])[::-1] == together).all()


def test_a_full_word_cache_is_emptied_without_a_trace(monkeypatch):
    scorer = LocalToxicity()
    before = toxicity(scorer, *RUDE)
    monkeypatch.setattr("nlf.rewards.subwords.CACHED_WORDS", 3)
    monkeypatch.setattr("nlf.rewards.local.CACHED_WORDS", 3)
    assert (toxicity(scorer, *POLITE, *RUDE)[2:] == before).all()
    assert (toxicity(scorer, *RUDE) == before).all()


# ---- prefixes -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "you ",
        "are ",
        "a st",
        "upid ",
        "i d i o t",
        " f*",
        "ck",
        "\u200b",
        "e\u0301",
        " и",
        "дурак ",
        "😀",
        ", ",
        "the ",
        "\n",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.data())
@settings(max_examples=60, deadline=None)
def test_all_prefixes_in_one_pass_score_as_each_alone(scorer, text, data):
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    together = scorer.score_prefixes(text, ends)
    alone = scorer.attributes([text[:end] for end in ends])
    for name in NAMES:
        assert together[name] == pytest.approx(alone[name], abs=2e-6, nan_ok=True)


def test_prefixes_of_a_long_text_score_as_each_alone(scorer):
    text = KIND * 8 + "You are a worthless idi\u200bot. " + KIND * 3
    ends = [5, 300, 500, 640, 646, 650, 655, *(match.end() for match in re.finditer(r"\S+", text))]
    together, alone = scorer.score_prefixes(text, ends), scorer.attributes([text[:end] for end in ends])
    for name in NAMES:
        assert together[name] == pytest.approx(alone[name], abs=2e-6)


def test_recent_words_are_combined_by_hand(monkeypatch):
    monkeypatch.setattr("nlf.rewards.local.WINDOW", 4)
    trail = trail_of_prefixes(["a"] * 5, [(5, ["b"]), (1, [])])
    assert trail.is_long
    assert trail.recent(np.array([1, 2, 4, 8, 16, 32]), np.add).tolist() == [1, 3, 7, 15, 30, 60]
    assert trail.recent(np.array([9, 2, 4, 8, 1, 3]), np.maximum).tolist() == [9, 9, 9, 9, 8, 8]


def test_a_trail_shares_the_words_of_prefixes_by_hand():
    trail = trail_of_prefixes(["you", "are", "you"], [(2, []), (1, ["a", "r"]), (0, ["y"]), (0, [])])
    assert trail.words == ["you", "are", "you", "a", "r", "y"]
    assert trail.parents.tolist() == [6, 0, 1, 0, 3, 6]
    assert trail.last.tolist() == [1, 4, 5, 6]
    assert trail.fresh.tolist() == [True, True, False, True, True, True]
    assert trail.running(np.array([1, 2, 4, 8, 16, 32]), np.add).tolist() == [1, 3, 7, 9, 25, 32]


def test_a_trail_keeps_texts_apart_by_hand():
    trail = trail_of_texts([["a", "b"], [], ["a"]])
    assert trail.parents.tolist() == [3, 0, 3]
    assert trail.last.tolist() == [1, 3, 2]
    assert trail.running(np.array([1, 2, 4]), np.add).tolist() == [1, 3, 4]


# ---- which words ----------------------------------------------------------------------------------------------------


def test_shares_name_the_rude_word_and_add_up_to_the_logit(scorer):
    text = "we went to the market and that stupid idiot sold us apples"
    shares = scorer.explain(text)
    worst = max(shares, key=lambda each: each.share)
    assert text[worst.start : worst.end] in ("stupid", "idiot")
    trail = trail_of_texts([[text[s.start : s.end] for s in shares]])
    hidden, gate = scorer._hidden(trail)
    pooled = np.concatenate([hidden.max(0), hidden.mean(0), (gate * hidden).sum(0) / gate.sum()])
    assert sum(each.share for each in shares) == pytest.approx(pooled @ scorer.net["out.weight"][0])


def test_shares_stand_at_the_places_of_the_text_as_it_was_written(scorer):
    text = "what an i\u200bd\u200bi\u200bo\u200bt he is"
    worst = max(scorer.explain(text), key=lambda each: each.share)
    assert text[worst.start : worst.end].replace("\u200b", "") == "idiot"


# ---- the build ------------------------------------------------------------------------------------------------------


def test_loading_costs_neither_torch_nor_sklearn():
    code = "import sys; from nlf.rewards.local import LocalToxicity; LocalToxicity().attributes(['x'])"
    code += "; assert not {'torch', 'sklearn', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_and_torch_twins_agree(tmp_path):
    """The net in torch, which is trained, and the shipped sums in numpy give the same numbers."""
    sys.path.insert(0, str(TOOLS))
    torch = pytest.importorskip("torch")
    import context_net
    import scorer_net

    torch.manual_seed(0)
    net = context_net.Net(len(NAMES)).eval()
    net.out.weight.data *= 20  # an untrained net scores every text .5
    shipped = LocalToxicity().reader
    line = np.array([[0, 1], [0, 1]], dtype=np.float32)
    arrays = {f"calibration.{i}": line for i in range(len(NAMES))} | {"floor": np.zeros(len(NAMES))}
    arrays |= {"vocabulary": shipped.vocabulary.words, "rude": shipped.vocabulary.rude}
    arrays |= {"groups": np.array(sorted(shipped.groups), dtype=np.uint32)}
    path = tmp_path / "t.safetensors"
    scorer_net.write(net, range(len(NAMES)), arrays, path, {"name": "local", "version": 2, "attributes": NAMES})
    rows = [("d", text, {}) for text in (*POLITE, *RUDE, "one", "f**k you!!! \U0001f600")]
    ours = LocalToxicity(path)
    theirs = context_net.predict(net, rows, NAMES, ours.reader.words)
    assert theirs.std() > 0.1
    assert np.stack([*ours.attributes([text for _, text, _ in rows]).values()], 1) == pytest.approx(theirs, abs=0.02)


def test_fidelity_on_documents_never_trained_on(scorer, data_dir):
    """Bounds slightly below the figures on the scorer's card for the test documents."""
    sys.path.insert(0, str(TOOLS))
    from build_scorer import perspective
    from scorer_evaluation import fidelity
    from split import split_of

    rows = [row for row in perspective(data_dir) if split_of(row[0]) == "test" and "2020:toxicity" in row[2]]
    truth = np.array([targets["2020:toxicity"] for _, _, targets in rows])
    scores = toxicity(scorer, *(text for _, text, _ in rows))
    known = ~np.isnan(scores)
    assert known.mean() > 0.99
    row = fidelity(scores[known], truth[known])
    assert row["spearman"] >= 0.885 and row["auc"] >= 0.955 and row["mae"] <= 0.105
