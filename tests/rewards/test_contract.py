"""The contract of rewards: TRL's functions run unchanged, and each mistake of a function is one line."""

import asyncio
import functools
import sys

import numpy as np
import pytest

from nlf.errors import UserError
from nlf.rewards import Reward, score
from nlf.rewards.registry import resolve_reward

PROMPTS, TEXTS, IDS = ["a", "a", "b"], ["one", "three", ""], [[1], [2, 3], []]
FILE = """
import helper_module

def length(completions, **kwargs):
    return [helper_module.size(c) for c in completions]

class Scorer:
    name, version = "mine", 3
    def __call__(self, completions, **kwargs):
        return [1.0 for _ in completions]
    def attributes(self, texts):
        return {"toxicity": [0.0 for _ in texts]}

class Needy:
    def __init__(self, path):
        pass

VALUE = 3
"""


def length(completions, **kwargs):
    return [float(len(c)) for c in completions]


async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [10.0 * len(c) for c in completions]


class Judge:
    """A scorer object."""

    name, version, remote = "judge", 2, True

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [1 - t for t in self.attributes(completions)["toxicity"]]

    def attributes(self, texts):
        return {"toxicity": np.array([len(t) / 10 for t in texts]), "insult": np.zeros(len(texts))}


def run(*functions, weights=None, columns=None, prompts=PROMPTS, completions=TEXTS, ids=IDS, **more):
    return score([Reward(f) for f in functions], weights, prompts, completions, ids, columns or {}, **more)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with a reward file, a package and a helper that the file imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "helper_module.py").write_text("size = len\n")
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "judges.py").write_text("import no_such_dependency\n")
    (tmp_path / "kit" / "kit_lacks.py").write_text("import kit_\n")
    yield tmp_path
    for name in ("my_rewards", "helper_module", "kit", "kit.judges", "kit.kit_lacks"):
        sys.modules.pop(name, None)


# ---- what comes out -----------------------------------------------------------------------------------------------


def test_one_function():
    found = run(length)
    assert found.reward.tolist() == [3, 5, 0] and found.scorer == "length" and found.attributes == {}
    assert found.per_function["length"].tolist() == [3, 5, 0] and found.reward.dtype == np.float64


def test_the_weighted_sum():
    def half(completions, **kwargs):
        return [0.5] * len(completions)

    found = run(length, half, weights=[1, -2])
    assert found.reward.tolist() == [2, 4, -1] and found.scorer == "length,half"
    assert run(length, half).reward.tolist() == [3.5, 5.5, 0.5]


def test_none_counts_as_nothing_and_all_none_is_not_scored():
    def first(completions, **kwargs):
        return [None, 1.0, None]

    def second(completions, **kwargs):
        return [None, None, 4.0]

    found = run(first, second, weights=[3, 0.5])
    np.testing.assert_equal(found.reward, [np.nan, 3, 2])
    np.testing.assert_equal(found.per_function["first"], [np.nan, 1, np.nan])


def test_a_scorer_object_brings_name_version_and_attributes():
    reward = resolve_reward(Judge())
    assert (reward.name, reward.version, reward.remote, reward.label) == ("judge", 2, True, "judge@2")
    found = run(Judge(), length)
    assert found.scorer == "judge@2,length" and found.attributes.keys() == {"toxicity", "insult"}
    assert found.attributes["toxicity"].tolist() == [0.3, 0.5, 0]
    assert found.reward.tolist() == pytest.approx([3.7, 5.5, 1])


def test_two_functions_of_one_name_stay_apart():
    found = run(length, functools.partial(length), length)
    assert list(found.per_function) == ["length", "length_2", "length_3"]
    assert found.reward.tolist() == [9, 15, 0]


def test_what_a_function_may_return():
    import torch

    for made in (np.array([1, 2, 3]), torch.tensor([1, 2, 3]), (True, 2, np.float32(3)), iter([1, 2, 3])):
        assert run(lambda completions, made=made, **kwargs: made).reward.tolist() == [1, 2, 3]


def test_no_completions():
    assert run(length, Judge(), prompts=[], completions=[], ids=[]).reward.shape == (0,)


# ---- what goes in -------------------------------------------------------------------------------------------------


def test_everything_is_passed_by_name_as_trl_does():
    seen = {}

    def look(**kwargs):
        seen.update(kwargs)
        return [0.0] * 3

    columns = {"topic": ["x", "y", "z"], "self": [1, 2, 3], "completion": ["gold"] * 3, "completions": ["gold"] * 3}
    run(look, columns=columns, context={"trainer_state": "state"})
    given = {"prompts": PROMPTS, "completions": TEXTS, "completion_ids": IDS}
    assert seen == given | {"topic": ["x", "y", "z"], "self": [1, 2, 3], "trainer_state": "state"}


def test_a_reward_is_called_like_its_function():
    assert Reward(length)(PROMPTS, TEXTS, IDS, topic=[1, 2, 3], self=[1, 2, 3]) == [3, 5, 0]


def test_conversations_come_as_messages_and_attributes_see_the_text():
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]

    def contents(completions, **kwargs):
        return [len(c[0]["content"]) for c in completions]

    class Texts(Judge):
        def __call__(self, completions, **kwargs):
            return [0] * len(completions)

    found = run(contents, Texts(), completions=completions, prompts=[[{"role": "user", "content": "?"}]] * 3)
    assert found.reward.tolist() == [3, 5, 0] and found.attributes["toxicity"].tolist() == [0.3, 0.5, 0]


def test_trl_functions_run_unchanged():
    trl = pytest.importorskip("trl.rewards")
    ids = [[1] * 10, [1] * 18, [1, 2, 3, 4] * 5]
    found = run(trl.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10), ids=ids)
    assert found.reward.tolist() == pytest.approx([0, -0.8, -1])
    found = run(trl.get_repetition_penalty_reward(ngram_size=2), ids=[[1, 2, 3], [5, 5, 5, 5], [1]])
    assert found.reward.tolist() == pytest.approx([0, -2 / 3, 0]) and found.scorer == "repetition_penalty_reward"
    texts = ["<think>\nfirst\n</think>\nthen", "then", "<think>a</think>"]
    found = run(
        trl.think_format_reward,
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        columns={"topic": [1, 2, 3]},
    )
    assert found.reward.tolist() == [1, 0, 1]
    assert resolve_reward("trl.rewards.think_format_reward").function is trl.think_format_reward


# ---- async --------------------------------------------------------------------------------------------------------


def test_async_functions():
    class Callable:
        async def __call__(self, completions, **kwargs):
            return [100.0] * len(completions)

    assert Reward(later).is_async and Reward(Callable()).is_async and not Reward(length).is_async
    found = run(later, length, Callable(), functools.partial(later), lambda **kwargs: later(**kwargs))
    assert list(found.per_function) == ["later", "length", "Callable", "later_2", "<lambda>"]
    assert found.reward.tolist() == [193, 255, 100]


def test_async_functions_wait_for_each_other_not_in_line():
    met = []

    def meeting(name):
        async def meet(completions, **kwargs):
            met.append(name)
            while len(met) < 2:
                await asyncio.sleep(0.001)
            return [0.0] * len(completions)

        return meet

    async def both():
        return await asyncio.wait_for(asyncio.to_thread(run, meeting("a"), meeting("b")), 30)

    asyncio.run(both())
    assert sorted(met) == ["a", "b"]


def test_a_client_kept_between_calls_stays_usable():
    """Both calls use one open loop, as in TRL: a client is bound to its loop."""
    loops = []

    async def look(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0] * 3

    run(look)
    run(look)
    assert loops[0] is loops[1] and not loops[0].is_closed()


def test_async_inside_a_notebook():
    async def cell():
        return run(later).reward.tolist()

    assert asyncio.run(cell()) == [30, 50, 0]


# ---- what is wrong ------------------------------------------------------------------------------------------------

BAD = {
    "too few": ([1.0], "returned 1 values for 3 completions; expected one for each"),
    "too many": ([1.0] * 4, "returned 4 values for 3 completions"),
    "NaN": ([1, float("nan"), 1], "returned nan for completion 1 ('three'); expected a finite number, or None"),
    "infinite": ([float("-inf"), 1, 1], "returned -inf for completion 0 ('one')"),
    "over any float": ([10**400, 1, 1], "for completion 0"),
    "text": ([1, 1, "0.5"], "returned '0.5' for completion 2 ('')"),
    "lists": ([1, [1], 1], "returned [1] for completion 1"),
    "names": ({"a": 1, "b": 2, "c": 3}, "returned 'a' for completion 0"),
    "nothing": (None, "returned None; expected a list with one number (or None) per completion"),
    "one number": (0.5, "returned 0.5; expected a list"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_function_returns_is_checked(name, asynchronous):
    made, expected = BAD[name]

    def mine(completions, **kwargs):
        return made

    async def mine_async(completions, **kwargs):
        return made

    with pytest.raises(UserError) as caught:
        run(length, mine_async if asynchronous else mine)
    assert expected in str(caught.value) and "reward 'mine" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_function_raises_is_raised_with_its_name(asynchronous):
    def mine(completions, **kwargs):
        raise KeyError("gone")

    async def mine_async(completions, **kwargs):
        mine(completions)

    with pytest.raises(KeyError, match="gone") as caught:
        run(mine_async if asynchronous else mine, length)
    assert caught.value.__notes__ == [f"while calling the reward 'mine{'_async' if asynchronous else ''}'"]


def test_a_type_error_of_its_own_is_not_taken_for_a_wrong_call():
    def mine(completions, **kwargs):
        return len(3)

    with pytest.raises(TypeError, match="has no len"):
        run(mine)


def test_a_function_without_kwargs_is_told_what_it_is_called_with():
    def mine(completions):
        return [0.0] * 3

    with pytest.raises(UserError, match=r"reward 'mine' cannot be called: got an unexpected .*with \*\*kwargs taking"):
        run(mine, columns={"topic": [1, 2, 3]})


@pytest.mark.parametrize(("functions", "weights"), [([], None), ([length], []), ([length, later], [1])])
def test_weights_are_as_many_as_rewards(functions, weights):
    with pytest.raises(UserError, match="one weight for each"):
        run(*functions, weights=weights)


# ---- names --------------------------------------------------------------------------------------------------------


def test_the_embedded_scorer_by_name():
    reward = resolve_reward("local")
    assert (reward.label, reward.remote) == ("local@1", False)
    found = score([reward], None, PROMPTS, TEXTS, IDS, {})
    np.testing.assert_allclose(found.reward, 1 - found.attributes["toxicity"])
    assert np.isfinite(found.reward).all()  # the empty completion has a score, too


@pytest.mark.parametrize(
    "spec", ["my_rewards:length", "my_rewards.length", "my_rewards.py:length", "./my_rewards.py:length"]
)
def test_paths_to_a_function(folder, spec):
    assert resolve_reward(spec)(PROMPTS, TEXTS, IDS) == [3, 5, 0]


def test_a_class_is_made_and_a_reward_stays_itself(folder):
    reward = resolve_reward(str(folder / "my_rewards.py:Scorer"))
    assert reward.label == "mine@3" and resolve_reward(reward) is reward
    assert resolve_reward(length).function is length


def test_a_file_does_not_hide_a_module_of_its_name(folder):
    (folder / "json.py").write_text("def f(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    resolve_reward("json.py:f")
    import json

    assert json.loads("1") == 1


UNKNOWN = {
    "lokal": "unknown reward 'lokal'; did you mean 'local'? known: local, sentiment, audit, perspective[:ATTRIBUTE], ",
    "judge": "reward 'judge' is incomplete; expected judge:FILE.yaml; `nlf score --list` shows all scorers",
    "someone/model.v1": "unknown reward 'someone/model.v1'; known: local",
    ".length": "unknown reward '.length'",
    ":length": "unknown reward ':length'",
    "nowhere.rewards:length": "no module 'nowhere.rewards' here or installed; known names: local",
    "my_rewards:lenght": "my_rewards has no 'lenght'; did you mean 'length'? it has helper_module, length, Scorer",
    "my_rewards.py": "name the function in it too, my_rewards.py:my_reward",
    "no/such.py:length": "no such file: no/such.py",
    "my_rewards:VALUE": "reward 'my_rewards:VALUE' is 3; expected a function, a scorer object or its class",
    "my_rewards:Needy": "is a class that needs path; make an object of it and name that instead",
}


@pytest.mark.parametrize("spec", UNKNOWN)
def test_what_cannot_be_found_is_said(folder, spec):
    with pytest.raises(UserError) as caught:
        resolve_reward(spec)
    assert UNKNOWN[spec] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["kit.judges:f", "kit.kit_lacks:f"])
def test_a_module_that_lacks_something_itself_fails_as_it_does(folder, spec):
    """The missing module `kit_`, imported by `kit.kit_lacks`, is not taken for a missing `kit`."""
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency|kit_"):
        resolve_reward(spec)
