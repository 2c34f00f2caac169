"""The auditor: its asset, its n-grams, and its agreement with scores that it was not trained on."""

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.rewards import audit
from nlf.rewards.audit import ASSET, BITS, GROUP, AuditToxicity, AuditToxicity1, ngrams, soft_maximum
from nlf.rewards.characters import source_of
from nlf.rewards.local import ASSET as LOCAL
from nlf.rewards.registry import resolve_reward

TOOLS = Path(__file__).resolve().parents[2] / "tools"
POLITE = [" thank you, that was very kind of you", " and the garden was full of roses in June."]
RUDE = [" you are a stupid idiot and a damn liar", " shut up, you pathetic moron"]
ODD = ["", " ", "\x00", "\ud800", "x", "naïve café", "😀😀", "f**k", "a" * 30_000, "the " * 9_000, "漢字 и слова"]
FOREIGN = [
    "Das Wetter ist heute schön und wir gehen spazieren.",
    "Сегодня хорошая погода, и мы идём гулять.",
    "今日はとても良い天気です。",
]
ABSENT = ["", " ", "\n\t", "\x00"]
TERMS = [
    "gay",
    "lesbian",
    "bisexual",
    "transgender",
    "black",
    "white",
    "Asian",
    "Muslim",
    "Jewish",
    "Christian",
    "Mexican",
    "blind",
]
NEUTRAL = [
    "The {} nurse works at the harbour.",
    "My neighbour is {} and grows tomatoes.",
    "A {} singer wrote this song.",
    "I am {}.",
]
SCORER = AuditToxicity()


def score(*texts):
    return SCORER.attributes(texts)["toxicity"]


@pytest.fixture
def tools(monkeypatch):
    """Make the modules of tools/ importable; they need torch, scipy and scikit-learn."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(TOOLS))


def test_asset_is_small_and_its_digest_matches():
    card = json.loads(ASSET.with_suffix(".json").read_text())
    assert ASSET.stat().st_size <= 4_000_000
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest() == card["sha256"]
    assert (card["name"], card["version"], card["attributes"]) == ("audit", 2, ["toxicity"])


def test_the_asset_of_another_scorer_is_refused():
    with pytest.raises(UserError, match="is the asset of local@.*; expected audit@2"):
        AuditToxicity(LOCAL)


def test_its_name_resolves_and_its_reward_is_one_minus_toxicity():
    reward = resolve_reward("audit")
    assert reward.label == "audit@2" and not reward.remote
    texts = POLITE + RUDE
    rewards = SCORER(prompts=["x"] * 4, completions=texts, completion_ids=[[1]] * 4, other=[0] * 4)
    assert all(type(each) is float for each in rewards)
    assert rewards == pytest.approx(1 - score(*texts))


def test_version_1_scores_as_ever():
    """Runs recorded its scores, which must stay comparable."""
    scores = AuditToxicity1().attributes([*POLITE, *RUDE, "", "I am a Muslim."])["toxicity"]
    assert scores.tolist() == [0.10351, 0.145721, 0.985271, 0.952033, 0.177986, 0.143289]


def test_rude_scores_far_above_polite():
    assert score(*POLITE).max() < 0.3 < 0.6 < score(*RUDE).min()


def test_every_text_has_a_number_between_zero_and_one_or_none():
    for text in ODD:  # a short text alone is shorter than the longest n-gram
        (toxicity,) = score(text)
        assert np.isnan(toxicity) or 0 <= toxicity <= 1
    assert len(score()) == 0


@pytest.mark.parametrize("text", [*FOREIGN, *ABSENT])
def test_other_languages_and_no_text_cannot_be_scored(text):
    assert np.isnan(score(text)).all() and SCORER(completions=[text]) == [None]
    assert AuditToxicity.none_is_worst


@given(st.lists(st.text(max_size=40), max_size=8))
def test_a_score_does_not_depend_on_its_batch(texts):
    np.testing.assert_array_equal(score(*texts), [score(text)[0] for text in texts])


def test_case_is_not_read():
    shouted = [text.upper() for text in POLITE + RUDE]
    assert (score(*shouted) == score(*POLITE, *RUDE)).all()


def test_loading_costs_neither_torch_nor_sklearn():
    code = "import sys; from nlf.rewards.audit import AuditToxicity; AuditToxicity().attributes(['x'])"
    code += "; assert not {'torch', 'sklearn', 'scipy', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what version 1 got wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Thank you, that was very kind of you. ", "The garden was full of roses in June. "])
def test_repeating_a_kind_sentence_does_not_make_it_toxic(text):
    """The bug: a kind sentence a thousand times over scored 1.000."""
    once, ten, thousand = score(text, text * 10, text * 1000)
    assert [ten, thousand] == pytest.approx([once, once], abs=0.05)


def test_a_long_mixture_of_kind_sentences_is_not_toxic():
    kind = [
        f"The {a} was {b} and we were {c}. "
        for a in ("soup", "walk", "film", "talk")
        for b in ("warm", "long", "good")
        for c in ("glad", "there", "late")
    ]
    assert score("".join(kind))[0] < 0.4


def test_the_work_is_linear_in_the_length(monkeypatch):
    """The bug: 20,000 marks took 6 s elsewhere. The n-grams are counted, because time depends on the machine."""
    sizes = []
    hashed = audit.ngrams
    monkeypatch.setattr(audit, "ngrams", lambda read: sizes.append(sum(map(len, read))) or hashed(read))
    for text in ("#" * 20_000, "a" * 20_000, "# " * 10_000):
        AuditToxicity().attributes([text])
    assert max(sizes) <= 2 * 20_000


def test_no_group_is_more_toxic_than_another():
    """The bug: the share of neutral sentences at .5 or more went from 0 to .9 with the term alone."""
    flagged, means = defaultdict(list), defaultdict(list)
    for term in TERMS:
        scores = score(*(text.format(term) for text in NEUTRAL))
        flagged[term], means[term] = (scores >= 0.5).mean(), scores.mean()
    assert max(flagged.values()) <= 0.25 and np.ptp(list(means.values())) < 0.05


def test_what_is_said_of_a_group_counts():
    hateful = score("All Germans are filth and should be shot.", "I hate Canadians, they are vermin.")
    harmless = score("Germans often visit the harbour.", "Thank you to the Canadians who helped us.")
    assert hateful.min() > 0.5 > harmless.max()


@pytest.mark.parametrize(
    "respelled",
    [
        "уou аre а ѕtuріd іdіot",  # Cyrillic letters
        "ｙｏｕ ａｒｅ ａ ｓｔｕｐｉｄ ｉｄｉｏｔ",
        "you are a stu\u200bpid id\u200biot",
        "you are a stu\u00adpid id\u00adiot",
        "you are a stúpïd ïdîot",
        "𝘆𝗼𝘂 𝗮𝗿𝗲 𝗮 𝘀𝘁𝘂𝗽𝗶𝗱 𝗶𝗱𝗶𝗼𝘁",
        "you are a stuuuupid idiooooot",
        "you are a s t u p i d i d i o t",
        "you are a 5tup1d 1d10t",
    ],
)
def test_respelling_does_not_hide_an_insult(respelled):
    plain, hidden = score("you are a stupid idiot", respelled)
    assert plain > 0.6 and hidden > plain - 0.15


def test_text_that_says_nothing_does_not_look_cleaner_than_clean_text():
    """The bug: single tokens scored far below clean sentences, so a policy could win by ending at once."""
    words = "the of and to in is it for on kind thank love garden nice good please a hello".split()
    rng = np.random.default_rng(0)
    empty = [*words, *(f"{word} " * 50 for word in words), *(" ".join(rng.permutation(words)) for _ in range(50))]
    assert np.nanmin(score(*empty)) >= score(*POLITE).min() == round(SCORER.net["calibration"][1, 0], 6)


# ---- n-grams --------------------------------------------------------------------------------------------------------


def test_ngrams_by_hand():
    kinds, owners = ngrams(["ab c", "", "ab"])
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


def test_phrases_are_read_near_a_group_only():
    far = "x " * (audit.REACH + 1)
    place, rows = audit.phrases(*ngrams([f"a {GROUP} b", "a b c", f"{far}{GROUP}", GROUP]))
    # a, G, b, a G, G b, a G b, a…b | none | the last 12 x are near: x, G, x x, x G, x x x, x x G, x…x, x…G | G
    assert np.bincount(place, minlength=4).tolist() == [7, 0, 8, 1]
    assert rows[-1] in rows[:7]


def test_repetition_adds_few_new_ngrams():
    one, two = (len(audit.distinct(*ngrams([text]))[0]) for text in ("so it goes " * 2, "so it goes " * 200))
    assert one == two


def test_soft_maximum_by_hand():
    pooled = soft_maximum(np.log([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3)
    assert pooled == pytest.approx([np.log(2), 0, np.log(5)])


PIECES = [
    "i",
    "d",
    "o",
    "t",
    "you",
    "idiot,",
    "(a)",
    "Black",
    "women",
    "naïve",
    "5tup1d",
    "\u200b",
    "#",
    "a\u0301",
    "-" * 70,
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=20))
def test_reading_by_pieces_changes_nothing(text):
    """Kept pieces are an optimization: a row of single letters must still be read as one."""
    forms, kinds = SCORER.reader._read(source_of(text).plain)
    read, by_piece = SCORER.reader.read(text)
    assert by_piece == kinds
    assert read == " ".join(form for form, last in zip(forms, ["", *forms], strict=False) if not form == last == GROUP)


def test_names_of_groups_are_one_word():
    read = SCORER.reader.read
    assert read("Black women sing.")[0] == read("the Koreans sing.")[0].removeprefix("the ") == f"{GROUP} sing ."
    assert read("a Jew's song")[0] == f"a {GROUP} song"


# ---- how it was made ------------------------------------------------------------------------------------------------


def test_what_is_fitted_is_what_is_scored(tools, tmp_path, monkeypatch):
    """Two programs add the same n-grams. The bug: the fit used the factor of a word and the scorer did not."""
    import build_audit

    monkeypatch.setattr(build_audit, "ITERATIONS", 20)
    read, target = [SCORER.reader.read(text)[0] for text in POLITE + RUDE] * 2, np.array([0.1, 0.0, 1.0, 0.9] * 2)
    own = [f"i admire {GROUP} .", f"i dislike {GROUP} ."] * 2, np.array([0.1, 0.9] * 2)
    found = build_audit.fits(read, target, np.arange(8), own)
    card = {"name": "audit", "version": 2, "attributes": ["toxicity"], "groups": []}
    line = np.array([[0, 1], [0, 1]], dtype=np.float32)
    found.write(line, SCORER.reader.vocabulary, tmp_path / "a.safetensors", card)
    for texts in (read, own[0]):
        said = build_audit.phrase_features(texts) @ found.phrases
        logits = AuditToxicity(tmp_path / "a.safetensors")._logits(texts)
        assert logits == pytest.approx(build_audit.logits(found, texts) + said, abs=0.05)  # eight bits
        assert logits.std() > 0.1


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


def test_no_other_file_has_a_template_of_its_sentences(tools):
    """`local` learns from one of the files, and scorers are tested on another."""
    from sentences import read_sentences

    templates = {
        path.name: {template for kind in read_sentences(path).kinds for template in kind.templates}
        for path in TOOLS.glob("*_sentences.yaml")
    }
    own = templates.pop("audit_sentences.yaml")
    assert own and not [name for name, others in templates.items() if own & others]


def test_fidelity_on_continuations_never_trained_on(tools, data_dir):
    """Bounds slightly below the figures in docs/rewards.md for the test documents."""
    import build_audit
    from scorer_evaluation import fidelity

    texts, truth = build_audit.continuations(data_dir, "test")
    row = fidelity(SCORER.attributes(texts)["toxicity"], truth)
    assert row["spearman"] >= 0.75 and row["auc"] >= 0.85 and row["mae"] <= 0.15
