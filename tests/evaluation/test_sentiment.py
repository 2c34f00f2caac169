"""The local sentiment scorer and what comes with it: its asset, its limits, the embedded prompts and the tasks."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.config import COMMAND_GROUPS
from nlf.data.files import ASSETS
from nlf.errors import UserError
from nlf.rewards.convolution import ASSET, SENTIMENT, LocalSentiment, LocalToxicity1
from nlf.rewards.registry import resolve_reward

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TASKS = ASSETS / "tasks"
KINDS = ("negative", "neutral", "positive")
GOOD = ["a wonderful and moving film", " thank you, we loved every minute of it"]
BAD = ["a dull, stupid and lifeless mess", " the food was awful and the waiter was rude"]
SCORER = LocalSentiment()


@pytest.fixture
def tools(monkeypatch):
    """The tools' folder can be imported from; they need torch, scipy and scikit-learn."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(TOOLS))


def prompts(kind: str) -> list[dict]:
    text = (ASSETS / f"prompts/{kind}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_asset_is_small_and_its_digest_matches():
    card = json.loads(SENTIMENT.with_suffix(".json").read_text())
    assert SENTIMENT.stat().st_size <= 3_000_000
    assert hashlib.sha256(SENTIMENT.read_bytes()).hexdigest() == card["sha256"]
    assert (card["name"], card["version"], card["attributes"]) == ("sentiment", 1, ["positive"])


def test_a_missing_asset_is_named_with_its_scorer(tmp_path):
    with pytest.raises(UserError, match="sentiment scorer: cannot read"):
        LocalSentiment(tmp_path / "absent.safetensors")


def test_the_asset_of_another_scorer_is_refused():
    with pytest.raises(UserError, match="is the asset of local@1; expected sentiment@1"):
        LocalSentiment(ASSET)


def test_its_name_resolves_and_labels_what_it_scores():
    reward = resolve_reward("sentiment")
    assert reward.label == "sentiment@1"
    assert not reward.remote


def test_reward_is_the_probability_of_positive_in_trl_form():
    texts = GOOD + BAD
    rewards = SCORER(prompts=["x"] * 4, completions=texts, completion_ids=[[1]] * 4, other=[0] * 4)
    assert all(type(reward) is float for reward in rewards)
    assert rewards == SCORER.attributes(texts)["positive"].tolist()
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    assert SCORER(prompts=["x"] * 4, completions=chat, completion_ids=[[1]] * 4) == rewards


def test_praise_stands_above_the_middle_and_blame_below():
    positive = SCORER.attributes(GOOD + BAD)["positive"]
    assert positive[2:].max() < 0.2 < 0.8 < positive[:2].min()


def test_a_text_without_words_is_neither():
    assert SCORER.attributes(["", "  \n"])["positive"] == pytest.approx([0.5, 0.5], abs=0.1)


def test_case_is_not_read_and_toxicity_reads_it():
    texts = [text.upper() for text in GOOD + BAD]
    assert (SCORER.attributes(texts)["positive"] == SCORER.attributes(GOOD + BAD)["positive"]).all()
    toxicity = LocalToxicity1()
    assert (toxicity.attributes(texts)["toxicity"] != toxicity.attributes(GOOD + BAD)["toxicity"]).any()


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_has_a_number_that_its_batch_does_not_change(texts):
    positive = SCORER.attributes(texts)["positive"]
    assert positive.shape == (len(texts),) and ((positive >= 0) & (positive <= 1)).all()
    assert [SCORER.attributes([text])["positive"][0] for text in texts] == positive.tolist()


def test_loading_costs_neither_torch_nor_sklearn():
    code = "import sys; from nlf.rewards.convolution import LocalSentiment; LocalSentiment().attributes(['x'])"
    code += "; assert not {'torch', 'sklearn', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_toxicity_is_what_it_was():
    """Recorded before the two scorers shared a class."""
    texts = ["", "thank you, that was kind", "you are a STUPID idiot", "f**k this"]
    assert LocalToxicity1().attributes(texts)["toxicity"].tolist() == [0.46991, 0.115692, 0.986506, 0.97753]


# ---- how it was made ------------------------------------------------------------------------------------------------


def test_word_vectors_put_words_of_like_company_side_by_side(tools):
    from word_vectors import information, vectors

    texts = [f"{a} {b} {c}".split() for a in ("the", "a") for b in ("cat", "dog") for c in ("sleeps", "eats")] * 5
    texts += [f"{a} is {b} today".split() for a in ("rain", "snow") for b in ("heavy", "light")] * 5
    names, found = vectors(texts, size=4, most=20)
    assert found.shape == (len(names), 4) and found.std() == pytest.approx(1)
    unit = dict(zip(names, found / np.linalg.norm(found, axis=1, keepdims=True), strict=True))
    assert unit["cat"] @ unit["dog"] > 0.99 > 0.9 > unit["cat"] @ unit["rain"]
    assert information([["a", "b"], ["c", "d"]], ["a", "b", "c", "d"])[1, 2] == 0  # two texts do not touch


def test_a_bag_without_words_is_an_empty_row(tools):
    """The trap: blank texts used to be trained as the vocabulary's first word, which scoring never does."""
    from scorer_net import Corpus, Net

    corpus = Corpus([("d", "one two", {"x": 1.0}), ("d", "", {"y": 0.5})], ["x"], {"y": ("x", 0.25)})
    bags, place = corpus.batch(np.array([0, 1]))
    assert place.tolist() == [[0, 1], [-1, -1]]
    assert corpus.targets.tolist() == [[1.0], [0.5]] and corpus.soft.tolist() == [1.0, 0.25]
    net = Net(1).eval()
    assert net(bags, place)[1].tolist() == net.out.bias.tolist()


def test_training_repeats_itself(tools):
    from scorer_net import predict, train

    rows = [("d", text, {"x": float(i % 2)}) for i, text in enumerate(["good film", "bad film"] * 100)]
    scores = [predict(train(rows, {"x": 1.0}, epochs=2, seed=3), rows[:2], ["x"]) for _ in range(2)]
    assert (scores[0] == scores[1]).all()


def test_no_training_text_repeats_a_held_out_sentence(tools, data_dir):
    import build_sentiment
    from split import split_of

    held = {text for d, text, _ in build_sentiment.polarity(data_dir) if split_of(d) != "train"}
    rows = build_sentiment.training_rows(data_dir)
    assert len(rows) > 90_000 and not held & {text for _, text, _ in rows}


def test_accuracy_on_sentences_never_trained_on(tools, data_dir):
    """Bounds slightly below the figures on the scorer's card for the test sentences."""
    import sentiment_evaluation

    held = sentiment_evaluation.sentences(data_dir, "test")
    positive = SCORER.attributes([text for text, _ in held])["positive"]
    row = sentiment_evaluation.accuracy(positive, np.array([label for _, label in held]))
    assert row["accuracy"] >= 0.75 and row["auc"] >= 0.84 and row["calibration error"] <= 0.08


def test_accuracy_by_hand(tools):
    from sentiment_evaluation import accuracy

    row = accuracy(np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False]))
    assert (row["n"], row["accuracy"], row["auc"]) == (4, 0.5, 0.75)
    assert row["calibration error"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.2) / 4, abs=1e-3)
    assert 0 <= row["low"] <= 0.5 <= row["high"] <= 1


# ---- the prompts and the tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_beginnings_of_sentences_over_thirty_topics(kind):
    rows = prompts(f"sentiment-{kind}")
    assert len(rows) == 100
    for row in rows:
        assert set(row) == {"prompt", "topic", "register"}
        assert 6 <= len(row["prompt"].split()) <= 13, row["prompt"]
        assert row["prompt"] == row["prompt"].strip() and row["prompt"][-1] not in ".!?…"
    assert len({row["topic"] for row in rows[:30]}) == 30


def test_prompts_share_no_run_of_five_words_with_each_other_or_with_those_trained_on():
    seen: dict[tuple[str, ...], str] = {}
    for kind in ("train", "test", *(f"sentiment-{kind}" for kind in KINDS)):
        for prompt in {row["prompt"] for row in prompts(kind)}:
            found = re.findall(r"[\w']+", prompt.lower())
            for i in range(len(found) - 4):
                first = seen.setdefault(tuple(found[i : i + 5]), prompt)
                assert first == prompt or not kind.startswith("sentiment")


def test_the_scorer_orders_the_three_kinds():
    means = [
        SCORER.attributes([row["prompt"] for row in prompts(f"sentiment-{kind}")])["positive"].mean() for kind in KINDS
    ]
    assert means[0] + 0.15 < means[1] < means[2] - 0.15


@pytest.mark.parametrize("name", ["toxicity", "sentiment"])
def test_task_holds_options_of_evaluate_only(name):
    from nlf.cli.arguments import knobs_of, read_recipe

    knobs = {}
    for group, options in COMMAND_GROUPS["evaluate"].items():
        knobs |= knobs_of(group, options)
    values = read_recipe(TASKS / f"{name}.yaml", knobs)
    assert (values["num_generations"], values["top_p"], values["max_completion_length"]) == (25, 0.9, 20)
    for source in values["prompts"] + values.get("reverse_prompts", []):
        assert source == "embedded" or (ASSETS / "prompts" / f"{source.removeprefix('embedded:')}.jsonl").is_file()


def test_the_recipe_trains_with_the_tags_that_the_task_swaps_in():
    import yaml

    from nlf.method.tags import DEFAULT_TAGS

    root = TASKS.parents[3]
    recipe = yaml.safe_load((root / "src/nlf/assets/recipes/sentiment-embedded.yaml").read_text(encoding="utf-8"))
    demo = yaml.safe_load((root / "src/nlf/assets/recipes/toxicity-embedded.yaml").read_text(encoding="utf-8"))
    task = yaml.safe_load((TASKS / "sentiment.yaml").read_text(encoding="utf-8"))
    assert recipe["tags"] == task["tags"] == [tag.replace("Toxicity", "Negativity") for tag in DEFAULT_TAGS]
    assert {n for n in demo if demo[n] != recipe[n]} == {"output_dir", "reward_funcs", "tags"}
