"""The divergence and the metrics of samples, for `nlf evaluate` (on files) and for training (in memory)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from nlf.data.generations import Divergence
from nlf.evaluation import metrics
from nlf.evaluation.score import SUM, add_sum
from nlf.models.encoder import PromptEncoder
from nlf.models.likelihoods import Conditioned, divergence
from nlf.models.policy import Policy
from nlf.rewards import Reward


def divergence_of(
    lines: Sequence[Mapping[str, Any]], policy: Policy, encoder: PromptEncoder, reference: nn.Module
) -> list[Divergence]:
    """KL(reference || policy) and the policy's entropy over the completions of lines of generations.

    The policy reads each prompt after the line's feedback; the reference reads the bare prompt.
    """
    prompts = [line["prompt_ids"] for line in lines]
    queries = [encoder.query_ids(line["feedback"], line["prompt_ids"], line["prompt"]) for line in lines]
    found = divergence(
        Conditioned(policy.model, queries), Conditioned(reference, prompts), [line["completion_ids"] for line in lines],
        excluded_ids=policy.added_token_ids,
    )  # fmt: skip
    return [{"kl": kl.tolist(), "entropy": entropy.tolist()} for kl, entropy in zip(*found, strict=True)]


def metrics_of(
    lines: Iterable[Mapping[str, Any]],
    rewards: Sequence[Reward],
    weights: Sequence[float] | None,
    likelihoods: str,
    threshold: float = metrics.THRESHOLD,
    auditors: Sequence[Reward] = (),
) -> metrics.Measured:
    """The metrics of scored and measured lines. With several rewards, their weighted sum is one more scorer, SUM.

    Args:
        weights: Weights of the rewards in their sum; None = 1 for all.
        likelihoods: The key of the lines' `likelihoods`.
        threshold: A completion is toxic if its toxicity is at least this.
        auditors: Scorers beside the rewards, which are no part of the sum; their metrics carry their label.

    Raises:
        UserError: see `metrics.measure`.
    """
    labels = [reward.label for reward in rewards]
    several = len(labels) > 1
    return metrics.measure(
        (add_sum(line, labels, weights) for line in lines) if several else lines,
        scores=[*labels, SUM] if several else labels,
        auditors=[reward.label for reward in auditors],
        likelihoods=likelihoods,
        threshold=threshold,
    )
