"""One iteration of the method: sample → score → pool → quantize → words. Trainer then trains on the result.

    iteration 0    x ~ reference(· | prompt)                  without feedback
    iteration k    x ~ policy(· | best words, prompt)
                   pool ← pool ∪ (prompt, x, reward(x));  quantile ← rank in the whole pool;  words ← quantile

`collector.py` describes how a killed run continues, and how several ranks share the work.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from nlf.data.feedback import Words
from nlf.data.pool import Pool
from nlf.method.prompt_order import choose_prompts, number_occurrences
from nlf.training.collector import RolloutCollector


class LabelledPool(NamedTuple):
    """All rollouts so far, with the quantile and the words of each rollout."""

    pool: Pool  # N rollouts
    quantiles: np.ndarray  # (N,) int8, 0 = best, -1 = unscored
    words: Words  # (row of the pool, item of the iteration) → the rollout's words, and the words that it is contrasted with

    def only(self, iteration: int) -> "LabelledPool":
        """The same, with rollouts of other iterations never drawn."""
        return self._replace(quantiles=np.where(self.pool.iteration == iteration, self.quantiles, np.int8(-1)))


def run_iteration(
    collector: RolloutCollector,
    *,
    seed: int,
    prompts_per_iteration: int | None,
    pool_keep: int | None,
    logged_iterations: int = 0,
) -> LabelledPool:
    """Collect the rollouts of the collector's iteration, and label the pool of all rollouts so far.

    Args:
        prompts_per_iteration: Prompts to sample; None = all prompts, in order.
        pool_keep: Keep the rollouts of this many iterations; None = keep all.
        logged_iterations: The iterations before this one sample nothing: their pool is the logged feedback.

    Raises:
        UserError: sampling or scoring fails, or rollouts on disk are missing or broken.
        SystemExit: the run is asked to stop.
    """
    iteration, run_dir, feedback = collector.iteration, collector.run_dir, collector.feedback
    prompt_ids = [prompt["prompt_id"] for prompt in collector.prompts]
    load = partial(Pool.load, run_dir, keep=pool_keep, since=logged_iterations)
    if iteration >= logged_iterations:
        past = partial(load, iteration - 1)  # loaded only if the words depend on it
        rows = choose_prompts(len(prompt_ids), prompts_per_iteration, seed, iteration)
        parts = collector.parts(number_occurrences(rows, prompt_ids))
        collector.sample(parts, partial(feedback.to_sample_under, len(prompt_ids), iteration, past))
        collector.score(parts)

    pool = load(iteration)
    quantiles = feedback.quantiles(pool)
    return LabelledPool(pool, quantiles, feedback.words(pool, quantiles, iteration))
