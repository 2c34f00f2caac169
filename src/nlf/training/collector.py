"""The rollouts of one iteration: cut the prompts into parts, sample each part, score it, and write it once.

The parts are fixed before work starts. One rank samples and scores a part; a written part is made again only if its
stamp shows different weights or settings. A part that is sampled but not yet scored is kept in a separate file, so
that a run that is killed while it scores does not sample again.

With remote rewards each rank calls only its local rewards, and the first rank calls the remote rewards for all parts.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from nlf.data.feedback import Feedback
from nlf.data.pool import Pool
from nlf.data.progress import progress_bar
from nlf.data.prompts import NumberedPrompt, PromptRow
from nlf.data.rollouts import (
    check_no_others,
    is_written,
    iteration_dir,
    part_path,
    read_part,
    samples_path,
    write_part,
)
from nlf.errors import UserError
from nlf.method.prompt_order import NumberedRow
from nlf.rewards import Reward
from nlf.rewards.tables import score_table
from nlf.sampling.rollout_table import PromptSampler
from nlf.training.ranks import Ranks
from nlf.training.settings import Stamp

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Some of an iteration's prompts, which are sampled in one call and written as one file."""

    number: int
    rows: Sequence[NumberedRow]


@dataclass(frozen=True)
class Source:
    """The weights that an iteration samples from.

    Attributes:
        stamp: Marks the rollouts of these weights.
        sampler: Samples completions from these weights.
        outdated: Training has changed the weights, so that rollouts of this iteration can no longer be sampled.
    """

    stamp: Stamp
    sampler: PromptSampler
    outdated: bool = False


@dataclass(frozen=True)
class Scoring:
    """The rewards of a run, and the arguments of their calls.

    Attributes:
        weights: One weight per reward; None = 1 for all.
        by_first: The remote rewards that the first rank calls for all ranks; empty if each rank calls all rewards.
        sentence: Cuts a judge's sentence to the length that fits; returns None if nothing is left.
        context: The arguments that TRL's trainers offer to reward functions beside the data set's columns.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None
    by_first: Sequence[Reward] = ()
    sentence: Callable[[str], str | None] = str
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> list[Reward]:
        """The rewards that each rank calls for its own completions."""
        return [reward for reward in self.rewards if reward not in self.by_first]


@dataclass(frozen=True)
class RolloutCollector:
    """Samples, scores and writes the rollouts of one iteration.

    Attributes:
        run_dir: The run's folder.
        prompts: All prompt rows of the run.
        prompts_per_part: Prompts in a part; the last part may have fewer.
        source: The weights and the sampler.
        scoring: The rewards.
        feedback: Turns rewards into quantiles and words; if this fails, the part is not written.
        ranks: This rank among the others.
        quiet: Show no progress bars.
    """

    run_dir: Path
    prompts: Sequence[PromptRow]
    prompts_per_part: int
    source: Source
    scoring: Scoring
    feedback: Feedback
    ranks: Ranks = Ranks()
    quiet: bool = False

    def parts(self, rows: Sequence[NumberedRow]) -> list[Part]:
        """The prompts of the iteration, cut into parts in their order."""
        starts = range(0, len(rows), self.prompts_per_part)
        return [Part(number, rows[start : start + self.prompts_per_part]) for number, start in enumerate(starts)]

    def sample(self, parts: Sequence[Part], choose_words: Callable[[], Sequence[str | None]]) -> None:
        """Sample this rank's parts that are not on disk yet, then free the sampler's memory.

        Args:
            choose_words: Returns the words before each of the run's prompts; None = the bare prompt. Called only if a part
                is missing.

        Raises:
            UserError: a part is missing and its weights are gone; sampling or a local reward fails; the disk is full.
            SystemExit: the run is asked to stop.
        """
        check_no_others(self.run_dir, self.iteration, len(parts))
        own = [part for part in parts if self.ranks.share.has(part.number)]
        found = [path for part in own for path in (self._scored(part), self._samples(part)) if path.is_file()]
        missing = [part for part in own if self._read(self._scored(part)) is None]
        missing = [part for part in missing if self._read(self._samples(part)) is None]
        self._tell_removed([path for path in found if not path.is_file()])
        self.ranks.barrier()  # every rank has looked at its files before any rank writes or removes one
        advance = self._bar("sampling", own, missing)
        if missing:
            self._check_weights()
        words = choose_words() if missing else []
        for part in missing:
            self.ranks.stop_if_asked()
            self._write(self._samples(part), self._completions(part, words, advance))
        self.source.sampler.sampler.close()

    def score(self, parts: Sequence[Part]) -> None:
        """Score this rank's unscored parts, and wait for parts that other ranks score.

        Raises:
            UserError: a reward fails, quantiles cannot be made of the rewards, or the disk is full.
            SystemExit: the run is asked to stop.
        """
        own = [part for part in parts if self._scores(part)]
        todo = [part for part in own if not self._is_written(self._scored(part))]
        advance = self._bar("scoring", own, todo)
        for part in todo:
            samples = self._samples(part)
            self.ranks.wait_for(partial(self._is_written, samples))
            table = self._score(part, samples)
            self._write(self._scored(part), table)
            samples.unlink()
            advance(table.num_rows)
        if self.scoring.by_first or not self.ranks.share.has_parts:
            for part in parts:
                self.ranks.wait_for(partial(self._is_written, self._scored(part)))
        self.ranks.barrier()

    def _scores(self, part: Part) -> bool:
        """Whether this rank scores the part."""
        return self.ranks.first if self.scoring.by_first else self.ranks.share.has(part.number)

    def _completions(self, part: Part, words: Sequence[str | None], advance: Callable[[int], None]) -> pa.Table:
        """The sampled completions of a part, with local rewards if the first rank adds the remote rewards later."""
        prompts = [NumberedPrompt(self.prompts[row], occurrence) for row, occurrence in part.rows]
        try:
            table = self.source.sampler.table(
                prompts, [words[row] for row, _ in part.rows], iteration=self.iteration, progress=advance
            )
        except UserError:
            self.ranks.stop_if_asked()  # the signal that asks the run to stop may have ended vLLM too
            raise
        return self._with_rewards(table, part, self.scoring.local) if self.scoring.by_first else table

    def _score(self, part: Part, samples: Path) -> pa.Table:
        """The part's completions with all rewards.

        Raises:
            UserError: the file is broken, a reward fails, or quantiles cannot be made of the rewards.
        """
        sampled = self._read(samples)
        if sampled is None:
            raise UserError(f"{samples}: the file is broken and was removed; resume the run to sample it again")
        table = self._with_rewards(sampled, part)
        pool = Pool()
        pool.add(table, self.iteration)
        self.feedback.words(pool, self.feedback.quantiles(pool), self.iteration)
        return table

    def _with_rewards(self, table: pa.Table, part: Part, allowed: Sequence[Reward] | None = None) -> pa.Table:
        rows = [self.prompts[row] for row, _ in part.rows]
        scoring = self.scoring
        return score_table(
            table, rows, scoring.rewards, scoring.weights,
            allowed=allowed, sentence=scoring.sentence, context=scoring.context,
        )  # fmt: skip

    def _tell_removed(self, paths: Sequence[Path]) -> None:
        if paths:
            more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            logger.warning("%s%s: torn, or of other weights or settings; it is made again", paths[0], more)

    def _check_weights(self) -> None:
        if self.source.outdated:
            raise UserError(
                f"{iteration_dir(self.run_dir, self.iteration)}: a part is missing, and training has changed the weights "
                "that it was sampled from; restore the part, or resume from the last checkpoint before this iteration"
            )

    @property
    def iteration(self) -> int:
        """The iteration of the rollouts."""
        return self.source.stamp.iteration

    def _samples(self, part: Part) -> Path:
        return samples_path(self.run_dir, self.iteration, part.number)

    def _scored(self, part: Part) -> Path:
        return part_path(self.run_dir, self.iteration, part.number)

    def _read(self, path: Path) -> pa.Table | None:
        return read_part(path, asdict(self.source.stamp))

    def _is_written(self, path: Path) -> bool:
        return is_written(path, asdict(self.source.stamp))

    def _write(self, path: Path, table: pa.Table) -> None:
        write_part(path, table, asdict(self.source.stamp))

    def _bar(self, title: str, own: Sequence[Part], todo: Sequence[Part]) -> Callable[[int], None]:
        """A progress bar over the completions of this rank's parts; `todo` are the parts that are left."""
        completions = self.source.sampler.options.num_generations
        total, left = (sum(len(part.rows) for part in parts) * completions for parts in (own, todo))
        return progress_bar(title, total, total - left, hidden=self.quiet)
