"""The model card: tags, an example that gives the trained ids, and the figures of the last evaluation."""

import tiny
from runs import make
from tokenizers import processors

from nlf.method.tags import TagScheme
from nlf.models.policy import Policy, prepare_policy
from nlf.training.model_card import model_card, text_for, usage


def test_the_card_says_how_to_use_the_model_and_links_to_no_package_index(tmp_path):
    trainer = make(tmp_path / "run")
    history = [
        {"eval_reward": 0.25},
        {"loss": 1.0},
        {"eval_reward": 0.5, "eval_dist-2": 0.125, "eval_repetition": float("nan"), "step": 6},
    ]
    card = model_card(tmp_path / "run", trainer.policy, trainer.args, history, "vowels")
    assert "| quantile of the reward | tag |\n| --- | --- |\n| 0 | Maximum Vowels |\n" in card
    assert "'Maximum Vowels<|separator|>The weather in the mountains'" in card
    assert "Training took 2 iterations of 3 steps, with 8 rollouts a step and the reward `vowels`." in card
    assert "| metric | value |\n| --- | --- |\n| reward | 0.5 |\n| dist-2 | 0.125 |\n" in card and "0.25" not in card
    assert "pypi.org" not in card and "nan" not in card
    without = model_card(tmp_path / "run", trainer.policy, trainer.args, history[1:2], "vowels")
    assert "Last evaluation" not in without


def test_the_card_of_a_chat_run_shows_messages(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    scheme = TagScheme(separator=None, conversational=True)
    policy = prepare_policy(tiny.model(), tokenizer, scheme)
    args = make(tmp_path / "run").args
    card = model_card(tmp_path / "run", policy, args, [], "vowels")
    assert "write([{'role': 'system', 'content': 'Lowest Toxicity'}, {'role': 'user', 'content': " in card
    assert "It reads a tag in the system message" in card and "<|separator|>" not in card


def test_the_card_shows_a_text_with_the_trained_ids():
    tokenizer = tiny.llama_tokenizer()
    tokenizer.add_tokens(["<|separator|>"], special_tokens=True)
    last = len(tokenizer) - 1
    policy = Policy(
        tiny.model("llama", vocab_size=last + 1), tokenizer, TagScheme(("good", "bad")), added_token_ids=(last,)
    )
    encoder = policy.encoder()
    trained = encoder.query_ids("good", encoder.prompt_ids("the weather"))
    assert text_for(policy, "good", "the weather") == "good<|separator|> the weather"
    assert tokenizer("good<|separator|> the weather")["input_ids"] == trained
    assert tokenizer("good<|separator|>the weather")["input_ids"] != trained


def test_a_card_whose_text_cannot_give_the_trained_ids_shows_the_command():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    policy = prepare_policy(tiny.model(), tokenizer, TagScheme(("a b", "c"), "{feedback}: {prompt}", None))
    shown = usage(policy, "runs/x y", "a b", conversational=False)
    assert "nlf sample --model 'runs/x y' --tag 'a b'" in shown and "```python" not in shown


def test_an_auditors_figures_come_first_on_the_card(tmp_path):
    from nlf.training.model_card import _results

    args = make(tmp_path / "run").args
    history = [{"eval_reward": 0.5, "eval_reward/audit@1": 0.25, "eval_perplexity": 3.0}]
    rows = _results(history, args, ["audit@1"]).splitlines()[4:]
    assert rows == ["| reward/audit@1 (auditor) | 0.25 |", "| reward | 0.5 |", "| perplexity | 3 |"]
