"""The model card: tags, example and the figures of the last evaluation."""

from runs import make

from nlf.training.model_card import model_card


def test_the_card_says_how_to_use_the_model_and_links_to_no_package_index(tmp_path):
    trainer = make(tmp_path / "run")
    history = [
        {"eval_reward": 0.25},
        {"loss": 1.0},
        {"eval_reward": 0.5, "eval_dist-2": 0.125, "eval_repetition": float("nan"), "step": 6},
    ]
    card = model_card(tmp_path / "run", trainer.policy, trainer.args, history, "vowels")
    assert "| quantile of the reward | tag |\n| --- | --- |\n| 0 | Lowest Toxicity |\n" in card
    assert "'Lowest Toxicity<|separator|>The weather in the mountains'" in card
    assert "Training took 2 iterations of 3 steps, with 8 rollouts a step and the reward `vowels`." in card
    assert "| metric | value |\n| --- | --- |\n| reward | 0.5 |\n| dist-2 | 0.125 |\n" in card and "0.25" not in card
    assert "pypi.org" not in card and "nan" not in card
    without = model_card(tmp_path / "run", trainer.policy, trainer.args, history[1:2], "vowels")
    assert "Last evaluation" not in without
