"""ALTTrainer: a transformers Trainer whose every epoch is one iteration of sample → score → pool → quantize → tag →
train.

    from nlf import ALTConfig, ALTTrainer
    trainer = ALTTrainer("gpt2", reward_funcs=my_reward, args=ALTConfig(output_dir="run"), train_dataset=prompts)
    trainer.train()

Trainer keeps optimisation, precision, distribution, trackers and checkpoints. Ours are the loss, the refresh of the
pool before each epoch, evaluation by sampling, and a resume that is exact. Departures from the published code:
docs/method.md.
"""

import contextlib
import functools
import json
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from nlf import config
from nlf.data import files
from nlf.data import run_folder as rundir
from nlf.data.feedback import AttributeRules, RewardRules, make_feedback
from nlf.data.files import digest
from nlf.data.pool import Pool
from nlf.data.progress import progress_bar
from nlf.data.prompts import NumberedPrompt, all_conversations, as_prompts, load_prompts, numbered
from nlf.data.rollouts import iteration_dir
from nlf.errors import UserError
from nlf.method import published
from nlf.method.losses import Coefficients, StepTotals, alt_loss
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder, pass_tokens
from nlf.models.identity import name_of
from nlf.models.policy import Policy, load_model, prepare_policy, save_policy, save_scheme
from nlf.models.reading import LogitsPlan, plan_logits
from nlf.models.sharding import (
    DTYPES,
    MODELS,
    load_whole,
    moved,
    place_reference,
    skeleton,
    trainable_digest,
    whole,
)
from nlf.rewards import Reward, check_weights, reward_names
from nlf.rewards.registry import configure, resolve_reward
from nlf.rewards.tables import score_table
from nlf.sampling import Sampler
from nlf.sampling.factory import sampler_of
from nlf.sampling.rollout_table import PromptSampler
from nlf.training.batches import Group, PoolDataset, collate
from nlf.training.config import ALTConfig, check_judges, check_world, compile_for_all_shapes, known_device
from nlf.training.evaluation import (
    add_scores,
    evaluated_lines,
    evaluation_metrics,
    log_completions,
    pool_statistics,
    scores_of,
)
from nlf.training.iteration import Loop, run_iteration, wait_for
from nlf.training.model_card import model_card
from nlf.training.objective import completion_stats, loss_of_groups
from nlf.training.vllm_weights import check_sampler, handed_over, share, start_model


class ALTTrainer(Trainer):
    """Train a causal language model on its own completions, conditioned on the words for how good they were.

    Args:
        model: A causal LM, a folder or hub id, or "embedded".
        reward_funcs: One or several rewards: TRL reward functions, names, dotted paths. Default: `args.reward_funcs`.
        args: The settings.
        train_dataset: Rows with a `prompt` (text or messages); other columns reach the rewards. Default: embedded.
        eval_dataset: Rows that `evaluate` samples from.
        processing_class: The tokenizer, where `model` is an object.
        peft_config: LoRA; the model with its adapter off is then the reference.
        reference_model: The frozen start; default: a copy of `model`.

    Raises:
        UserError: bad settings, prompts or rewards; the message says which and what to do.
    """

    def __init__(
        self,
        model="embedded",
        reward_funcs=None,
        args: ALTConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
        reference_model=None,
        disable_dropout: bool = True,
        max_prompt_length: int | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers=(None, None),
    ):
        args = args or ALTConfig()
        self.take_inputs(args, reward_funcs, train_dataset, eval_dataset)
        if isinstance(model, str):
            model, processing_class = load_model(model)
        if processing_class is None:
            raise UserError("processing_class is missing: give the tokenizer that belongs to the model")
        conversational = all_conversations(self.prompts + (self.eval_prompts or []))
        scheme = TagScheme(tuple(args.tags), args.tag_template, None if conversational else args.separator)
        self.policy = prepare_policy(
            model,
            processing_class,
            scheme,
            conversational=conversational,
            tag_tokens=args.tag_tokens,
            peft_config=peft_config,
            reference_model=reference_model,
            disable_dropout=disable_dropout,
            seed=args.seed,
        )  # fmt: skip
        self.eos_ids = torch.tensor(self.policy.eos_token_ids)  # they do not count in the contrast
        self.encoder = PromptEncoder(processing_class, scheme, max_prompt_length)
        self.feedback = make_feedback(
            scheme, reward_names(self.rewards), seed=args.seed,
            rules=RewardRules(
                args.quantile_rule, args.quantile_scope, args.reward_weights, args.reward_normalization
            ),
            sentences=any(reward.judges for reward in self.rewards),
            attributes=AttributeRules(args.attributes, config.JOINT, args.feedback_sampling) if args.attributes else None,
        )  # fmt: skip
        room = self.encoder.check_fits(
            self.prompts + (self.eval_prompts or []),
            getattr(model.config.get_text_config(), "max_position_embeddings", None),
            args.max_completion_length,
            [self.feedback.longest(self.encoder.length)],
        )
        longest = args.max_feedback_length
        self.encoder.max_feedback_length = longest if room is None else min(longest, room)
        alone = args.world_size == 1 and not args.deepspeed and not args.fsdp
        super().__init__(
            model=self.policy.model,
            args=args,
            data_collator=partial(
                collate, pad_id=processing_class.pad_token_id, pass_tokens=pass_tokens(args.device, alone)
            ),
            train_dataset=PoolDataset(
                args.steps_per_iteration, args.total_batch_size,
                seed=args.seed, contrast=args.contrast_coef != 0, weights=args.quantile_weights,
            ),
            eval_dataset=self.eval_prompts,
            processing_class=processing_class,
            callbacks=[*callbacks],
            optimizers=optimizers,
        )  # fmt: skip
        load_whole()
        compile_for_all_shapes(self.accelerator)
        self.add_callback(IterationCallback(self))
        self.loss_is_scaled_for_ga, self.model_accepts_loss_kwargs = True, False
        self.skeleton = skeleton(self.policy, self.accelerator)
        self.policy.reference_model = place_reference(
            self.policy.reference_model, self.accelerator, self.reference_device
        )
        self.coefficients = {"beta": args.beta, "entropy_coef": args.entropy_coef}
        self.sums: dict[str, float] = {}  # since the last log
        self.step_sums: dict[str, float] = {}  # of this optimizer step
        self.rollout_digest: str | None = None
        self.started_at, self.stopping = 0, False
        self.options: dict = {}  # of the command line, for config.yaml

    def take_inputs(self, args: ALTConfig, reward_funcs, train_dataset, eval_dataset) -> None:
        """Check and keep what was given: the folder, the prompts, the rewards.

        Raises:
            UserError: one of them is not usable.
        """
        if args.n_gpu > 1:
            raise UserError(
                "several GPUs in one process: start with `torchrun --nproc_per_node N -m nlf train …` instead"
            )
        check_world(args)
        check_sampler(args)
        self.reference_device = known_device(args.reference_device)
        self.run_dir = Path(args.output_dir)
        files.make_folder(self.run_dir)
        self.prompts = as_prompts(train_dataset if train_dataset is not None else load_prompts("embedded"))
        self.eval_prompts = as_prompts(eval_dataset) if eval_dataset is not None else None
        if self.eval_prompts is not None and len(self.eval_prompts) < args.world_size:
            raise UserError(
                f"{len(self.eval_prompts)} evaluation prompts for {args.world_size} processes; give at least one to each"
            )
        if self.eval_prompts is None:
            args.eval_strategy = type(args.eval_strategy)("no")
        rewards = reward_funcs if reward_funcs is not None else args.reward_funcs
        rewards = rewards if isinstance(rewards, (list, tuple)) else [rewards]
        self.rewards = [resolve_reward(reward) for reward in rewards]
        configure(config.remote_options(args))
        check_weights(self.rewards, args.reward_weights)
        args.reward_funcs = [r if isinstance(r, str) else self.rewards[i].name for i, r in enumerate(rewards)]
        if args.attributes:
            if len(rewards) != len(args.attributes):
                raise UserError(
                    f"{len(rewards)} rewards for {len(args.attributes)} attributes; give one for each, in order"
                )
            args.attributes = [
                {**each, "reward": name} for each, name in zip(args.attributes, args.reward_funcs, strict=True)
            ]
        check_judges(self.rewards, args)
        self.reward_metrics: dict[str, list[float]] = defaultdict(list)  # by `log_metric` of TRL's functions
        self.first_scores = args.world_size > 1 and any(reward.remote for reward in self.rewards)

    # ---- one call -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Run all iterations; with `resume_from_checkpoint`, go on from the last whole checkpoint, or from the start.

        Raises:
            UserError: the folder holds another run, or the settings changed in a way that would change the result.
        """
        resume = bool(resume_from_checkpoint)
        if self.is_world_process_zero():
            rundir.claim(self.run_dir, self.settings(), self.facts(), resume)
        self.accelerator.wait_for_everyone()
        found = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        if resume and found is None:
            found = rundir.last_complete_checkpoint(self.run_dir)
        if found is not None:
            self.restore(rundir.loop_state(Path(found)))
        if self.is_world_process_zero():
            rundir.truncate_metrics(self.run_dir, self.started_at)
        with self.stop_on_sigterm():
            result = super().train(resume_from_checkpoint=None if found is None else str(found), **kwargs)
        if self.stopping:
            raise SystemExit(143)
        self.finish()
        return result

    # ---- Trainer's hooks ------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of docs/method.md over one micro-batch, in units of the whole step."""
        return loss_of_groups(inputs["groups"], partial(self.group_loss, model), self.accelerator.backward)

    def group_loss(self, model, group: Group) -> torch.Tensor:
        """The share of one group of examples in the loss of the step; its sums are kept for the log."""
        labels, mask = group["labels"], group["completion_mask"]  # (B, T)
        with self.accelerator.autocast():
            branches = completion_stats(
                model, self.policy.reference_module(), group, self.logits_plan,
                excluded_ids=self.policy.added_token_ids, kl_direction=self.args.kl_direction,
                reference_device=self.reference_device,
            )  # fmt: skip
        loss, sums = alt_loss(
            branches[0], mask, branches[1] if len(branches) > 1 else None,
            totals=StepTotals(group["num_tokens"], group["num_completions"]),
            coefficients=Coefficients(self.args.nll_coef, self.args.contrast_coef, **self.coefficients),
            contrast_mask=~torch.isin(labels, self.eos_ids.to(labels.device)),
        )  # fmt: skip
        sums["kl"] = sums["kl"] / len(branches)  # logged for one branch
        for name, value in {**sums, "tokens": mask.sum(), "completions": torch.tensor(len(labels))}.items():
            for total in (self.sums, self.step_sums):
                total[name] = total.get(name, 0.0) + float(value)
        # Ranks' gradients are averaged, and the denominators already count every rank.
        return loss * self.accelerator.num_processes

    @functools.cached_property
    def logits_plan(self) -> LogitsPlan:
        """How policy and reference compute logits, found in the first step; sharded models return all logits."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return LogitsPlan()
        return plan_logits(self.policy.model, self.policy.reference_module())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the averages of the loss's parts since the last one."""
        if "loss" in logs:
            logs = {**logs, **self.drain_sums()}
        super().log(logs, start_time)
        if self.is_world_process_zero():
            line = json.dumps({**logs, "step": self.state.global_step}, default=float)
            with open(self.run_dir / rundir.METRICS, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample the evaluation prompts under the best tag, score and measure them; ranks share the
        work.
        """
        rows = self.eval_prompts if eval_dataset is None else as_prompts(eval_dataset)
        first, every = self.args.process_index, self.args.world_size
        mine = list(range(len(rows)))[first::every]
        prompts = numbered(rows)[first::every]
        tag, options = self.policy.scheme.best, config.eval_sampling_options(self.args)
        advance = self.bar("evaluating", len(prompts) * options.num_generations, 0)
        with self.evaluating() as policy, self.open_sampler(policy) as sampler:
            lines = evaluated_lines(
                PromptSampler(policy, self.encoder, sampler, options, self.args.seed),
                prompts, tag, self.rewards_here(), advance, self.reward_context(),
            )  # fmt: skip
        lines = self.gather_lines(lines, mine)
        if self.first_scores:
            add_scores(lines, self.scored_by_first(lines))
        results = evaluation_metrics(lines, self.rewards, self.args.reward_weights)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.items()}
        self.log(metrics)
        if self.is_world_process_zero():
            log_completions(lines, self.rewards, self.args.num_completions_to_print, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model, its tokenizer and its tags; no pickled `training_args.bin`, unlike Trainer."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
            self.processing_class.save_pretrained(folder)
            save_scheme(self.policy.scheme, folder)

    def _save_checkpoint(self, model, trial) -> None:
        """Trainer's checkpoint, marked when it is whole; older ones go only after that."""
        folder = self.run_dir / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            rundir.clear_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            rundir.mark_complete(folder, self.loop_state())
            rotate_checkpoints(str(self.run_dir), limit, self.state.best_model_checkpoint)

    # ---- the iteration --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Before each epoch: this iteration's rollouts, and the dataset drawn from the pool with them."""
        iteration, offset = divmod(self.state.global_step, self.args.steps_per_iteration)
        if offset == 0:  # otherwise resumed in the middle: these rollouts were sampled from earlier weights
            self.rollout_digest = trainable_digest(self.policy.model)
        stamp = {
            "iteration": iteration,
            "step": iteration * self.args.steps_per_iteration,
            "policy": self.rollout_digest,
            "settings": digest(self.sampling_settings()),
        }
        with self.sampling_from(iteration) as (policy, sampler):
            pool, quantiles = run_iteration(iteration, self.loop(iteration, policy, sampler), stamp)
        conversations = None
        if all_conversations(self.prompts):
            conversations = {row["prompt_id"]: row["prompt"] for row in self.prompts}
        words = self.feedback.words(pool, quantiles, iteration)
        self.train_dataset.refresh(pool, quantiles, words, self.encoder, iteration, conversations)
        if offset == 0:
            self.log(pool_statistics(pool, quantiles, iteration, self.feedback) | self.logged_by_rewards())

    @contextlib.contextmanager
    def sampling_from(self, iteration: int) -> Iterator[tuple[Policy, Sampler]]:
        """The policy with the weights of this iteration, here or handed to vLLM, and what samples from it."""
        if self.args.sampler == "vllm":
            fresh = self.has_weights_of(iteration)
            with handed_over(self.policy, self.skeleton, iteration, fresh, self.args, self.accelerator) as handed:
                yield handed
            return
        start = iteration == 0 and self.policy.reference_model is not None
        with (
            self.evaluating(["reference_model" if start else "model"]) as policy,
            start_model(policy, iteration) as model,
            self.open_sampler(model) as sampler,
        ):
            yield policy, sampler

    def open_sampler(self, policy: Policy) -> contextlib.closing:
        """What draws a policy's completions in this process."""
        options = config.SamplerOptions(sampler_compile=self.args.sampler_compile)
        return contextlib.closing(sampler_of(policy, options))

    def has_weights_of(self, iteration: int) -> bool:
        """Whether rollouts of this iteration can be sampled: training has not moved on, or they are the reference's."""
        return iteration == 0 or self.state.global_step == iteration * self.args.steps_per_iteration

    def loop(self, iteration: int, policy: Policy, sampler: Sampler) -> Loop:
        """What `run_iteration` needs, out of this trainer and what `sampling_from` gives."""
        args = self.args
        past = partial(Pool.load, self.run_dir, iteration - 1, args.pool_keep)
        scored = partial(
            score_table, rewards=self.rewards, weights=args.reward_weights, sentence=self.encoder.sentence,
            context=self.reward_context(),
        )  # fmt: skip

        @functools.cache
        def words() -> list[str | None]:
            return self.feedback.to_sample_under(len(self.prompts), iteration, past)

        def sample(rows: Sequence[tuple[int, int]], iteration: int, advance: Callable) -> pa.Table:
            if not self.has_weights_of(iteration):
                raise UserError(
                    f"{iteration_dir(self.run_dir, iteration)}: a part is missing, and training has moved on from the "
                    "weights it was sampled from; restore it, or resume from the last checkpoint before this iteration"
                )
            try:
                with start_model(policy, iteration) as model:
                    prompts = PromptSampler(model, self.encoder, sampler, config.sampling_options(args), args.seed)
                    table = prompts.table(
                        [NumberedPrompt(self.prompts[i], n) for i, n in rows], [words()[i] for i, _ in rows],
                        iteration=iteration, progress=advance,
                    )  # fmt: skip
            except UserError:
                self.stop_if_asked()  # who asked may have ended vLLM as well
                raise
            if self.first_scores:  # the remote ones only
                table = scored(table, [self.prompts[i] for i, _ in rows], allowed=self.rewards_here())
            return table

        def score(table: pa.Table, rows: Sequence[tuple[int, int]]) -> pa.Table:
            table = scored(table, [self.prompts[i] for i, _ in rows])
            part = Pool()
            part.add(table, iteration)
            self.feedback.words(part, self.feedback.quantiles(part), iteration)  # what cannot be cut is not written
            return table

        rank, world_size = share(args)
        return Loop(
            self.run_dir, [row["prompt_id"] for row in self.prompts], args.prompts_per_iteration, args.prompts_per_part,
            args.num_generations, args.seed, sample, score, self.feedback.quantiles, self.bar,
            rank=rank, world_size=world_size, wait=self.accelerator.wait_for_everyone, check=self.stop_if_asked,
            end_sampling=sampler.close, pool_keep=args.pool_keep, first_scores=self.first_scores,
        )  # fmt: skip

    def reward_context(self) -> dict:
        """What TRL's trainers offer to reward functions beside the columns, but for `log_extra`: rollouts have no free
        columns.
        """
        return {"trainer_state": self.state, "log_metric": lambda name, value: self.reward_metrics[name].append(value)}

    def logged_by_rewards(self) -> dict[str, float]:
        """Means of what reward functions of this process logged since the last time."""
        means = {name: sum(values) / len(values) for name, values in self.reward_metrics.items()}
        self.reward_metrics.clear()
        return means

    def rewards_here(self) -> list[Reward]:
        """Those that this rank calls itself; where there are several ranks, the first calls the remote ones for all."""
        return [reward for reward in self.rewards if not (self.first_scores and reward.remote)]

    def scored_by_first(self, lines: list[dict]) -> dict[str, list[dict]]:
        """What the remote rewards say of evaluated lines. The first rank asks; the others look for its file, since a
        collective would time out while a service takes its time.
        """
        path = self.run_dir / ".remote-scores.json"
        if self.is_world_process_zero():
            path.unlink(missing_ok=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            remote = [reward for reward in self.rewards if reward.remote]
            files.write_text(path, json.dumps(scores_of(lines, remote, self.reward_context())))
        wait_for(path.is_file, self.stop_if_asked)
        found = json.loads(path.read_text(encoding="utf-8"))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            path.unlink()
        return found

    @contextlib.contextmanager
    def evaluating(self, models: Sequence[str] = MODELS):
        """Sampling and measuring: all weights here, no dropout, the run's precision, and the mode restored after."""
        mode, dtype = self.policy.model.training, DTYPES.get(self.accelerator.mixed_precision)
        self.policy.model.eval()
        gathered = whole(self.policy, self.skeleton, models, device=self.args.device, dtype=dtype)
        away = self.policy.reference_model if self.reference_device else None
        try:
            with moved(away, self.args.device), gathered as policy, self.accelerator.autocast():
                yield policy
        finally:
            self.policy.model.train(mode)

    # ---- state ----------------------------------------------------------------------------------------------------

    def settings(self) -> dict:
        """Every knob as a plain value: what `config.yaml` holds."""
        plain = json.loads(json.dumps(self.args.to_dict(), default=str))
        return {name: value for name, value in {**plain, **self.options}.items() if not name.endswith("_token")}

    def facts(self) -> dict:
        """What else the result depends on, beside the settings."""
        return {
            "model_name_or_path": self.policy.identity.name,
            "train_prompts": digest([row["prompt_id"] for row in self.prompts]),
            "rewards": [reward.label for reward in self.rewards],
            "total_batch_size": self.args.total_batch_size,
        }

    def sampling_settings(self) -> dict:
        """What sampled and scored rollouts depend on besides the weights."""
        args = self.args
        words = {}  # only where sampling depends on them, so that runs of earlier versions go on
        if args.sampler != "hf":
            words["sampler"] = args.sampler
        if args.attributes:
            words["attributes"] = [args.attributes, config.JOINT, args.feedback_sampling]
        if any(reward.judges for reward in self.rewards):
            words["quantiles"] = [args.quantile_rule, args.quantile_scope, args.pool_keep, args.reward_normalization]
            words["max_feedback_length"] = self.encoder.max_feedback_length
        return words | {
            "seed": args.seed,
            "sampling": vars(config.sampling_options(args)),
            "scheme": [list(self.policy.scheme.tags), self.policy.scheme.template, self.policy.scheme.separator],
            "prompts": digest([row["prompt_id"] for row in self.prompts]),
            "max_prompt_length": self.encoder.max_prompt_length,
            "reference": name_of(self.policy.reference_model),
            "prompts_per_iteration": args.prompts_per_iteration,
            "prompts_per_part": args.prompts_per_part,
            "rewards": [reward.label for reward in self.rewards],
            "weights": args.reward_weights,
        }

    def loop_state(self) -> dict:
        """What a checkpoint keeps beside Trainer's own state."""
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "rollout_digest": self.rollout_digest,
            "coefficients": self.coefficients,
        }

    def restore(self, state: dict) -> None:
        """Take back what `loop_state` kept."""
        self.started_at, self.rollout_digest = state["step"], state["rollout_digest"]
        self.coefficients = state["coefficients"]

    def finish(self) -> None:
        """Write the tagged model at the run's root: an ordinary Hugging Face folder with its tags and card."""
        first, cpu = self.is_world_process_zero(), torch.device("cpu")
        with whole(self.policy, self.skeleton, ["model"], device=cpu, keep=first) as policy:
            if first:
                files.write_folder(self.run_dir, partial(save_policy, policy))
                rewards = ", ".join(reward.label for reward in self.rewards)
                card = model_card(self.run_dir, policy, self.args, self.state.log_history, rewards)
                files.write_text(self.run_dir / "README.md", card)
        self.accelerator.wait_for_everyone()

    def adapt(self) -> None:
        """After each step: the proportional controllers, where they are on, move beta and the entropy bonus."""
        args, sums = self.args, self.step_sums
        self.step_sums = {}
        adaptive_entropy = args.target_entropy is not None
        if not (args.adaptive_kl or adaptive_entropy):
            return
        local = torch.tensor([sums["kl"], sums["entropy"]], dtype=torch.float64, device=args.device)
        kl, entropy = (self.accelerator.reduce(local, "sum") / args.total_batch_size).tolist()  # nats per completion
        for name, on, current, target in (
            ("beta", args.adaptive_kl, kl, args.target_kl),
            ("entropy_coef", adaptive_entropy, entropy, args.target_entropy),
        ):
            if on:
                self.coefficients[name] = published.controller_step(
                    self.coefficients[name],
                    current,
                    target,
                    args.horizon,
                    args.total_batch_size,
                    rising=name == "beta",
                )

    def drain_sums(self) -> dict[str, float]:
        """Averages over what was seen since the last call, all ranks: per token, or per completion for the
        contrast.
        """
        names = sorted(self.sums)
        total = torch.tensor([self.sums[n] for n in names], dtype=torch.float64, device=self.args.device)
        sums = dict(zip(names, self.accelerator.reduce(total, "sum").tolist(), strict=True))
        self.sums = {}
        tokens, completions = sums.pop("tokens"), sums.pop("completions")
        averages = {n: sums[n] / tokens for n in ("nll", "kl", "entropy") if n in sums}
        renamed = {"contrast": "contrast", "margin": "tag_margin", "accuracy": "tag_accuracy"}
        averages |= {
            new: sums[old] / completions for old, new in renamed.items() if old in sums and self.args.contrast_coef
        }
        return averages | self.coefficients

    def gather_lines(self, lines: list[dict], order: list[int]) -> list[dict]:
        """Every rank's share of an evaluation, in the order of the prompts."""
        if self.args.world_size == 1:
            return lines
        shards = gather_object(list(zip(order, lines, strict=True)))
        return [line for _, line in sorted(shards, key=lambda each: each[0])]

    @contextlib.contextmanager
    def stop_on_sigterm(self):
        """Preemption: on SIGTERM the step in progress is finished, a checkpoint is saved, and the run ends."""

        def stop(*_):
            self.stopping = True

        previous = (
            signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
        )
        try:
            yield
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def stop_if_asked(self) -> None:
        """While sampling there is nothing to save: what is finished is on disk."""
        if self.stopping:
            raise SystemExit(143)

    def anyone_stopping(self) -> bool:
        """Whether any rank was asked to stop, so that all stop at the same step."""
        if self.args.world_size == 1:
            return self.stopping
        flag = torch.tensor(float(self.stopping), device=self.args.device)
        self.stopping = bool(self.accelerator.reduce(flag, "sum") > 0)
        return self.stopping

    def bar(self, what: str, total: int, done: int) -> Callable[[int], None]:
        """A progress bar, on the first rank."""
        return progress_bar(what, total, done, hidden=self.args.disable_tqdm or not self.is_world_process_zero())


class IterationCallback(TrainerCallback):
    """Where the loop hangs on Trainer: a fresh pool before each epoch, a checkpoint after it, a clean stop."""

    def __init__(self, trainer: ALTTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.refresh()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.adapt()
        if self.trainer.anyone_stopping():
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        # Saved before the next iteration samples, and at the very end, whatever the save strategy.
        control.should_save = not (self.trainer.run_dir / f"checkpoint-{state.global_step}" / rundir.MARKER).is_file()
        control.should_evaluate = control.should_evaluate and not self.trainer.stopping
        return control
