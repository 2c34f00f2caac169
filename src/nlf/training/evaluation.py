"""Evaluation during training, and the logs of a run: its pool, its evaluation prompts, a few completions."""

import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from nlf.data.feedback import AttributeFeedback, CreditFeedback, Cut, Feedback, NoFeedback
from nlf.data.generations import Generation
from nlf.data.markdown import printable, rounded
from nlf.data.pool import Pool
from nlf.data.prompts import NumberedPrompt
from nlf.evaluation.metrics import Measured
from nlf.evaluation.pipeline import divergence_of
from nlf.evaluation.sample import sample_lines
from nlf.evaluation.score import SUM, LineScores, score_rows
from nlf.evaluation.unscored import of_counts, warning
from nlf.method.quantize import quantile_edges, scarce_quantiles
from nlf.models.likelihoods import conditional_nll
from nlf.rewards import Reward
from nlf.sampling.rollout_table import PromptSampler

logger = logging.getLogger(__name__)

MOST_CUT = 0.1  # the share of completions that may reach the longest length without EOS, without a word
SHARE = 0.25  # a tag is scarce below this part of an equal share of the rollouts
REFERENCE = "reference"  # the reader's key among the likelihoods of a line


def evaluated_lines(
    sampler: PromptSampler,
    prompts: Sequence[NumberedPrompt],
    tag: str | None,
    rewards: Sequence[Reward],
    progress: Callable[[int], None] | None = None,
    context: dict | None = None,
    auditors: Sequence[Reward] = (),
) -> list[Generation]:
    """Sample, score and measure evaluation prompts. The reference is the reader and the base of the KL.

    Args:
        tag: The words before each prompt.
        progress: Called with the number of completions finished since the last call.
        context: More keyword arguments of the rewards, as in `rewards.score`.
        auditors: Scorers beside the rewards; the random state after them is the state before them.

    Returns:
        A line for each prompt, in the form of a generations file.
    """
    lines = sample_lines(sampler, prompts, tag, {}, progress)
    reference = sampler.policy.reference_module()
    completions = [line["completion_ids"] for line in lines]
    nlls = conditional_nll(reference, [line["prompt_ids"] for line in lines], completions)
    divergences = divergence_of(lines, sampler.policy, sampler.encoder, reference)
    for line, nll, found in zip(lines, nlls, divergences, strict=True):
        tokens = [len(ids) for ids in line["completion_ids"]]
        line["likelihoods"] = {REFERENCE: {"nll": nll.tolist(), "tokens": tokens, **found}}
    add_scores(lines, scores_of(lines, rewards, context))
    with kept_random_state():
        add_scores(lines, scores_of(lines, auditors, context))
    return lines


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the global random states at the end, so that what is measured beside a run does not change the run."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def scores_of(
    lines: Sequence[Generation], rewards: Sequence[Reward], context: dict | None = None
) -> dict[str, list[LineScores]]:
    """By the label of each reward, its scores of each line, as `score_rows` returns them."""
    return {reward.label: score_rows(lines, reward, context) for reward in rewards}


def add_scores(lines: Sequence[Generation], scores: dict[str, list[LineScores]]) -> None:
    """Add scores, as `scores_of` returns them, to the scores of the lines."""
    for i, line in enumerate(lines):
        line["scores"] = line.get("scores", {}) | {label: found[i] for label, found in scores.items()}


def evaluation_metrics(found: Measured) -> dict[str, float]:
    """The metrics of evaluated lines under the names of `nlf evaluate`, and the numbers of unscored completions.

    With several rewards, `reward` is their weighted sum.
    """
    values = {name: ratio.value for name, ratio in found.ratios.items()}
    if f"reward/{SUM}" in values:
        values["reward"] = values.pop(f"reward/{SUM}")
    unscored = {name: count for name, count in found.counts.items() if name.startswith("unscored")}
    return values | unscored


def warn_of_unscored(results: Mapping[str, float], rewards: Sequence[Reward], lines: Sequence[Generation]) -> None:
    """Log a line for each reward that could not score more than 2 % of an evaluation's completions.

    Args:
        results: The metrics by `evaluation_metrics`.
    """
    counts = {**results, "completions": sum(len(line["completions"]) for line in lines)}
    for line in of_counts(counts, [reward.label for reward in rewards], "evaluation"):
        logger.warning("%s", line)


def pool_statistics(pool: Pool, quantiles: np.ndarray, iteration: int, feedback: Feedback) -> dict[str, float]:
    """The logs of a refreshed pool: its size, the iteration's rewards and lengths, and the edges of the quantiles.

    Args:
        quantiles: `(N,)`, the quantile of each rollout of the pool.

    Returns:
        Values by name. Edges are in the unit of the rewards that were cut; the keys of an attribute's edges hold its name.
    """
    return {
        "iteration": iteration,
        "pool/size": len(pool),
        "pool/num_unscored": int(np.isnan(pool.rewards).sum()),
        **_new_rollouts(pool, _new(pool, iteration)),
        **{f"unscored_fraction/{name}": n / len(rows) for name, rows, n in _unscored(pool, iteration)},
        **_quantile_edges(pool, quantiles, feedback),
    }


def _new(pool: Pool, iteration: int) -> np.ndarray:
    """bool `(N,)`, the rollouts of an iteration; the logged rows if it sampled nothing."""
    found = pool.iteration == iteration
    return found if found.any() else pool.logged


def _unscored(pool: Pool, iteration: int) -> list[tuple[str, np.ndarray, int]]:
    """Each reward's name, its values of an iteration's rollouts, and the number of these that it could not score."""
    rows = _new(pool, iteration)
    new = {name: values[rows] for name, values in pool.by_function.items()}
    return [(name, values, int(np.isnan(values).sum())) for name, values in new.items()]


def pool_lines(
    pool: Pool, iteration: int, feedback: Feedback, worst: Collection[str], longest: int | None
) -> list[str]:
    """The warnings about a refreshed pool: tags without rollouts, rollouts without rewards, completions without an end.

    Args:
        worst: Names of the rewards whose None counts as the worst reward.
        longest: `max_completion_length`; None = completions need no end.
    """
    scarce = scarce_tags(pool, feedback) if iteration == 0 else []
    cut = cut_lines(pool, iteration, longest) if longest else []
    return [*scarce, *unscored_lines(pool, iteration, feedback, worst), *cut]


def cut_lines(pool: Pool, iteration: int, longest: int) -> list[str]:
    """The warning about an iteration in which more than a tenth of the completions reach the longest length without EOS."""
    new = pool.iteration == iteration
    share = float((~pool.ended[new] & (pool.completion_lengths[new] >= longest)).mean()) if new.any() else 0.0
    if share <= MOST_CUT:
        return []
    return [
        f"iteration {iteration}: {share:.0%} of the completions reach max_completion_length {longest} without EOS, "
        "so rewards see them without their end; raise --max_completion_length if answers should be whole"
    ]


def unscored_lines(pool: Pool, iteration: int, feedback: Feedback, worst: Collection[str]) -> list[str]:
    """The warnings about an iteration's rollouts that could not be scored, above 2 %.

    Args:
        worst: Names of the rewards whose None counts as the worst reward.
    """
    lines = [
        warning(name, n, len(values), "they count as the worst reward so far")
        for name, values, n in _unscored(pool, iteration)
        if name in worst
    ]
    given = feedback.cut.rewards(pool)[_new(pool, iteration) & ~pool.has_sentence_alone]
    told = "they have no reward, so they get no tag and are not trained on"
    if isinstance(feedback, NoFeedback):
        told = "they have no reward, so they are not trained on"
    lines.append(warning(feedback.cut.name, int(np.isnan(given).sum()), len(given), told))
    return [line for line in lines if line]


def _new_rollouts(pool: Pool, new: np.ndarray) -> dict[str, float]:
    """Rewards and lengths of the rollouts marked by `new` `(N,)`; NaN if none is scored."""
    scored = pool.rewards[new & ~np.isnan(pool.rewards)]
    logs = {
        "reward": float(scored.mean()) if len(scored) else float("nan"),
        "reward_std": float(scored.std()) if len(scored) else float("nan"),
        "completions/mean_length": float(pool.completion_lengths[new].mean()),
        "completions/ended_ratio": float(pool.ended[new].mean()),
    }
    if pool.has_sentence.any():
        logs["pool/num_sentences"] = int(pool.has_sentence.sum())
    if len(pool.by_function) > 1:
        for name, values in pool.by_function.items():
            known = values[new & ~np.isnan(values)]
            logs[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
    return logs


def _quantile_edges(pool: Pool, quantiles: np.ndarray, feedback: Feedback) -> dict[str, float]:
    """Lowest and highest reward of each quantile that holds rollouts, for the total reward and for every attribute; nothing
    for a plain model, which has no quantiles.
    """
    if isinstance(feedback, NoFeedback):
        return {}
    logs = {}
    cuts = {"": (feedback.cut, quantiles)}
    cuts |= {f"attribute/{name}/": (cut, cut(pool)) for name, cut in feedback.cuts().items()}
    for prefix, (cut, found) in cuts.items():
        for q, edges in enumerate(quantile_edges(cut.rewards(pool), found, cut.num_quantiles)):
            if edges is not None:
                logs[f"{prefix}quantile/{q}/low"], logs[f"{prefix}quantile/{q}/high"] = edges
    return logs


def scarce_tags(pool: Pool, feedback: Feedback) -> list[str]:
    """A line for each reward whose completions leave tags without enough rollouts, with the way out.

    Equal rewards share a tag, so a reward with few different values leaves tags empty. Where tokens are trained by their
    credit, only a reward that never varies leaves nothing to learn.
    """
    cuts: list[tuple[Cut, Sequence[str] | None]] = [(feedback.cut, None)]
    if isinstance(feedback, AttributeFeedback):
        cuts = list(zip(feedback.attributes.values(), feedback.tags, strict=True))
    elif not isinstance(feedback, CreditFeedback | NoFeedback):
        cuts = [(feedback.cut, feedback.scheme.tags)]
    return [line for cut, tags in cuts if (line := _scarcity(cut, tags, pool))]


def _scarcity(cut: Cut, tags: Sequence[str] | None, pool: Pool) -> str | None:
    """What is wrong with the rollouts of a reward's tags; None if each tag has at least SHARE of an equal share.

    Args:
        tags: None = training does not look at quantiles.
    """
    rewards, quantiles = cut.rewards(pool), cut(pool)
    values, scored = np.unique(rewards[quantiles >= 0]), int((quantiles >= 0).sum())
    if len(values) == 1:
        return (
            f"warning: reward {cut.name!r} is {values[0]:g} for all {scored} completions, so "
            "there is nothing to learn; expected rewards that differ; change the reward, the prompts or the sampling"
        )
    if tags is None:
        return None
    few = scarce_quantiles(quantiles, cut.num_quantiles, 0.0 if cut.rule == "levels" else SHARE)
    if not few:
        return None
    counts = ", ".join(f"{tags[quantile]!r} {count}" for quantile, count in few)
    why = (
        "quantiles are cut among the completions of each prompt; raise num_generations, or"
        if cut.scope == "prompt"
        else f"equal rewards share a tag, and the reward has {len(values):,} different values;"
    )
    advice = (
        "" if cut.rule == "levels" else f": {why} give fewer tags, or set quantile_rule levels if it is 0, 1, 2, …"
    )
    return f"warning: reward {cut.name!r}: tags with few of the {scored:,} completions, or none: {counts}{advice}"


def log_completions(lines: Sequence[Generation], rewards: Sequence[Reward], count: int, step: int) -> None:
    """Log the first completion of `count` prompts with its rewards; the prompts are evenly spread over the lines."""
    for i in np.linspace(0, len(lines) - 1, count).astype(int).tolist():
        line = lines[i]
        found = [(reward.label, line["scores"][reward.label]["reward"][0]) for reward in rewards]
        scores = ", ".join(f"{label} {'–' if value is None else rounded(value)}" for label, value in found)
        texts = (printable(str(text)) for text in (line["prompt"], line["completions"][0]))
        where = f"step {step}" + (f" | {line['feedback']}" if line["feedback"] else "")
        logger.info("%s | %s ⟶ %s | %s", where, *texts, scores)
