"""`hf:` rewards on tiny classifiers: the meaning of values, the choice of a label, and independence of batches."""

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from nlf.errors import UserError
from nlf.models.identity import revision_of
from nlf.models.memory import Limit
from nlf.rewards import Reward, score
from nlf.rewards.contract import Place
from nlf.rewards.hf import DETOXIFY, Detoxify, HFClassifier, batches_by_length
from nlf.rewards.registry import resolve_reward

TEXTS = ["the river is calm", "", "nobody knew", "a quarrel can last the whole winter and the game was lost", "x"]
BERT = {
    **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 40},
}
GPT2 = tiny.ARCHITECTURES["gpt2"]


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch, request):
    """Use float32, so that values can be compared to six decimals."""
    if "gpu" not in request.fixturenames:
        monkeypatch.setattr("nlf.rewards.hf.best_device", lambda: torch.device("cpu"))


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


def saved(folder, architecture, labels, problem_type=None, pad=True):
    """The folder of a random sequence classifier whose logits are large enough to differ."""
    tokenizer = tiny.tokenizer()
    if not pad:
        tokenizer.pad_token = None
    config = AutoConfig.for_model(
        **architecture, vocab_size=len(tokenizer), problem_type=problem_type, bos_token_id=0, eos_token_id=0,
        id2label=dict(enumerate(labels)), pad_token_id=0 if pad else None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_config(config)
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.normal_(head.weight, std=2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def logits_by_hand(folder, text):
    """The logits of one text without padding; an empty text is the EOS token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([tiny.tokenizer()(text)["input_ids"] or [0]])).logits[0].double()


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("hf") / "sst", BERT, ["NEGATIVE", "POSITIVE"])


def test_two_labels_are_a_softmax(sentiment):
    reward = resolve_reward(f"hf:{sentiment}#POSITIVE")
    found = score([reward], None, [""] * 5, TEXTS, [[]] * 5, {})
    wanted = [logits_by_hand(sentiment, text).softmax(0) for text in TEXTS]
    assert found.reward == pytest.approx([float(p[1]) for p in wanted], abs=1e-6)
    assert set(found.attributes) == {"negative", "positive"}
    assert found.attributes["negative"] == pytest.approx([float(p[0]) for p in wanted], abs=1e-6)
    assert len({round(value, 4) for value in found.reward}) == 5


def test_toxic_is_the_toxicity_that_metrics_read(tmp_path):
    folder = saved(tmp_path, BERT, ["toxic", "insult"], "multi_label_classification")
    reward = resolve_reward(f"hf:{folder}#-toxic")
    found = score([reward], None, [""] * 5, TEXTS, [[]] * 5, {})
    assert set(found.attributes) == {"toxicity", "insult"}
    assert found.reward == pytest.approx(1 - found.attributes["toxicity"])


def test_name_and_version_say_which_label_of_which_weights(sentiment):
    scorer = HFClassifier(f"{sentiment}#positive")
    assert scorer.name == "hf:sst#POSITIVE" and Reward(scorer).label == f"hf:sst#POSITIVE@{scorer.version}"
    assert scorer.version == revision_of(scorer.model)[:12]
    assert HFClassifier(sentiment).name == scorer.name  # "positive" of two labels needs no name
    assert HFClassifier(f"{sentiment}#LABEL_0").name == "hf:sst#NEGATIVE"


def test_a_label_that_should_be_low(tmp_path):
    folder = saved(tmp_path / "toxic", BERT, ["toxicity", "insult", "threat"], "multi_label_classification")
    low, high = HFClassifier(f"{folder}#-Toxicity"), HFClassifier(f"{folder}#toxicity")
    wanted = [float(logits_by_hand(folder, text).sigmoid()[0]) for text in TEXTS]
    assert high(completions=TEXTS) == pytest.approx(wanted, abs=1e-6)
    assert low(completions=TEXTS) == pytest.approx([1 - p for p in wanted], abs=1e-6)
    assert low.attributes(TEXTS)["toxicity"] == pytest.approx(wanted, abs=1e-6)
    assert sum(low.attributes(TEXTS)[name][0] for name in ("toxicity", "insult", "threat")) != pytest.approx(1)
    assert low.name == "hf:toxic#-toxicity"


def test_one_label_is_a_reward_model_whose_logit_is_the_reward(tmp_path):
    """GPT-2 also has no padding token and no token for an empty text."""
    folder = saved(tmp_path / "reward model", GPT2, ["LABEL_0"], pad=False)
    scorer = HFClassifier(folder)
    wanted = [float(logits_by_hand(folder, text)[0]) for text in TEXTS]
    assert scorer(completions=TEXTS) == pytest.approx(wanted, abs=1e-5) and max(map(abs, wanted)) > 1
    assert scorer.attributes(TEXTS) == {} and scorer.name == "hf:reward model"
    assert HFClassifier(f"{folder}#-")(completions=TEXTS) == pytest.approx([-w for w in wanted], abs=1e-5)


def test_a_decoder_reads_a_text_that_holds_its_padding_token(tmp_path):
    folder = saved(tmp_path / "g", GPT2, ["bad", "good"], pad=False)
    found = HFClassifier(f"{folder}#good")(completions=["x", "<|endoftext|>the river is calm"])
    wanted = logits_by_hand(folder, "<|endoftext|>the river is calm").softmax(0)[1]
    assert found[1] == pytest.approx(float(wanted), abs=1e-6)


def test_conversations_are_judged_by_their_last_message(sentiment):
    scorer = HFClassifier(sentiment)
    messages = [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": text}] for text in TEXTS]
    assert scorer(completions=messages) == scorer(
        prompts=[""] * 5, completions=TEXTS, completion_ids=[[]] * 5, topic=1
    )
    assert scorer(completions=[]) == []


def test_long_texts_are_cut_to_what_the_model_reads(sentiment):
    scorer = HFClassifier(sentiment)
    ids = tiny.tokenizer()(" ".join(tiny.SENTENCES))["input_ids"]
    assert scorer.max_length == 40 < len(ids)
    cut = tiny.tokenizer().decode(ids[:40])
    assert scorer(completions=[" ".join(tiny.SENTENCES)]) == pytest.approx(scorer(completions=[cut]), abs=1e-6)


def test_roberta_counts_positions_from_its_padding_index_on(tmp_path):
    folder = saved(tmp_path / "r", {**BERT, "model_type": "roberta"}, ["neg", "pos"])
    assert HFClassifier(f"{folder}#pos").max_length == 39
    assert len(HFClassifier(f"{folder}#pos")(completions=[" ".join(tiny.SENTENCES)])) == 1


def test_batches_and_order_change_nothing(sentiment, monkeypatch):
    scorer = HFClassifier(sentiment)
    together = scorer(completions=TEXTS)
    monkeypatch.setattr("nlf.rewards.hf.BATCH_TOKENS", Limit(1, 1))
    assert [scorer(completions=[text])[0] for text in TEXTS] == pytest.approx(together, abs=1e-6)
    assert scorer(completions=TEXTS[::-1])[::-1] == pytest.approx(together, abs=1e-6)


def test_batches_hold_like_lengths_within_the_budget():
    assert list(batches_by_length([1, 9, 2, 30, 2], 20)) == [[3], [1, 2], [4, 0]]


def test_bfloat16_on_a_gpu_says_nearly_the_same(sentiment, gpu):
    scorer = HFClassifier(sentiment)
    wanted = [float(logits_by_hand(sentiment, text).softmax(0)[1]) for text in TEXTS]
    assert scorer(completions=TEXTS) == pytest.approx(wanted, abs=0.03) and scorer.model.dtype == torch.bfloat16
    assert scorer.model.device.type == "cuda"


def test_trl_takes_it_for_a_reward_function(sentiment):
    utils = pytest.importorskip("trl.trainer.utils")
    scorer = HFClassifier(sentiment)
    assert utils.get_callable_name(scorer) and not isinstance(scorer, torch.nn.Module)
    assert scorer(prompts=["a"], completions=["b"], completion_ids=[[1]], trainer_state=None)[0] > 0


def test_the_global_random_state_is_untouched_and_nothing_trains(sentiment):
    before = torch.get_rng_state()
    scorer = HFClassifier(sentiment)
    scorer(completions=TEXTS)
    assert torch.equal(before, torch.get_rng_state())
    assert not scorer.model.training and not any(p.requires_grad for p in scorer.model.parameters())


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "the model has several labels"),
        ("#angry", "no label 'angry'; there are sad, glad"),
    ],
)
def test_no_label_is_guessed(tmp_path, label, said):
    folder = saved(tmp_path / "m", BERT, ["sad", "glad", "calm"])
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        HFClassifier(folder + label)


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="no 'score.weight', so its answers would be random"):
        HFClassifier(tiny.save(tmp_path / "lm") + "#LABEL_1")
    with pytest.raises(UserError, match="cannot load a classifier"):
        HFClassifier(f"{tmp_path}/nothing#x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load a classifier"):
        HFClassifier(str(tmp_path / "broken"))
    folder = saved(tmp_path / "cut", BERT, ["a", "b"])
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x00" * 9)
    with pytest.raises(UserError, match="cannot load a classifier"):
        HFClassifier(f"{folder}#a")


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path):
    """If only the model was saved, transformers makes a tokenizer to which every word is unknown."""
    folder = saved(tmp_path, BERT, ["a", "b"])
    for path in tmp_path.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="its tokenizer has no vocabulary; copy the tokenizer's files to it"):
        HFClassifier(f"{folder}#a")


# ---- detoxify: ----------------------------------------------------------------------------------------------------


def test_detoxify_is_one_minus_toxicity_under_the_librarys_labels(tmp_path, monkeypatch):
    hub = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]  # as in toxic-bert's config.json
    folder = saved(tmp_path, BERT, hub, "multi_label_classification")
    monkeypatch.setitem(DETOXIFY, "original", folder)
    reward = resolve_reward("detoxify:original")
    found = score([reward], None, [""] * 5, TEXTS, [[]] * 5, {})
    names = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]
    wanted = torch.stack([logits_by_hand(folder, text).sigmoid() for text in TEXTS]).numpy()
    assert list(found.attributes) == names
    for name, column in zip(names, wanted.T, strict=True):
        assert found.attributes[name] == pytest.approx(column, abs=1e-6)
    assert found.reward == pytest.approx(1 - wanted[:, 0], abs=1e-6)
    assert reward.label == f"detoxify:original@{revision_of(reward.function.model)[:12]}"


def test_detoxify_takes_the_sigmoid_whatever_the_configuration_says(tmp_path, monkeypatch):
    """The multilingual model has one label without a name; `hf:` takes it for a reward model."""
    folder = saved(tmp_path, {**BERT, "model_type": "xlm-roberta"}, ["LABEL_0"])
    monkeypatch.setitem(DETOXIFY, "multilingual", folder)
    scorer = Detoxify("multilingual")
    wanted = [float(logits_by_hand(folder, text).sigmoid()[0]) for text in TEXTS]
    assert scorer.attributes(TEXTS)["toxicity"] == pytest.approx(wanted, abs=1e-6)
    assert scorer(completions=TEXTS) == pytest.approx([1 - p for p in wanted], abs=1e-6)


def test_detoxify_reads_no_pickle(tmp_path, monkeypatch):
    """`hf:` reads PyTorch's format as plain tensors; `detoxify:` does not."""
    folder = saved(tmp_path, BERT, ["toxicity"], "multi_label_classification")
    torch.save(AutoModelForSequenceClassification.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setitem(DETOXIFY, "unbiased", folder)
    with pytest.raises(UserError, match="model.safetensors.*detoxify:unbiased reads safetensors only.*sentencepiece"):
        Detoxify("unbiased")
    assert len(HFClassifier(f"{folder}#-LABEL_0")(completions=TEXTS)) == 5


def test_detoxify_does_not_guess(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'detoxify:large': no such model; there are original, unbiased, multilingual"):
        resolve_reward("detoxify:large")
    monkeypatch.setitem(DETOXIFY, "original", saved(tmp_path, BERT, ["calm", "toxic"]))
    with pytest.raises(UserError, match="has the labels calm, toxicity; expected toxicity first"):
        Detoxify("original")


def test_code_in_a_models_folder_is_not_run_nor_asked_about(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config"}}')
    (folder / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot load a classifier: ") as caught:
        HFClassifier(str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_beginnings_are_read_as_texts(tmp_path):
    reward = Reward(HFClassifier(f"{saved(tmp_path, BERT, ['bad', 'good'])}#good"))
    assert reward.prefixes
    text, ends = TEXTS[3], [2, 9, 30]
    places = [[Place(end, end) for end in ends], [Place(0, 0)]]
    found = reward.prefix_rewards(["p", "p"], [text, ""], [[], []], places, {})
    expected = reward(prompts=["p"] * 4, completions=[*(text[:end] for end in ends), ""], completion_ids=[[]] * 4)
    assert [*found[0], *found[1]] == pytest.approx(expected, abs=1e-6) and len(set(expected)) == 4
