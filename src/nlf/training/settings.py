"""The records of a run: its settings, other facts that a resumed run must share, and the stamp of its rollouts.

The keys and values here are on disk in every run folder. If they change, older runs cannot be resumed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlf import config
from nlf.data.files import digest
from nlf.data.prompts import PromptRow
from nlf.data.run_folder import MODEL_DIGEST
from nlf.models.chat import DATE, has_clock
from nlf.models.encoder import PromptEncoder
from nlf.models.identity import name_of
from nlf.models.names import gguf_digest
from nlf.models.policy import Policy
from nlf.models.quantized import bits_of
from nlf.rewards import Reward
from nlf.rewards.registry import without_version
from nlf.secrets import is_secret
from nlf.training.config import ALTConfig


@dataclass(frozen=True)
class Stamp:
    """The origin of a part's rollouts. Parts with equal stamps come from equal weights and settings.

    Attributes:
        step: Optimizer steps before this iteration.
        policy: The digest of the trainable weights.
        settings: The digest of `sampling_settings`.
    """

    iteration: int
    step: int
    policy: str | None
    settings: str


def run_settings(args: ALTConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every knob as a plain value, without access tokens: the content of `config.yaml`.

    Args:
        options: The settings of the command line that are not part of `args`: model and data.
    """
    plain = json.loads(json.dumps(args.to_dict(), default=str))
    return {name: value for name, value in {**plain, **options}.items() if not is_secret(name)}


def run_facts(
    args: ALTConfig,
    policy: Policy,
    prompts: Sequence[PromptRow],
    rewards: Sequence[Reward],
    auditors: Sequence[Reward] = (),
) -> dict[str, Any]:
    """The facts that the result depends on besides the settings, and the auditors: the content of `run.json`."""
    return {
        **model_facts(policy.identity.name),
        "train_prompts": _prompts_digest(prompts),
        "rewards": [reward.label for reward in rewards],
        "auditors": [auditor.label for auditor in auditors],
        "total_batch_size": args.total_batch_size,
    }


def model_facts(name: str) -> dict[str, str]:
    """The name of the model that a run starts from, and, for a GGUF file, its digest."""
    digest = gguf_digest(name)
    return {"model_name_or_path": name} | ({MODEL_DIGEST: digest} if digest else {})


def sampling_settings(
    args: ALTConfig, policy: Policy, encoder: PromptEncoder, prompts: Sequence[PromptRow], rewards: Sequence[Reward]
) -> dict[str, Any]:
    """Everything that scored rollouts depend on, except the weights; a `Stamp` holds its digest."""
    settings: dict[str, Any] = {}  # these keys are absent, as in older runs, unless sampling depends on them
    if args.sampler != "hf":
        settings["sampler"] = args.sampler
    scheme = policy.scheme  # None: a plain run, which no setting of tags changes
    if args.attributes and scheme:
        # a reward from Python or of this package is stamped by its name alone, as in older runs; "rewards" has its version
        named = zip(args.attributes, rewards, strict=True)
        own = [{**attribute, "reward": without_version(reward.spec or reward.name)} for attribute, reward in named]
        settings["attributes"] = [own, args.attribute_template, args.feedback_sampling]
    if scheme and any(reward.returns_judgements for reward in rewards):
        settings["quantiles"] = [args.quantile_rule, args.quantile_scope, args.pool_keep, args.reward_normalization]
        settings["max_feedback_length"] = encoder.max_feedback_length
    if scheme and args.credit_coef:
        settings["sampled_under"] = "several tags"
    if bits := bits_of(policy.model):
        settings["bits"] = bits
    conversational = any(isinstance(prompt["prompt"], list) for prompt in prompts[:1])
    if conversational and has_clock(policy.tokenizer):
        settings["chat_template_date"] = str(DATE.date())
    if conversational and args.chat_template_kwargs:
        settings["chat_template_kwargs"] = args.chat_template_kwargs
    if scheme and scheme.feedback_position != "system":
        settings["feedback_position"] = scheme.feedback_position
    return settings | {
        "seed": args.seed,
        "sampling": vars(config.sampling_options(args)),
        "scheme": [list(scheme.tags), scheme.template, scheme.separator] if scheme else None,
        "prompts": _prompts_digest(prompts),
        "max_prompt_length": encoder.max_prompt_length,
        "reference": name_of(policy.reference_model),
        "prompts_per_iteration": args.prompts_per_iteration,
        "prompts_per_part": args.prompts_per_part,
        "rewards": [reward.label for reward in rewards],
        "weights": args.reward_weights,
    }


def _prompts_digest(prompts: Sequence[PromptRow]) -> str:
    return digest([prompt["prompt_id"] for prompt in prompts])
