"""TRL's reward functions, and functions in every form of its documentation, run here unchanged.

Functions are called as `nlf` calls them: by object, by dotted path or from a file. The results equal those of TRL's own
trainer. The forms come from "Using a custom reward function" on the page of GRPOTrainer; `log_extra` and `log_metric` are
arguments that its trainer offers beside the columns.
"""

import asyncio
import functools
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from nlf.rewards import score
from nlf.rewards.registry import resolve_reward
from nlf.rewards.rules import Length, Repetition

rewards = pytest.importorskip("trl.rewards")

PROMPTS = ["The sky is", "The sun is", "Two and two are"]
TEXTS = [" blue.", " in the sky.", r" \boxed{4}"]
IDS = [[6303, 13], [304, 279, 12884, 13], [220, 19, 7]]
COLUMNS = {"ground_truth": ["", "", "4"], "task": ["words", "words", "sums"]}


def tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def characters(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def boxed(completions, ground_truth, **kwargs):
    """Takes a column of the data set by its name."""
    found = [re.search(r"\\boxed\{([^}]*)\}", completion) for completion in completions]
    return [float(bool(match) and match.group(1) == truth) for match, truth in zip(found, ground_truth, strict=True)]


def only(wanted):
    """A reward for one of several tasks; None for the other tasks."""

    def judge(prompts, completions, task, **kwargs):
        rows = zip(prompts, completions, task, strict=True)
        return [float(len(prompt) > len(text)) if name == wanted else None for prompt, text, name in rows]

    return judge


async def slow(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return [1.0 if completion.strip() else 0.0 for completion in completions]


class Slow:
    """An object whose call is async, named after its class."""

    async def __call__(self, completions, weight=2.0, **kwargs):
        await asyncio.sleep(0)
        return [weight for _ in completions]


def answer(completions, **kwargs):
    """Conversations: the text is in the first message."""
    pattern = r"<think>.+</think><answer>.+</answer>"
    return [1.0 if re.fullmatch(pattern, completion[0]["content"]) else 0.0 for completion in completions]


def curriculum(completions, trainer_state, **kwargs):
    return [len(completion) * trainer_state.global_step / 10 for completion in completions]


def logged(completions, log_extra=None, log_metric=None, **kwargs):
    """Takes the two functions for logging, which are not offered here."""
    values = [float(len(completion)) for completion in completions]
    if log_extra:
        log_extra("length", values)
        log_metric("length", sum(values))
    return values


def run(*specs, weights=None, completions=TEXTS, prompts=PROMPTS, ids=IDS, columns=COLUMNS, **more):
    return score([resolve_reward(spec) for spec in specs], weights, prompts, completions, ids, columns, **more)


def chat(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


# ---- trl.rewards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["trl.rewards:think_format_reward", "trl.rewards.think_format_reward", None])
def test_think_format_reward_on_the_texts_of_its_docstring(spec):
    texts = ["<think>\nThis is my reasoning.\n</think>\nThis is my answer.", "<think>\nNo end.\nThis is my answer."]
    found = run(
        spec or rewards.think_format_reward,
        completions=chat(*texts, texts[0]),
        prompts=chat(*PROMPTS),
    )
    assert found.reward.tolist() == [1, 0, 1] and found.scorer == "think_format_reward"


def test_length_and_repetition_rewards_on_the_ids_of_their_docstrings():
    made = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    repeated = rewards.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    found = run(made, repeated, ids=[[1] * 90, [1, 2, 3, 4], [5] * 5], weights=[1, 2])
    assert found.per_function["soft_overlong_punishment_reward"].tolist() == [-0.5, 0, 0]
    assert found.per_function["repetition_penalty_reward"] == pytest.approx([-88 / 89, 0, -0.75])
    assert found.reward == pytest.approx([-0.5 - 2 * 88 / 89, 0, -1.5])


def test_accuracy_rewards_read_the_column_solution():
    pytest.importorskip("math_verify")
    texts = [r"My answer is \boxed{\frac{1}{3}}", r"My answer is \boxed{\frac{1}{2}}", r"\boxed{1}"]
    thought = [f"<think> so </think> {text}" for text in texts]
    common = {"prompts": chat(*PROMPTS), "ids": [[1] * 50] * 3}
    common["columns"] = {"solution": [r"\frac{1}{3}", r"\frac{1}{3}", ""]}  # no solution: None
    found = run("trl.rewards.accuracy_reward", completions=chat(*texts), **common)
    np.testing.assert_equal(found.reward, [1, 0, np.nan])
    found = run("trl.rewards.reasoning_accuracy_reward", completions=chat(*thought), **common)
    np.testing.assert_equal(found.reward, [1, 0, np.nan])
    found = run(rewards.get_cosine_scaled_reward(max_len=100), completions=chat(*texts), **common)
    np.testing.assert_allclose(found.reward, [0.75, -0.75, np.nan])


def test_what_a_function_lacks_is_its_own_error():
    if rewards.accuracy_reward.__globals__["is_math_verify_available"]():
        pytest.skip("math_verify is installed")
    with pytest.raises(ImportError, match="math_verify") as caught:
        run(rewards.accuracy_reward, columns={"solution": ["1", "2", "3"]})
    assert caught.value.__notes__ == ["while calling the reward 'accuracy_reward'"]


# ---- functions as in the documentation ----------------------------------------------------------------------------


def test_token_ids_characters_and_a_column():
    found = run(tokens, characters, boxed)
    assert found.per_function["tokens"].tolist() == [2, 4, 3]
    assert found.per_function["characters"].tolist() == [6, 12, 10]
    assert found.per_function["boxed"].tolist() == [0, 0, 1]
    assert found.reward.tolist() == [8, 16, 14]


def test_messages_of_conversations():
    texts = ["<think>1 + 2 is 3</think><answer>3</answer>", "It is 3.", "<answer>3</answer>"]
    found = run(answer, completions=chat(*texts), prompts=chat(*PROMPTS))
    assert found.reward.tolist() == [1, 0, 0]


def test_tasks_of_a_mixed_data_set_leave_each_others_rows():
    found = run(only("words"), only("sums"), only("code"))
    np.testing.assert_equal(found.per_function["judge"], [1, 0, np.nan])
    np.testing.assert_equal(found.per_function["judge_2"], [np.nan, np.nan, 1])
    np.testing.assert_equal(found.per_function["judge_3"], [np.nan] * 3)
    np.testing.assert_equal(found.reward, [1, 0, 1])
    np.testing.assert_equal(run(only("code"), only("words")).reward, [1, 0, np.nan])


def test_sync_and_async_in_one_list():
    found = run(slow, tokens, Slow(), functools.partial(slow), weights=[1, 0.5, 1, 1], completions=["a", " ", "b"])
    assert list(found.per_function) == ["slow", "tokens", "Slow", "slow_2"]
    assert found.reward.tolist() == [1 + 1 + 2 + 1, 0 + 2 + 2 + 0, 1 + 1.5 + 2 + 1]


def test_the_trainers_state_and_its_logging():
    context = {"trainer_state": SimpleNamespace(global_step=5)}
    assert run(curriculum, context=context).reward.tolist() == [3, 6, 5]
    seen = {}
    context = {"log_extra": seen.__setitem__, "log_metric": lambda name, value: seen.update({f"{name} in all": value})}
    assert run(logged, context=context).reward.tolist() == run(logged).reward.tolist() == [6, 12, 10]
    assert seen == {"length": [6, 12, 10], "length in all": 28}


@pytest.mark.parametrize("spec", ["my_trl_rewards.py:tokens", "my_trl_rewards:slow", "my_trl_rewards.many"])
def test_from_a_file_of_ones_own(spec, tmp_path, monkeypatch):
    (tmp_path / "my_trl_rewards.py").write_text(
        "import functools\n"
        "def tokens(completion_ids, **kwargs):\n    return [len(ids) for ids in completion_ids]\n"
        "async def slow(completions, ground_truth, **kwargs):\n    return [1 for _ in completions]\n"
        "many = functools.partial(tokens, unused=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(spec).reward.tolist() == ([1, 1, 1] if "slow" in spec else [2, 4, 3])
    sys.modules.pop("my_trl_rewards", None)


# ---- beside TRL's trainer -----------------------------------------------------------------------------------------


def test_the_same_values_as_trls_trainer_gives_them():
    """TRL's method runs on an object with the attributes that it reads, in float32; ours is float64."""
    import torch

    trl = pytest.importorskip("trl")
    functions = [tokens, boxed, only("sums"), slow, Slow(), Length("3"), Repetition("2"), curriculum, logged]
    loop, state = asyncio.new_event_loop(), SimpleNamespace(global_step=5)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=state,
        reward_funcs=functions,
        reward_processing_classes=[None] * len(functions),
        reward_func_names=[str(i) for i in range(len(functions))],
        environments=None,
        async_loop=loop,
        _log_completion_extra=lambda name, values: None,
        _log_metric=lambda name, value: None,
    )
    inputs = [
        {"prompt": prompt, **{name: values[i] for name, values in COLUMNS.items()}} for i, prompt in enumerate(PROMPTS)
    ]
    theirs = trl.GRPOTrainer._calculate_rewards(trainer, inputs, PROMPTS, TEXTS, IDS)
    loop.call_soon_threadsafe(loop.stop)
    ours = run(*functions, context={"trainer_state": state})
    np.testing.assert_allclose(np.stack(list(ours.per_function.values()), 1), theirs.numpy(), rtol=1e-6)
    weights = torch.arange(1.0, 1 + len(functions))
    summed = (theirs * weights).nansum(1)
    np.testing.assert_allclose(
        run(*functions, weights=weights.tolist(), context={"trainer_state": state}).reward, summed
    )
