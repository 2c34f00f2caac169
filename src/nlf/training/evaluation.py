"""What a run says about itself while it trains: its pool, its evaluation prompts, a few completions."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from nlf.data.feedback import Feedback
from nlf.data.pool import Pool
from nlf.data.prompts import NumberedPrompt
from nlf.evaluation import metrics
from nlf.evaluation.sample import sample_lines
from nlf.evaluation.score import SUM, add_sum, score_rows
from nlf.method.quantize import quantile_edges
from nlf.models.likelihoods import Conditioned, conditional_nll, divergence
from nlf.rewards import Reward
from nlf.sampling.rollout_table import PromptSampler

logger = logging.getLogger(__name__)

REFERENCE = "reference"


def evaluated_lines(
    sampler: PromptSampler,
    prompts: Sequence[NumberedPrompt],
    tag: str,
    rewards: Sequence[Reward],
    progress: Callable[[int], None] | None = None,
    context: dict | None = None,
) -> list[dict]:
    """Sample, score and measure evaluation prompts: lines as `nlf evaluate` writes them, perplexity and KL under the
    reference.
    """
    policy, encoder = sampler.policy, sampler.encoder
    negative = sampler.options.negative_tag or policy.scheme.worst
    lines = sample_lines(sampler, prompts, tag, {}, negative, progress)
    prompt_ids, completions = [line["prompt_ids"] for line in lines], [line["completion_ids"] for line in lines]
    queries = [encoder.query_ids(tag, line["prompt_ids"], line["prompt"]) for line in lines]
    reference = policy.reference_module()
    nll = conditional_nll(reference, prompt_ids, completions)
    kl, entropy = divergence(
        Conditioned(policy.model, queries), Conditioned(reference, prompt_ids), completions,
        excluded_ids=policy.added_token_ids,
    )  # fmt: skip
    for i, line in enumerate(lines):
        tokens = [len(ids) for ids in completions[i]]
        line["likelihoods"] = {REFERENCE: {"nll": nll[i], "tokens": tokens, "kl": kl[i], "entropy": entropy[i]}}
    add_scores(lines, scores_of(lines, rewards, context))
    return lines


def scores_of(lines: Sequence[dict], rewards: Sequence[Reward], context: dict | None = None) -> dict[str, list[dict]]:
    """What each reward says of each line, by its label."""
    return {reward.label: score_rows(lines, reward, context) for reward in rewards}


def add_scores(lines: Sequence[dict], scores: dict[str, list[dict]]) -> None:
    """Put scores into the lines, beside those that are there."""
    for i, line in enumerate(lines):
        line["scores"] = line.get("scores", {}) | {label: found[i] for label, found in scores.items()}


def evaluation_metrics(
    lines: Sequence[dict], rewards: Sequence[Reward], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """The metrics of evaluated lines by the names of `nlf evaluate`, and how many completions have no score; `reward` is
    the weighted sum where there are several.
    """
    labels = [reward.label for reward in rewards]
    if labels[1:]:
        lines, labels = [add_sum(line, labels, weights) for line in lines], [*labels, SUM]
    found = metrics.measure(lines, scores=labels, likelihoods=REFERENCE)
    values = {name: ratio.value for name, ratio in found.ratios.items()}
    if labels[1:]:
        values["reward"] = values.pop(f"reward/{SUM}")
    unscored = {name: count for name, count in found.counts.items() if name.startswith("unscored")}
    return values | unscored


def pool_statistics(pool: Pool, quantiles: np.ndarray, iteration: int, feedback: Feedback) -> dict[str, float]:
    """What is logged of a refreshed pool: its size, this iteration's rewards, and the quantiles' edges, in what they were
    cut from; those of attributes under their names.
    """
    new = pool.iteration == iteration
    scored = pool.rewards[new & ~np.isnan(pool.rewards)]
    lengths = pool.completion_lengths[new]
    logs = {
        "iteration": iteration,
        "pool/size": len(pool),
        "pool/num_unscored": int(np.isnan(pool.rewards).sum()),
        "reward": float(scored.mean()) if len(scored) else float("nan"),
        "reward_std": float(scored.std()) if len(scored) else float("nan"),
        "completions/mean_length": float(lengths.mean()),
    }
    if pool.has_sentence.any():
        logs["pool/num_sentences"] = int(pool.has_sentence.sum())
    if len(pool.by_function) > 1:
        for name, values in pool.by_function.items():
            known = values[new & ~np.isnan(values)]
            logs[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
    cuts = {"": (feedback.cut, quantiles)}
    cuts |= {f"attribute/{name}/": (cut, cut(pool)) for name, cut in feedback.attributes.items()}
    for prefix, (cut, found) in cuts.items():
        for q, edges in enumerate(quantile_edges(cut.rewards(pool), found, cut.num_quantiles)):
            if edges is not None:
                logs[f"{prefix}quantile/{q}/low"], logs[f"{prefix}quantile/{q}/high"] = edges
    return logs


def log_completions(lines: Sequence[dict], rewards: Sequence[Reward], count: int, step: int) -> None:
    """The first completion of a few prompts with its rewards, evenly spread over the prompts."""
    for i in np.linspace(0, len(lines) - 1, count).astype(int).tolist():
        line = lines[i]
        scores = ", ".join(f"{r.label} {line['scores'][r.label]['reward'][0]}" for r in rewards)
        logger.info(
            "step %d | %s | %s ⟶ %s | %s", step, line["feedback"], line["prompt"], line["completions"][0], scores
        )
