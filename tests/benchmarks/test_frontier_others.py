"""What one would use instead, in the smallest form: prompting, a steering vector, DPO and SFT, and processes side by side."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import frontier  # noqa: E402
import frontier_measuring as measuring  # noqa: E402
import frontier_points as points  # noqa: E402
import frontier_systems as systems  # noqa: E402
import frontier_training as training  # noqa: E402

from nlf.errors import UserError  # noqa: E402
from nlf.models.policy import Policy  # noqa: E402

BARE = points.Setting("x", points.BASE, "s", "x")


def policy(seed: int = 0) -> Policy:
    return Policy(tiny.model(seed=seed).eval(), tiny.tokenizer(), None, None, ())


def write_prompts(folder: Path, count: int) -> list[str]:
    """The flags of the smallest frontier."""
    rows = [json.dumps({"prompt": f"The man at door {i} said that"}) for i in range(count)]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    found = ["--quick", "--num_prompts", "2", "--free_generations", "2", "--auditor", "none", "--best_of", "2"]
    found += ["--prompts", str(folder / "train.jsonl"), "--eval_prompts", str(folder / "test.jsonl")]
    found += ["--neutral_text", str(folder / "test.jsonl")]
    return [*found, "--output_dir", str(folder / "out")]


# ---- pairs ----------------------------------------------------------------------------------------------------------


def line(rewards: list) -> dict:
    return {
        "prompt_ids": [1],
        "completion_ids": [[i] for i in range(len(rewards))],
        "scores": {"r@1": {"reward": rewards}},
    }


def test_the_best_and_the_worst_of_a_prompt_are_those_that_could_be_scored():
    assert points.extremes(line([0.5, None, 0.9, 0.1]), "r@1") == (2, 3)
    assert points.extremes(line([0.5, None, 0.5]), "r@1") is None
    assert points.extremes(line([None]), "r@1") is None


def test_pairs_without_a_difference_are_one_error(tmp_path):
    path = tmp_path / "generations.jsonl"
    label = training.resolve_reward("local").label
    row = {**line([0.5, 0.5]), "scores": {label: {"reward": [0.5, 0.5]}}, "prompt": "p", "prompt_id": "0"}
    row |= {"completions": ["a", "b"], "feedback": None, "ended": [True, True]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="there is no best and worst"):
        training.pairs_of(path, "local")


# ---- the steering vector --------------------------------------------------------------------------------------------


def test_states_are_those_of_the_middle_layer_where_tokens_are_predicted():
    model = policy()
    found = training.middle_states(model, [[5, 6, 7], [8]], [[1, 2], [3, 4, 9]])
    layers = model.model.config.num_hidden_layers
    with torch.no_grad():
        first = model.model(torch.tensor([[5, 6, 7, 1]]), output_hidden_states=True).hidden_states[layers // 2 + 1]
        second = model.model(torch.tensor([[8, 3, 4]]), output_hidden_states=True).hidden_states[layers // 2 + 1]
    if layers // 2 + 1 < layers:  # the last of transformers' states is normed
        torch.testing.assert_close(found, torch.cat([first[0, 2:], second[0]]), rtol=1e-4, atol=1e-5)
    assert found.shape == (5, model.model.config.hidden_size)


def test_a_steered_model_has_the_vector_added_after_its_middle_layer(tmp_path):
    plain, width = policy(), tiny.model().config.hidden_size
    training.save_file({"vector": torch.arange(width).float()}, tmp_path / training.VECTOR)
    steered = training.steered(policy(), tmp_path, 2.0)
    prompts, ids = [[5, 6]], [[1, 2]]
    plain_states, states = (training.middle_states(each, prompts, ids) for each in (plain, steered))
    torch.testing.assert_close(states - plain_states, (2 * torch.arange(width).float()).expand(2, width))
    assert steered.revision != plain.revision  # its samples are told apart from the base's


# ---- prompting and neutral text -------------------------------------------------------------------------------------


def test_a_prefix_stands_before_what_the_setting_reads_and_not_before_what_the_base_reads():
    setting = points.Setting("p", points.PROMPTING, "s", "p", quantile=0, prefix="Be kind.")
    model = policy()
    tagged = measuring.replace(
        model, scheme=measuring.TagScheme(("Be kind.", measuring.OTHER), "{feedback}\n{prompt}")
    )
    words = measuring.words_before(setting, tagged)
    assert words == ("Be kind.", None)
    own = measuring.log_probs(tagged, 0.0, words, [5, 6], [[1, 2]])
    before = model.tokenizer("Be kind.\n", add_special_tokens=False)["input_ids"]
    expected = measuring.logits(model, [*before, 5, 6], [[1, 2]]).log_softmax(-1)
    torch.testing.assert_close(own, expected)


def test_nats_on_neutral_text_are_those_of_every_token_but_the_first():
    model, text = policy(), "the man at the door"
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    np.testing.assert_allclose(measuring.neutral_nats(BARE, model, [text]), [expected.item()], rtol=1e-5)


def test_neutral_text_is_its_first_long_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" = Title = \n\n" + "one two three four five six\n" * 101)
    yardstick = measuring.Yardstick(None, None, None, [])
    found = measuring.with_neutral_text(yardstick, str(path))
    assert len(found.neutral) == measuring.NEUTRAL_LINES and found.neutral[0] == "one two three four five six"
    path.write_text("short\n")
    with pytest.raises(UserError, match="no line of 6 words or more"):
        measuring.with_neutral_text(yardstick, str(path))


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_what_one_would_use_instead_on_the_embedded_model(tmp_path):
    flags = write_prompts(tmp_path, 3)
    flags += ["--systems", "prompting", "steering", "sft", "dpo", "--sft_stops", "1", "--dpo_stops", "1"]
    flags += ["--steering_strengths", "1"]
    frontier.measure_all(frontier.parse(flags))
    out = tmp_path / "out"
    found = json.loads((out / "frontier.json").read_text())["points"]
    groups = [each["group"] for each in found]
    assert groups == [points.BASE] * 2 + [points.PROMPTING] * 3 + [points.STEERING, points.SFT, points.DPO]
    base, best, *others = (each["metrics"] for each in found)
    assert base["neutral_ratio"] == 1 and "neutral_ratio" not in best
    assert all(each["kl_per_completion"] > 0 and each["neutral_ratio"] > 0.5 for each in others)
    assert found[2]["prefix"] == systems.PREFIXES[0]
    lines = (out / "points.jsonl").read_text().splitlines()
    assert {json.loads(each)["id"] for each in lines} == {each["id"] for each in found}

    (out / "seed-0/points/steering-1.json").unlink()
    (out / "seed-0/samples-8/generations.jsonl").unlink()  # no longer needed by any finished training
    text = frontier.measure_all(frontier.parse(flags))
    assert len((out / "points.jsonl").read_text().splitlines()) == len(lines) + 1  # that point alone came again
    assert "| DPO | lr 0.0001, beta 0.1, step 1 | 1 |" in text and "KL" in (out / "frontier-summary.svg").read_text()

    with pytest.raises(UserError, match="dpo-lr0.0001-beta0.1 was trained with .* choose another --output_dir"):
        frontier.measure_all(frontier.parse([*flags, "--dpo_stops", "2"]))


def test_a_part_that_another_process_makes_is_waited_for(tmp_path, capsys):
    order = []

    def other():
        with training.alone(tmp_path / "part"):
            order.append("other")

    with training.alone(tmp_path / "part"):
        thread = threading.Thread(target=other)
        thread.start()
        while "waiting for another process" not in capsys.readouterr().out:
            pass
        order.append("this")
    thread.join()
    assert order == ["this", "other"]


@pytest.mark.extended
def test_systems_side_by_side_give_one_table(tmp_path):
    flags = write_prompts(tmp_path, 8)
    tiny_sizes = ["--num_train_epochs", "1", "--plain_stops", "1", "--dial_guidance", "0", "--grpo_stops", "1"]
    command = [
        "bash",
        str(REPOSITORY / "tools/real_gpu.sh"),
        "embedded",
        str(tmp_path / "out"),
        *flags[:-2],
        *tiny_sizes,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert ended.returncode == 0, ended.stderr
    ids = [json.loads(each)["id"] for each in (tmp_path / "out/points.jsonl").read_text().splitlines()]
    assert len(set(ids)) == len(ids) == 8  # base, best of 2, plain and far plain, dial g 0 and tag 5, two of GRPO
    assert len(json.loads((tmp_path / "out/frontier.json").read_text())["points"]) == 8
    assert all(row in ended.stdout for row in ("| nlf plain |", "| nlf dial |", "| GRPO |", "| base |"))


def environment() -> dict:
    """This process's environment, with this interpreter and this checkout's package."""
    import os

    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
