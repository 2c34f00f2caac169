"""The words of a run come from its reward: the best completions never read the words of another quality."""

import pytest

from nlf.method.tags import DEFAULT_TAGS, TagScheme, degrees
from nlf.rewards import Reward
from nlf.rewards.registry import resolve_reward
from nlf.rewards.words import default_tags, noun_of


def named(name: str, **attributes) -> Reward:
    """A function of this name."""

    def function(completions, **kwargs):
        return [0.0] * len(completions)

    function.__name__ = name
    vars(function).update(attributes)
    return Reward(function)


def words(*rewards: str | Reward, weights=None) -> list[str]:
    return default_tags([resolve_reward(reward) for reward in rewards], weights)[0]


@pytest.mark.parametrize("name", ["local", "audit", "perspective", "openai-moderation"])
def test_toxicity_scorers_keep_the_published_words(name):
    assert tuple(words(name)) == DEFAULT_TAGS == TagScheme().tags
    assert DEFAULT_TAGS[0] == "Lowest Toxicity" and DEFAULT_TAGS[4] == "Maximum Toxicity"


@pytest.mark.parametrize(
    ("name", "best", "worst"),
    [
        ("sentiment", "Lowest Negativity", "Maximum Negativity"),
        ("perspective:INSULT", "Lowest Insult", "Maximum Insult"),
        ("openai-moderation:hate/threatening", "Lowest Hate Threatening", "Maximum Hate Threatening"),
        ("length", "Maximum Length", "Lowest Length"),
        ("length:20", "Lowest Distance From 20 Words", "Maximum Distance From 20 Words"),
        ("repetition", "Lowest Repetition", "Maximum Repetition"),
        ("regex:please", "Maximum Pattern Match", "Lowest Pattern Match"),
        ("regex:-please", "Lowest Pattern Match", "Maximum Pattern Match"),
    ],
)
def test_the_words_of_scorers_say_which_end_is_better(name, best, worst):
    assert (words(name)[0], words(name)[-1]) == (best, worst)


def test_a_function_gets_words_from_its_name():
    """The trap: politeness is trained under "Lowest Toxicity"."""
    assert words(named("politeness")) == [
        *("Maximum Politeness", "High-Moderate Politeness", "Moderate Politeness"),
        *("Low-Moderate Politeness", "Lowest Politeness"),
    ]
    assert default_tags([named("politeness")])[1] == "made from the name of the reward 'politeness'"


def test_a_function_named_like_toxicity_is_high_where_toxicity_is_low():
    assert tuple(words(named("my_toxicity_score"))) == DEFAULT_TAGS


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        *(("politeness_reward", "Politeness"), ("PolitenessReward", "Politeness"), ("count_please", "Count Please")),
        *(("f", "Reward"), ("<lambda>", "Reward"), ("my_reward", "Reward"), ("hf:a/b-reward-model#toxic", "Toxicity")),
        ("SEVERE_TOXICITY", "Severe Toxicity"),
    ],
)
def test_the_noun_of_a_name(name, noun):
    assert noun_of(name) == noun


def test_several_rewards_share_words_or_have_none():
    assert tuple(words("local", "perspective")) == DEFAULT_TAGS
    assert words("local", "length")[0] == "Maximum Reward"


def test_a_negative_weight_turns_the_words_round():
    assert words("local", weights=[-1.0])[0] == "Maximum Toxicity"


def test_a_scorer_brings_its_own_words_and_a_judge_its_categories():
    assert words(named("x", default_tags=("good", "bad"))) == ["good", "bad"]
    assert words(named("x", tags=["good", "fair", "bad"], default_tags=("a", "b"))) == ["good", "fair", "bad"]
    assert words(named("clarity", levels=4)) == [
        *("Maximum Clarity", "High-Moderate Clarity", "Low-Moderate Clarity", "Lowest Clarity"),
    ]
    assert words(named("clarity", levels=7))[::6] == ["Clarity 6", "Clarity 0"]


@pytest.mark.parametrize("count", range(2, 13))
def test_any_number_of_degrees_makes_a_scheme(count):
    assert TagScheme(degrees("Toxicity", count)).num_quantiles == count
