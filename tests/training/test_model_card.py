"""The model card: its head, tags, an example that gives the trained ids, and the figures of the last evaluation."""

import tiny
import yaml
from huggingface_hub import ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from runs import make
from tokenizers import processors

from nlf.method.tags import TagScheme
from nlf.models.policy import Policy, prepare_policy
from nlf.training.model_card import CardFacts, head, licence_of, model_card, text_for, usage


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
    rows = _results(history[-1], {}, args, ["audit@1"]).splitlines()[4:]
    assert rows == ["| reward/audit@1 (auditor) | 0.25 |", "| reward | 0.5 |", "| perplexity | 3 |"]


def test_the_head_is_one_that_the_hub_reads():
    found = {"reward": {"value": 0.5, "stderr": 0.05, "ci95": [0.41, 0.59]}}
    facts = CardFacts(licence={"license": "mit"}, dataset_name="me/prompts", eval_dataset="data/held-out.jsonl.gz")
    said = yaml.safe_load(head("run", "gpt2", facts, ["alignment"], found))
    assert (said["base_model"], said["license"], said["datasets"]) == ("gpt2", "mit", ["me/prompts"])
    assert said["tags"] == ["nlf", "alignment"] and "data/" not in str(said)
    name, (result,) = model_index_to_eval_results(said["model-index"])
    assert (name, result.metric_type, result.metric_value) == ("run", "reward", 0.5)
    assert result.metric_name == "reward (95 % interval 0.41 to 0.59)" and result.metric_args["ci95"] == [0.41, 0.59]
    assert result.dataset_name == "held-out" and ModelCardData(**said).license == "mit"


def test_the_head_of_a_model_of_this_machine_names_no_folder(tmp_path):
    said = yaml.safe_load(head("run", str(tmp_path), CardFacts(dataset_name="embedded"), [], {}))
    assert not {"base_model", "license", "datasets", "model-index"} & said.keys()


def test_the_licence_is_that_of_the_start(tmp_path):
    assert licence_of("embedded") == {"license": "apache-2.0"}
    assert licence_of(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\nlicense_link: x\n---\ntext")
    assert licence_of(str(tmp_path)) == {"license": "other", "license_name": "gemma", "license_link": "x"}
    for broken in ("---\n- a\n---\n", "---\na: [\n---\n", "no head"):
        (tmp_path / "README.md").write_text(broken)
        assert licence_of(str(tmp_path)) == {}


def test_the_card_of_a_run_has_the_intervals_of_its_last_evaluation(tmp_path):
    run = tmp_path / "run"
    make(run, num_train_epochs=1, eval_strategy="epoch").train()
    said = metadata_load(run / "README.md")
    _, results = model_index_to_eval_results(said["model-index"])
    (reward,) = [each for each in results if each.metric_type == "reward"]
    low, high = reward.metric_args["ci95"]
    assert f"| reward | {reward.metric_value:.4g} | {low:.4g} to {high:.4g} |" in (run / "README.md").read_text()
    assert reward.dataset_name == "eval-prompts"
