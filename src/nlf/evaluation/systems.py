"""What is evaluated: models, tags and prompt sources as the commands name them."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from nlf.data.prompts import load_prompts
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.policy import Policy, best_device, load_policy

logger = logging.getLogger(__name__)


def load_for_commands(model: str, options, device: str | None = None) -> Policy:
    """A model for inference, on the accelerator where there is one and no other device is named.

    Raises:
        UserError: it cannot be loaded.
    """
    policy = load_policy(
        model, dtype=options.dtype, revision=options.model_revision, trust_remote_code=options.trust_remote_code
    )
    policy.model.to(device or best_device())
    return policy


def with_tags(policy: Policy, tags: Sequence[str] | None) -> Policy:
    """The policy under other words for its quantiles: a list, best first, or one `tags.json`.

    Raises:
        UserError: no scheme can be made of them.
    """
    if tags is None:
        return policy
    if len(tags) == 1:
        return replace(policy, scheme=TagScheme.load(tags[0]))
    known = policy.scheme or TagScheme()
    scheme = TagScheme(tuple(tags), known.template, known.separator)
    if scheme.separator and scheme.separator not in policy.tokenizer.get_vocab():
        logger.warning("this model has no token %r: it reads it, and the tags, as plain text", scheme.separator)
    return replace(policy, scheme=scheme)


def chosen_tag(policy: Policy, tag: str) -> str | None:
    """The words that `--tag` names: 'best', 'middle' (of an even number, the better of two) or a tag; None for 'none',
    and for the best of a model without tags.

    Raises:
        UserError: words that are none of the model's tags.
    """
    if tag == "none" or (tag == "best" and policy.scheme is None):
        return None
    tags = policy.scheme.tags if policy.scheme else ()
    named = {"best": tags[0], "middle": tags[(len(tags) - 1) // 2]} if tags else {}
    return _known_tag(policy, named.get(tag, tag))


def negative_tag(policy: Policy, tag: str | None) -> str:
    """The words that guidance moves away from: the worst tag unless another is named.

    Raises:
        UserError: the model has no tags, or not this one.
    """
    if policy.scheme is None:
        raise UserError(
            "guidance contrasts two tags and this model has none; leave --guidance_scale out, or give --tags"
        )
    return _known_tag(policy, tag or policy.scheme.worst)


def _known_tag(policy: Policy, tag: str) -> str:
    if policy.scheme is None:
        raise UserError(f"unknown tag {tag!r}: this model has no tags.json; give --tags, or --tag none")
    policy.scheme.quantile_of(tag)
    return tag


def prompt_sets(options, sources: Sequence[str]) -> list[tuple[str, list[dict]]]:
    """(source, rows) of each source of prompts.

    Raises:
        UserError: a source cannot be read, or is named twice.
    """
    if len({slug(source) for source in sources}) < len(sources):
        raise UserError(
            f"prompts {', '.join(sources)}: two of one name; rename a file, their results would share a name"
        )
    found = {
        "column": options.dataset_prompt_column,
        "split": options.dataset_test_split,
        "limit": options.max_prompts,
    }
    return [(source, load_prompts(source, **found)) for source in sources]


def slug(name: str) -> str:
    """The name of a source of prompts, or of a system, as part of a file's."""
    name = re.sub(r"(\.(jsonl|json|csv|parquet|txt))?(\.gz)?$", "", name.removeprefix("embedded:").rpartition("/")[2])
    return "-".join(re.findall(r"\w+", name.lower()))
