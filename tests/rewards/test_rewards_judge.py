"""Scorers with a `judge` method, how their values join those of other rewards, and the list of scorers."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from nlf.data.rollouts import SCHEMA
from nlf.errors import UserError
from nlf.rewards import Judgement, Reward, registry, reward_names, score
from nlf.rewards.registry import listing, resolve_reward
from nlf.rewards.tables import score_table

TEXTS = ["one", "three", ""]
IDS = [[1], [2, 3], []]
NAN = float("nan")


class Scorer:
    """Gives reward, attributes and feedback in one call; None for an empty text."""

    name, version, remote = "scorer", 4, False

    def __init__(self, feedback=None):
        self.calls, self.feedback = [], feedback

    def judge(self, prompts, completions, completion_ids, **columns):
        self.calls.append({"prompts": prompts, "ids": completion_ids, **columns})
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return [
            Judgement(float(len(t)), {"length": len(t) / 10}, self.feedback and f"{self.feedback} {t}")
            if t
            else Judgement(None)
            for t in texts
        ]

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [each.reward for each in self.judge(prompts, completions, completion_ids, **columns)]

    def attributes(self, texts):
        raise AssertionError("what judge says is all there is")


class Async(Scorer):
    async def judge(self, *args, **kwargs):
        return Scorer.judge(self, *args, **kwargs)


def run(*functions, weights=None, completions=TEXTS, **columns):
    return score([Reward(f) for f in functions], weights, ["a"] * 3, completions, IDS, columns)


@pytest.mark.parametrize("kind", [Scorer, Async])
def test_a_judge_is_called_once(kind):
    scorer = kind(feedback="said of")
    found = run(scorer, topic=[1, 2, 3])
    np.testing.assert_equal(found.reward, [3, 5, NAN])
    np.testing.assert_equal(found.attributes, {"length": [0.3, 0.5, NAN]})
    assert found.feedback == ["said of one", "said of three", None] and found.scorer == "scorer@4"
    assert scorer.calls == [{"prompts": ["a"] * 3, "ids": IDS, "topic": [1, 2, 3]}]
    assert Reward(kind())(["a"] * 3, TEXTS, IDS) == [3.0, 5.0, None]
    chat = [[{"role": "assistant", "content": text}] for text in TEXTS]
    np.testing.assert_equal(run(kind(), completions=chat).reward, [3, 5, NAN])


def test_beside_plain_functions_and_another_judge():
    def half(completions, **kwargs):
        return [0.5] * len(completions)

    found = run(half, Scorer(), Async(feedback="first"), Scorer(feedback="second"), weights=[2, 1, 10, 100])
    np.testing.assert_equal(found.reward, [1 + 3 * 111, 1 + 5 * 111, 1])
    assert list(found.per_function) == ["half", "scorer", "scorer_2", "scorer_3"]
    assert found.feedback == ["first one", "first three", None]
    assert run(half).feedback == [None] * 3


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 2.0, 3.0], "returned 1.0 for completion 0; expected nlf.rewards.Judgement"),
        ([Judgement(1.0)], "returned 1 values for 3 completions"),
        ([Judgement(float("inf"))] * 3, "returned inf for completion 0 ('one')"),
        ([Judgement(1.0, {"tone": "x"})] * 3, "reward 'judged', attribute 'tone', returned 'x' for completion 0"),
        (None, "returned None; expected a list with one Judgement per completion"),
    ],
)
def test_what_a_judge_returns_is_checked(returned, words):
    class Judged(Scorer):
        name = "judged"

        def judge(self, prompts, completions, completion_ids, **columns):
            return returned

    with pytest.raises(UserError) as caught:
        run(Judged())
    assert words in str(caught.value)


# ---- a part scored in two goes ------------------------------------------------------------------------------------


def table(texts=TEXTS) -> pa.Table:
    columns = {"completion": texts, "completion_ids": IDS}
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * 3), f.type) for f in SCHEMA}, schema=SCHEMA)


def test_local_and_remote_rewards_join_in_their_own_order():
    def local(completions, **kwargs):
        return [1.0, None, None]

    scorer = Scorer(feedback="said of")
    named = [Reward(scorer), Reward(local)]
    rows = [{"prompt": "p", "prompt_id": str(i)} for i in range(3)]
    first = score_table(table(), rows, named, [1.0, 2.0], allowed=named[1:])
    assert first["reward"].to_pylist() == [None] * 3 and scorer.calls == []
    assert first["rewards"].to_pylist() == [[("local", 1.0)], [("local", None)], [("local", None)]]
    whole = score_table(first, rows, named, [1.0, 2.0], sentence=lambda text: text.upper() if "one" in text else None)
    at_once = score_table(
        table(), rows, named, [1.0, 2.0], sentence=lambda text: text.upper() if "one" in text else None
    )
    assert whole.equals(at_once)
    assert whole["reward"].to_pylist() == [5.0, 5.0, None] and whole["judged"].to_pylist() == [
        "SAID OF ONE",
        None,
        None,
    ]
    assert [list(dict(each)) for each in whole["rewards"].to_pylist()] == [["scorer", "local"]] * 3
    assert whole["scorer"].to_pylist() == ["scorer@4,local"] * 3
    assert score_table(whole, rows, named, [1.0, 2.0]).equals(whole) and len(scorer.calls) == 2  # once each


# ---- names --------------------------------------------------------------------------------------------------------


def test_every_scorer_is_listed_and_nothing_heavy_is_imported_for_it():
    code = (
        "import sys\nfrom nlf.cli.main import main\ncode = main(['score', '--list'])\n"
        "sys.exit(str(heavy) if (heavy := {'torch', 'transformers', 'pyarrow', 'httpx2', 'openai'} & set(sys.modules)) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == listing().splitlines() and lines[0].split() == [
        "scorer",
        "versions",
        "attributes",
        "licence",
        "needs",
    ]
    listed = {line.split("  ")[0] for line in lines[1:]}
    for name, shipped in registry.SHIPPED.items():
        assert shipped.form in listed and shipped.form.startswith(name), name
        assert shipped.needs_argument == shipped.form.startswith(f"{name}:"), name
        assert shipped.takes_argument == shipped.form.startswith((f"{name}:", f"{name}[:")), name


def test_names_stay_apart():
    named = [Reward(lambda **k: None, name) for name in ("a", "b", "a", "a")]
    assert reward_names(named) == ["a", "b", "a_2", "a_3"]


@pytest.mark.parametrize("spec", ["judge", "regex", "hf"])
def test_a_prefix_alone_says_what_is_missing(spec):
    with pytest.raises(UserError, match=f"reward '{spec}' is incomplete; expected {spec}:"):
        resolve_reward(spec)


def test_a_forked_process_can_wait_for_async_rewards():
    import multiprocessing

    run(Async())
    child = multiprocessing.get_context("fork").Process(target=run, args=(Async(),))
    child.start()
    child.join(60)
    assert child.exitcode == 0
