"""A dial from a model without tags: `nlf distill` of a plain model, or of any aligned model whose base is known.

The model and its base write completions of bare prompts, half each. The student starts as the base with tags, and learns
under each tag a distribution on the line from the base through the model (`lessons.dial_lessons`).
"""

import copy
from collections.abc import Mapping
from typing import Any

from nlf.config import DistillOptions, EvaluateOptions, learning_rate
from nlf.data.prompts import PromptRow, all_conversations
from nlf.errors import UserError
from nlf.evaluation.run_defaults import scorers_of
from nlf.evaluation.systems import System
from nlf.method.tags import TagScheme
from nlf.models.encoder import scheme_for
from nlf.models.policy import Policy, prepare_policy
from nlf.rewards.words import default_tags

DIAL = "dial"  # folder of the student, in the model's folder
RATE = 5  # times the learning rate of credit, because whole distributions are less noisy than credit
STEPS = 100
OF_TAGS = ("tag", "negative_tag", "keep_tags")  # options that choose among the teacher's tags


def makes_dial(teacher: Policy) -> bool:
    """Whether the student gets tags: the teacher has none."""
    return teacher.scheme is None


def check_options(teacher: Policy, options: DistillOptions) -> None:
    """Refuse options that do not go with the teacher.

    Raises:
        UserError: an option for tags, and the teacher has none; or tags for the student of a teacher that has its own.
    """
    if not makes_dial(teacher) and options.tags:
        raise UserError(f"--tags: {options.model} has tags of its own, which its student keeps with --keep_tags")
    given = next((name for name in OF_TAGS if getattr(options, name)), None)
    if makes_dial(teacher) and given:
        raise UserError(
            f"--{given}: {options.model} has no tags to choose from; leave it out, and its student gets tags (--tags)"
        )


def tags_of_student(options: DistillOptions, run: Mapping[str, Any]) -> list[str]:
    """The words of the student's tags, best first: those that were asked for, those of the run, or its reward's.

    Raises:
        UserError: the model is of no run; or its reward cannot be loaded.
    """
    tags = options.tags or run.get("tags")
    if tags is None and not run:
        raise UserError(f"{options.model} has no tags and is of no run: name the words, best first, with --tags")
    if tags is None:
        scorers = scorers_of(EvaluateOptions(model=options.model, reward_funcs=options.reward_funcs), options.model)
        tags, _ = default_tags(scorers.rewards, scorers.weights)
    return list(tags)


def student_with_tags(
    base: Policy, tags: list[str], prompts: list[PromptRow], run: Mapping[str, Any], seed: int
) -> Policy:
    """A copy of the base that has tags; its reference is the base.

    Raises:
        UserError: the tags cannot make a scheme, or the chat template shows them nowhere.
    """
    scheme = scheme_for(
        base.tokenizer, prompts, tags, template=run.get("tag_template", TagScheme.template),
        separator=run.get("separator", TagScheme.separator), conversational=all_conversations(prompts),
        position=run.get("feedback_position") or "auto",
    )  # fmt: skip
    student = prepare_policy(
        copy.deepcopy(base.model), copy.deepcopy(base.tokenizer), scheme, tag_tokens=bool(run.get("tag_tokens")),
        reference_model=base.model, seed=seed,
    )  # fmt: skip
    student.chat_template_kwargs = base.chat_template_kwargs
    return student


def rate_of(teacher: Policy) -> float:
    """The learning rate where none is given, by the size of the teacher, which is the student's."""
    return RATE * learning_rate(sum(p.numel() for p in teacher.model.parameters()))


def systems(base: Policy, teacher: Policy, student: Policy) -> list[System]:
    """The rows of the table at the end: the student under all its tags, beside base and teacher."""
    assert student.scheme is not None
    tags = [System(f"tag {tag}", student, tag) for tag in student.scheme.tags]
    return [System("base", base), System("teacher", teacher), *tags]
