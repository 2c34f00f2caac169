"""Parts of an iteration are made once, by one rank, and belong to the weights and settings they were made from."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from collecting import SCHEME, Recorder, collect, rank

from nlf.data.feedback import RewardRules, make_feedback
from nlf.data.pool import Pool, read_iteration
from nlf.data.rollouts import SCHEMA, part_path, samples_path
from nlf.errors import UserError
from nlf.rewards import Reward
from nlf.training import ranks
from nlf.training.collector import Scoring

ALL = [[0, 1], [2, 3], [4, 5]]


def rewards(folder) -> list[float]:
    return Pool.load(folder, 0).rewards.tolist()


def test_parts_are_cut_in_order(tmp_path):
    made = Recorder(tmp_path)
    parts = made.collector.parts([(5, 0), (0, 0), (5, 1)])
    assert parts == [(0, [(5, 0), (0, 0)]), (1, [(5, 1)])]


def test_each_part_is_sampled_then_scored(tmp_path):
    made = Recorder(tmp_path)
    collect(made)
    assert made.sampled == made.scored == ALL and made.closed == 1
    assert rewards(tmp_path) == [row + n / 10 for row in range(6) for n in range(3)]
    assert not list(tmp_path.glob("rollouts/*/samples-*"))


def test_the_words_stand_before_their_prompts(tmp_path):
    bare, tagged = Recorder(tmp_path / "bare"), Recorder(tmp_path / "tagged")
    collect(bare)
    collect(tagged, lambda: [f"words {row}" for row in range(6)])
    pool = Pool.load(tmp_path / "tagged", 0)
    assert [pool.feedback(i) for i in range(0, 18, 3)] == [f"words {row}" for row in range(6)]
    assert all(len(long) > len(short) for long, short in zip(tagged.queries, bare.queries, strict=True))


def test_nothing_finished_is_done_again(tmp_path):
    first = Recorder(tmp_path)
    first.fail_at = ("score", 1)
    with pytest.raises(KeyboardInterrupt):
        collect(first)
    assert part_path(tmp_path, 0, 0).exists() and samples_path(tmp_path, 0, 1).exists()
    second = Recorder(tmp_path)
    collect(second, pytest.fail)  # no words are needed
    assert second.sampled == [] and second.scored == [[2, 3], [4, 5]]
    collect(Recorder(tmp_path / "whole"))
    assert rewards(tmp_path) == rewards(tmp_path / "whole")


def test_a_part_of_other_weights_is_done_again(tmp_path):
    collect(Recorder(tmp_path, policy="a"))
    again = Recorder(tmp_path, policy="b")
    collect(again)
    assert again.sampled == again.scored == ALL


def test_a_broken_part_is_done_again(tmp_path):
    collect(Recorder(tmp_path))
    path = part_path(tmp_path, 0, 1)
    path.write_bytes(path.read_bytes()[:100])
    again = Recorder(tmp_path)
    collect(again)
    assert again.sampled == again.scored == [[2, 3]]


def test_no_part_is_sampled_from_later_weights(tmp_path):
    collect(Recorder(tmp_path))
    collect(Recorder(tmp_path, outdated=True))  # nothing is missing
    part_path(tmp_path, 0, 1).unlink()
    made = Recorder(tmp_path, outdated=True)
    with pytest.raises(UserError, match="iteration-0000: a part is missing, and training has changed the weights"):
        collect(made)
    assert made.sampled == []


def test_what_cannot_be_quantized_is_not_written(tmp_path):
    made = Recorder(tmp_path, feedback=make_feedback(SCHEME, ["reward"], seed=0, rules=RewardRules("levels")))
    with pytest.raises(UserError, match="reward"):
        collect(made)
    assert not list(tmp_path.glob("rollouts/*/part-*")) and len(list(tmp_path.glob("rollouts/*/samples-*"))) == 3


def test_a_sampler_that_ends_because_the_run_is_stopped_is_no_error(tmp_path):
    """SIGTERM comes to vLLM's processes too."""
    asked = []

    def stop():
        if asked:
            raise SystemExit(143)

    def fail(*args, **kwargs):
        asked.append(1)
        raise UserError("vLLM failed")

    made = Recorder(tmp_path, ranks=ranks.Ranks(stop_if_asked=stop))
    made.sample = fail
    with pytest.raises(SystemExit, match="143"):
        collect(made)
    made = Recorder(tmp_path)
    made.sample = fail
    with pytest.raises(UserError, match="vLLM failed"):
        collect(made)


def test_ranks_share_the_parts(tmp_path):
    """Rank 1 goes first here; with a real barrier both ranks would wait for each other before the pool is read."""
    made = [Recorder(tmp_path, ranks=rank(number)) for number in (1, 0)]
    for each in made:
        collect(each)
    assert [each.sampled for each in made] == [[[2, 3]], [[0, 1], [4, 5]]]
    collect(Recorder(tmp_path / "one"))
    assert rewards(tmp_path) == rewards(tmp_path / "one")


def test_a_rank_without_parts_waits_for_the_other_ranks(tmp_path, quick):
    stops = iter(range(5))

    def stop():
        if next(stops) == 4:
            raise SystemExit(143)

    made = Recorder(tmp_path, ranks=rank(None, of=1, stop_if_asked=stop))
    with pytest.raises(SystemExit):
        collect(made)
    collect(Recorder(tmp_path))
    idle = Recorder(tmp_path, ranks=rank(None, of=1))
    collect(idle)
    assert made.sampled == made.scored == idle.sampled == idle.scored == []


def together(folder, policy="a") -> list[Recorder]:
    """Two ranks at once, of which the first calls the remote reward."""
    barrier = threading.Barrier(2, timeout=60)
    wait = lambda: barrier.wait() and None  # noqa: E731
    made = [Recorder(folder, policy, remote=True, ranks=rank(number, barrier=wait)) for number in (0, 1)]
    with ThreadPoolExecutor(2) as both:
        list(both.map(collect, made))
    return made


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ranks, "POLL", 0.01)


def test_the_first_rank_scores_for_all(tmp_path, quick):
    first, second = together(tmp_path)
    assert (first.sampled, second.sampled) == ([[0, 1], [4, 5]], [[2, 3]])
    assert (first.scored, second.scored) == (ALL, [])
    assert not list(tmp_path.glob("rollouts/*/samples-*"))
    collect(Recorder(tmp_path / "one"))
    assert rewards(tmp_path) == rewards(tmp_path / "one")


class ByBeginnings(Recorder):
    """The reward of a completion, or of a beginning, is the number of its tokens."""

    def __init__(self, folder, **changes):
        super().__init__(folder, **changes)
        self.reward.prefixes = True
        source = self.collector.source
        sampler = dataclasses.replace(source.sampler, prefixes=True)
        self.collector = dataclasses.replace(self.collector, source=dataclasses.replace(source, sampler=sampler))

    def rewards_of(self, prompts, completions, completion_ids, row, **columns):
        self.scored.append(list(dict.fromkeys(row)))
        return [float(len(ids)) for ids in completion_ids]


def test_the_first_rank_scores_beginnings_for_all(tmp_path, quick):
    barrier = threading.Barrier(2, timeout=60)
    wait = lambda: barrier.wait() and None  # noqa: E731
    made = [ByBeginnings(tmp_path / "two", remote=True, ranks=rank(number, barrier=wait)) for number in (0, 1)]
    with ThreadPoolExecutor(2) as both:
        list(both.map(collect, made))
    assert made[1].scored == [] and len(made[0].scored) == 9  # wholes, first and second beginnings of three parts
    collect(ByBeginnings(tmp_path / "one"))
    two, one = (read_iteration(tmp_path / name, 0, SCHEMA.names).to_pylist() for name in ("two", "one"))
    assert two == one
    for row in one:  # ids [0, row, n]; n = 0 is EOS, which is in no prefix, and the whole completion has it
        expected = [1.0, 3.0] if row["ended"] else [1.0, 2.0, 3.0]
        assert dict(row["prefix_rewards"]) == {"reward": expected} and row["reward"] == 3.0


def test_local_rewards_stay_with_the_rank_that_samples(tmp_path, quick):
    called = []

    def local(completions, row, **columns):
        called.append(sorted(set(row)))
        return [1.0] * len(completions)

    made = Recorder(tmp_path, ranks=rank(1))
    both = Scoring([made.reward, Reward(local)], by_first=[made.reward])
    collector = dataclasses.replace(made.collector, scoring=both)
    collector.sample(collector.parts([(row, 0) for row in range(6)]), lambda: [None] * 6)
    assert called == [[2, 3]] and made.scored == []


def test_what_another_rank_has_sampled_is_not_sampled_again(tmp_path, quick):
    """The parts are sampled before the run is killed, and the first rank scores them before the second rank looks."""
    killed = Recorder(tmp_path)
    killed.fail_at = ("score", 1)
    with pytest.raises(KeyboardInterrupt):
        collect(killed)
    first, second = together(tmp_path)
    assert first.sampled == second.sampled == [] and first.scored == [[2, 3], [4, 5]]
    assert not list(tmp_path.glob("rollouts/*/samples-*"))
    first, second = together(tmp_path, policy="b")  # other weights
    assert first.scored == ALL and second.sampled == [[2, 3]]


def test_a_rank_that_waits_can_be_stopped(tmp_path, quick):
    def stop():
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        collect(Recorder(tmp_path, remote=True, ranks=rank(1, stop_if_asked=stop)))


def test_a_value_of_the_first_rank_reaches_all_ranks(tmp_path, quick):
    barrier = threading.Barrier(2, timeout=60)
    (tmp_path / "value.json").write_text("left by a run that was killed")
    made = [rank(number, barrier=lambda: barrier.wait() and None) for number in (0, 1)]
    values = {True: lambda: {"reward": [1.5, None]}, False: pytest.fail}
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda each: each.from_first(tmp_path / "value.json", values[each.first]), made))
    assert found == [{"reward": [1.5, None]}] * 2 and not (tmp_path / "value.json").exists()
