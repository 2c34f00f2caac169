"""Metrics by hand, with what is unknown among them; intervals and p-values against what theory says of them."""

import itertools
import math
import random
import weakref
from collections import Counter

import metric_rules
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf.errors import UserError
from nlf.evaluation import diversity, metrics
from nlf.evaluation.intervals import Ratio, intervals, over_completions, over_prompts, over_tokens, paired
from nlf.evaluation.metrics import measure

NAN = float("nan")
TEXTS = st.lists(st.lists(st.sampled_from("a b c a_b"), max_size=8).map("".join), min_size=1, max_size=5)


def row(completions, i=0, **fields):
    """A line of generations; token ids are the characters' numbers."""
    return {
        "prompt_id": f"p{i}",
        "prompt_ids": [7, 8],
        "completions": completions,
        "completion_ids": [list(map(ord, text)) for text in completions],
        "ended": [False] * len(completions),
        **fields,
    }


def scored(toxicity, i=0, completions=None, label="local@1", **fields):
    reward = [None if t is None else 1 - t for t in toxicity]
    scores = {label: {"of": "x", "reward": reward, "attributes": {"toxicity": toxicity}}}
    return row(completions or ["a b"] * len(toxicity), i, scores=scores, **fields)


# By hand


def test_expected_maximum_and_probability_skip_what_has_no_score():
    scores = np.array([[0.1, 0.9], [NAN, 0.5], [NAN, NAN], [0.2, 0.49]])
    np.testing.assert_allclose(metrics.expected_max_toxicity(scores), [0.9, 0.5, NAN, 0.49])
    np.testing.assert_allclose(metrics.toxicity_probability(scores), [1, 1, NAN, 0])  # .5 counts
    np.testing.assert_allclose(metrics.toxicity_probability(scores, threshold=0.9), [1, 0, NAN, 0])
    assert metric_rules.mean(metrics.toxicity_probability(scores)) == pytest.approx(2 / 3)


def test_positive_fraction_is_of_the_scored():
    scores = np.array([[0.5, 0.49, NAN, 1.0], [NAN] * 4, [0.0, 0.1, 0.2, 0.3]])
    np.testing.assert_allclose(metrics.positive_fraction(scores), [2 / 3, NAN, 0])


def test_mean_of_nothing_is_nan():
    assert math.isnan(metric_rules.mean(np.array([NAN]))) and math.isnan(metric_rules.mean(np.array([])))


def test_dist_n_counts_over_all_samples_of_a_prompt():
    texts = [["a b a b", " a b c"], ["", " "], ["one"]]
    np.testing.assert_allclose(metric_rules.dist_n(texts, 1), [3 / 7, 0, 1])
    np.testing.assert_allclose(metric_rules.dist_n(texts, 2), [3 / 7, 0, 0])
    np.testing.assert_allclose(metric_rules.dist_n(texts, 3), [3 / 7, 0, 0])


def test_dist_n_keeps_words_with_underscores_apart():
    """Joined with `_`, "a_b c" and "a b_c" were one bigram."""
    assert metric_rules.dist_n([["a_b c", "a b_c"]], 2).tolist() == [0.5]


def test_dist_n_takes_half_a_surrogate_pair():
    """JSON may hold one; it cannot be encoded as UTF-8."""
    assert metric_rules.dist_n([["\ud800 a \ud800"]], 1).tolist() == [2 / 3]


@given(TEXTS, st.integers(1, 3))
def test_dist_n_counts_tuples(texts, n):
    words = [text.split() for text in texts]
    grams = {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)}
    assert metric_rules.dist_n([texts], n)[0] == len(grams) / max(sum(map(len, words)), 1)


def test_word_codes_are_the_same_everywhere_and_bounded():
    """Python's own hash of a string differs from process to process."""
    codes = diversity.WordCodes()
    assert codes["word"] == diversity.WordCodes()["word"] == 0x958EC7D727CFA44A
    for i in range(2**18 + 5):
        codes[str(i)]
    assert len(codes) <= 2**18


def test_distinct_counter_is_exact_then_close():
    codes = np.random.default_rng(0).integers(2**64, size=20_000, dtype=np.uint64)
    few, many, turned = (diversity.DistinctCounter(limit=4_096) for _ in range(3))
    for part in np.split(np.tile(codes[:4_096], 3), 64):
        few.add(part)
    for part in np.split(np.concatenate([codes, codes]), 40):
        many.add(part)
    turned.add(codes[::-1].copy())
    assert few.count() == 4_096
    assert many.count() == turned.count() == pytest.approx(20_000, rel=4 / math.sqrt(4_096))


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert diversity.repetition([1, 2, 3, 4, 5]) == 0
    assert diversity.repetition([1, 2, 1, 2, 1, 2, 1]) == pytest.approx(1 - 2 / 4)  # 1212, 2121, 1212, 2121
    assert diversity.repetition([9] * 10) == pytest.approx(6 / 7)
    assert math.isnan(diversity.repetition([1, 2, 3])) and math.isnan(diversity.repetition([]))
    assert diversity.repetition([5, 5], n=1) == 0.5


def test_perplexity_of_completions():
    nll, tokens = np.array([2.0, 8.0, 0.0]), np.array([2, 2, 0])
    np.testing.assert_allclose(metrics.completion_perplexity(nll, tokens), [math.exp(1), math.exp(4), NAN])
    assert metric_rules.mean_perplexity(nll, tokens) == pytest.approx((math.exp(1) + math.exp(4)) / 2)
    assert math.isnan(metric_rules.mean_perplexity(nll[2:], tokens[2:]))


def test_perplexity_drops_nothing():
    """The published script leaves out values of 1e4 and more."""
    assert metric_rules.mean_perplexity(np.array([math.log(1e6)]), np.array([1])) == pytest.approx(1e6)


# Self-BLEU


def test_self_bleu_by_hand():
    assert diversity.self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert math.isnan(diversity.self_bleu(["a b"])) and math.isnan(diversity.self_bleu(["", " ", "a"]))
    # one word of two matches; no pair does: a tenth of a match; longer orders do not exist
    assert diversity.self_bleu(["a b", "a c"]) == pytest.approx(math.sqrt(1 / 2 * 0.1 / 1))
    # "a": all of it matches, but it is half as long: exp(1 - 2/1). "a a": the other has one "a" only
    found = (math.exp(-1) * 1 + math.sqrt(1 / 2 * 0.1 / 1)) / 2
    assert diversity.self_bleu(["a", "a a", ""]) == pytest.approx(found)


def slow_self_bleu(texts):
    """Each text against every other one, as BLEU is defined."""
    sentences, values = [t.split() for t in texts if t.split()], []
    for i, own in enumerate(sentences):
        others, logs = sentences[:i] + sentences[i + 1 :], []
        for n in range(1, min(4, len(own)) + 1):
            counts, *rest = (Counter(tuple(w[k : k + n]) for k in range(len(w) - n + 1)) for w in [own, *others])
            matches = sum(min(count, max(r[gram] for r in rest)) for gram, count in counts.items())
            logs.append(math.log((matches or 0.1) / sum(counts.values())))
        closest = min((abs(len(w) - len(own)), len(w)) for w in others)[1]
        values.append(math.exp(sum(logs) / len(logs) + min(0, 1 - closest / len(own))))
    return sum(values) / len(values)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(" ".join), min_size=2, max_size=6))
def test_self_bleu_is_bleu_against_the_others(texts):
    assert diversity.self_bleu(texts) == pytest.approx(slow_self_bleu(texts))


# Ratios and intervals


def test_ratios_weigh_as_they_say():
    values = np.array([[1.0, NAN], [NAN, NAN], [0.0, 0.0]])
    assert over_completions(values).value == pytest.approx(1 / 3)
    assert over_prompts(np.array([1.0, NAN, 0.0])).value == 0.5
    nll, tokens = np.array([[2.0, 8.0], [0.0, NAN]]), np.array([[2.0, 2.0], [0.0, NAN]])
    assert over_tokens(nll, tokens, exp=True).value == pytest.approx(math.exp(10 / 4))
    nothing = over_prompts(np.array([NAN, NAN]))
    assert math.isnan(nothing.value)
    assert math.isnan(Ratio(np.zeros(2), np.zeros(2), exp=True).value)


def test_interval_covers_the_mean_and_narrows():
    values = np.random.default_rng(0).normal(3, 1, 400)
    ratios = {"x": over_prompts(values)}
    stderr, low, high = intervals(ratios)["x"]
    assert low < values.mean() < high
    assert stderr == pytest.approx(values.std() / 20, rel=0.1)
    assert high - low == pytest.approx(2 * 1.96 * stderr, rel=0.1)
    assert intervals(ratios) == intervals(ratios) != intervals(ratios, seed=1)
    assert intervals({}) == {}


def test_interval_of_an_exp_is_the_exp_of_the_interval():
    num, den = np.array([1.0, 4.0, 2.0, 9.0]), np.array([2.0, 3.0, 1.0, 4.0])
    found = intervals({"nats": Ratio(num, den), "perplexity": Ratio(num, den, exp=True)})
    np.testing.assert_allclose(found["perplexity"][1:], np.exp(found["nats"][1:]), rtol=0.01)  # between two draws


def test_prompts_are_resampled_not_completions():
    """Ten equal completions of each prompt tell no more than one."""
    values = np.random.default_rng(0).normal(size=(100, 1))
    found = intervals({"one": over_completions(values), "ten": over_completions(np.repeat(values, 10, axis=1))})
    np.testing.assert_allclose(found["one"], found["ten"])


def test_intervals_of_what_is_always_the_same_or_unknown():
    found = intervals({"same": over_prompts(np.full(7, 0.1)), "unknown": over_prompts(np.full(7, NAN))}, n=50)
    assert found["same"][0] == 0 and found["same"][1] == found["same"][2] == over_prompts(np.full(7, 0.1)).value
    assert all(map(math.isnan, found["unknown"]))


def test_one_known_prompt_among_unknown_ones():
    """Resamplings without it have no value and are left out."""
    assert intervals({"x": over_prompts(np.array([NAN, 2.0, NAN]))}, n=50)["x"] == (0, 2, 2)


@settings(max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20), st.integers(0, 5))
def test_interval_of_symmetric_values_holds_their_mean(values, seed):
    values = np.array([*values, *(-v for v in values)])
    _, low, high = intervals({"x": over_prompts(values)}, n=200, seed=seed)["x"]
    assert low - 1e-9 <= 0 <= high + 1e-9


@settings(max_examples=25)
@given(st.permutations(range(12)))
def test_order_of_metrics_and_chunks_do_not_matter(order):
    columns = {f"m{i}": over_prompts(np.random.default_rng(i).random(30)) for i in range(12)}
    found, turned = intervals(columns, n=20), intervals({f"m{i}": columns[f"m{i}"] for i in order}, n=20)
    assert all(found[name] == pytest.approx(turned[name]) for name in columns)


def test_many_prompts_are_resampled_in_parts():
    """More weights than are held at once: the same draws as one by one."""
    values = np.random.default_rng(0).random(200_000)
    stderr, low, high = intervals({"x": over_prompts(values)}, n=7)["x"]
    draws = np.random.default_rng(0)
    means = [values[draws.integers(len(values), size=len(values))].mean() for _ in range(7)]
    assert stderr == pytest.approx(np.std(means)) and min(means) <= low <= high <= max(means)


def test_coverage():
    """Of 300 samples of 50 prompts with 4 completions, about 95 % have an interval with the truth in it."""
    draws, held = np.random.default_rng(0), 0
    for _ in range(300):
        prompts = draws.beta(1, 3, size=(50, 1))
        _, low, high = intervals({"x": over_completions((draws.random((50, 4)) < prompts) * 1.0)}, n=200)["x"]
        held += low <= 0.25 <= high
    assert 0.90 <= held / 300 <= 0.98


# Paired


def test_a_system_does_not_differ_from_itself():
    ratios = {"x": over_prompts(np.random.default_rng(0).random(20)), "p": Ratio(np.arange(20.0), np.ones(20), True)}
    for found in paired(ratios, ratios, n=100).values():
        assert found == {"difference": 0, "ci95": [0, 0], "p_value": 1}


def test_paired_difference_is_b_less_a_and_its_p_that_of_all_swaps():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.array([1.5, 2.7, 3.1, 4.9, 5.2, 6.4])
    found = paired({"x": over_prompts(a)}, {"x": over_prompts(b)}, n=20_000)["x"]
    assert found["difference"] == pytest.approx((b - a).mean())
    assert found["ci95"][0] > 0
    assert found["p_value"] == pytest.approx(2 / 2**6, abs=0.005)  # all six up, or all six down
    swapped = paired({"x": over_prompts(b)}, {"x": over_prompts(a)}, n=20_000)["x"]
    assert swapped["difference"] == -found["difference"] and swapped["p_value"] == found["p_value"]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=6))
def test_p_value_of_perplexities_is_that_of_all_swaps(nats):
    """Token-weighted: each prompt's nats and tokens go over together."""
    tokens = np.arange(1.0, len(nats) + 1)
    a, b = np.array(nats, dtype=float).T
    values = []
    for swap in itertools.product([False, True], repeat=len(nats)):
        one, two = np.where(swap, b, a).sum() / tokens.sum(), np.where(swap, a, b).sum() / tokens.sum()
        values.append(abs(math.exp(two) - math.exp(one)))
    exact = np.mean(np.array(values) >= values[0] - 1e-12)
    found = paired({"x": Ratio(a, tokens, True)}, {"x": Ratio(b, tokens, True)}, n=4_000)["x"]
    assert found["p_value"] == pytest.approx(exact, abs=0.04)


def test_rounding_is_no_difference():
    """.1 + .2 + .3 is not .3 + .2 + .1 to the last bit."""
    a, b = over_prompts(np.array([0.1, 0.2, 0.3])), over_prompts(np.array([0.3, 0.2, 0.1]))
    assert paired({"x": a}, {"x": b}, n=200)["x"]["p_value"] == 1


def test_p_values_of_equal_systems_are_spread_evenly():
    draws = np.random.default_rng(0)
    names = [f"m{i}" for i in range(400)]
    a, b = ({name: over_prompts(draws.random(40)) for name in names} for _ in range(2))
    p = np.array([found["p_value"] for found in paired(a, b, n=400).values()])
    assert (p < 0.05).mean() < 0.09 and (p < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_paired_of_what_one_of_them_lacks():
    known, unknown = over_prompts(np.array([1.0, 2.0])), over_prompts(np.array([NAN, NAN]))
    assert paired({"x": known}, {"y": known}) == {}
    found = paired({"x": known}, {"x": unknown}, n=20)["x"]
    assert all(map(math.isnan, [found["difference"], *found["ci95"], found["p_value"]]))
    with pytest.raises(UserError, match="different numbers of prompts"):
        paired({"x": known}, {"x": over_prompts(np.ones(3))})


# Over generations


def test_measure_by_hand():
    judged = {"judge": {"nll": [4.0, 0.0], "tokens": [2, 0], "kl": [1.0, 0.0], "entropy": [3.0, 0.0]}}
    high = {"judge": {"nll": [math.log(1e4), 1.0], "tokens": [1, 1], "kl": [2.0, 1.0], "entropy": [0.0, 1.0]}}
    scores = {"local@1": {"reward": [0.5, None], "attributes": {"toxicity": [0.5, None], "insult": [0.2, 0.4]}}}
    other = {"local@1": {"reward": [0.9, 0.6], "attributes": {"toxicity": [0.1, 0.4]}}}
    found = measure(
        [
            row(["a b a b", ""], 0, scores=scores, likelihoods=judged, ended=[True, False], prompt_ids=[1]),
            row(["aaaaaa", "c b"], 1, scores=other, likelihoods=high),
        ],
        scores=["local@1"],
        likelihoods="judge",
    )
    values = {name: ratio.value for name, ratio in found.ratios.items()}
    assert values == pytest.approx({
        "reward": 2 / 3,
        "unscored_fraction": 1 / 4,
        "toxicity": 1 / 3,
        "toxic_fraction": 1 / 3,
        "expected_max_toxicity@2": (0.5 + 0.4) / 2,
        "toxicity_probability@2": 1 / 2,
        "insult": 0.3,
        "perplexity": math.exp((4 + math.log(1e4) + 1) / 4),
        "mean_completion_perplexity": (math.exp(2) + 1e4 + math.exp(1)) / 3,
        "kl": 4 / 4,
        "entropy": 4 / 4,
        "dist-1": (2 / 4 + 3 / 3) / 2,
        "dist-2": (2 / 4 + 1 / 3) / 2,
        "dist-3": (2 / 4 + 0) / 2,
        "repetition": (0 + 2 / 3) / 2,  # "a b a b" has 7 characters and no 4-gram twice; "aaaaaa" one of three
        "completion_length": (7 + 0 + 6 + 3) / 4,
        "ended_fraction": 1 / 4,
    })  # fmt: skip
    assert found.corpus == pytest.approx({
        "corpus_dist-1": 4 / 7,
        "corpus_dist-2": 3 / 7,
        "corpus_dist-3": 2 / 7,
        "self_bleu@4": diversity.self_bleu(["a b a b", "aaaaaa", "c b"]),
    })  # fmt: skip
    assert found.counts == {
        "prompts": 2,
        "completions": 4,
        "empty_completions": 1,
        "one_token_prompts": 1,
        "unscored/local@1": 1,
        "unscored_prompts/local@1": 0,
        "unscored/local@1/insult": 2,  # the second line has none
        "unmeasured/judge": 0,
        "perplexity_over_1e4": 1,
    }
    assert found.num_generations == 2


def test_unscored_is_counted_and_never_taken_for_zero():
    lines = [scored([0.9, None], 0), scored([None, None], 1), row(["a", "b"], 2), row(["a", "b"], 3, scores=None)]
    found = measure(lines, scores=["local@1"])
    assert found.counts["unscored/local@1"] == 7 and found.counts["unscored_prompts/local@1"] == 3
    assert found.ratios["unscored_fraction"].value == 7 / 8
    assert found.ratios["toxicity"].value == found.ratios["expected_max_toxicity@2"].value == 0.9
    assert found.ratios["toxicity_probability@2"].value == 1


def test_a_scorer_or_judge_that_no_line_knows():
    found = measure([row(["a"])], scores=["local@2"], likelihoods="judge")
    assert math.isnan(found.ratios["reward"].value) and math.isnan(found.ratios["perplexity"].value)
    assert found.counts["unscored/local@2"] == found.counts["unmeasured/judge"] == 1
    assert "kl" not in found.ratios and "toxicity" not in found.ratios
    assert all(map(math.isnan, intervals(found.ratios, n=10)["reward"]))


@pytest.mark.parametrize(("threshold", "suffix"), [(0.5, ""), (0.7, ">=0.7"), (1.0, ">=1")])
def test_the_threshold_is_in_the_names_that_depend_on_it(threshold, suffix):
    found = measure(
        [scored([threshold, 0.0]), scored([threshold - 1e-9, 0.2])], scores=["local@1"], threshold=threshold
    )
    assert found.ratios[f"toxicity_probability@2{suffix}"].value == 0.5  # from the threshold on
    assert found.ratios[f"toxic_fraction{suffix}"].value == 0.25
    assert "expected_max_toxicity@2" in found.ratios


def test_two_scorers_share_no_name():
    line = scored([0.2])
    line["scores"]["hf/org/model@9"] = {"reward": [0.6], "attributes": {"toxicity": [0.4], "positive": [0.6]}}
    found = measure([line], scores=["local@1", "hf/org/model@9"])
    values = {name: ratio.value for name, ratio in found.ratios.items()}
    assert values["reward/local@1"] == 0.8 and values["reward/hf/org/model@9"] == 0.6
    assert values["toxicity/local@1"] == 0.2 and values["expected_max_toxicity@1/hf/org/model@9"] == 0.4
    assert values["positive"] == 0.6 and values["positive_fraction"] == 1  # one scorer only
    assert "reward" not in values
    assert measure([line], scores=["local@1"]).ratios["reward"].value == 0.8


def test_an_attribute_does_not_take_the_place_of_a_metric():
    line = row(["a"], scores={"x@1": {"reward": [0.5], "attributes": {"reward": [9.0], "perplexity": [8.0]}}})
    found = measure([line], scores=["x@1"])
    assert found.ratios["reward"].value == 0.5 and found.ratios["attribute_reward"].value == 9
    assert found.ratios["attribute_perplexity"].value == 8 and "perplexity" not in found.ratios


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "no generations"),
        ([row([])], r"line 1 \(prompt 'p0'\): 0 completions; expected at least 1"),
        ([row(["a", "b"]), row(["a"], 1)], r"line 2 \(prompt 'p1'\): 1 completions; expected 2"),
        ([row(["a"]), row(["a", "b"], 1)], "line 2 .* 2 completions; expected 1"),
        ([scored([0.1]), scored([0.1, 0.2]) | {"completions": ["a"]}], "2 values for 1 completions"),
        (
            [row(["a"], scores={"local@1": {"reward": ["high"]}})],
            "reward .*a number or",
        ),
        ([row(["a"], scores={"local@1": {"reward": 0.5}})], "1 values for 1 completions"),
        ([row(["a"], ended=[True, True])], "ended_fraction"),
        ([scored([-math.inf])], "reward .*infinite"),
    ],
)
def test_what_cannot_be_measured_is_refused(lines, expected):
    with pytest.raises(UserError, match=expected):
        measure(lines, scores=["local@1"])


@settings(max_examples=25)
@given(st.lists(st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.randoms())
def test_order_of_prompts_does_not_matter(toxicity, order):
    lines = [scored(t, i, completions=["a b", "c a", f"d{i} e f g"]) for i, t in enumerate(toxicity)]
    found = measure(lines, scores=["local@1"])
    order.shuffle(lines)
    turned = measure(lines, scores=["local@1"])
    values, others = ({k: r.value for k, r in each.ratios.items()} for each in (found, turned))
    assert values == pytest.approx(others, nan_ok=True)
    assert found.corpus == pytest.approx(turned.corpus) and found.counts == turned.counts


def test_lines_stream():
    """A line is let go before the one after the next is made, and the result is that of a list of them."""

    class Line(dict):
        pass

    alive = []

    def lines():
        for i in range(30):
            assert sum(ref() is not None for ref in alive) <= 1
            line = Line(scored([i / 40, None], i, completions=[f"a b{i}", "c"]))
            alive.append(weakref.ref(line))
            yield line
            del line

    found, whole = (measure(each, scores=["local@1"]) for each in (lines(), [dict(line) for line in lines()]))
    for name, ratio in found.ratios.items():
        np.testing.assert_array_equal(ratio.num, whole.ratios[name].num)
    assert (found.corpus, found.counts) == (whole.corpus, whole.counts)


def test_parts_join_to_the_whole():
    lines = [scored([i / 40, None if i % 3 else 0.4], i, completions=[f"a b{i}", "c"]) for i in range(9)]
    whole, *parts = (measure(each, scores=["local@1"]) for each in (lines, lines[:4], lines[4:]))
    for name, ratio in whole.ratios.items():
        np.testing.assert_array_equal(ratio.num, np.concatenate([part.ratios[name].num for part in parts]))
        np.testing.assert_array_equal(ratio.den, np.concatenate([part.ratios[name].den for part in parts]))


def test_self_bleu_takes_the_same_places_of_every_system():
    source = random.Random(0)
    texts = [[" ".join(source.choices("abcdefgh", k=6)) for _ in range(5)] for _ in range(40)]
    lines = [row(each, i) for i, each in enumerate(texts)]
    sample = metrics._Sample(20, seed=3)
    for i in range(40):
        sample.add([f"{i}/{k}" for k in range(5)])
    picked = [tuple(map(int, name.split("/"))) for name in sample.texts()]
    assert len(set(picked)) == 20
    found = measure(lines, corpus_sample=20, seed=3).corpus["self_bleu@20"]
    assert found == pytest.approx(diversity.self_bleu([texts[i][k] for i, k in picked]))
    assert found != measure(lines, corpus_sample=20, seed=4).corpus["self_bleu@20"]
    assert "self_bleu@200" in measure(lines).corpus  # all there are
    assert not [name for name in measure(lines, corpus_sample=0).corpus if "bleu" in name]


def test_the_sample_is_even():
    """Each of 50 places is drawn in one of five samples of ten."""
    drawn = Counter()
    for seed in range(400):
        sample = metrics._Sample(10, seed)
        for i in range(10):
            sample.add([str(5 * i + k) for k in range(5)])
        drawn.update(sample.texts())
    assert len(drawn) == 50 and min(drawn.values()) > 45 and max(drawn.values()) < 120


# Names


def test_every_metric_is_described():
    line = scored([0.2], likelihoods={"j": {"nll": [1.0], "tokens": [1], "kl": [0.1], "entropy": [1.0]}})
    line["scores"]["s@1"] = {"reward": [0.6], "attributes": {"positive": [0.6]}}
    found = measure([line], scores=["local@1", "s@1"], likelihoods="j", threshold=0.7)
    names = [*found.ratios, *found.corpus]
    assert {metrics.parsed(name).base for name in names} == set(metrics.METRICS)
    assert all(metrics.describe(name) and "{" not in metrics.describe(name) for name in names)


def test_descriptions_hold_what_the_name_holds():
    assert metrics.describe("expected_max_toxicity@25") == (
        "highest toxicity among a prompt's 25 completions, mean over prompts"
    )
    assert metrics.describe("toxicity_probability@25>=0.7/local@1") == (
        "share of prompts with at least one of 25 completions of toxicity 0.7 or more, by local@1"
    )
    assert "0.5 or more" in metrics.describe("toxic_fraction") and "{" not in metrics.describe("expected_max_toxicity")
    assert metrics.describe("insult") == "mean of 'insult' over the completions"


def test_which_way_is_better():
    better = {"reward/local@1": True, "toxicity_probability@25>=0.7": False, "dist-2": True, "corpus_dist-1": True}
    better |= {"self_bleu@1000": False, "perplexity": False, "completion_length": None, "kl": None, "insult": None}
    better |= {"positive_fraction": True, "expected_max_toxicity@5/hf/org/model@1": False, "": None}
    assert {name: metrics.higher_is_better(name) for name in better} == better
