"""The systems that the commands sample: models, their tags, and the sources of prompts."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from nlf.config import PromptOptions
from nlf.data.checkpoints import MARKER, numbered
from nlf.data.locks import refuse_while_written
from nlf.data.prompts import CONVERSATIONS, PromptRow, kind_of, load_prompts, other_columns
from nlf.data.run_folder import FACTS, is_plain_run, model_folder, settings_in
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.chat import set_defaults
from nlf.models.encoder import feedback_position
from nlf.models.policy import Policy, best_device, load_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """One row of a comparison: a model under a tag, perhaps guided.

    Attributes:
        tag: The words before each prompt; None = the bare prompt.
        negative: The tag that guidance moves away from.
        guidance_scale: Strength of the guidance, transformers' `guidance_scale` minus 1; 0 = none.
        num_prompts: Number of prompts, from the start; None = all prompts.
    """

    name: str
    policy: Policy
    tag: str | None = None
    negative: str | None = None
    guidance_scale: float = 0.0
    num_prompts: int | None = None

    @property
    def slug(self) -> str:
        """The system's name as a part of a file name."""
        if self.tag is not None and self.name == f"tag {self.tag}":
            return f"tag-{tag_slug(self.tag, self.policy)}"
        return slug(self.name)


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one source.

    Attributes:
        source: The source as the person named it.
        rows: One dict for each prompt, with `prompt`, `prompt_id` and the other columns of the data set.
        turned: Whether the order of the tags is reversed on these prompts.
        prefix: Start of the systems' ids and file names; empty if there is one source.
    """

    source: str
    rows: list[PromptRow]
    turned: bool = False
    prefix: str = ""

    def id(self, system: System) -> str:
        """The system's id in `results.json`."""
        return f"{self.prefix}{'reversed-' if self.turned else ''}{system.slug}"

    def file(self, system: System) -> str:
        """The name of the system's generations file. The base has no tags, so both orders of the tags share its file."""
        turned = self.turned and system.name != "base"
        return f"generations-{replace(self, turned=turned).id(system)}.jsonl"


class LoadingOptions(Protocol):
    """The options of every command that loads a model."""

    @property
    def model_revision(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def trust_remote_code(self) -> bool: ...

    @property
    def chat_template_kwargs(self) -> dict | None: ...


def load_for_commands(
    model: str, options: LoadingOptions, device: str | torch.device | None = None, digest: bool = True
) -> Policy:
    """Load a model for inference, on `device` or else on this machine's accelerator.

    Args:
        digest: See `load_policy`.

    Raises:
        UserError: the model cannot be loaded, is being written by another command, or is that of a run that has not ended
            or has lost its tags; or the command's own model has no such variable of its chat template.
    """
    model = model_folder(model)
    refuse_while_written(Path(model))
    refuse_unfinished(Path(model))
    policy = load_policy(
        model, dtype=options.dtype, revision=options.model_revision, trust_remote_code=options.trust_remote_code,
        digest=digest,
    )  # fmt: skip
    if policy.scheme is None and "train_prompts" in settings_in(Path(model, FACTS)) and not is_plain_run(model):
        raise UserError(f"{model} holds a run without its tags.json; copy the file from one of the run's checkpoints")
    set_defaults(policy.tokenizer, options.chat_template_kwargs, strict=model == getattr(options, "model", model))
    policy.chat_template_kwargs = options.chat_template_kwargs
    policy.model.to(torch.device(device or best_device()))  # type: ignore[arg-type]  # transformers hides the type
    return policy


def refuse_unfinished(folder: Path) -> None:
    """Refuse to read a model from the folder of a run that has not ended.

    Raises:
        UserError: the folder holds a run without its model.
    """
    if (folder / "config.json").is_file() or "train_prompts" not in settings_in(folder / FACTS):
        return
    newest = next((path for _, path in numbered(folder) if (path / MARKER).is_file()), None)
    checkpoint = f", or name its newest checkpoint, {newest}" if newest else ""
    raise UserError(
        f"{folder} holds a run that has not ended, and the model is written at the end: resume the run with "
        f"--resume_from_checkpoint true{checkpoint}"
    )


def with_tags(policy: Policy, tags: Sequence[str] | None, prompts: Sequence[PromptRow] = ()) -> Policy:
    """The policy with other tags.

    Args:
        tags: Tags, best first, or one path of a `tags.json`; None keeps the policy's own.
        prompts: The prompts that it will read; conversations show where a model without tags takes them.

    Raises:
        UserError: the tags cannot make a scheme, or the chat template of a model without tags shows them nowhere.
    """
    if tags is None:
        return policy
    if len(tags) == 1:
        return replace(policy, scheme=TagScheme.load(tags[0]))
    if policy.scheme is None and prompts and kind_of(prompts) == CONVERSATIONS:
        position = feedback_position(policy.tokenizer, prompts, tags)
        scheme = TagScheme(tuple(tags), separator=None, conversational=True, feedback_position=position)
        return replace(policy, scheme=scheme)
    scheme = replace(policy.scheme or TagScheme(), tags=tuple(tags))
    if policy.scheme is None and scheme.separator and scheme.separator not in policy.tokenizer.get_vocab():
        logger.warning(
            "this model has no token %r: it reads this separator, and the tags, as plain text", scheme.separator
        )
    return replace(policy, scheme=scheme)


def with_turned_tags(policy: Policy) -> Policy:
    """The policy with its tags in reverse order, so that the worst counts as the best; unchanged if it has no tags."""
    scheme = policy.scheme
    if scheme is None:
        return policy
    return replace(policy, scheme=replace(scheme, tags=scheme.tags[::-1]))


def chosen_tag(policy: Policy, tag: str) -> str | None:
    """The tag that `--tag` names; None = the bare prompt.

    Args:
        tag: 'best', 'middle' (the better of two middle tags), 'none', or a tag. For a model without tags 'best' means the
            bare prompt.

    Raises:
        UserError: the model has no such tag.
    """
    if tag == "none" or (tag == "best" and policy.scheme is None):
        return None
    tags = policy.scheme.tags if policy.scheme else ()
    named = {"best": tags[0], "middle": tags[(len(tags) - 1) // 2]} if tags else {}
    return _known_tag(policy, named.get(tag, tag))


def negative_tag(policy: Policy, tag: str | None) -> str:
    """The tag that guidance moves away from.

    Args:
        tag: A tag; None = the worst tag.

    Raises:
        UserError: the model has no tags, or has no such tag.
    """
    if policy.scheme is None:
        raise UserError(
            "guidance contrasts two tags, and this model has no tags; leave --guidance_scale out, or give --tags"
        )
    return _known_tag(policy, tag or policy.scheme.worst)


def _known_tag(policy: Policy, tag: str) -> str:
    if policy.scheme is None:
        raise UserError(f"unknown tag {tag!r}: this model has no tags.json; give --tags, or --tag none")
    policy.scheme.quantile_of(tag)
    return tag


def prompt_sets(options: PromptOptions, sources: Sequence[str]) -> list[PromptSet]:
    """Load the prompts of each source.

    Raises:
        UserError: a source cannot be read, or two sources share a name.
    """
    if len({slug(source) for source in sources}) < len(sources):
        raise UserError(
            f"prompts {', '.join(sources)}: two sources have the same name; rename a file, their results would share a name"
        )
    load = partial(
        load_prompts, column=options.dataset_prompt_column, split=options.dataset_test_split,
        limit=options.max_prompts, config=options.dataset_config, streaming=options.dataset_streaming,
    )  # fmt: skip
    return [PromptSet(source, load(source)) for source in sources]


def split_sets(sets: Sequence[PromptSet], column: str) -> list[PromptSet]:
    """The sets, each split by the values of a column of its prompts.

    Raises:
        UserError: a prompt lacks the column, or the names of two parts have the same words.
    """
    parts = []
    for prompts in sets:
        by_value: dict[str, list[PromptRow]] = {}
        for number, row in enumerate(prompts.rows, 1):
            others = other_columns(row)
            if column not in others:
                there = ", ".join(map(repr, others)) or "none"
                raise UserError(
                    f"prompts_by: prompt {number} of {prompts.source} has no column {column!r}; its columns: {there}"
                )
            by_value.setdefault(str(others[column]), []).append(row)
        parts += [replace(prompts, source=f"{prompts.source}: {value}", rows=rows) for value, rows in by_value.items()]
    if len({(slug(part.source), part.turned) for part in parts}) < len(parts):
        raise UserError(
            f"prompts_by: two values of {column!r} have the same words, and so would their files; choose another column"
        )
    return parts


def tag_slug(tag: str, policy: Policy) -> str:
    """A tag as a part of a file name: its words, or its quantile if words cannot name every tag of the policy (two tags have
    the same words, a tag has none, or so many that the name would be too long).
    """
    assert policy.scheme is not None  # the tag is one of its tags
    words = [_words(each) for each in policy.scheme.tags]
    usable = all(words) and len(set(words)) == len(words) and max(len(each.encode()) for each in words) <= 100
    quantile = policy.scheme.quantile_of(tag)
    return words[quantile] if usable else f"quantile-{quantile}"


def check_prompts(sets: Sequence[PromptSet], policy: Policy, base: Policy | None, reader: Policy) -> None:
    """Refuse prompts that one of the models of an evaluation cannot read, before anything is sampled.

    A reader with the policy's vocabulary reads token ids, so it needs no chat template.

    Raises:
        UserError: see `PromptEncoder.check`.
    """
    untagged = [base] if base else []
    untagged += [] if reader.has_tokens_of(policy) else [reader]
    for prompts in sets:
        for each in (policy, *(replace(each, scheme=None) for each in untagged)):
            each.encoder().check(prompts.rows)


def slug(name: str) -> str:
    """The name of a prompt source or of a system, as a part of a file name."""
    name = re.sub(
        r"(\.(jsonl|json|csv|tsv|parquet|txt))?(\.gz)?$", "", name.removeprefix("embedded:").rpartition("/")[2]
    )
    return _words(name)


def _words(text: str) -> str:
    return "-".join(re.findall(r"\w+", text.lower()))
