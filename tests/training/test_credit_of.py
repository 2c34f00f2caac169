"""The credit of an iteration's rollouts: from rewards of prefixes on disk to a number for each token."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from runs import lines, make, same, weights

from nlf.data.rollouts import SCHEMA, iteration_dir, part_path, write_part
from nlf.errors import UserError
from nlf.method import credit
from nlf.rewards import Reward
from nlf.training.credit import FILE, FITTED, CreditRules, by_prefix, credit_lines, credit_of


def row(
    tokens: int, prompt: str = "p", ended: bool = True, feedback=None, places=None, scores=None, **rewards
) -> dict:
    """A rollout of so many tokens, EOS included if it ended."""
    return {
        **{"prompt_id": prompt, "completion_ids": [*range(tokens)], "ended": ended, "feedback": feedback},
        **{"rewards": [*rewards.items()], "prefix_tokens": places},
        "prefix_rewards": scores and [*scores.items()],
    }


def write(folder, *rows: dict, iteration: int = 0, part: int = 0) -> None:
    write_part(part_path(folder, iteration, part), pa.Table.from_pylist([*rows], schema=SCHEMA), {})


def rules(by_prefix=(), weights=None, worst=(), decay=0.5, normalization="none") -> CreditRules:
    return CreditRules(weights or {"r": 1.0}, worst, by_prefix, decay, 10, normalization)


def tokens_of(folder, made: CreditRules, scale=1.0, iteration=0) -> list[list[float]]:
    return [own.tolist() for own in credit_of(folder, iteration, made, scale).tokens]


@pytest.fixture
def as_they_are(monkeypatch):
    """The value of a prefix is its reward, and that of a bare prompt 0."""

    def values(prefixes, most_tokens):
        return np.zeros(len(prefixes.counts)), prefixes.scores.copy(), 0.25

    monkeypatch.setattr(credit, "prefix_values", values)


# ---- one number for all tokens ------------------------------------------------------------------------------------


def test_a_reward_of_whole_completions_by_hand(tmp_path):
    write(tmp_path, row(2, r=1.0), row(1, ended=False, r=2.0), row(3, ended=False, r=6.0))
    assert tokens_of(tmp_path, rules()) == [[-3.0, 0.0], [-1.5], [4.5, 4.5, 4.5]]
    found = credit_of(tmp_path, 0, rules(), None)
    assert found.scale == pytest.approx(((9 + 2.25 + 3 * 20.25) / 5) ** 0.5)  # EOS does not count
    assert found.tokens[1] == pytest.approx(-1.5 / found.scale)
    assert found.logs == {"credit/size": pytest.approx(1.0)}


def test_only_completions_sampled_together_are_compared(tmp_path):
    write(tmp_path, row(1, ended=False, r=1.0), row(1, ended=False, r=2.0), row(1, "q", False, r=5.0))
    write(tmp_path, row(1, "q", False, "Good", r=9.0), row(1, "q", False, r=7.0), part=1)
    assert tokens_of(tmp_path, rules()) == [[-1.0], [1.0], [-2.0], [pytest.approx(9 - 4.8)], [2.0]]


def test_one_completion_a_prompt_is_compared_with_all(tmp_path):
    write(tmp_path, row(1, "p", False, r=1.0), row(1, "q", False, r=4.0))
    assert tokens_of(tmp_path, rules()) == [[-1.5], [1.5]]


def test_what_is_not_scored_has_no_credit_unless_it_counts_as_the_worst(tmp_path):
    write(tmp_path, row(2, r=1.0), row(2, r=3.0), row(2, r=None), row(2, r=5.0))
    assert tokens_of(tmp_path, rules()) == [[-3.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 0.0]]
    worst = [1.0 - 3.0, 3.0 - 7 / 3, 1.0 - 3.0, 5.0 - 5 / 3]
    assert [own[0] for own in tokens_of(tmp_path, rules(worst=["r"]))] == pytest.approx(worst)


def test_several_rewards_by_weight_and_in_standard_deviations(tmp_path):
    write(
        tmp_path,
        row(1, ended=False, r=1.0, s=10.0),
        row(1, ended=False, r=3.0, s=None),
        row(1, ended=False, r=2.0, s=40.0),
    )
    both = {"r": 2.0, "s": -1.0}
    assert tokens_of(tmp_path, rules(weights=both)) == [[2 * -1.5 + 30.0], [3.0], [-30.0]]
    r, s = np.std([1, 3, 2]), np.std([10, 40])
    zscores = [-3.0 / r + 30 / s, 3.0 / r, -30 / s]
    assert np.ravel(tokens_of(tmp_path, rules(weights=both, normalization="zscore"))) == pytest.approx(zscores)


def test_ranks_are_of_the_sum(tmp_path):
    write(tmp_path, row(2, r=1.0, s=5.0), row(2, r=100.0, s=6.0), row(2, r=2.0, s=None), row(2, r=None, s=None))
    # ranks of r: -1/3, 1/3, 0; of s: -1/4, 1/4; sums -7/12, 7/12, 0
    expected = [-7 / 12 - 7 / 24, 7 / 12 + 7 / 24, 0.0, 0.0]
    found = tokens_of(tmp_path, rules(weights={"r": 1.0, "s": 1.0}, normalization="rank"))
    assert [own[0] for own in found] == pytest.approx(expected) and all(own[1] == 0 for own in found)


# ---- by prefixes --------------------------------------------------------------------------------------------------


def test_credit_by_prefixes_by_hand(tmp_path, as_they_are):
    """A = .5 + .5 (-.25 + .5 · .75), -.25 + .5 · .75, .75; the second place has two tokens, and EOS gets none."""
    write(tmp_path, row(5, r=1.0, places=[1, 3, 4], scores={"r": [0.5, 0.25, 1.0]}))
    assert tokens_of(tmp_path, rules(["r"])) == [[0.5625, 0.125, 0.125, 0.75, 0.0]]
    assert tokens_of(tmp_path, rules(["r"], decay=0.0)) == [[0.5, -0.25, -0.25, 0.75, 0.0]]
    assert tokens_of(tmp_path, rules(["r"], weights={"r": -2.0}, decay=1.0)) == [[-2.0, -1.0, -1.0, -1.5, 0.0]]
    assert credit_of(tmp_path, 0, rules(["r"]), 2.0).logs["credit/r2/r"] == 0.25


def test_completions_without_text_without_reward_and_of_other_rewards(tmp_path, as_they_are):
    write(
        tmp_path,
        row(1, r=0.5, s=1.0, places=[], scores={"r": []}),  # EOS only
        row(3, r=None, s=3.0, places=[1, 2], scores={"r": [0.5, None]}),
        row(2, ended=False, r=1.0, s=None, places=[1, 2], scores={"r": [0.25, 1.0]}),
    )
    both = {"r": 1.0, "s": 1.0}
    assert tokens_of(tmp_path, rules(["r"], both, decay=0.0)) == [[0.0], [2.0, 2.0, 0.0], [0.25, 0.75]]


def test_the_same_as_method_credit(tmp_path):
    """Four iterations teach the values; the fifth before is not read."""
    rng = np.random.default_rng(0)
    for iteration in range(FITTED + 1):
        write(
            tmp_path,
            *(
                row(4, f"p{i // 2}", r=scores[-1], places=[1, 2, 3], scores={"r": [None, *scores[1:]]})
                for i, scores in enumerate(rng.random((6, 3)).tolist())
            ),
            iteration=iteration,
        )
    rows = [
        each
        for i in range(1, FITTED + 1)
        for each in pq.read_table(part_path(tmp_path, i, 0), columns=["rewards", "prefix_rewards"]).to_pylist()
    ]
    count = len(rows)
    prefixes = credit.Prefixes(
        np.full(count, 3), np.tile([1, 2, 3], count),
        np.array([score for each in rows for score in dict(each["prefix_rewards"])["r"]], dtype=float),
        np.array([dict(each["rewards"])["r"] for each in rows]),
        np.tile(np.repeat([0, 1, 2], 2), FITTED), np.repeat(np.arange(count // 2), 2),
    )  # fmt: skip
    start, values, r2 = credit.prefix_values(prefixes, 10)
    expected = credit.advantages(start, values, prefixes.counts, 0.5).reshape(count, 3)[-6:]
    found = credit_of(tmp_path, FITTED, rules(["r"]), 1.0)
    assert np.stack(found.tokens)[:, :3] == pytest.approx(expected, abs=1e-6)
    assert not np.stack(found.tokens)[:, 3].any() and found.logs["credit/r2/r"] == pytest.approx(r2)


def test_parts_of_an_earlier_version_have_the_credit_of_completions_or_say_what_is_missing(tmp_path):
    old = [name for name in SCHEMA.names if not name.startswith("prefix_")]
    table = pa.Table.from_pylist([row(1, ended=False, r=1.0), row(1, ended=False, r=2.0)], schema=SCHEMA)
    write_part(part_path(tmp_path, 0, 0), table.select(old), {})
    assert tokens_of(tmp_path, rules()) == [[-1.0], [1.0]]
    with pytest.raises(UserError, match=r"iteration-0000: no rewards of prefixes by 'r'; .*in a new folder$"):
        credit_of(tmp_path, 0, rules(["r"]), None)


# ---- scale and file -----------------------------------------------------------------------------------------------


def test_a_first_iteration_without_credit_leaves_the_scale_to_the_next(tmp_path):
    write(tmp_path, row(2, r=1.0), row(2, r=1.0))
    found = credit_of(tmp_path, 0, rules(), None)
    assert found.scale is None and not np.concatenate(found.tokens).any()
    write(tmp_path, row(2, r=1.0), row(2, r=3.0), iteration=1)
    assert credit_of(tmp_path, 1, rules(), found.scale).scale == 2.0


def test_the_file_has_a_row_for_each_rollout_in_their_order(tmp_path):
    write(tmp_path, row(2, r=1.0), row(3, r=2.0))
    write(tmp_path, row(1, ended=False, r=6.0), part=1)
    found = credit_of(tmp_path, 0, rules(), None)
    path = iteration_dir(tmp_path, 0) / FILE
    kept, before = pq.read_table(path)["credit"].to_pylist(), path.read_bytes()
    assert kept == [own.tolist() for own in found.tokens] and [*map(len, kept)] == [2, 3, 1]
    again = credit_of(tmp_path, 0, rules(), found.scale)
    assert path.read_bytes() == before and again.logs == found.logs
    path.unlink()
    credit_of(tmp_path, 0, rules(), None, write=False)
    assert not path.exists()


# ---- before and in a run ------------------------------------------------------------------------------------------


def counted(completions, **kwargs):
    """The number of vowels, of a beginning too."""
    return [float(sum(c in "aeiou" for c in text)) for text in completions]


counted.prefixes = True


def test_lines_say_how_each_reward_becomes_credit():
    able, unable = Reward(counted, "able"), Reward(tiny.vowels, "unable")
    assert credit_lines("auto", "none", [able], 2) == ["credit: able by prefixes"]
    first, second = credit_lines("auto", "zscore", [able, unable], 2)
    assert first == "credit: able by prefixes"
    assert second == (
        "credit: unable: every token of a completion has the same credit, because it cannot score beginnings; set "
        "`prefixes = True` on it if it can (docs/rewards.md)"
    )
    (line,) = credit_lines("auto", "rank", [able, unable], 1)
    assert line.startswith("credit: able, unable: every token") and "because reward_normalization rank ranks" in line
    assert line.endswith("less the mean of all completions, because num_generations is 1")
    assert "because credit is completion" in credit_lines("completion", "none", [able], 2)[0]
    assert by_prefix("auto", "none", [able, unable]) == ["able"] and by_prefix("auto", "rank", [able]) == []


@pytest.mark.parametrize(
    ("rewards", "normalization", "words"),
    [
        ([tiny.vowels], "none", "the reward 'vowels' cannot score beginnings"),
        ([counted], "rank", "ranks are of whole"),
    ],
)
def test_credit_by_prefixes_that_cannot_be_is_refused(rewards, normalization, words):
    with pytest.raises(UserError, match=words):
        credit_lines("prefix", normalization, [*map(Reward, rewards)], 2)


ONLY = {"plain": "only", "credit_coef": 1.0, "contrast_coef": 0.0, "quantile_weights": None, "eval_strategy": "no"}


def test_credit_needs_one_reward_or_a_sum(tmp_path):
    attributes = [{"name": "vowels", "reward": "length", "tags": ["Many", "Few"]}]
    with pytest.raises(UserError, match="credit_coef: .*set credit_coef 0, or give reward_funcs"):
        make(tmp_path, reward=["length"], attributes=attributes, credit_coef=1.0)


def test_a_resumed_run_finds_the_same_credit(tmp_path, caplog):
    make(tmp_path / "whole", reward=counted, **ONLY).train()
    assert "credit: counted by prefixes" in caplog.text
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    whole, resumed = (tmp_path / name / "plain" for name in ("whole", "resumed"))
    shutil.rmtree(resumed / "checkpoint-6")
    (iteration_dir(resumed, 1) / FILE).unlink()
    make(tmp_path / "resumed", reward=counted, **ONLY).train(resume_from_checkpoint=True)
    files = [(iteration_dir(folder, 1) / FILE).read_bytes() for folder in (whole, resumed)]
    assert files[0] == files[1] and same(weights(whole), weights(resumed))
    logged = [line["credit/size"] for line in lines(whole) if "credit/size" in line]
    assert len(logged) == 2 and logged[0] == pytest.approx(1)
    table = pq.read_table(part_path(whole, 0, 0))
    for each in table.to_pylist():
        assert each["prefix_tokens"] == [*range(1, len(each["completion_ids"]) + 1 - each["ended"])]
        assert dict(each["prefix_rewards"])["counted"][-1:] in ([dict(each["rewards"])["counted"]], [])
