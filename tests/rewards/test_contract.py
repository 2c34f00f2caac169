"""The contract of rewards: TRL's functions run unchanged, and each mistake of a function is one line."""

import asyncio
import copy
import functools
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.rewards import Reward, check_calls, score
from nlf.rewards.contract import shares
from nlf.rewards.registry import SHIPPED, recorded_spec, resolve_reward

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
    import pandas as pd
    import torch

    column = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)  # the logits of a reward model
    numbers = (np.True_, Decimal(2), Fraction(3)), [torch.tensor(1), np.int8(2), {"a": 3}["a"]]
    arrays = np.array([1, 2, 3]), torch.tensor([1, 2, 3]), column, column.detach().numpy(), pd.Series([1, 2, 3])
    for made in (*numbers, *arrays, (True, 2, np.float32(3)), iter([1, 2, 3]), {"a": 1, "b": 2, "c": 3}.values()):
        assert run(lambda completions, made=made, **kwargs: made).reward.tolist() == [1, 2, 3]
    assert run(lambda **kwargs: [5e-324, -1e100, 2**60 + 1]).reward.tolist() == [5e-324, -1e100, 2.0**60]


def test_rewards_that_return_one_list_keep_their_own_values():
    """The second reward writes into the list, or the tensor, that the first reward returned."""
    import torch

    for shared in ([1.0, 2.0, 3.0], torch.tensor([1.0, 2.0, 3.0])):

        def first(shared=shared, **kwargs):
            return shared

        def second(shared=shared, **kwargs):
            shared[0] = 100.0
            return shared

        found = run(first, second)
        assert [values.tolist() for values in found.per_function.values()] == [[1, 2, 3], [100, 2, 3]]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_reward_that_changes_its_lists_changes_nothing_else(asynchronous):
    """TRL's functions may write `prompt += completion`: the next reward, and the next iteration, see what they saw."""

    def spoil(prompts, completions, completion_ids, gold, **kwargs):
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt += completion
            prompt[0]["content"] = "?"
        completion_ids[0].append(9)
        gold[0]["answer"].append(1)
        for values in (prompts, completions, completion_ids, gold):
            values.clear()
        return [0.0] * 3

    async def spoil_later(**kwargs):
        return spoil(**kwargs)

    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    ids, columns = [[1], [2, 3], []], {"gold": [{"answer": []}, {}, {}]}
    before = copy.deepcopy((prompts, completions, ids, columns))
    run(spoil_later if asynchronous else spoil, prompts=prompts, completions=completions, ids=ids, columns=columns)
    assert (prompts, completions, ids, columns) == before


def test_attributes_may_be_lists_and_must_be_one_number_for_each_text():
    class Scorer(Judge):
        found: object = None

        def attributes(self, texts):
            texts.clear()
            return self.found

        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    scorer = Scorer()
    scorer.found = {"toxicity": [0, 0.5, None], "insult": (0.0, float("nan"), True)}
    found = run(scorer).attributes
    np.testing.assert_equal(found["toxicity"], [0, 0.5, np.nan])
    np.testing.assert_equal(found["insult"], [0, np.nan, 1])
    for wrong, told in (
        ([0.0] * 3, "attributes returned [0.0, 0.0, 0.0]; expected {name: one number per text}"),
        ({"toxicity": 0.5}, "attribute 'toxicity' is 0.5; expected one number for each text"),
        ({"toxicity": [0.5]}, "attribute 'toxicity', returned 1 values for 3 completions"),
        ({"toxicity": [0, float("inf"), 0]}, "attribute 'toxicity', returned inf for completion 1"),
    ):
        scorer.found = wrong
        with pytest.raises(UserError) as caught:
            run(scorer)
        assert told in str(caught.value)


def test_a_model_is_no_function_and_its_folder_is_named():
    """TRL takes a reward model as it is; called like a function, it would fail inside."""
    with pytest.raises(UserError, match=r"reward 'GPT2LMHeadModel' is a model, .*hub id: hf:MODEL"):
        resolve_reward(tiny.model("gpt2"))


def test_a_class_given_from_python_is_made():
    assert resolve_reward(Judge).label == "judge@2"
    with pytest.raises(UserError, match="is a class that needs"):
        resolve_reward(functools.partial)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e200])
def test_a_weight_leaves_sums_finite(weight):
    with pytest.raises(UserError, match=r"reward weights .* expected numbers from -1e\+100 to 1e\+100"):
        run(length, weights=[weight])


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
    "a mapping": ({0: 1.0, 1: 2.0, 2: 3.0}, "returned {0: 1.0, 1: 2.0, 2: 3.0}; expected a list with one number"),
    "a set": ({1.0, 2.0, 3.0}, "returned {1.0, 2.0, 3.0}; expected a list"),
    "the keys of a mapping": ({1.0: "", 2.0: "", 3.0: ""}.keys(), "expected a list"),
    "bytes, which are integers": (b"abc", "returned b'abc'; expected a list"),
    "an array of two columns": (np.zeros((3, 2)), "expected a list with one number"),
    "a complex number": ([1, 1, 1j], "returned 1j for completion 2"),
    "near the largest float": (
        [1, 1e308, 1],
        "returned 1e+308 for completion 1 ('three'); expected a number from -1e+100",
    ),
    "an integer that cannot be written": (
        [1, 1, 10**5000],
        "returned an integer of thousands of digits for completion 2",
    ),
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


def test_a_function_without_kwargs_is_found_before_anything_is_sampled():
    def needs_topic(completions, topic, **kwargs):
        return [0.0] * 3

    check_calls([Reward(length), Reward(needs_topic)], ["topic", "prompt"])
    with pytest.raises(UserError, match=r"'needs_topic' cannot be called: missing a required argument: 'topic'"):
        check_calls([Reward(needs_topic)], [])


@pytest.mark.parametrize(("functions", "weights"), [([], None), ([length], []), ([length, later], [1])])
def test_weights_are_as_many_as_rewards(functions, weights):
    with pytest.raises(UserError, match="one weight for each"):
        run(*functions, weights=weights)


# ---- names --------------------------------------------------------------------------------------------------------


def test_the_embedded_scorer_by_name():
    reward = resolve_reward("local")
    assert (reward.label, reward.remote) == (SHIPPED["local"].newest, False)
    found = score([reward], None, PROMPTS, TEXTS, IDS, {})
    np.testing.assert_allclose(found.reward, 1 - found.attributes["toxicity"])
    assert np.isnan(found.reward).tolist() == [False, False, True]  # the empty completion cannot be scored


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


def test_how_a_run_records_a_reward_from_python(folder):
    """A name that another reward has must not load that one: a function `length` of a script is not the rule `length`."""
    from nlf.rewards.local import LocalToxicity
    from nlf.rewards.rules import Length, Regex

    assert recorded_spec(resolve_reward(length)) == f"{__name__}:length"
    assert resolve_reward(recorded_spec(resolve_reward(length))).function is length
    assert recorded_spec(resolve_reward(Judge)) == f"{__name__}:Judge"
    for shipped, name in ((LocalToxicity(), SHIPPED["local"].newest), (Length("20"), "length:20")):
        assert recorded_spec(resolve_reward(shipped)) == name
    for spec in ("local@1", "my_rewards.py:length", "./my_rewards.py:Scorer"):
        assert recorded_spec(resolve_reward(spec)) == spec

    def length_(**kwargs):
        return [0.0]

    length_.__name__ = "length"
    for hidden in (
        length_,
        lambda **kwargs: [0.0],
        Judge(),
        functools.partial(length),
        Regex("(a{2}" * 20 + ")" * 20),
    ):
        spec = recorded_spec(resolve_reward(hidden))
        assert spec.startswith("python:")
        with pytest.raises(UserError, match="was given from Python, so its name cannot load it"):
            resolve_reward(spec)


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


# ---- explanations ---------------------------------------------------------------------------------------------------


class Explains(Judge):
    """Says which words made its scores."""

    def __init__(self, answer):
        self.answer = answer

    def explain(self, text, attribute="insult"):
        return self.answer


def test_shares_come_in_the_order_of_the_text_and_words_that_overlap_are_one():
    reward = Reward(Explains([(6, 9, np.float32(0.5)), (0, 2, -1), (np.int64(3), 5, 2.0), (4, 8, 0.25)]))
    assert reward.explains and reward.explained == "insult"
    assert reward.explain("ab cd ef gh") == [(0, 2, -1.0), (3, 9, 2.75)]
    assert not Reward(length).explains and not Reward(Judge()).explains


def test_without_a_default_attribute_the_score_is_explained():
    class Plain(Judge):
        def explain(self, text):
            return []

    assert Reward(Plain()).explained == "the score" and Reward(Plain()).explain("ab") == []


@pytest.mark.parametrize(
    "answer",
    [None, 1, "abc", ["ab"], [(0, 1)], [(0, 4, 1.0)], [(-1, 2, 1.0)], [(1, 1, 1.0)], [(2, 1, 1.0)], [(0, 1, None)],
     [(0, 1, np.nan)], [(0, 1, np.inf)], [(0, 1, "1")], [(0.0, 1, 1.0)]],
)  # fmt: skip
def test_an_explanation_that_is_no_list_of_words_is_one_line(answer):
    with pytest.raises(UserError, match="reward 'judge': explain returned .* expected a list of"):
        Reward(Explains(answer)).explain("abc")


SPANS = st.tuples(st.integers(0, 12), st.integers(0, 12), st.floats(-9, 9))


@given(st.text(max_size=12), st.lists(SPANS))
def test_words_lie_inside_the_text_apart_and_keep_the_sum_of_shares(text, spans):
    found = shares(spans, text)
    if any(not start < end <= len(text) for start, end, _ in spans):
        assert found is None
    else:
        ends = [end for word in found for end in (word.start, word.end)]
        assert ends == sorted(ends) and all(text[word.start : word.end] for word in found)
        assert sum(word.share for word in found) == pytest.approx(sum(share for *_, share in spans), abs=1e-9)
