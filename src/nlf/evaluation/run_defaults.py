"""What a command takes from the run that made its model, unless the person names it: prompts, the length of completions, the
variables of the chat template, and scorers.

The run's record is all that counts. What it does not record is asked for in one line, never replaced by something else. A
model that is no run is sampled on the embedded prompts and scored by `local`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nlf.config import EvaluateOptions, SampleOptions, is_open, remote_options
from nlf.config.objective import LENGTH, LENGTHS
from nlf.data.files import EMBEDDED
from nlf.data.prompts import PromptRow, kind_of
from nlf.data.run_folder import MODEL_DIGEST, trained_run
from nlf.errors import UserError
from nlf.models.names import SUFFIX, gguf_digest
from nlf.rewards import Reward, check_weights
from nlf.rewards.auditors import AUDITOR, auditors_of
from nlf.rewards.registry import configure, recorded_version, resolve_reward

logger = logging.getLogger(__name__)

SPLITS = {"dataset_name": "train", "eval_dataset": "test"}
Drawn = TypeVar("Drawn", SampleOptions, EvaluateOptions)


@dataclass(frozen=True)
class Scorers:
    """The scorers of an evaluation.

    Attributes:
        weights: Weights of the rewards in their sum; None = 1 for all.
        auditors: Scorers that measure beside the rewards. They are no part of the sum, and their metrics carry their label.
        trained_on: Labels of the scorers, among these, that the model's run was trained on, in whatever version.
        audited_by: Labels of the scorers, among these, that audit the model's run; their figures come first.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None
    auditors: Sequence[Reward] = ()
    trained_on: Sequence[str] = ()
    audited_by: Sequence[str] = ()

    @property
    def all(self) -> list[Reward]:
        return [*self.rewards, *self.auditors]


def with_prompts(options: Drawn, model: str) -> Drawn:
    """The options with prompts and variables of chat templates: those that the person named, or else those of the model's run.

    A run without evaluation prompts is sampled on its training prompts, with a line that says so.

    Raises:
        UserError: the run does not record its prompts.
    """
    run = trained_run(model)
    if options.chat_template_kwargs is None and (variables := run.get("chat_template_kwargs")):
        options = replace(options, chat_template_kwargs=variables)
    if options.prompts is not None:
        return options
    if not run:
        return replace(options, prompts=[EMBEDDED])
    name = "eval_dataset" if run.get("eval_dataset") else "dataset_name"
    source = recorded_prompts(run, name, model)
    if name == "dataset_name":
        logger.warning("the run of %s has no evaluation prompts: its training prompts are sampled", model)
    own_limit = run.get("max_prompts") if name == "dataset_name" else None
    limits = [each for each in (options.max_prompts, own_limit) if each]
    column, split = options.dataset_prompt_column, options.dataset_test_split
    own_config = run.get("dataset_config") if source == run.get("dataset_name") else None
    return replace(
        options,
        prompts=[source],
        dataset_config=options.dataset_config or own_config,
        dataset_prompt_column=run.get("dataset_prompt_column", column) if column == "prompt" else column,
        dataset_test_split=run.get(f"dataset_{SPLITS[name]}_split", SPLITS[name]) if split == "test" else split,
        max_prompts=min(limits, default=None),
    )


def with_length(options: Drawn, model: str, sets: Sequence[Sequence[PromptRow]]) -> Drawn:
    """The options with a length of completions: the one that the person named, or else that of the model's run.

    For a model that is no run it follows the prompts, and is the longest of those of the sets.

    Raises:
        UserError: it is below the minimum length that the person named.
    """
    if not is_open(LENGTH, options.max_completion_length):
        return options
    recorded = trained_run(model).get(LENGTH)
    length = recorded or max(LENGTHS[kind_of(rows)] for rows in sets)
    return replace(options, max_completion_length=length)


def recorded_prompts(run: Mapping[str, Any], name: str, model: str) -> str:
    """The source of a run's prompts, `dataset_name` or `eval_dataset`.

    Raises:
        UserError: the run's settings do not name it.
    """
    if source := run.get(name):
        return source
    raise UserError(f"{model} does not record the prompts that it was trained on; name prompts with --prompts")


def recorded_base(run: Mapping[str, Any], model: str) -> str | None:
    """The model that a run started from; None if its settings do not name it.

    Raises:
        UserError: it was a folder or a file that is no longer there, or the file has changed.
    """
    base = run.get("model_name_or_path")
    if not isinstance(base, str):
        return base
    if (Path(base).is_absolute() or base.endswith(SUFFIX)) and not Path(base).exists():
        raise UserError(f"{model} was trained from {base}, which is not there now; name its place with --base_model")
    if run.get(MODEL_DIGEST, digest := gguf_digest(base)) != digest:
        raise UserError(
            f"{model} was trained from {base}, which is another model now; name the right one with --base_model"
        )
    return base


def scorers_of(options: EvaluateOptions, model: str) -> Scorers:
    """The scorers of an evaluation: those that the person named, or else the rewards of the model's run and the auditor.

    A name alone, `local`, is the version that the run recorded.

    Raises:
        UserError: a reward cannot be loaded, or the weights do not fit the rewards.
    """
    run = trained_run(model)
    if options.reward_funcs is not None or not run:
        rewards = [resolve_reward(_as_recorded(spec, run)) for spec in options.reward_funcs or ["local"]]
        scorers = Scorers(rewards, options.reward_weights)
    else:
        scorers = _scorers_of_run(run, options.reward_weights, model)
    configure(remote_options(options))
    check_weights(scorers.rewards, scorers.weights)
    trained_on, audited_by = _roles(scorers.all, run)
    return replace(scorers, trained_on=trained_on, audited_by=audited_by)


def _as_recorded(spec: str, run: Mapping[str, Any]) -> str:
    for label in [*(run.get("rewards") or []), *(run.get("auditors") or [])]:
        spec = recorded_version(spec, label)
    return spec


def _scorers_of_run(run: Mapping[str, Any], weights: Sequence[float] | None, model: str) -> Scorers:
    """The rewards that a run was trained by, with its weights unless others are given, and the auditors beside them.

    The auditors are those of the run, and `audit` in any case unless it is a reward.
    """
    specs, labels = run.get("reward_funcs") or [], run.get("rewards") or []
    if not specs:
        raise UserError(f"{model} does not record its rewards; name them with --reward_funcs")
    rewards = []
    for spec, label in zip(specs, labels if len(labels) == len(specs) else [None] * len(specs), strict=True):
        try:
            rewards.append(resolve_reward(recorded_version(spec, label)))
        except UserError as error:
            raise UserError(f"the reward of {model} cannot be loaded: {error}; name it with --reward_funcs") from error
        if label is not None and label.partition("@")[:2] != rewards[-1].label.partition("@")[:2]:
            raise UserError(
                f"{model} was trained by a reward {label!r}, which is not today's {rewards[-1].label!r}; "
                "name it with --reward_funcs, my_file.py:my_reward"
            )
    auditors = _auditors_of_run(run, rewards, model)
    if AUDITOR not in [scorer.name for scorer in [*rewards, *auditors]]:
        auditors.append(resolve_reward(AUDITOR))
    return Scorers(rewards, run.get("reward_weights") if weights is None else weights, auditors)


def _auditors_of_run(run: Mapping[str, Any], rewards: Sequence[Reward], model: str) -> list[Reward]:
    """The auditors that a run recorded; those that its rewards have by default, if it recorded none."""
    try:
        return auditors_of(run.get("audit_funcs"), rewards)
    except UserError as error:
        raise UserError(f"an auditor of {model}: {error}; name the scorers with --reward_funcs") from error


def _roles(scorers: Sequence[Reward], run: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Labels of the scorers that a run was trained on, and of those that audit it, by the recorded names without versions."""
    trained = {_name(label) for label in run.get("rewards") or run.get("reward_funcs") or []}
    auditors = run.get("auditors")
    if auditors is None:  # a run of an earlier version
        own = [scorer for scorer in scorers if _name(scorer.label) in trained]
        auditors = [auditor.label for auditor in auditors_of(None, own)]
    audits = {_name(label) for label in auditors} - trained
    by_name = [(_name(scorer.label), scorer.label) for scorer in scorers]
    return [label for name, label in by_name if name in trained], [label for name, label in by_name if name in audits]


def _name(label: str) -> str:
    """A scorer's name without its version."""
    return label.partition("@")[0]
