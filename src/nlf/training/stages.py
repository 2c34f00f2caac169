"""After the last step: the model and its card are written, a student is distilled, and a plain model is trained.

The plain stage (`plain: true`) is a second trainer with the same settings and `plain: only`, in the folder `plain` of the
run's folder. It starts from a copy of the model, made before the tags changed it, so it gives the same bits as a run with
`plain: only`. Both stages read one reference. So the first holds the model, the reference and the copy; the second holds the
model with tags, the reference and the plain model. A killed run goes on in the stage that it had reached: a stage that has
ended takes no step again.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch

from nlf import config
from nlf.data import files, run_folder
from nlf.data.progress import say
from nlf.errors import UserError
from nlf.models.policy import Policy, save_policy
from nlf.models.sharding import moved, whole
from nlf.training.config import ALTConfig
from nlf.training.distill import distill
from nlf.training.model_card import CARD, CardFacts, is_local, licence_of, model_card
from nlf.training.resuming import CheckpointTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlainStage:
    """The plain run that follows a run with tags.

    Attributes:
        args: The settings of the plain run.
        given: The other arguments of its trainer, apart from the prompts and the rewards.
    """

    args: ALTConfig
    given: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))


def plain_settings(args: ALTConfig) -> ALTConfig | None:
    """The settings of the plain run that follows a run with these settings; None if they ask for none.

    Call it before the trainer fills in the settings, so that the plain run records what a run with `plain: only` does.
    """
    if args.plain != "true":
        return None
    own: dict[str, Any] = {"plain": "only", "distill": False}
    if args.open_batch:
        own |= dict.fromkeys(config.BATCH)
    for name in ("hub_model_id", "run_name"):
        own[name] = (value := getattr(args, name)) and f"{value}-plain"
    return replace(args, **own)


def plain_stage(args: ALTConfig | None, optimizers: Sequence[Any], **given: Any) -> PlainStage | None:
    """What the plain stage needs, copied before the model gets its tags; None if there is no such stage.

    Args:
        args: As `plain_settings` returned them.
        given: Other arguments of the trainer. The reference is not copied, because nothing trains it.

    Raises:
        UserError: the optimizer is an object, which belongs to the weights of the model with tags.
    """
    if args is None:
        return None
    if any(optimizers):
        raise UserError(
            "plain true: the optimizer in `optimizers` trains the model with tags, and the plain model needs its own; "
            "leave optimizers out, or train each model by itself, the plain one with plain only"
        )
    if not is_alone(args):
        return PlainStage(args, {})
    copied = {name: value if name == "reference_model" else copy.deepcopy(value) for name, value in given.items()}
    return PlainStage(args, copied)


def is_alone(args: ALTConfig) -> bool:
    """Whether one process trains, with nothing sharded; only then the plain stage follows in the same process."""
    return args.world_size == 1 and not args.deepspeed and not args.fsdp


class StagedTrainer(CheckpointTrainer):
    """A Trainer that writes its model at the end, and goes on with what the settings ask for."""

    options: dict[str, Any]
    plain_stage: PlainStage | None
    skeleton: Policy | None

    def finish(self, message: str = "End of training") -> None:
        """Write the model, its tags and its card into the run's folder; upload them if the settings ask for it."""
        self.push_final(self.write_model(self.run_dir), message)

    def write_model(self, folder: Path) -> list[str]:
        """Write the model, its tags and its card into a folder; returns the names of the files."""
        names: list[str] = []

        def save(temporary: Path) -> None:
            save_policy(policy, temporary, as_stored=True)
            names.extend(path.name for path in temporary.iterdir())

        first, cpu = self.is_world_process_zero(), torch.device("cpu")
        with whole(self.policy, self.skeleton, ["model"], device=cpu, keep=first) as policy:
            if first:
                files.write_folder(folder, save)
                rewards = ", ".join(reward.label for reward in self.inputs.rewards)
                card = model_card(self.run_dir, policy, self.args, self.state.log_history, rewards, self.card_facts())
                files.write_text(folder / CARD, card)
        self.accelerator.wait_for_everyone()
        return [*names, CARD]

    def card_facts(self) -> CardFacts:
        """What the card says beside the training."""
        base, inputs = self.policy.identity.name, self.inputs
        return CardFacts(
            self.hub.name if self.hub else str(self.run_dir), inputs.auditor_labels, inputs.conversational,
            licence_of(base) or (self.hub.licence_of(base) if self.hub and not is_local(base) else {}),
            self.options.get("dataset_name"), self.options.get("eval_dataset"),
        )  # fmt: skip

    def distill(self) -> None:
        """Distill the model in the run's folder, as `nlf distill` does; several processes print the command."""
        if self.args.world_size > 1:
            self._tell(f"distill: run `nlf distill --model {self.run_dir}` in one process")
            return
        with self._memory_freed():
            folder = distill(model=str(self.run_dir), trust_remote_code=bool(self.options.get("trust_remote_code")))
        say(f"distilled: {folder}")

    def train_plain(self, resume_from_checkpoint: str | bool | None) -> None:
        """Train the plain model from the same start; several processes, or sharded weights, print the command.

        Args:
            resume_from_checkpoint: Of the plain run.
        """
        assert self.plain_stage is not None  # the settings ask for the stage
        if not is_alone(self.args):
            flags = f"--output_dir {quote(str(self.run_dir))} --plain only"
            flags += " --distill false" if self.args.distill else ""
            config = quote(str(self.run_dir / run_folder.CONFIG))
            self._tell(
                f"plain: start `nlf train --config {config} {flags}` as this run was started; in Python, "
                "ALTConfig(plain='only')"
            )
            return
        inputs = self.inputs
        say(f"plain model: {self.plain_stage.folder}")
        with self._memory_freed():
            shared = {"reference_model": self.policy.reference_model}  # it is the same start, and nothing trains it
            stage = cast(Any, type(self))(  # ALTTrainer, which takes these
                **self.plain_stage.given | shared,
                args=self.plain_stage.args,
                reward_funcs=inputs.rewards,
                train_dataset=None if inputs.embedded else inputs.prompts,
                eval_dataset=inputs.eval_prompts,
            )
            own = inputs.recorded(self.run_dir)  # each run writes data sets from Python into its own folder
            stage.options |= {name: value for name, value in self.options.items() if own.get(name, "") != value}
            stage.train(resume_from_checkpoint)

    def checkpoints_to_resume(self, asked: str | bool | None) -> tuple[str | bool | None, str | bool | None]:
        """`resume_from_checkpoint` of the run and of its plain stage; a checkpoint of one stage resumes both.

        Raises:
            UserError: the plain stage's folder is taken.
        """
        if self.plain_stage is None:
            return asked, None
        if self.is_world_process_zero():
            run_folder.check_free(self.plain_stage.folder, bool(asked))
        if asked and not isinstance(asked, bool):
            if Path(asked).resolve().parent == self.plain_stage.folder.resolve():
                return True, asked
            return asked, True
        return asked, asked

    @contextlib.contextmanager
    def _memory_freed(self) -> Iterator[None]:
        """Inside the `with` block, the device holds neither optimizer nor models: another model is trained."""
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        cpu = torch.device("cpu")
        with moved(self.policy.model, cpu), moved(self.policy.reference_model, cpu):
            yield
