"""Rewards of the beginnings of completions: who can score them, what is called, and what ends up in rollouts."""

import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.data.rollouts import SCHEMA
from nlf.errors import UserError
from nlf.rewards import Judgement, Reward
from nlf.rewards.contract import Place
from nlf.rewards.hf import Detoxify, HFClassifier
from nlf.rewards.judge import Judge
from nlf.rewards.local import LocalToxicity, joined, trail_of_prefixes
from nlf.rewards.moderation import Moderation
from nlf.rewards.perspective import Perspective
from nlf.rewards.registry import resolve_reward
from nlf.rewards.remote import RemoteScorer
from nlf.rewards.tables import score_table

EMBEDDED = ["local@2", "local@1", "sentiment", "audit@2", "audit@1"]
TEXTS = [
    " you are a kind man and I like you.",
    " what a stupid idiot he is",
    "",
    " и это по-русски",
    " f*ck the i d i o t s 😀",
]
ENDS = [[4, 8, 10, 15, 35], [5, 7, 13, 15, 19, 26], [0], [2, 6, 16], [2, 6, 16, 17, 23]]


def placed(ends) -> list[list[Place]]:
    """Places of one token a character."""
    return [[Place(end, end) for end in own] for own in ends]


def of_texts(reward: Reward, texts=TEXTS, ends=ENDS, prompts=None, **columns) -> list[list]:
    ids = [[*range(len(text))] for text in texts]
    found = reward.prefix_rewards(prompts or ["p"] * len(texts), texts, ids, placed(ends), columns)
    return [[None if value != value else value for value in own.tolist()] for own in found]


# ---- who can score beginnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*EMBEDDED, "length", "repetition", "repetition:2", "regex:bad", "regex:-bad", r"regex:\$5"]
)
def test_scorers_of_text_can_score_beginnings(name):
    assert resolve_reward(name).prefixes


@pytest.mark.parametrize(
    "name", ["length:20", "regex:^[{].*[}]$", r"regex:end\Z", "regex:a(?!b)", "regex:-a(?=b)", r"regex:\\$"]
)
def test_rules_about_how_a_text_ends_cannot(name):
    assert not resolve_reward(name).prefixes


def test_classifiers_and_word_lists_can_and_what_is_asked_elsewhere_cannot(tmp_path):
    (tmp_path / "words").write_text("bad\n")
    assert resolve_reward(f"keywords:{tmp_path / 'words'}").prefixes
    assert HFClassifier.prefixes and Detoxify.prefixes
    assert not any(getattr(kind, "prefixes", False) for kind in (RemoteScorer, Perspective, Moderation, Judge))


def test_a_function_says_so_itself():
    def plain(completions, **kwargs):
        return [0.0 for _ in completions]

    assert not Reward(plain).prefixes
    plain.prefixes = True
    assert Reward(plain).prefixes


# ---- what they say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EMBEDDED, "repetition:1", "length", "regex:-stupid"])
def test_the_reward_of_a_beginning_is_that_of_the_text(name):
    reward = resolve_reward(name)
    found = of_texts(reward)
    for text, ends, own in zip(TEXTS, ENDS, found, strict=True):
        alone = [text[:end] for end in ends]
        expected = reward(prompts=["p"] * len(alone), completions=alone, completion_ids=[[]] * len(alone))
        assert own == pytest.approx(expected, abs=2e-6)
    whole = reward(prompts=["p"] * len(TEXTS), completions=TEXTS, completion_ids=[[]] * len(TEXTS))
    assert [own[-1] for own in found] == pytest.approx(whole, abs=2e-6)


def test_a_rude_word_is_seen_where_it_stands():
    _, rude, empty, foreign, _ = of_texts(resolve_reward("local@2"))
    assert rude[1] - rude[3] > 0.2  # " what a" and " what a stupid "
    assert empty == [None] and foreign == [None] * 3


@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.lists(st.integers(0, 40), max_size=5)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_texts_in_one_pass_score_as_each_alone(scorer, given_texts):
    texts, ends = [text for text, _ in given_texts], [own for _, own in given_texts]
    for text, own, found in zip(texts, ends, scorer.prefix_rewards(texts, ends), strict=True):
        assert found == pytest.approx(scorer.reward(scorer.score_prefixes(text, own)), abs=2e-6, nan_ok=True)


def test_passes_of_few_words_give_the_same(scorer, monkeypatch):
    whole = np.concatenate(scorer.prefix_rewards(TEXTS, ENDS))
    monkeypatch.setattr("nlf.rewards.local.WORDS_A_PASS", 5)
    assert np.concatenate(scorer.prefix_rewards(TEXTS, ENDS)) == pytest.approx(whole, abs=2e-6, nan_ok=True)


@pytest.fixture(scope="module")
def scorer():
    return LocalToxicity()


def test_trails_are_joined_by_hand():
    one = trail_of_prefixes(["you", "are"], [(1, ["a"]), (0, [])])
    both = joined([one, trail_of_prefixes([], []), trail_of_prefixes(["b"], [(1, ["c", "d"])])])
    assert both.words == ["you", "are", "a", "b", "c", "d"]
    assert both.parents.tolist() == [6, 0, 0, 6, 3, 4]
    assert both.runs == [(0, 2), (3, 4)]
    assert [level.tolist() for level in both.levels] == [[2, 4], [5]]
    assert both.last.tolist() == [2, 6, 5]
    assert both.running(np.array([1, 2, 4, 8, 16, 32]), np.add).tolist() == [1, 3, 5, 8, 24, 56]


# ---- what is called -----------------------------------------------------------------------------------------------


class Calls:
    """A reward that keeps its arguments and changes them: the number of characters."""

    prefixes = True

    def __init__(self):
        self.seen = []

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.seen.append((list(prompts), list(completions), [list(ids) for ids in completion_ids], columns))
        completion_ids.clear()
        return [float(len(text)) if isinstance(text, str) else float(len(text[0]["content"])) for text in completions]


def test_a_function_gets_one_beginning_of_each_completion_at_a_time():
    calls = Calls()
    ids = [[5, 6, 7], [8]]
    places = [[Place(1, 1), Place(3, 2)], [Place(2, 1)]]
    found = Reward(calls).prefix_rewards(
        ["p", "q"], ["abcd", "ef"], ids, places, {"topic": ["x", "y"], "prompt": [0, 0]}
    )
    assert [own.tolist() for own in found] == [[1.0, 3.0], [2.0]]
    assert calls.seen == [
        (["p", "q"], ["a", "ef"], [[5], [8]], {"topic": ["x", "y"]}),
        (["p"], ["abc"], [[5, 6]], {"topic": ["x"]}),
    ]
    assert ids == [[5, 6, 7], [8]]


def test_a_beginning_in_a_conversation_is_a_message():
    calls = Calls()
    prompt = [{"role": "user", "content": "hi"}]
    assert of_texts(Reward(calls), ["abc"], [[2]], [prompt]) == [[2.0]]
    assert calls.seen[0][:2] == ([prompt], [[{"role": "assistant", "content": "ab"}]])


def test_async_functions_and_methods_score_beginnings():
    async def length(completions, **kwargs):
        return [None if text == "a" else len(text) for text in completions]

    class Method:
        prefixes = True

        def __call__(self, completions, **kwargs):
            raise AssertionError("the method scores all beginnings")

        async def prefix_rewards(self, texts, ends):
            return [[float(end) if end else None for end in own] for own in ends]

    length.prefixes = True
    assert of_texts(Reward(length), ["abc"], [[1, 2]]) == [[None, 2.0]]
    assert of_texts(Reward(Method()), ["abc", "d"], [[0, 2], [1]]) == [[None, 2.0], [1.0]]


def test_a_judge_that_says_so_scores_beginnings():
    class Grader:
        prefixes = True

        def __call__(self, completions, **kwargs):
            raise AssertionError("judge is called in its place")

        def judge(self, completions, **kwargs):
            return [Judgement(float(len(text))) for text in completions]

    assert of_texts(Reward(Grader()), ["abc"], [[1, 3]]) == [[1.0, 3.0]]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([[1.0]], "returned [[1.0]] for 2 texts; expected one array for each"),
        ({"a": 1}, "expected one array for each"),
        ([[1.0, 2.0], [1.0, 2.0]], "text 1, returned 2 values for 1 completions"),
        ([1.0, 2.0], "text 0, returned 1.0; expected one number for each text"),
        ([[1.0, float("inf")], [1.0]], "returned inf for completion 1 ('ab'); expected a number from -1e+100"),
        ([[1.0, "good"], [1.0]], "returned 'good' for completion 1"),
    ],
)  # fmt: skip
def test_what_a_method_returns_is_checked(returned, words):
    class Wrong:
        name, prefixes = "wrong", True

        def __call__(self, completions, **kwargs):
            return [0.0 for _ in completions]

        def prefix_rewards(self, texts, ends):
            return returned

    with pytest.raises(UserError) as error:
        of_texts(Reward(Wrong()), ["ab", "c"], [[1, 2], [1]])
    assert "reward 'wrong': prefix_rewards" in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_function_returns_for_beginnings_is_checked():
    def short(completions, **kwargs):
        return [0.0]

    short.prefixes = True
    with pytest.raises(UserError, match="'short', called with beginnings, returned 1 values for 2 completions"):
        of_texts(Reward(short), ["ab", "c"], [[1, 2], [1]])


# ---- rollouts -----------------------------------------------------------------------------------------------------


def sampled(*completions: str, recorded: bool = True) -> pa.Table:
    """Completions of one token a character, and EOS; every place is scored."""
    rows = [
        {
            **{"prompt_id": "p", "prompt": "p", "completion": text, "completion_ids": [*range(1, len(text) + 1), 0]},
            **{"prefix_tokens": [*range(1, len(text) + 1)], "prefix_ends": [*range(1, len(text) + 1)]},
        }
        for text in completions
    ]
    for row in [] if recorded else rows:
        row["prefix_tokens"] = row["prefix_ends"] = None
    return pa.Table.from_pylist(rows, schema=SCHEMA)


ROWS = [{"prompt": "p", "prompt_id": "p", "topic": "x"}]


def prefix_rewards(table: pa.Table) -> list[dict]:
    return [dict(row or ()) for row in table["prefix_rewards"].to_pylist()]


def test_the_whole_completion_is_scored_once():
    calls = Calls()
    table = score_table(sampled("ab", "c", ""), ROWS, [Reward(calls, "size")], None)
    assert [texts for _, texts, _, _ in calls.seen] == [["ab", "c", ""], ["a"]]
    assert prefix_rewards(table) == [{"size": [1.0, 2.0]}, {"size": [1.0]}, {"size": []}]
    assert table["reward"].to_pylist() == [2.0, 1.0, 0.0]


def test_without_recorded_places_nothing_is_called_with_beginnings():
    calls = Calls()
    table = score_table(sampled("ab", recorded=False), ROWS, [Reward(calls)], None)
    assert len(calls.seen) == 1 and table["prefix_rewards"].to_pylist() == [None]


def test_a_reward_that_another_process_calls_later_adds_its_own():
    local, remote, plain = Reward(Calls(), "local"), Reward(Calls(), "remote"), Reward(tiny.vowels, "plain")
    both = [local, remote, plain]
    table = score_table(sampled("ab"), ROWS, both, None, allowed=[local, plain])
    assert prefix_rewards(table) == [{"local": [1.0, 2.0]}] and table["reward"].to_pylist() == [None]
    table = score_table(table, ROWS, both, None)
    assert prefix_rewards(table) == [{"local": [1.0, 2.0], "remote": [1.0, 2.0]}]
    assert table["reward"].to_pylist() == [pytest.approx(4 + 1 / 3)]
    assert table.schema.equals(SCHEMA)


def test_beginnings_log_no_metrics():
    logged, states = [], []

    def logging(completions, trainer_state, log_metric, **kwargs):
        log_metric("length", len(completions[0]))
        states.append(trainer_state)
        return [0.0 for _ in completions]

    logging.prefixes = True
    context = {"trainer_state": "state", "log_metric": lambda name, value: logged.append((name, value))}
    score_table(sampled("abc"), ROWS, [Reward(logging)], None, context=context)
    assert logged == [("length", 3)] and states == ["state"] * 3


def test_an_unscored_completion_is_null_at_its_end():
    table = score_table(sampled("и", "kind words for you"), ROWS, [resolve_reward("local")], None)
    first, second = (row["local"] for row in prefix_rewards(table))
    assert first == [None] and len(second) == 18 and second[-1] == table["reward"][1].as_py()
