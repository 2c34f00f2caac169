"""The feedback of runs that train by credit: pairs of tags, tags to sample under, and no feedback for a plain model."""

from collections import Counter

import numpy as np

from nlf.data.feedback import CreditFeedback, NoFeedback, make_feedback
from nlf.data.pool import Pool
from nlf.method.tags import TagScheme

TAGS = ("good", "fair", "bad")


def feedback() -> CreditFeedback:
    made = make_feedback(TagScheme(TAGS), ["r"], seed=3, by_credit=True)
    assert isinstance(made, CreditFeedback)
    return made


def test_pairs_by_hand():
    """Places 0, 1, 2 and, for no feedback, 1: five pairs, and two more of the outer tags."""
    assert Counter(feedback().pairs()) == {
        ("good", "bad"): 3, ("good", "fair"): 1, ("good", None): 1, ("fair", "bad"): 1, (None, "bad"): 1
    }  # fmt: skip


def test_no_feedback_is_pushed_as_often_up_as_down_so_it_stays_in_the_middle():
    for tags in (TAGS, ("a", "b"), tuple("abcde")):
        pairs = make_feedback(TagScheme(tags), ["r"], seed=0, by_credit=True).pairs()  # type: ignore[union-attr]
        assert Counter(a for a, _ in pairs)[None] == Counter(b for _, b in pairs)[None] > 0


def test_a_better_tag_is_pushed_up_more_often():
    pairs = make_feedback(TagScheme(tuple("abcde")), ["r"], seed=0, by_credit=True).pairs()  # type: ignore[union-attr]
    up, down = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    pushes = [up[tag] - down[tag] for tag in "abcde"]
    assert pushes == sorted(pushes, reverse=True) and len(set(pushes)) == 5


def test_the_pair_of_an_item_is_a_function_of_seed_iteration_and_item():
    words, again, other = (feedback().words(Pool(), np.zeros(0), i) for i in (1, 1, 2))
    drawn = [words(0, i) for i in range(400)]
    assert drawn == [again(9, i) for i in range(400)] != [other(0, i) for i in range(400)]
    assert set(drawn) == set(feedback().pairs())


def test_half_of_the_prompts_are_sampled_under_the_best_tag_and_none_at_the_start():
    assert feedback().to_sample_under(8, 0, Pool) == [None] * 8
    found = Counter(feedback().to_sample_under(8, 1, Pool))
    assert found == {"good": 4, "fair": 2, "bad": 2}
    assert feedback().to_sample_under(4, 1, Pool) != feedback().to_sample_under(4, 2, Pool)


def test_a_plain_model_has_no_feedback():
    plain = make_feedback(None, ["r"], seed=0)
    assert isinstance(plain, NoFeedback)
    assert plain.words(Pool(), np.zeros(0), 1)(0, 0) == (None, None)
    assert plain.to_sample_under(2, 5, Pool) == [None, None]
