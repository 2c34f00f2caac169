"""ALTTrainer: a transformers Trainer in which every epoch is one iteration of the method.

    from nlf import ALTConfig, ALTTrainer
    trainer = ALTTrainer("gpt2", reward_funcs=my_reward, args=ALTConfig(output_dir="run"), train_dataset=prompts)
    trainer.train()

Trainer does optimisation, precision, distribution, trackers and checkpoints. This module adds the loss, a new pool of
rollouts before each epoch (`iteration.py`), evaluation by sampling, and a resume that gives the same bits.
docs/method.md lists the departures from the published code.
"""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput

from nlf import config
from nlf.data import checkpoints, files, run_folder
from nlf.data.generations import Generation
from nlf.data.locks import locked_folder
from nlf.data.progress import progress_bar
from nlf.data.prompts import EMBEDDED_PROMPTS, PromptRow, as_prompts, numbered
from nlf.errors import UserError
from nlf.evaluation.pipeline import metrics_of
from nlf.method.losses import Coefficients, StepTotals, alt_loss
from nlf.models.dropout import check_training_mode
from nlf.models.encoder import PADDING, pass_tokens
from nlf.models.policy import Policy, load_model
from nlf.models.reading import LogitsPlan, plan_logits
from nlf.models.sharding import load_whole, place_reference, skeleton, trainable_digest
from nlf.rewards import Reward
from nlf.sampling import Sampler
from nlf.sampling.rollout_table import PromptSampler
from nlf.training.arguments import check_measured
from nlf.training.auditing import AuditWatch, prompt_means
from nlf.training.batches import Group, PoolDataset, collate
from nlf.training.collector import RolloutCollector, Scoring, Source
from nlf.training.completions import tell_evaluation, tell_iteration
from nlf.training.config import ALTConfig, compile_for_all_shapes
from nlf.training.console import Console
from nlf.training.credit import Credited, CreditRules, credit_of
from nlf.training.evaluation import (
    REFERENCE,
    add_scores,
    evaluated_lines,
    evaluation_metrics,
    kept_random_state,
    pool_lines,
    pool_statistics,
    scores_of,
    warn_of_unscored,
)
from nlf.training.hub import Hub
from nlf.training.inputs import (
    CONTEXT,
    RewardFunction,
    check_inputs,
    credit_rules,
    encoder_of,
    feedback_of,
    folder_of,
    logged_writer,
    policy_of,
    pool_dataset_of,
    tell_choices,
    worst_of,
)
from nlf.training.iteration import run_iteration
from nlf.training.logged import all_steps
from nlf.training.loss_sums import (
    LoggedMetrics,
    LossSums,
    averages,
    contrasts,
    controllers_of,
    first_coefficients,
    fixed_coefficients,
    moved_coefficients,
    weights,
)
from nlf.training.objective import completion_stats, loss_of_groups
from nlf.training.ranks import Ranks
from nlf.training.resuming import choose_checkpoint
from nlf.training.run_policy import RunPolicy
from nlf.training.settings import Stamp, run_settings
from nlf.training.stages import StagedTrainer, is_alone, plain_settings, plain_stage
from nlf.training.stopping import StopSignal
from nlf.training.vllm_weights import share

logger = logging.getLogger(__name__)


class ALTTrainer(StagedTrainer):
    """Train a causal language model on its own completions, conditioned on words for their quality.

    Args:
        model: A causal LM, a folder or hub id, or "embedded".
        reward_funcs: One or several rewards: TRL reward functions, names, dotted paths. Default: `args.reward_funcs`.
        args: The settings.
        train_dataset: Rows with a `prompt` (text or messages); other columns reach the rewards. Default: embedded.
        eval_dataset: Rows that `evaluate` samples.
        processing_class: The tokenizer; needed if `model` is an object.
        peft_config: LoRA; the reference is then the model with its adapter off.
        reference_model: The frozen reference; default: a copy of `model`.
        disable_dropout: Train without dropout, as in the published code.
        max_prompt_length: Keep the last tokens of longer texts, and the latest turns of longer conversations.

    Attributes:
        options: Settings that `config.yaml` records beside `args`: the model and the data, in the names of the command line,
            which sets its own before `train`.

    Raises:
        UserError: settings, prompts or rewards cannot be used; the error names the mistake and what to do.
    """

    args: ALTConfig
    train_dataset: PoolDataset

    def __init__(
        self,
        model: PreTrainedModel | str = "embedded",
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        args: ALTConfig | None = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config=None,
        reference_model: PreTrainedModel | None = None,
        disable_dropout: bool = True,
        max_prompt_length: int | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers=(None, None),
    ):
        args = args or ALTConfig()
        plain = plain_settings(args)
        self.inputs = check_inputs(args, reward_funcs, train_dataset, eval_dataset)
        if isinstance(model, str):
            model, processing_class = load_model(model)
        if processing_class is None:
            raise UserError("processing_class is missing: give the tokenizer that belongs to the model")
        tell_choices(args, model, lora=peft_config is not None or hasattr(model, "peft_config"))
        self.plain_stage = plain_stage(
            plain, optimizers, model=model, processing_class=processing_class, peft_config=peft_config,
            reference_model=reference_model, disable_dropout=disable_dropout, max_prompt_length=max_prompt_length,
            callbacks=callbacks,
        )  # fmt: skip
        self.policy = policy_of(
            args, self.inputs, model, processing_class,
            peft_config=peft_config, reference_model=reference_model, disable_dropout=disable_dropout,
        )  # fmt: skip
        self.scheme = self.policy.scheme
        self.feedback = feedback_of(args, self.scheme, self.inputs)
        self.encoder = encoder_of(args, self.inputs, self.feedback, self.policy, max_prompt_length)
        self._start_state(args)
        self.options |= {"max_prompt_length": max_prompt_length, "disable_dropout": disable_dropout}
        if self.policy.identity.name:
            self.options["model_name_or_path"] = self.policy.identity.name
        elif args.distill:
            raise UserError(
                "distill: the student starts from the model's files, and this model has none; save and load it"
            )
        limit = pass_tokens(args.device, is_alone(args))
        super().__init__(
            model=self.policy.model,
            args=args,
            data_collator=partial(collate, pad_id=PADDING, pass_tokens=limit),
            train_dataset=pool_dataset_of(args, self.inputs.logged),
            eval_dataset=self.inputs.eval_prompts,
            processing_class=self.policy.tokenizer,
            callbacks=[*callbacks],
            optimizers=optimizers,
        )
        self.add_callback(IterationCallback(self))
        Console(
            "plain model" if args.plain == "only" else "training", args.steps_per_iteration, self.inputs.auditor_labels
        ).show_in(self)
        self.loss_is_scaled_for_ga, self.model_accepts_loss_kwargs = True, False
        if disable_dropout:
            check_training_mode(self.policy.model)
        self._place_models()

    def _start_state(self, args: ALTConfig) -> None:
        """Set the state that training changes and a checkpoint keeps, and the sums for log lines."""
        self.run_dir = folder_of(args)
        self.options = self.inputs.recorded(self.run_dir)
        self.hub = Hub(args) if args.push_to_hub else None
        self.credit_rules = credit_rules(args, self.inputs.rewards) if args.credit_coef else None
        self.credit_scale: float | None = None
        self.coefficients = first_coefficients(args)
        self.rollout_digests: list[str | None] = []  # digests of the weights that each iteration samples
        self.recorded: dict[str, Any] = {}  # the settings and facts that a checkpoint keeps
        self.started_at = 0  # the step that the run resumes from
        self.saved_at: int | None = None  # the step of the last checkpoint that this process wrote
        self.watch = AuditWatch()
        self.stop = StopSignal()
        self.log_sums, self.step_sums = LossSums(), LossSums()
        self.reward_metrics = LoggedMetrics()

    def _place_models(self) -> None:
        """Prepare sharding, compilation and the reference, once Trainer knows the accelerator."""
        load_whole()
        compile_for_all_shapes(self.accelerator)
        device = self.inputs.reference_device
        self.skeleton = skeleton(self.policy, self.accelerator)
        reference = place_reference(self.policy.reference_model, self.accelerator, device)
        self.policy.reference_model = cast("PreTrainedModel | None", reference)  # sharded, it is called like the model
        self.run_policy = RunPolicy(self.policy, self.skeleton, device, self.args, self.accelerator)
        self.eos_ids = torch.tensor(self.policy.eos_token_ids)  # these tokens do not count in the contrast
        self.ranks = Ranks(
            share(self.args), self.args.process_index == 0, self.accelerator.wait_for_everyone, self.stop.exit_if_asked
        )

    # ---- one call -------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run all iterations and write the model into the run's folder. Then distill it if `distill` is set, and train the
        plain model if `plain` is true.

        Args:
            resume_from_checkpoint: A checkpoint's folder; or True: the newest whole checkpoint, or the start if there is
                none. `resuming.py` says when a checkpoint is whole.

        Returns:
            Trainer's output of the first stage.

        Raises:
            UserError: the folder holds another run or is being written by another command, the settings changed in a way
                that would change the result, or the checkpoint is not whole.
            SystemExit: SIGTERM came; a checkpoint is saved.
        """
        with locked_folder(self.run_dir):
            own, plain = self.checkpoints_to_resume(resume_from_checkpoint)
            result = self._train(own, trial, ignore_keys_for_eval)
            if self.args.distill:
                self.distill()
            if self.plain_stage:
                self.train_plain(plain)
            return result

    def _train(self, resume_from_checkpoint: str | bool | None, trial, ignore_keys: list[str] | None) -> TrainOutput:
        """The iterations of `train`, under the lock of the run's folder."""
        own, facts = run_settings(self.args, self.options), self.facts()
        if self.is_world_process_zero():
            run_folder.claim(self.run_dir, own, facts, bool(resume_from_checkpoint))
            self.inputs.write_prompts(self.options, self.run_dir)
            writer = logged_writer(self.args, self.inputs, self.policy, self.encoder, self.feedback, self.scoring())
            writer.write(self.run_dir, self.sampling_digest(), self._tell)
            if self.hub:
                self.hub.create()
        self.recorded = {name: value for name, value in (own | facts).items() if name not in run_folder.FREE}
        self.accelerator.wait_for_everyone()
        checkpoint = None
        if resume_from_checkpoint:
            looks = self.args.should_save  # the first rank, or the first rank of each machine
            checkpoint = choose_checkpoint(resume_from_checkpoint, self.record(), looks=looks, tell=self._tell)
        if checkpoint is not None:
            state = checkpoints.loop_state(checkpoint)
            self.restore(state)
            if state.get("ended") and resume_from_checkpoint is True:
                self.args.max_steps = self.started_at
                self._tell(f"a callback ended the run at {checkpoint}; give this folder to train on")
        if self.is_world_process_zero():
            run_folder.truncate_metrics(self.run_dir, self.started_at)
        with self.stop.listening(), all_steps(self.args):
            result = super().train(str(checkpoint) if checkpoint else None, trial, ignore_keys)
        self.stop.exit_if_asked()
        self.finish()
        return result

    # ---- the loss -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of docs/method.md over one micro-batch, divided by the counts of the whole step."""
        return loss_of_groups(inputs["groups"], partial(self.group_loss, model), self.accelerator.backward)

    def group_loss(self, model, group: Group) -> torch.Tensor:
        """The part of the step's loss that comes from one group of examples; its sums go to the log."""
        labels, mask = group["labels"], group["completion_mask"]  # (B, T)
        with self.accelerator.autocast():
            branches = completion_stats(
                model, self.policy.reference_module(), group, self.logits_plan,
                excluded_ids=self.policy.added_token_ids, kl_direction=self.args.kl_direction,
                stop_ids=self.policy.eos_token_ids if self.credit_rules else (),
                reference_device=self.inputs.reference_device,
            )  # fmt: skip
        loss, sums = alt_loss(
            branches[0], mask, branches[1] if len(branches) > 1 else None,
            totals=StepTotals(group["num_tokens"], group["num_completions"]),
            coefficients=Coefficients(**fixed_coefficients(self.args), **weights(self.coefficients)),
            contrast_mask=~torch.isin(labels, self.eos_ids.to(labels.device)),
            credit=group["credit"],
        )  # fmt: skip
        sums["kl"] = sums["kl"] / len(branches)  # the log shows the KL of one branch
        parts = {name: float(value) for name, value in sums.items()}
        parts |= {"tokens": float(mask.sum()), "completions": float(len(labels))}
        self.log_sums.add(parts)
        self.step_sums.add(parts)
        # Ranks' gradients are averaged, and the denominators already count every rank.
        return loss * self.accelerator.num_processes

    @functools.cached_property
    def logits_plan(self) -> LogitsPlan:
        """How policy and reference compute logits, found in the first step; sharded models return all logits."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return LogitsPlan()
        return plan_logits(self.policy.model, self.policy.reference_module())

    def adapt(self) -> None:
        """After each step, move beta and entropy_coef by the controllers that are switched on."""
        sums, controllers = self.step_sums.take(), controllers_of(self.args)
        if controllers:
            sums = self._over_ranks(sums)
            self.coefficients = moved_coefficients(self.coefficients, controllers, sums, self.args.total_batch_size)

    def _over_ranks(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Add the sums of all ranks; every rank calls this with the same names in the same order."""
        local = torch.tensor([*sums.values()], dtype=torch.float64, device=self.args.device)
        return dict(zip(sums, self.accelerator.reduce(local, "sum").tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does and into metrics.jsonl, with averages of the loss's parts since the last log line."""
        if "loss" in logs:
            sums = self._over_ranks(self.log_sums.take())
            logs = {**logs, **averages(sums, contrast=contrasts(self.args)), **weights(self.coefficients)}
        super().log(logs, start_time)
        claimed = (self.run_dir / run_folder.CONFIG).is_file()  # an evaluation before `train` has no run to log to
        if self.is_world_process_zero() and claimed:
            path = self.run_dir / run_folder.METRICS
            line = files.json_text({**logs, "step": self.state.global_step})
            with files.writing(path), open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    # ---- the iteration --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Before each epoch, collect this iteration's rollouts and draw the epoch's examples from the pool."""
        iteration, offset = divmod(self.state.global_step, self.args.steps_per_iteration)
        if offset == 0:  # a run resumed within an iteration keeps the digest of the weights that sampled its rollouts
            self.rollout_digests[iteration:] = [trainable_digest(self.policy.model)]
        with self.run_policy.sampling(iteration, self.is_outdated(iteration)) as (model, sampler):
            labelled = run_iteration(
                self.collector(iteration, model, sampler), seed=self.args.seed, pool_keep=self.args.pool_keep,
                prompts_per_iteration=self.args.prompts_per_iteration, logged_iterations=self.args.logged_iterations,
            )  # fmt: skip
        credit = self.credit(iteration, self.credit_rules) if self.credit_rules else None
        if credit:  # it is that of the policy which sampled, so earlier iterations are not trained on again
            labelled = labelled.only(iteration)
        self.train_dataset.refresh(
            *labelled,
            self.encoder,
            iteration,
            self.inputs.conversations(self.run_dir),
            credit.tokens if credit else None,
        )
        if offset == 0:
            pool, quantiles, _ = labelled
            if self.is_world_process_zero():
                longest = None if self.inputs.kind == EMBEDDED_PROMPTS else self.args.max_completion_length
                for line in pool_lines(pool, iteration, self.feedback, worst_of(self.inputs.rewards), longest):
                    logger.warning("%s", line)
                tell_iteration(self, iteration)
            logs = pool_statistics(pool, quantiles, iteration, self.feedback) | self.reward_metrics.take()
            self.log(logs | (credit.logs if credit else {}))

    def credit(self, iteration: int, rules: CreditRules) -> Credited:
        """The credit of an iteration's rollouts; the first iteration fixes the scale."""
        found = credit_of(self.run_dir, iteration, rules, self.credit_scale, write=self.is_world_process_zero())
        self.credit_scale = found.scale
        return found

    def collector(self, iteration: int, model: Policy, sampler: Sampler) -> RolloutCollector:
        """Collects the rollouts of an iteration from `sampler`, which samples `model`."""
        args = self.args
        digest = next(iter(self.rollout_digests[iteration:]), None)
        stamp = Stamp(iteration, iteration * args.steps_per_iteration, digest, self.sampling_digest())
        prefixes = self.credit_rules is not None and bool(self.credit_rules.by_prefix)
        drawn = PromptSampler(model, self.encoder, sampler, config.sampling_options(args), args.seed, prefixes)
        return RolloutCollector(
            self.run_dir,
            self.inputs.prompts,
            args.prompts_per_part,
            Source(stamp, drawn, self.is_outdated(iteration)),
            self.scoring(),
            self.feedback,
            self.ranks,
            quiet=self._quiet(),
        )

    def scoring(self, scorers: Sequence[Reward] | None = None) -> Scoring:
        """The rewards, or other scorers, and the arguments of their calls. With several ranks, the first rank calls the
        remote ones.
        """
        rewards = self.inputs.rewards if scorers is None else scorers
        remote = [reward for reward in rewards if reward.remote and self.args.world_size > 1]
        context = dict(zip(CONTEXT, (self.state, self.reward_metrics.add), strict=True))
        return Scoring(rewards, self.args.reward_weights, remote, self.encoder.sentence, context)

    def is_outdated(self, iteration: int) -> bool:
        """Whether training has changed the weights that an iteration samples; iteration 0 samples the frozen reference."""
        return iteration > 0 and self.state.global_step != iteration * self.args.steps_per_iteration

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample the evaluation prompts under the best tag, score and measure the completions."""
        prompts = self.inputs.eval_prompts if eval_dataset is None else as_prompts(eval_dataset)
        if prompts is None:
            raise UserError("there are no evaluation prompts; give eval_dataset")
        if eval_dataset is not None:
            self.encoder.check(prompts)
        lines, rewards, auditors = self.evaluated(prompts), self.inputs.rewards, self.inputs.auditors
        found = metrics_of(lines, rewards, self.args.reward_weights, REFERENCE, auditors=auditors)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in evaluation_metrics(found).items()}
        check_measured(self.args, metrics, metric_key_prefix)
        self.log(metrics)
        if eval_dataset is None and min(self.args.reward_weights or [1]) >= 0:
            for line in self.watch.add(prompt_means(found, self.inputs.auditor_labels)):
                self._tell(line)
        if self.is_world_process_zero():
            tell_evaluation(self, lines, found, metric_key_prefix)
            warn_of_unscored(evaluation_metrics(found), rewards, lines)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluated(self, prompts: Sequence[PromptRow]) -> list[Generation]:
        """A line per prompt with completions, scores and likelihoods; the ranks share the prompts."""
        own = slice(self.args.process_index, None, self.args.world_size)
        mine, scoring, audits = numbered(prompts)[own], self.scoring(), self.scoring(self.inputs.auditors)
        tag = self.scheme.best if self.scheme else None
        options = config.eval_sampling_options(self.args)
        advance = progress_bar("evaluating", len(mine) * options.num_generations, hidden=self._quiet())
        with self.run_policy.evaluating() as policy, self.run_policy.open_sampler(policy) as sampler:
            drawn = PromptSampler(policy, self.encoder, sampler, options, self.args.seed)
            lines = evaluated_lines(drawn, mine, tag, scoring.local, advance, scoring.context, audits.local)
        lines = self._gathered(lines, range(len(prompts))[own])
        if remote := [*scoring.by_first, *audits.by_first]:
            scores = partial(scores_of, lines, remote, scoring.context)
            with kept_random_state():
                add_scores(lines, self.ranks.from_first(self.run_dir / ".remote-scores.json", scores))
        return lines

    def _gathered(self, lines: list[Generation], order: Iterable[int]) -> list[Generation]:
        """The lines of all ranks, sorted by their places `order` among the prompts."""
        if self.args.world_size == 1:
            return lines
        shards = gather_object(list(zip(order, lines, strict=True)))
        return [line for _, line in sorted(shards, key=lambda shard: shard[0])]

    def _quiet(self) -> bool:
        """Whether this rank shows no progress bars."""
        return self.args.disable_tqdm or not self.is_world_process_zero()


class IterationCallback(TrainerCallback):
    """Calls the trainer at Trainer's events: a new pool before each epoch, checkpoints, a clean stop."""

    def __init__(self, trainer: ALTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        best = self.trainer.run_dir / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None  # the run's folder may have moved since

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Rewards may draw random numbers. Dropout must not see that, because a resumed run calls them for fewer parts.
        with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
            self.trainer.refresh()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.adapt()
        if self.trainer.stop.reached_any(self.trainer.accelerator):
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        # Save at the very end; and before the next iteration samples, unless save_steps says when to save.
        due = args.save_strategy != SaveStrategy.STEPS or control.should_training_stop
        control.should_save = due and self.trainer.saved_at != state.global_step
        whole = state.global_step % args.steps_per_iteration == 0  # a stop within an iteration comes before evaluation
        control.should_evaluate = control.should_evaluate and (whole or not self.trainer.stop.asked)
        return control
