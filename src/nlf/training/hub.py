"""Upload a run's model to the Hugging Face hub: the model's folder with its tags and its card, and nothing else.

Trainer uploads everything in the run's folder: the rollouts with all prompts, and its pickled arguments with the token.
Here each upload is made from a folder that holds what it should hold.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import hub as transformers_hub

from nlf.data.run_folder import PLAIN
from nlf.errors import UserError, line_of
from nlf.secrets import masked

logger = logging.getLogger(__name__)

STRATEGIES = (HubStrategy.END, HubStrategy.EVERY_SAVE)
FAILURES = (OSError, ValueError, LookupError, RuntimeError, httpx2.HTTPError, httpx2.InvalidURL)  # of huggingface_hub
LICENCE = ("license", "license_name", "license_link")  # the keys of a card's head
STAGING = ".push"  # start of the names of folders that are uploaded


def check_hub(args: TrainingArguments) -> None:
    """Check what an upload needs, without asking the hub.

    Raises:
        UserError: the strategy would upload checkpoints, the repository's name is malformed, or there is no token.
    """
    if not args.push_to_hub:
        return
    if HubStrategy(args.hub_strategy) not in STRATEGIES:
        raise UserError(
            f"hub_strategy {HubStrategy(args.hub_strategy).value}: checkpoints are not uploaded, because a run resumes only "
            "with its rollouts, which hold your prompts; expected end, or every_save (the model at each checkpoint)"
        )
    try:
        validate_repo_id(_repository(args))
    except HFValidationError as error:
        raise UserError(
            f"hub_model_id {_repository(args)!r}: expected NAME or OWNER/NAME ({line_of(error)})"
        ) from error
    if not _token(args):
        raise UserError("push_to_hub needs a token that may write: run `hf auth login`, or set HF_TOKEN or hub_token")


class Hub:
    """The repository that a run's model is uploaded to.

    Args:
        args: The settings; `hub_model_id`, `hub_token`, `hub_private_repo` and `hub_revision` are used.
        token, private, revision: Values in place of those of the settings.
    """

    def __init__(
        self,
        args: TrainingArguments,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ):
        self.name, self.token = _repository(args), token or _token(args)
        self.private = args.hub_private_repo if private is None else private
        self.revision = revision or args.hub_revision

    def create(self) -> None:
        """Create the repository and its branch, unless they are there.

        Raises:
            UserError: the hub cannot be reached, or the token may not write.
        """
        api = transformers_hub.hf_api()
        try:
            self.name = api.create_repo(self.name, token=self.token, private=self.private, exist_ok=True).repo_id
            if self.revision and not self.revision.startswith("refs/"):
                api.create_branch(self.name, branch=self.revision, token=self.token, exist_ok=True)
            try:
                api.auth_check(self.name, token=self.token, write=True)
            except RepositoryNotFoundError as error:
                if error.response.status_code != 404:  # the repository is there, so this server has no such check
                    raise
        except FAILURES as error:
            raise UserError(
                f"push_to_hub: cannot write to {self.name} on the hub: {self._reason(error)}; check hub_model_id and the "
                "token's permissions, or leave out push_to_hub"
            ) from error

    def licence_of(self, model: str) -> dict[str, str]:
        """The licence that the hub's card of a model names, by the keys of a card's head; empty if it names none."""
        try:
            card = transformers_hub.hf_api().model_info(model, token=self.token).card_data
        except FAILURES as error:  # a card is no reason to lose a model
            logger.warning("the licence of %s is not known: %s", model, self._reason(error))
            return {}
        found = card.to_dict() if card else {}
        return {key: str(found[key]) for key in LICENCE if found.get(key)}

    def push(self, folder: Path, names: Iterable[str], message: str) -> None:
        """Upload these files of a folder; without the LoRA adapter, which is merged into the weights.

        Raises:
            UserError: the upload failed.
        """
        for leftover in folder.glob(f"{STAGING}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=folder) as staged:
            for name in set(names) - {"adapter"}:
                _link(folder / name, Path(staged) / name)
            try:
                transformers_hub.hf_api().upload_folder(
                    repo_id=self.name,
                    folder_path=staged,
                    commit_message=message,
                    token=self.token,
                    revision=self.revision,
                )
            except FAILURES as error:
                raise UserError(f"the upload to {self.name} on the hub failed: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        return masked(line_of(error, 200), [self.token or ""], words=True)


class HubTrainer(Trainer):
    """A Trainer that uploads through `Hub`. A subclass writes the model: `write_model` and `finish`."""

    hub: Hub | None
    run_dir: Path

    def write_model(self, folder: Path) -> list[str]:
        """Write the model into a folder; returns the names of the files. Every process calls it."""
        raise NotImplementedError

    def finish(self, message: str) -> None:
        """Write the model into the run's folder and upload it."""
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing: `train` creates the repository once the run's folder is known to be free."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: `push_checkpoint` uploads the model once the checkpoint is complete."""

    def push_checkpoint(self) -> None:
        """Upload the model as it is now. A failure is a warning, because the last upload brings everything."""
        every_save = self.hub and HubStrategy(self.args.hub_strategy) == HubStrategy.EVERY_SAVE
        if not every_save or self.state.global_step >= self.state.max_steps:  # `push_final` follows the last step
            return
        folder = self.run_dir / STAGING
        shutil.rmtree(folder, ignore_errors=True)
        names = self.write_model(folder)
        if self.hub and self.is_world_process_zero():
            try:
                self.hub.push(folder, names, f"Training in progress, step {self.state.global_step}")
            except UserError as error:
                logger.warning(f"{error}; training goes on")
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def push_final(self, names: Iterable[str], message: str) -> None:
        """Upload the model in the run's folder, if the settings ask for it.

        Raises:
            UserError: the upload failed; the model is in the folder.
        """
        if self.hub and self.is_world_process_zero():
            try:
                self.hub.push(self.run_dir, names, message)
            except UserError as error:
                raise UserError(
                    f"{error}; the model is safe in {self.run_dir}: to upload it again, run the same command with "
                    "--resume_from_checkpoint true, or call push_to_hub()"
                ) from error

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> Any:
        """Write the model with its tags and its card into the run's folder and upload it, and nothing else."""
        self.hub = Hub(self.args, token, private, revision)
        if self.is_world_process_zero():
            self.hub.create()
        self.finish(commit_message or "End of training")


def _link(source: Path, target: Path) -> None:
    """Make a file or folder of the same content, without copying it where the file system can."""
    if source.is_dir():
        shutil.copytree(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # not on this file system
        shutil.copy(source, target)


def _repository(args: TrainingArguments) -> str:
    folder = Path(str(args.output_dir)).absolute()
    return args.hub_model_id or (f"{folder.parent.name}-{PLAIN}" if folder.name == PLAIN else folder.name)


def _token(args: TrainingArguments) -> str | None:
    return args.hub_token or get_token()
