"""A trainer's inputs: check prompts and rewards, and build the feedback, the encoder and the data set from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nlf import config
from nlf.data import files
from nlf.data.feedback import AttributeRules, Feedback, RewardRules, make_feedback
from nlf.data.prompts import PromptRow, all_conversations, as_prompts, load_prompts
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder
from nlf.rewards import Reward, check_weights, reward_names
from nlf.rewards.registry import configure, resolve_reward
from nlf.training.arguments import check_metric, choose_metric
from nlf.training.batches import PoolDataset
from nlf.training.config import ALTConfig, check_judges, check_world, known_device
from nlf.training.vllm_weights import check_sampler

RewardFunction = str | Callable | Reward
# A judge's sentence leaves room for this many tokens of a completion at least. The stamps of runs with judges hold the
# sentence's limit, so another number would make older runs impossible to resume.
LEAST_ROOM = 20


@dataclass(frozen=True)
class Inputs:
    """The prompts and rewards of a run.

    Attributes:
        prompts: The prompt rows to train on, at least one.
        eval_prompts: The prompt rows that evaluation samples; None = there is no evaluation.
        conversational: Prompts are messages, not text.
        reference_device: The device of the reference; None = the device of the policy.
        all_prompts: The prompt rows of training, and those of evaluation if training evaluates.
    """

    prompts: list[PromptRow]
    eval_prompts: list[PromptRow] | None
    rewards: list[Reward]
    conversational: bool
    reference_device: torch.device | None
    all_prompts: list[PromptRow]


def check_inputs(
    args: ALTConfig,
    reward_funcs: RewardFunction | Sequence[RewardFunction] | None,
    train_dataset: Iterable[Mapping[str, Any]] | None,
    eval_dataset: Iterable[Mapping[str, Any]] | None,
) -> Inputs:
    """Check a trainer's arguments, make the run's folder, and write the rewards' names into `args`.

    Raises:
        UserError: the processes, the folder, the prompts or the rewards cannot be used.
    """
    if args.n_gpu > 1:
        raise UserError("several GPUs in one process: start with `torchrun --nproc_per_node N -m nlf train …` instead")
    check_world(args)
    check_sampler(args)
    reference_device = known_device(args.reference_device)
    files.make_folder(folder_of(args))
    prompts = load_prompts("embedded") if train_dataset is None else as_prompts(train_dataset)
    eval_prompts = None if eval_dataset is None else as_prompts(eval_dataset)
    if eval_prompts is None:
        args.eval_strategy = type(args.eval_strategy)("no")
        choose_metric(args)
        if args.eval_on_start:
            raise UserError("eval_on_start needs evaluation prompts; give eval_dataset, or leave eval_on_start out")
    elif len(eval_prompts) < args.world_size:
        raise UserError(
            f"{len(eval_prompts)} evaluation prompts for {args.world_size} processes; give at least one prompt a process"
        )
    rewards = _resolved_rewards(args, args.reward_funcs if reward_funcs is None else reward_funcs)
    check_metric(args, rewards)
    read = prompts + eval_prompts if eval_prompts and args.evaluates else prompts
    return Inputs(prompts, eval_prompts, rewards, all_conversations(read), reference_device, read)


def folder_of(args: ALTConfig) -> Path:
    """The run's folder."""
    assert args.output_dir is not None  # TrainingArguments fills it in
    return Path(args.output_dir)


def _resolved_rewards(args: ALTConfig, given: RewardFunction | Sequence[RewardFunction]) -> list[Reward]:
    """Load the rewards, and name them in `args.reward_funcs` and `args.attributes`."""
    # a list of the same types as `given`, which mypy does not see
    functions = cast("list[RewardFunction]", [*given] if isinstance(given, (list, tuple)) else [given])
    rewards = [resolve_reward(function) for function in functions]
    configure(config.remote_options(args))
    check_weights(rewards, args.reward_weights)
    named = zip(functions, rewards, strict=True)
    args.reward_funcs = [function if isinstance(function, str) else reward.name for function, reward in named]
    if args.attributes:
        if len(rewards) != len(args.attributes):
            raise UserError(
                f"{len(rewards)} rewards for {len(args.attributes)} attributes; give one for each, in order"
            )
        pairs = zip(args.attributes, args.reward_funcs, strict=True)
        args.attributes = [{**attribute, "reward": name} for attribute, name in pairs]
    check_judges(rewards, args)
    return rewards


def scheme_of(args: ALTConfig, conversational: bool) -> TagScheme:
    """The run's tags. Conversations have no separator, because their feedback goes into the system message."""
    return TagScheme(tuple(args.tags), args.tag_template, None if conversational else args.separator)


def feedback_of(args: ALTConfig, scheme: TagScheme, rewards: Sequence[Reward]) -> Feedback:
    """The rules that turn rewards into quantiles and words."""
    attributes = None
    if args.attributes:
        own = config.attributes_of(args.attributes)
        attributes = AttributeRules(own, args.attribute_template, args.feedback_sampling)
    return make_feedback(
        scheme, reward_names(rewards), seed=args.seed,
        rules=RewardRules(args.quantile_rule, args.quantile_scope, args.reward_weights, args.reward_normalization),
        sentences=any(reward.returns_judgements for reward in rewards),
        attributes=attributes,
    )  # fmt: skip


def encoder_of(
    args: ALTConfig,
    inputs: Inputs,
    feedback: Feedback,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    max_prompt_length: int | None,
) -> PromptEncoder:
    """The encoder of prompts with feedback. It cuts judges' sentences, so that prompt and completion fit the context.

    Raises:
        UserError: a prompt does not fit into the model's context.
    """
    encoder = PromptEncoder(tokenizer, feedback.scheme, max_prompt_length)
    room = encoder.check_fits(
        inputs.all_prompts,
        getattr(model_config.get_text_config(), "max_position_embeddings", None),
        args.max_completion_length,
        [feedback.longest(encoder.length)],
    )
    longest = args.max_feedback_length
    spared = max(LEAST_ROOM - args.max_completion_length, 0)
    encoder.max_feedback_length = longest if room is None else min(longest, room - spared)
    return encoder


def pool_dataset_of(args: ALTConfig) -> PoolDataset:
    """The training set, which is filled before each epoch."""
    return PoolDataset(
        args.steps_per_iteration,
        args.total_batch_size,
        seed=args.seed,
        contrast=args.contrast_coef != 0,
        weights=args.quantile_weights,
    )
