"""The checkpoints of a run: how they are written, and the one that a resumed run goes on from: the newest one that is
whole, of this run, and has all its rollouts.

The end of training is a function of a checkpoint and of the rollouts of earlier iterations. So an older checkpoint, or a
new start, gives the same result; the work in between is done again, except for rollouts that are whole.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from nlf.data import checkpoints, files, run_folder
from nlf.data.checkpoints import NotWhole
from nlf.data.rollouts import check_no_others, fault_of, iteration_dir, logged_parts
from nlf.errors import UserError
from nlf.models.encoder import PromptEncoder
from nlf.models.loading import progress_bar_hidden
from nlf.models.policy import Policy, save_scheme
from nlf.training.auditing import AuditWatch
from nlf.training.config import ALTConfig
from nlf.training.credit import FITTED
from nlf.training.hub import HubTrainer
from nlf.training.inputs import Inputs
from nlf.training.settings import run_facts, sampling_settings
from nlf.training.stopping import StopSignal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What a run's checkpoints and rollouts must agree with.

    Attributes:
        settings: The settings and facts that change the result.
        sampling: The digest in the stamps of the run's rollouts.
        part_rows: The number of rollouts in each part of an iteration.
        keep: Latest iterations whose rollouts training reads; None = all.
        last_step: The step at which training ends; from there, no rollouts are needed.
        keeps_best: The weights of the best checkpoint are the result.
        first_sampled: The first iteration that samples.
    """

    run_dir: Path
    settings: Mapping[str, Any]
    sampling: str
    part_rows: Sequence[int]
    steps_per_iteration: int
    keep: int | None
    last_step: int
    keeps_best: bool = False
    first_sampled: int = 0

    def check(self, checkpoint: Path) -> None:
        """Check that training can go on from a checkpoint and end with the weights of a run that was never stopped.

        Raises:
            NotWhole: it cannot.
            UserError: a folder of rollouts holds a file that is not of this run.
        """
        state = checkpoints.loop_state(checkpoint)
        self._check_settings(state.get("settings", {}))
        self._check_rollouts(state["step"], digests_of(state, self.steps_per_iteration))
        checkpoints.check_files(checkpoint, state)
        best = checkpoints.trainer_state(checkpoint).get("best_global_step") if self.keeps_best else None
        if best and best != state["step"]:
            folder = self.run_dir / f"checkpoint-{best}"
            try:
                checkpoints.check_files(folder, checkpoints.loop_state(folder))
            except NotWhole as error:
                raise NotWhole(f"{folder.name}, the best so far, is not whole: {error}") from error

    def fault_of(self, checkpoint: Path) -> str | None:
        """Why training cannot go on from a checkpoint; None if it can."""
        try:
            self.check(checkpoint)
        except NotWhole as error:
            return str(error)
        return None

    def _check_settings(self, recorded: Mapping[str, Any]) -> None:
        changed = run_folder.changed_settings(run_folder.todays(recorded), dict(self.settings)) if recorded else []
        if changed:
            name, old, new = changed[0]
            raise NotWhole(f"it is of a run with {name}={old!r}, here it is {new!r}")

    def _check_rollouts(self, step: int, digests: Sequence[str | None]) -> None:
        """Check the rollouts that can no longer be sampled, because training has changed the weights."""
        if step >= self.last_step:
            return
        current, offset = divmod(step, self.steps_per_iteration)
        first = self.first_sampled if self.keep is None else max(self.first_sampled, current + 1 - self.keep)
        last = current if offset and current else current - 1  # iteration 0 samples the reference, which never changes
        for iteration in range(first, last + 1):
            check_no_others(self.run_dir, iteration, len(self.part_rows))
            fault = self._fault_of(iteration, digests[iteration] if iteration < len(digests) else None)
            if fault:
                raise NotWhole(f"{fault}, and training has changed the weights that it was sampled from")

    def _fault_of(self, iteration: int, policy: str | None) -> str | None:
        """What is wrong with the rollouts of an iteration that weights with this digest sampled; None if nothing is."""
        step = iteration * self.steps_per_iteration
        stamp = {"iteration": iteration, "step": step, "settings": self.sampling}
        if policy is not None:
            stamp["policy"] = policy
        return fault_of(self.run_dir, iteration, self.part_rows, stamp)


def digests_of(state: Mapping[str, Any], steps_per_iteration: int) -> list[str | None]:
    """The digest of the weights that each iteration sampled; None for iterations that a marker does not record.

    Markers of earlier versions record the last iteration only.
    """
    if "rollout_digests" in state:
        return [*state["rollout_digests"]]
    unknown: list[str | None] = [None] * ((state["step"] - 1) // steps_per_iteration)
    return [*unknown, state.get("rollout_digest")]


def choose_checkpoint(asked: str | bool, record: Record, *, looks: bool, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint to resume from; None starts the run over, or for the first time. Every rank calls this.

    Args:
        asked: A checkpoint's folder, or True for the newest one that is whole.
        looks: Whether this rank checks the files: the first rank, or the first rank of each machine.
        tell: Is given a line for each checkpoint that is skipped.

    Raises:
        UserError: the checkpoint that was asked for is not whole; or none is, and there are no rollouts either.
    """

    def why_not(checkpoint: Path) -> str | None:
        why = record.fault_of(checkpoint) if looks else None
        return next(filter(None, gather_object([why])), None)

    names = gather_object([[path.name for _, path in checkpoints.numbered(record.run_dir)]])[0]
    candidates = [record.run_dir / name for name in names]
    if not isinstance(asked, bool):
        return _as_asked(Path(asked), candidates, why_not)
    for path in candidates:
        why = why_not(path)
        if why is None:
            if path != candidates[0]:
                tell(f"the run goes on from {path}; later work is done again")
            return path
        tell(f"{path} is skipped: {why}")
    start = iteration_dir(record.run_dir, record.first_sampled)
    if candidates and not any(start.glob("part-*.parquet")) and not logged_parts(record.run_dir):
        raise UserError(
            f"{record.run_dir}: no checkpoint is whole, and {start} holds no rollouts to start over from; "
            "restore them, or choose another --output_dir"
        )
    if candidates:
        tell("no checkpoint is whole: the run starts over; it keeps rollouts that are whole, and ends the same")
    return None


def _as_asked(asked: Path, candidates: Sequence[Path], why_not: Callable[[Path], str | None]) -> Path:
    why = why_not(asked)
    if why is None:
        return asked
    whole = next((path for path in candidates if path != asked and why_not(path) is None), None)
    instead = (
        f"the newest whole checkpoint is {whole}: give --resume_from_checkpoint {whole}, or true"
        if whole
        else "no checkpoint is whole: --resume_from_checkpoint true starts the run over"
    )
    raise UserError(f"{asked} cannot be resumed: {why}; {instead}")


# ---- writing checkpoints --------------------------------------------------------------------------------------------


class CheckpointTrainer(HubTrainer):
    """A Trainer whose checkpoints are whole or not there at all.

    Attributes:
        recorded: The settings and facts of the run that a checkpoint keeps.
        watch: What the auditors said at the last evaluations.
        credit_scale: The scale of the run's credit; None before its first iteration.
        rollout_digests: Digests of the weights that each iteration sampled.
        started_at: The step that the run resumes from.
        saved_at: The step of the last checkpoint that this process wrote.
    """

    args: ALTConfig
    processing_class: PreTrainedTokenizerBase
    policy: Policy
    encoder: PromptEncoder
    inputs: Inputs
    watch: AuditWatch
    stop: StopSignal
    recorded: dict[str, Any]
    rollout_digests: list[str | None]
    coefficients: dict[str, float]
    credit_scale: float | None
    started_at: int
    saved_at: int | None

    def facts(self) -> dict[str, Any]:
        """What the result depends on besides the settings, and the auditors: the content of `run.json`."""
        prompts, rewards, auditors = self.inputs.prompts, self.inputs.rewards, self.inputs.auditors
        return run_facts(self.args, self.policy, prompts, rewards, auditors) | self.inputs.facts()

    def sampling_digest(self) -> str:
        """The digest of everything but the weights that rollouts depend on; it stands in their stamps."""
        prompts, rewards = self.inputs.prompts, self.inputs.rewards
        return files.digest(sampling_settings(self.args, self.policy, self.encoder, prompts, rewards))

    @progress_bar_hidden()
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model, its tokenizer and its tags, without Trainer's pickled `training_args.bin`."""
        if self.args.should_save:
            folder = Path(output_dir or self.run_dir)
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
            self.processing_class.save_pretrained(folder)
            save_scheme(self.policy, folder)
            files.follow_umask(folder.glob("*.safetensors"))

    def _save_checkpoint(self, model, trial) -> None:
        """Write Trainer's checkpoint and mark it as complete; only then remove older checkpoints."""
        folder = self.run_dir / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            checkpoints.clear_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with files.writing(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.mark_complete(folder, self.loop_state())
            best = self.state.best_model_checkpoint
            checkpoints.remove_old(self.run_dir, self.state.global_step, limit, Path(best) if best else None)
        self.saved_at = self.state.global_step
        self.push_checkpoint()

    def record(self) -> Record:
        """What checkpoints and rollouts must agree with, for this run to go on from them."""
        args, steps = self.args, self.args.steps_per_iteration
        prompts = args.prompts_per_iteration or len(self.inputs.prompts)
        starts = range(0, prompts, args.prompts_per_part)
        return Record(
            self.run_dir,
            self.recorded,
            self.sampling_digest(),
            [min(args.prompts_per_part, prompts - start) * args.num_generations for start in starts],
            steps,
            args.pool_keep and max(args.pool_keep, FITTED if args.credit_coef else 0),
            last_step=args.last_step,
            keeps_best=args.load_best_model_at_end,
            first_sampled=args.logged_iterations,
        )

    def loop_state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps besides Trainer's state."""
        early = self.state.global_step < self.state.max_steps
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "rollout_digests": self.rollout_digests,
            "coefficients": self.coefficients,
            "credit_scale": self.credit_scale,
            "ended": early and self.control.should_training_stop and not self.stop.asked,  # by a callback
            "audited": self.watch.state(),
            "settings": self.recorded,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `loop_state` returned."""
        self.started_at = state["step"]
        self.rollout_digests = digests_of(state, self.args.steps_per_iteration)
        self.coefficients = state["coefficients"]
        self.credit_scale = state.get("credit_scale")
        self.watch = AuditWatch(**state.get("audited", {}))  # older checkpoints have none
        if state["world_size"] != self.args.world_size:
            processes = f"{state['world_size']} processes wrote the checkpoint, {self.args.world_size} resume"
            self._tell(f"{processes}: the result differs by rounding, and dropout draws anew")
        self.args.eval_on_start = False  # it was done at the start
        # Without it, `EarlyStoppingCallback` and the like would begin to count again.
        self.args.restore_callback_states_from_checkpoint = True

    def _tell(self, line: str) -> None:
        """Log a line, on the first rank only."""
        if self.is_world_process_zero():
            logger.warning("%s", line)
