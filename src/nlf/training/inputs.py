"""A trainer's inputs: check prompts and rewards, and build the feedback, the encoder and the data set from them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlf import config
from nlf.data import files, run_folder
from nlf.data.feedback import AttributeRules, Feedback, RewardRules, make_feedback
from nlf.data.files import EMBEDDED
from nlf.data.logged import Logged, understand
from nlf.data.prompts import (
    CONVERSATIONS,
    EMBEDDED_PROMPTS,
    TEXT,
    PromptRow,
    all_conversations,
    as_prompts,
    kind_of,
    load_prompts,
    other_columns,
    write_prompts,
)
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import set_defaults
from nlf.models.encoder import PromptEncoder, scheme_for
from nlf.models.fit import fitted_tokenizer
from nlf.models.identity import identity_of, is_widened
from nlf.models.memory import WHOLE_STEP
from nlf.models.names import gguf_digest
from nlf.models.policy import Policy, prepare_policy
from nlf.rewards import Reward, check_calls, check_weights, reward_names
from nlf.rewards.auditors import auditors_of
from nlf.rewards.registry import configure, recorded_spec, recorded_version, resolve_reward, without_version
from nlf.rewards.words import default_tags
from nlf.training.arguments import check_metric, choose_metric
from nlf.training.batches import PoolDataset
from nlf.training.collector import Scoring
from nlf.training.config import ALTConfig, check_judges, check_world, known_device
from nlf.training.credit import CreditRules, by_prefix, credit_lines
from nlf.training.logged import (
    Conversations,
    LoggedWriter,
    described,
    dials_of,
    logged_conversations,
    names_in_pool,
    rule_of,
    tags_of,
)
from nlf.training.vllm_weights import check_sampler

logger = logging.getLogger(__name__)

RewardFunction = str | Callable | Reward
# A judge's sentence leaves room for this many tokens of a completion at least. The stamps of runs with judges hold the
# sentence's limit, so another number would make older runs impossible to resume.
LEAST_ROOM = 20
CONTEXT = ("trainer_state", "log_metric")  # what TRL's trainers offer to rewards; `log_extra` has no columns here


@dataclass(frozen=True)
class Inputs:
    """The prompts and rewards of a run.

    Attributes:
        prompts: The prompt rows to train on, at least one.
        eval_prompts: The prompt rows that evaluation samples; None = there is no evaluation.
        auditors: Scorers that evaluation logs and nothing trains on.
        kind: The kind of the prompts, by `kind_of`.
        reference_device: The device of the reference; None = the device of the policy.
        all_prompts: The prompt rows of training, and those of evaluation if training evaluates.
        embedded: The prompts to train on are the embedded ones.
        logged: The logged feedback to train on; None = none.
    """

    prompts: list[PromptRow]
    eval_prompts: list[PromptRow] | None
    rewards: list[Reward]
    auditors: list[Reward]
    kind: str
    reference_device: torch.device | None
    all_prompts: list[PromptRow]
    embedded: bool = False
    logged: Logged | None = None

    @property
    def conversational(self) -> bool:
        """Whether prompts are messages, not text."""
        return self.kind == CONVERSATIONS

    @property
    def auditor_labels(self) -> list[str]:
        return [auditor.label for auditor in self.auditors]

    def conversations(self, run_dir: Path) -> Conversations | None:
        """The messages of each prompt id to train on, those of logged feedback included; None if prompts are text."""
        if not self.conversational:
            return None
        found = logged_conversations(run_dir)
        found.update({row["prompt_id"]: row["prompt"] for row in self.prompts if isinstance(row["prompt"], list)})
        return found

    def facts(self) -> dict[str, Any]:
        """What the result depends on besides the settings, and earlier versions did not record."""
        return {"feedback_rows": self.logged.digest} if self.logged else {}

    def recorded(self, run_dir: Path) -> dict[str, Any]:
        """The sources that `config.yaml` names: data sets from Python are files in the run's folder."""
        given = {"dataset_name": not self.embedded, "eval_dataset": self.eval_prompts is not None}
        files_of = {name: str(run_dir / file) for name, file in run_folder.RECORDED.items()}
        named = {name: files_of[name] if given[name] else None for name in files_of}
        return named | ({"dataset_name": EMBEDDED} if self.embedded else {})

    def write_prompts(self, sources: Mapping[str, Any], run_dir: Path) -> None:
        """Write the data sets from Python, unless they are there, into the files that `recorded` named."""
        for name, rows in (("dataset_name", self.prompts), ("eval_dataset", self.eval_prompts)):
            path = run_dir / run_folder.RECORDED[name]
            if rows and sources.get(name) == str(path) and not path.exists():
                left_out = write_prompts(path, rows)
                if left_out:
                    logger.warning(
                        "%s lacks the columns %s, whose values are not JSON: `nlf evaluate` will not have them",
                        path,
                        ", ".join(left_out),
                    )


def check_inputs(
    args: ALTConfig,
    reward_funcs: RewardFunction | Sequence[RewardFunction] | None,
    train_dataset: Iterable[Mapping[str, Any]] | None,
    eval_dataset: Iterable[Mapping[str, Any]] | None,
) -> Inputs:
    """Check a trainer's arguments, make the run's folder, and write the rewards' names and the tags into `args`.

    Raises:
        UserError: the processes, the folder, the prompts or the rewards cannot be used.
    """
    if args.n_gpu > 1:
        raise UserError("several GPUs in one process: start with `torchrun --nproc_per_node N -m nlf train …` instead")
    check_world(args)
    check_sampler(args)
    reference_device = known_device(args.reference_device)
    files.make_folder(folder_of(args))
    run_folder.check_free(folder_of(args), resume=True)  # `train` knows whether it resumes
    prompts = load_prompts(EMBEDDED) if train_dataset is None else as_prompts(train_dataset)
    eval_prompts = _eval_prompts(args, eval_dataset)
    logged = understand(args.feedback, args.feedback_columns) if args.feedback else None
    rewards = _resolved_rewards(args, args.reward_funcs if reward_funcs is None else reward_funcs, logged)
    auditors = _resolved_auditors(args, rewards)
    columns = {name for row in prompts + (eval_prompts or []) for name in other_columns(row)}
    check_calls([*rewards, *auditors], columns, CONTEXT)
    read = prompts if args.num_train_epochs else []  # a run on logged feedback alone samples no training prompts
    read = [*read, *(eval_prompts or [] if args.evaluates else [])]
    kind = _kind(read, logged)
    _choose_length(args, kind)
    if logged:
        _take_logged(args, logged)
    return Inputs(
        prompts, eval_prompts, rewards, auditors, kind, reference_device, read, train_dataset is None, logged
    )  # fmt: skip


def _eval_prompts(args: ALTConfig, dataset: Iterable[Mapping[str, Any]] | None) -> list[PromptRow] | None:
    """The prompts of evaluation; without any, `args` evaluates nothing.

    Raises:
        UserError: there are none where an evaluation is asked for, or fewer than processes.
    """
    prompts = None if dataset is None else as_prompts(dataset)
    if prompts is None:
        args.eval_strategy = type(args.eval_strategy)("no")
        choose_metric(args)
        if args.eval_on_start:
            raise UserError("eval_on_start needs evaluation prompts; give eval_dataset, or leave eval_on_start out")
    elif len(prompts) < args.world_size:
        raise UserError(
            f"{len(prompts)} evaluation prompts for {args.world_size} processes; give at least one prompt a process"
        )
    return prompts


def _kind(rows: Sequence[PromptRow], logged: Logged | None) -> str:
    """The kind of the prompts of a run.

    Raises:
        UserError: the run mixes text and messages.
    """
    if logged is None:
        all_conversations(rows)  # raises if they mix both kinds
        return kind_of(rows)
    kinds = {True: "messages", False: "text"}
    own = bool(logged.conversational)
    if rows and all_conversations(rows) != own:
        raise UserError(
            f"feedback holds {kinds[own]}, and the prompts of dataset_name or eval_dataset are {kinds[not own]}: give prompts that "
            f"are {kinds[own]}, or eval_strategy no"
        )
    return CONVERSATIONS if own else TEXT


def _take_logged(args: ALTConfig, logged: Logged) -> None:
    """Say what was understood of logged feedback, and let an iteration be one pass over it if the run does not sample."""
    if args.steps_per_iteration is None:
        args.steps_per_iteration = config.steps_of(len(logged), bool(args.num_train_epochs), args.total_batch_size)
    if args.process_index == 0:
        for line in (described(logged), *logged.lines()):
            logger.warning("feedback: %s", line)


def folder_of(args: ALTConfig) -> Path:
    """The run's folder."""
    assert args.output_dir is not None  # TrainingArguments fills it in
    return Path(args.output_dir)


def _resolved_rewards(
    args: ALTConfig, given: RewardFunction | Sequence[RewardFunction], logged: Logged | None = None
) -> list[Reward]:
    """Load the rewards, name them in `args.reward_funcs` and `args.attributes`, and choose the tags."""
    # a list of the same types as `given`, which mypy does not see
    functions = cast("list[RewardFunction]", [*given] if isinstance(given, (list, tuple)) else [given])
    rewards = [resolve_reward(function) for function in _as_recorded(functions, args, "rewards")]
    check_weights(rewards, args.reward_weights)
    args.reward_funcs = [recorded_spec(reward) for reward in rewards]
    config.fill_in(args, judged=any(reward.returns_judgements for reward in rewards))
    if args.attributes:
        if len(rewards) != len(args.attributes):
            raise UserError(
                f"{len(rewards)} rewards for {len(args.attributes)} attributes; give one for each, in order"
            )
        pairs = zip(args.attributes, args.reward_funcs, strict=True)
        args.attributes = [{**attribute, "reward": name} for attribute, name in pairs]
    _choose_tags(args, rewards, logged)
    if args.plain != "only":  # a plain run reads a judge's categories as numbers
        check_judges(rewards, args)
    if args.credit_coef:
        _tell_credit(args, rewards)
    return rewards


def _choose_length(args: ALTConfig, kind: str) -> None:
    """Fill in the length of completions if the person left it open; for prompts from elsewhere, say so."""
    if not config.fill_in_length(args, kind):
        return
    config.check_length(args)
    if args.process_index == 0 and kind != EMBEDDED_PROMPTS:
        told = "completions have at most %d tokens, the default for %s; set `max_completion_length` for another length"
        logger.warning(told, args.max_completion_length, kind)


def tell_choices(args: ALTConfig, model: PreTrainedModel, lora: bool) -> None:
    """Fill in what follows the size of the model, the batch and the learning rate of a run by credit, and say how it trains.

    Args:
        lora: Only an adapter is trained.
    """
    if args.process_index == 0:
        _tell_types(model, lora)
    size = sum(weight.numel() for weight in model.parameters())  # shared weights count once
    if args.open_batch:
        at_once = config.at_once(size, WHOLE_STEP.on(args.device))
        args.per_device_train_batch_size, args.gradient_accumulation_steps = at_once, config.STEP // at_once
    if not args.credit_coef:
        return
    parameters = None
    if args.learning_rate is None:
        parameters = size
        args.learning_rate = config.learning_rate(parameters, lora)
    if args.process_index == 0:
        steps = args.max_steps / args.steps_per_iteration if args.max_steps > 0 else args.num_train_epochs
        computed_in = config.precision(args.bf16, args.fp16)
        step = config.Step(args.total_batch_size, args.per_device_train_batch_size, computed_in)
        logger.warning("%s", config.choices(args, args.learning_rate, steps, step, parameters))


def _tell_types(model: PreTrainedModel, lora: bool) -> None:
    """Say that the weights are held in a larger type than that of their files, since bf16 loses small steps."""
    identity = identity_of(model)
    if not is_widened(model, identity):
        return
    stored, ours = (str(dtype).removeprefix("torch.") for dtype in (identity.dtype, model.dtype))
    end = f"merges the adapter into {stored}" if lora else f"leaves a model in {ours}"
    stored += " (unpacked from a quantized GGUF file)" if gguf_digest(identity.name) else ""
    logger.warning("%s is stored in %s; training holds its weights in %s, and %s", identity.name, stored, ours, end)


def _tell_credit(args: ALTConfig, rewards: Sequence[Reward]) -> None:
    """Say how each reward becomes the credit of tokens."""
    if args.attributes and args.plain != "only":  # a plain run trains the sum of their rewards
        raise UserError(
            "credit_coef: the credit of a token is of one reward or of a sum of rewards, and attributes have a reward each; "
            "set credit_coef 0, or give reward_funcs in place of attributes"
        )
    lines = credit_lines(args.credit, args.reward_normalization, rewards, args.num_generations)
    for line in lines if args.process_index == 0 else []:
        logger.warning("%s", line)


def _as_recorded(functions: list[RewardFunction], args: ALTConfig, name: str) -> list[RewardFunction]:
    """The scorers with the versions of the run in the folder: a run made with `local@1` goes on with it under `local`.

    Args:
        name: Where `run.json` has the labels of these scorers, `rewards` or `auditors`.
    """
    labels = run_folder.run_settings(folder_of(args)).get(name)
    if not isinstance(labels, list) or len(labels) != len(functions):
        return functions
    named = zip(functions, labels, strict=True)
    return [recorded_version(each, str(label)) if isinstance(each, str) else each for each, label in named]


def _resolved_auditors(args: ALTConfig, rewards: Sequence[Reward]) -> list[Reward]:
    """Load the auditors, name them in `args.audit_funcs`, and check that they choose no checkpoint."""
    named = args.audit_funcs
    if named is None:
        named = [without_version(recorded_spec(auditor)) for auditor in auditors_of(None, rewards)]
    auditors = auditors_of(_as_recorded([*named], args, "auditors"), rewards)
    configure(config.remote_options(args))
    args.audit_funcs = [recorded_spec(auditor) for auditor in auditors]
    check_metric(args, rewards, auditors)
    return auditors


def _choose_tags(args: ALTConfig, rewards: Sequence[Reward], logged: Logged | None) -> None:
    """Fill in `args.tags` if the person left it open: the tags that the run in the folder has, or those of logged feedback, or
    the reward's words.
    """
    of_logged = tags_of(logged, args, samples=bool(args.num_train_epochs)) if logged else None
    if args.tags is not None or args.plain == "only":
        return
    args.tags = run_folder.run_settings(folder_of(args)).get("tags")
    if args.tags is None:
        args.tags, why = of_logged or default_tags(rewards, args.reward_weights)
        if args.process_index == 0:
            logger.warning("tags, best first: %s (%s; set `tags` for other words)", ", ".join(args.tags), why)
    args.complete()
    args.check_together()


def policy_of(args: ALTConfig, inputs: Inputs, model: PreTrainedModel, processing_class: Any, **given: Any) -> Policy:
    """The model of a run, with the tokens of its tags and the variables of its chat template.

    Args:
        given: Other arguments of `prepare_policy`.

    Raises:
        UserError: see `prepare_policy`; or the chat template shows the tags nowhere, or has no such variable.
    """
    tokenizer = fitted_tokenizer(model, processing_class)
    set_defaults(tokenizer, args.chat_template_kwargs)
    scheme = _scheme_of(args, inputs, tokenizer)
    return prepare_policy(model, tokenizer, scheme, tag_tokens=args.tag_tokens, seed=args.seed, **given)


def _scheme_of(args: ALTConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> TagScheme | None:
    """The run's tags; None = the run trains a plain model."""
    if args.plain == "only":
        return None
    assert args.tags is not None  # `check_inputs` fills them in
    return scheme_for(
        tokenizer, [*inputs.all_prompts, *_first_logged(inputs.logged)], args.tags, template=args.tag_template,
        separator=args.separator, conversational=inputs.conversational, position=args.feedback_position,
    )  # fmt: skip


def feedback_of(args: ALTConfig, scheme: TagScheme | None, inputs: Inputs) -> Feedback:
    """The rules that turn rewards into quantiles and words."""
    rewards, logged, names = inputs.rewards, inputs.logged, reward_names(inputs.rewards)
    own, weights = config.attributes_of(args.attributes or []), args.reward_weights
    if logged and logged.shape.name == "ratings" and not own:
        own, weights = dials_of(logged), None
        names = [dial.name for dial in own]
    return make_feedback(
        scheme, names, seed=args.seed,
        rules=RewardRules(
            args.quantile_rule, args.quantile_scope, weights, args.reward_normalization,
            rule_of(logged, scheme.num_quantiles) if logged and scheme else None,
        ),
        sentences=any(reward.returns_judgements for reward in rewards) or bool(logged and logged.sentences),
        attributes=AttributeRules(own, args.attribute_template, args.feedback_sampling) if own else None,
        worst=worst_of(rewards),
        by_credit=args.credit_coef != 0,
    )  # fmt: skip


def worst_of(rewards: Sequence[Reward]) -> list[str]:
    """Names in the pool of the rewards whose None counts as the worst reward."""
    named = zip(reward_names(rewards), rewards, strict=True)
    return [name for name, reward in named if reward.none_is_worst]


def credit_rules(args: ALTConfig, rewards: Sequence[Reward]) -> CreditRules:
    """How the run's rewards become credit."""
    names = reward_names(rewards)
    weights = args.reward_weights or [1.0] * len(rewards)
    return CreditRules(
        dict(zip(names, weights, strict=True)), worst_of(rewards),
        by_prefix(args.credit, args.reward_normalization, rewards),
        args.credit_lambda, args.max_completion_length, args.reward_normalization,
    )  # fmt: skip


def encoder_of(
    args: ALTConfig,
    inputs: Inputs,
    feedback: Feedback,
    policy: Policy,
    max_prompt_length: int | None,
) -> PromptEncoder:
    """The encoder of prompts with feedback. It cuts judges' sentences, so that prompt and completion fit the context.

    Raises:
        UserError: the model cannot read a prompt, would read it without its tag, or has too small a context.
    """
    encoder = policy.encoder(max_prompt_length)
    encoder.check([*inputs.all_prompts, *_first_logged(inputs.logged)])
    room = encoder.check_fits(
        inputs.all_prompts,
        context_of(policy),
        args.max_completion_length,
        [feedback.longest(encoder.length)],
    )
    longest = args.max_feedback_length
    spared = max(LEAST_ROOM - args.max_completion_length, 0)
    encoder.max_feedback_length = longest if room is None else min(longest, room - spared)
    return encoder


def _first_logged(logged: Logged | None) -> list[PromptRow]:
    """The first prompts of logged feedback."""
    return as_prompts({"prompt": row.prompt} for row in logged.examples) if logged else []


def context_of(policy: Policy) -> int | None:
    """Tokens that the model can read; None = no limit is known."""
    return getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)


def logged_writer(
    args: ALTConfig, inputs: Inputs, policy: Policy, encoder: PromptEncoder, feedback: Feedback, scoring: Scoring
) -> LoggedWriter:
    """Writes the logged feedback of a run as parts of its pool."""
    names = names_in_pool(inputs.logged, args, reward_names(inputs.rewards)) if inputs.logged else []
    longest = feedback.longest(encoder.length)
    return LoggedWriter(
        inputs.logged, policy, encoder, names, longest, context_of(policy), args.max_completion_length, scoring
    )


def pool_dataset_of(args: ALTConfig, logged: Logged | None) -> PoolDataset:
    """The training set, which is filled before each epoch."""
    return PoolDataset(
        args.steps_per_iteration,
        args.total_batch_size,
        seed=args.seed,
        contrast=args.plain != "only" and (args.contrast_coef != 0 or args.credit_coef != 0),
        weights=None if args.credit_coef else args.quantile_weights,
        logged_share=args.feedback_share,
        pairs=bool(logged and logged.shape.name == "pairs"),
    )
