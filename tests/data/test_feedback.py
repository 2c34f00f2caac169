"""Quantiles → words with a judge's categories, a judge's sentences and several attributes, by hand and in whole runs."""

import collections
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import lines, make, same, weights

from nlf import config
from nlf.data.feedback import AttributeRules, RewardRules, coin, make_feedback, pick
from nlf.data.pool import Pool
from nlf.data.rollouts import SCHEMA
from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, TagScheme, diagonal, mirror
from nlf.models.encoder import PromptEncoder
from nlf.rewards import Judgement
from nlf.training.settings import run_settings

LEVELS = ("good", "fair", "poor", "bad")  # levels 3, 2, 1, 0


def pool_of(rewards, sentences=None, prompts=None, **each) -> Pool:
    """A pool of these rewards; `each` gives the rewards of single functions by name."""
    n = len(rewards)
    columns = {
        "prompt_id": prompts or [f"p{i}" for i in range(n)],
        "prompt_ids": [[5]] * n,
        "completion_ids": [[7, i] for i in range(n)],
        "reward": rewards,
        "rewards": [[(name, values[i]) for name, values in each.items()] for i in range(n)],
        "judged": sentences or [None] * n,
    }
    pool = Pool()
    pool.add(pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA}, schema=SCHEMA), 0)
    return pool


def levels(sentences=True):
    return make_feedback(TagScheme(LEVELS), ["judge"], seed=3, rules=RewardRules("levels"), sentences=sentences)


def table_of(feedback, pool, iteration=2, items=range(40)):
    """The right and wrong words of each scored row, for each of some items."""
    quantiles = feedback.quantiles(pool)
    words = feedback.words(pool, quantiles, iteration)
    return [[words(row, i) for i in items] for row in np.flatnonzero(quantiles >= 0)]


# ---- tags and levels ----------------------------------------------------------------------------------------------


def test_the_words_of_plain_tags():
    """(own tag, mirror tag), the middle against either extreme, with the coin of earlier runs."""
    feedback = make_feedback(TagScheme(("a", "b", "c")), ["r"], seed=7)
    pool = pool_of([3.0, 2.0, 1.0])
    best, middle, worst = table_of(feedback, pool)
    assert set(best) == {("a", "c")} and set(worst) == {("c", "a")}
    assert middle == [("b", "c" if coin(7, 2, i) else "a") for i in range(40)] and len(set(middle)) == 2
    assert [coin(7, 2, i) for i in range(12)] == [1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1]  # must never change: runs resume
    never = lambda: pytest.fail("the pool is not needed")  # noqa: E731
    assert feedback.to_sample_under(2, 0, never) == [None, None]
    assert feedback.to_sample_under(2, 1, never) == ["a", "a"]


def test_a_level_names_its_tag():
    feedback = levels(sentences=False)
    pool = pool_of([0.0, 3.0, None, 1.0])
    assert feedback.quantiles(pool).tolist() == [3, 0, -1, 2]
    assert [row[0] for row in table_of(feedback, pool)] == [("bad", "good"), ("good", "bad"), ("poor", "fair")]


@pytest.mark.parametrize("reward", [4.0, -1.0, 0.5])
def test_what_is_no_level_is_named(reward):
    with pytest.raises(UserError, match=rf"reward 'judge' is {reward:g} where .* from 0 \(the worst\) to 3"):
        levels().quantiles(pool_of([0.0, reward]))


# ---- sentences ----------------------------------------------------------------------------------------------------

#                 level: 0       0      3            3          1      2          unscored
SENTENCES = pool_of([0.0, 0.0, 3.0, 3.0, 1.0, 2.0, None], ["w1", "w2", "It is clear.", None, None, "Nearly.", "lost"])


def test_a_rollout_is_trained_under_its_sentence_against_one_of_the_mirror_level():
    feedback = levels()
    w1, w2, clear, tag, poor, nearly = table_of(feedback, SENTENCES)
    assert set(w1) == {("w1", "It is clear.")} and set(w2) == {("w2", "It is clear.")}
    assert set(clear) == {("It is clear.", "w1"), ("It is clear.", "w2")}
    assert [wrong for _, wrong in clear] == [["w1", "w2"][pick([0, 1], 3, 2, i)] for i in range(40)]
    assert set(tag) == {("good", "w1"), ("good", "w2")}  # the rollout has no sentence
    assert set(poor) == {("poor", "Nearly.")}
    assert set(nearly) == {("Nearly.", "poor")}  # the mirror level has no sentence


def test_a_sentence_is_not_contrasted_with_itself():
    same_words = pool_of([0.0, 3.0], ["It is long."] * 2)
    assert {pair for row in table_of(levels(), same_words) for pair in row} == {
        ("It is long.", "good"),
        ("It is long.", "bad"),
    }


def test_prompts_are_sampled_under_sentences_of_the_best_level_that_has_any():
    feedback = levels()
    pool = pool_of([3.0, 2.0, 2.0, 0.0], [None, "one", "two", "bad"])
    drawn = feedback.to_sample_under(400, 1, lambda: pool)
    assert drawn[:20] == [["one", "two"][pick([0, 1], 3, 1, "prompt", row)] for row in range(20)]
    assert 150 < collections.Counter(drawn)["one"] < 250
    assert drawn == feedback.to_sample_under(400, 1, lambda: pool) != feedback.to_sample_under(400, 2, lambda: pool)
    assert feedback.to_sample_under(3, 1, lambda: pool_of([3.0, None], [None, "of the unscored"])) == ["good"] * 3
    assert feedback.to_sample_under(3, 0, lambda: pool) == [None] * 3


def test_where_a_sentence_comes_from_depends_on_nothing_else():
    assert [pick([10, 20, 30], 3, 2, i) for i in range(6)] == [pick([10, 20, 30], 3, 2, i) for i in range(6)]
    assert collections.Counter(pick([0, 1, 2], 0, 0, i) for i in range(3000)).most_common()[-1][1] > 900


def test_a_sentence_is_put_on_one_line_without_special_tokens_and_cut_at_a_word(caplog):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|separator|>"], special_tokens=True)
    encoder = PromptEncoder(tokenizer, TagScheme(LEVELS))
    hostile = "  It is <|endoftext|> calm\n\nand <|sepa<|separator|>rator|> warm "
    assert encoder.sentence(hostile) == "It is calm and <|sepa rator|> warm"
    assert encoder.sentence("<|separator|> \n") is None
    encoder.max_feedback_length = 4
    long = "the weather is warm and the river is calm today"
    short = encoder.sentence(long)
    assert long.startswith(short + " ") and 1 <= len(tokenizer(short)["input_ids"]) <= 4
    assert "is cut to 4 tokens" in caplog.text
    encoder.sentence(long + "!")
    assert caplog.text.count("is cut to 4 tokens") == 1
    letters = encoder.sentence("zqxjkvbw" * 5)  # no word to cut at
    assert 0 < len(tokenizer(letters)["input_ids"]) <= 4
    assert encoder.query_ids(short, encoder.prompt_ids("the river"))[-2:] == encoder.prompt_ids("the river")[-2:]


def test_sentences_have_the_room_that_the_longest_prompt_leaves():
    encoder = PromptEncoder(tiny.tokenizer(), TagScheme(("a", "b"), "{feedback}: {prompt}", None))
    rows = [{"prompt": "the river"}, {"prompt": "the weather is warm and the river is calm"}]
    longest = len(encoder.query_ids("a", encoder.prompt_ids(rows[1]["prompt"]))) - len(
        tiny.tokenizer()("a")["input_ids"]
    )
    assert encoder.check_fits(rows, 96, 20) == 96 - 20 - longest - 8
    assert encoder.check_fits(rows, None, 20) is None


def test_pieces_of_many_sentences_are_not_all_kept():
    encoder = PromptEncoder(tiny.tokenizer(), TagScheme(LEVELS))
    for n in range(5000):
        encoder.pieces(f"s{n}")
    assert encoder.pieces.cache_info().currsize < 5000


# ---- attributes ---------------------------------------------------------------------------------------------------

ATTRIBUTES = [
    {"name": "tone", "reward": "f", "tags": ["kind", "neutral", "rude"]},
    {"name": "truth", "reward": "g", "tags": ["factual", "wrong"], "quantile_rule": "levels"},
]
#                               f:  3 → kind, 2 → neutral, 1 → rude;   g: 1 → factual, 0 → wrong
RATED = pool_of([4.0, 2.0, 1.0, 1.0], f=[3.0, 2.0, 1.0, None], g=[1.0, 0.0, None, 1.0])


def composed(**changes):
    tags = diagonal([each["tags"] for each in ATTRIBUTES], ", and ")
    changes["attributes"] = config.attributes_of(changes.get("attributes", ATTRIBUTES))
    attributes = AttributeRules(**{"joint": ", and "} | changes)
    return make_feedback(TagScheme(tuple(tags)), ["f", "g"], seed=5, attributes=attributes)


def test_the_diagonal_goes_from_the_best_of_each_to_the_worst_of_each():
    assert diagonal([["a", "b"], ["x", "y"]], "+") == ["a+x", "b+y"]
    assert diagonal([["a", "b", "c"], ["x", "y"]], "+") == ["a+x", "b+y", "c+y"]
    assert diagonal([["a", "b", "c", "d", "e"], ["x", "y", "z"]], "+") == ["a+x", "b+y", "c+y", "d+z", "e+z"]
    assert diagonal([["a", "b"]], "+") == ["a", "b"]


def test_every_attribute_is_mirrored_at_once():
    feedback = composed()
    first, second, third, fourth = table_of(feedback, RATED)
    assert set(first) == {("kind, and factual", "rude, and wrong")}
    tossed = [coin(5, 2, i) for i in range(40)]
    assert second == [("neutral, and wrong", f"{'rude' if heads else 'kind'}, and factual") for heads in tossed]
    assert set(third) == {("rude", "kind")}  # an unscored attribute is left out
    assert set(fourth) == {("factual", "wrong")}
    assert feedback.quantiles(RATED).tolist() == [0, 1, 2, 2]  # of the total reward
    assert [mirror(q, 3, 1) for q in range(3)] == [2, 2, 0]


def test_the_longest_words_need_not_be_on_the_diagonal():
    feedback = composed(attributes=[{**ATTRIBUTES[0], "tags": ["kind, I think", "rude"]}, ATTRIBUTES[1]])
    assert feedback.longest(len) == "kind, I think, and factual" and levels().longest(len) == "good"
    encoder = PromptEncoder(tiny.tokenizer(), TagScheme(("a", "b"), "{feedback}: {prompt}", None))
    row, words = {"prompt": "the river"}, "kind, I think, and factual"
    needed = len(encoder.query_ids(words, encoder.prompt_ids("the river"))) + 20
    encoder.check_fits([row], needed, 20, [words])
    with pytest.raises(UserError, match=f"needs {needed} tokens .* the model has {needed - 1}"):
        encoder.check_fits([row], needed - 1, 20, [words])


def test_sampling_under_the_best_or_all_combinations():
    assert composed().to_sample_under(2, 1, None) == ["kind, and factual"] * 2
    walked = composed(sampling="all")
    combinations = [f"{tone}, and {truth}" for tone in ATTRIBUTES[0]["tags"] for truth in ATTRIBUTES[1]["tags"]]
    assert walked.to_sample_under(12, 6, None) == combinations * 2
    assert walked.to_sample_under(6, 7, None) == [*combinations[1:], combinations[0]]
    assert walked.to_sample_under(2, 0, None) == [None, None]


def test_several_rewards_share_a_scale_over_the_whole_pool():
    pool = pool_of([1001.0, 3000.0, 2002.0], f=[1.0, 0.0, 2.0], g=[1000.0, 3000.0, 2000.0])
    plain = RewardRules(weights=[1.0, 1.0])
    two = TagScheme(("a", "b", "c"))
    assert make_feedback(two, ["f", "g"], seed=0, rules=plain).quantiles(pool).tolist() == [2, 0, 1]  # g alone decides
    for how in ("zscore", "rank"):  # f: 0, -, +;  g: -, +, 0
        found = make_feedback(two, ["f", "g"], seed=0, rules=replace(plain, normalization=how))
        assert found.quantiles(pool).tolist() == [2, 1, 0]
    assert found.cut.rewards(pool) == pytest.approx([0 - 1 / 3, -1 / 3 + 1 / 3, 1 / 3 + 0])


# ---- what a scorer cannot read --------------------------------------------------------------------------------------


def tagged(num_quantiles, names, pool, worst, **rules):
    """Feedback whose rewards `worst` count None as the worst reward, and the quantiles of a pool."""
    scheme = TagScheme(tuple(f"tag {q}" for q in range(num_quantiles)))
    made = make_feedback(scheme, names, seed=0, rules=RewardRules(**rules), worst=worst)
    return made, made.quantiles(pool).tolist()


def test_a_text_that_cannot_be_scored_has_the_worst_reward_and_the_last_tag():
    rewards = [0.9, 0.5, None, 0.1, 0.7]
    pool = pool_of(rewards, local=rewards)
    made, quantiles = tagged(5, ["local"], pool, ["local"])
    assert made.cut.rewards(pool).tolist() == [0.9, 0.5, 0.1, 0.1, 0.7]
    assert quantiles == [0, 2, 4, 4, 1]
    assert made.words(pool, made.quantiles(pool), 1)(2, 0) == ("tag 4", "tag 0")
    assert np.isnan(pool.rewards[2])  # the record stays what the scorer said
    assert tagged(5, ["local"], pool, [])[1] == [0, 3, -1, 4, 1]  # without a tag, as in TRL


def test_a_model_that_writes_only_what_cannot_be_scored_does_not_earn_the_middle_tag():
    """The trap: equal rewards share the quantile of their middle rank, which is a better one if they are many."""
    rewards = [0.8, 0.2] + [None] * 8
    for rule in ("even", "published"):
        quantiles = tagged(5, ["local"], pool_of(rewards, local=rewards), ["local"], rule=rule)[1]
        assert quantiles[2:] == [4] * 8 and quantiles[0] == 0


def test_an_unscored_reward_is_filled_before_rewards_are_summed():
    pool = pool_of([3.0, 1.0, 1.0], f=[3.0, None, 1.0], g=[0.0, 1.0, 0.0])
    made, quantiles = tagged(3, ["f", "g"], pool, ["f"])
    assert made.cut.rewards(pool).tolist() == [3.0, 1.0 + 1.0, 1.0] and quantiles == [0, 1, 2]
    made, quantiles = tagged(3, ["f", "g"], pool, ["f"], weights=[-1.0, 1.0])
    assert made.cut.rewards(pool).tolist() == [-3.0, -3.0 + 1.0, -1.0]  # the worst of a reward to avoid is the highest
    assert quantiles == [2, 1, 0]


def test_the_fill_takes_the_lowest_place_on_the_scale_of_the_scored():
    rewards = [0.9, None, None, None, 0.1]
    pool = pool_of([r and r + 1.0 for r in rewards], f=rewards, g=[1.0] * 5)
    made, _ = tagged(5, ["f", "g"], pool, ["f"], normalization="rank")
    assert made.cut.rewards(pool).tolist() == [0.25, -0.25, -0.25, -0.25, -0.25]
    made, _ = tagged(5, ["f", "g"], pool, ["f"], normalization="zscore")
    assert made.cut.rewards(pool) == pytest.approx([1, -1, -1, -1, -1])


def test_an_attribute_that_cannot_be_scored_takes_its_worst_tag():
    own = config.attributes_of(ATTRIBUTES)
    pool = pool_of([1.0, 2.0, 1.0], f=[1.0, 2.0, None], g=[0.0, 0.0, 1.0])
    names, scheme = ["f", "g"], TagScheme(("a", "b", "c"))
    for worst, found in ((["f"], own[0].tags[-1]), ([], None)):
        made = make_feedback(scheme, names, seed=5, attributes=AttributeRules(own), worst=worst)
        right, _ = made.words(pool, made.quantiles(pool), 1)(2, 0)
        tone = [tag for tag in own[0].tags if tag in right]
        assert tone == ([found] if found else [])


def test_where_nothing_is_scored_nothing_has_a_tag():
    pool = pool_of([None] * 4, local=[None] * 4)
    assert tagged(5, ["local"], pool, ["local"])[1] == [-1] * 4


@given(st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=40), st.integers(2, 6))
def test_no_scored_text_is_below_one_that_cannot_be_scored(rewards, count):
    values = [None if r is None else float(r) for r in rewards]
    quantiles = tagged(count, ["local"], pool_of(values, local=values), ["local"])[1]
    scored = sorted((-r, q) for r, q in zip(values, quantiles, strict=True) if r is not None)
    assert [q for _, q in scored] == sorted(q for _, q in scored)
    if scored:
        assert all(q == count - 1 for r, q in zip(values, quantiles, strict=True) if r is None)


def options(**changes):
    values = {"attributes": ATTRIBUTES, "attribute_template": " & ", "reward_funcs": ["local"]}
    return SimpleNamespace(**values | {"tags": config.TagOptions().tags} | changes)


def test_attributes_give_the_run_its_rewards_and_tags():
    made = options()
    config.join_attributes(made)
    assert made.reward_funcs == ["f", "g"] and made.tags == ["kind & factual", "neutral & wrong", "rude & wrong"]
    config.join_attributes(made)  # as when a run's config.yaml is given to --config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attributes": []}, "an empty list"),
        ({"attributes": [{"name": "a", "tags": ["x", "y"]}]}, "attribute 'a': no reward; expected name, reward, tags"),
        ({"attributes": [{**ATTRIBUTES[0], "weight": 2}]}, "attribute 'tone': unknown key 'weight'"),
        ({"attributes": [{**ATTRIBUTES[0], "tags": ["x", "x"]}]}, "two or more different tags"),
        ({"attributes": [{**ATTRIBUTES[0], "tags": "x"}]}, "tags 'x' where a list of texts"),
        (
            {"attributes": [{**ATTRIBUTES[0], "quantile_rule": "odd"}]},
            "quantile_rule 'odd' where one of even, published",
        ),
        ({"attributes": [ATTRIBUTES[0]] * 2}, "two attributes have the same name"),
        ({"reward_funcs": ["audit"]}, "reward_funcs ['audit']: attributes name their own"),
        ({"tags": ["x", "y"]}, "tags ['x', 'y']: attributes name their own"),
    ],
)
def test_attributes_that_are_not_whole_are_refused(changes, words):
    with pytest.raises(UserError) as caught:
        config.join_attributes(options(**changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- whole runs ---------------------------------------------------------------------------------------------------

FOUR = {"tags": list(LEVELS), "quantile_weights": [2.0, 1.0, 1.0, 2.0], "quantile_rule": "levels"}


LONGER = FOUR | {"max_completion_length": 9, "prompts_per_iteration": 20}  # enough for equal rewards


def level_of(text: str) -> int:
    return min(3, sum(c in "aeiou" for c in text))


class Categories:
    """A judge that answers with a category."""

    name, version, tags = "categories", 1, LEVELS

    def judge(self, prompts, completions, completion_ids, **columns):
        return [Judgement(float(level_of(text)), {"vowels": level_of(text) / 3}) for text in completions]

    def __call__(self, prompts, completions, completion_ids, **columns):
        raise AssertionError("nlf calls judge, once")


def said_of(text: str) -> str | None:
    return f"It has {sum(c in 'aeiou' for c in text)} vowels in {len(text)} letters." if len(text) % 5 else None


class Sentences:
    """A judge that writes sentences about some completions only."""

    name, version = "sentences", 1

    async def judge(self, prompts, completions, completion_ids, **columns):
        return [
            Judgement(
                float(level_of(text)) if text else None,
                feedback=said_of(text),
            )
            for text in completions
        ]

    __call__ = judge


def rollouts(folder, iteration):
    return pq.read_table(sorted((folder / "rollouts" / f"iteration-{iteration:04d}").glob("part-*"))).to_pylist()


def decoded(trainer, items=range(8)):
    """(words, wrong words, completion) of every training item."""
    tokenizer, data = trainer.processing_class, trainer.train_dataset
    texts = [[tokenizer.decode(ids) for ids in (data[i].right, data[i].wrong, data[i].completion)] for i in items]
    return [(right.split("<|sep")[0], wrong.split("<|sep")[0], text) for right, wrong, text in texts]


def test_a_run_on_a_judges_categories(tmp_path):
    trainer = make(tmp_path, reward=Categories(), **FOUR)
    trainer.train()
    for row in rollouts(tmp_path, 0):
        assert row["reward"] == level_of(row["completion"]) and dict(row["attributes"])["vowels"] == row["reward"] / 3
        assert row["judged"] is None and row["feedback"] is None
    assert {row["feedback"] for row in rollouts(tmp_path, 1)} == {"good"}
    for words, wrong, text in decoded(trainer):
        level = level_of(text.replace("<|endoftext|>", ""))
        assert (words, wrong) == (LEVELS[3 - level], LEVELS[level])
    assert any("eval_reward" in row for row in lines(tmp_path))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A whole run with a judge's sentences."""
    folder = tmp_path_factory.mktemp("told")
    trainer = make(folder, reward=Sentences(), **LONGER)
    trainer.train()
    return folder, trainer


def test_a_run_on_a_judges_own_sentences(told):
    folder, trainer = told
    first, second = rollouts(folder, 0), rollouts(folder, 1)
    for row in [*first, *second]:
        assert row["judged"] == said_of(row["completion"])
    top = max(row["reward"] for row in first if row["judged"] and row["reward"] is not None)
    assert {r["feedback"] for r in second} <= {r["judged"] for r in first if r["reward"] == top and r["judged"]}
    assert len({row["feedback"] for row in second[::2]}) > 1, "each prompt draws its own"
    pairs = decoded(trainer, range(24))
    assert any(words.startswith("It has") for words, _, _ in pairs) and all(w != other for w, other, _ in pairs)
    written = {row["judged"] for row in first + second} | set(LEVELS)
    assert {words for pair in pairs for words in pair[:2]} <= written
    logged = [row["pool/num_sentences"] for row in lines(folder) if "pool/size" in row]
    assert logged[0] == sum(row["judged"] is not None for row in first)


@pytest.mark.parametrize(
    "at", [("nlf.training.collector", "write_part", 13), ("nlf.training.collector", "score_table", 7)]
)
def test_killed_and_resumed_it_draws_the_same_sentences(tmp_path, told, at):
    torch.set_num_threads(1)

    def child():
        torch.set_num_threads(1)
        module, name, number = at
        runs.on_call(__import__(module, fromlist=["x"]), name, number)
        make(tmp_path, reward=Sentences(), **LONGER).train()

    runs.killed(child)
    make(tmp_path, reward=Sentences(), **LONGER).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(told[0]))
    for iteration in (0, 1):
        assert rollouts(tmp_path, iteration) == rollouts(told[0], iteration)


def early(completions, **kwargs):
    return [float(sum(text.count(c) for c in "aeiou")) for text in completions]


def short(completions, **kwargs):
    return [-float(len(text)) for text in completions]


def test_a_run_on_two_attributes(tmp_path):
    attributes = [
        {"name": "sound", "reward": early, "tags": ["open", "closed"]},
        {"name": "size", "reward": short, "tags": ["short", "middling", "long"]},
    ]
    changes = {
        "attributes": attributes,
        "quantile_weights": None,
        "feedback_sampling": "all",
        "attribute_template": "; ",
    }
    changes["prompts_per_iteration"] = None  # all 20 prompts: every combination occurs
    trainer = make(tmp_path, reward=None, reward_normalization="rank", **changes)
    trainer.train()
    assert trainer.policy.scheme.tags == ("open; short", "closed; middling", "closed; long")
    combinations = {f"{sound}; {size}" for sound in ("open", "closed") for size in ("short", "middling", "long")}
    assert {row["feedback"] for row in rollouts(tmp_path, 1)} == combinations
    for words, wrong, _ in decoded(trainer):
        (sound, size), (other, mirrored) = words.split("; "), wrong.split("; ")
        assert {sound, other} == {"open", "closed"} and size != mirrored != "middling"
    pools = [row for row in lines(tmp_path) if "pool/size" in row]
    assert {"reward/early", "reward/short", "attribute/size/quantile/2/low"} <= pools[0].keys()
    kept = json.loads(json.dumps(run_settings(trainer.args, trainer.options)))
    assert (
        [each["reward"] for each in kept["attributes"]]
        == kept["reward_funcs"]
        == [f"{__name__}:early", f"{__name__}:short"]
    )


def test_the_judges_categories_are_the_tags(tmp_path):
    with pytest.raises(
        UserError, match=r"answers with \['good', .*\], the tags are \['Lowest Toxicity', .*best first"
    ):
        make(tmp_path, reward=Categories(), tags=list(DEFAULT_TAGS))
    own = make(
        tmp_path, reward=Categories(), **{k: v for k, v in FOUR.items() if k != "tags"} | {"quantile_weights": None}
    )
    assert list(own.scheme.tags) == list(Categories.tags)
    with pytest.raises(UserError, match="set quantile_rule levels"):
        make(tmp_path, reward=Categories(), **FOUR | {"quantile_rule": "even"})


def test_a_reward_that_is_no_level_stops_before_the_part_is_written(tmp_path):
    with pytest.raises(UserError, match="reward 'vowels' is 0.* where quantile_rule levels expects"):
        make(tmp_path, **FOUR).train()
    assert not list(tmp_path.glob("rollouts/*/part-*")) and list(tmp_path.glob("rollouts/*/samples-*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantile_rule": "levels", "quantile_scope": "prompt"}, "quantile_rule levels cuts over the whole pool"),
        ({"quantile_rule": "levels", "reward_normalization": "rank"}, "set reward_normalization none"),
        ({"feedback_sampling": "all"}, "give attributes"),
        ({"attributes": ATTRIBUTES, "tag_tokens": True, "quantile_weights": None}, "not single tokens"),
    ],
)
def test_knobs_that_contradict_each_other(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        runs.settings(tmp_path, **changes)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its rollouts lack the column of sentences, and its stamps lack later settings."""
    make(tmp_path / "whole").train()
    make(tmp_path / "old", num_train_epochs=1).train()
    for path in (tmp_path / "old").glob("rollouts/*/part-*"):
        table = pq.read_table(path)
        metadata = table.schema.metadata
        pq.write_table(table.drop_columns(["judged"]).replace_schema_metadata(metadata), path)
        written = os.stat(path).st_mtime_ns
    make(tmp_path / "old").train(resume_from_checkpoint=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "old"))
    assert os.stat(path).st_mtime_ns == written
