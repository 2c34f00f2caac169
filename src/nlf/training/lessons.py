"""Lessons of a guided teacher: the tags that it teaches, the batches of its completions, and the loss on them.

The teacher is guided: what it writes is contrasted with something else at strength g, and the distribution is renormalised
without the separator. A policy with tags contrasts a tag with another tag (`lessons`). A model without tags is contrasted
with its base, and each tag of the student is a strength, below -1 for worse tags (`dial_lessons`). The student learns on
completions

    L = Σ KL(teacher ‖ student) / tokens          over the full vocabulary, at the completion's tokens

Teacher logits are recomputed in each step, never stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nlf.config import DistillOptions
from nlf.data.generations import Generation
from nlf.data.run_folder import trained_run
from nlf.errors import UserError
from nlf.evaluation.systems import chosen_tag, negative_tag
from nlf.method.losses import distillation_kl, teacher_log_probs
from nlf.method.prompt_order import choose_prompts
from nlf.models.encoder import ForwardInputs, PromptEncoder, forward_inputs, group_by_length
from nlf.models.policy import Policy
from nlf.models.reading import LogitsPlan, completion_outputs, project
from nlf.training.objective import in_chunks, rows_at_a_time

# default guidance scale for the middle tag, for any other tag, and for a model trained by credit, whose tags lie further apart
FROM_MIDDLE, FROM_BEST, BY_CREDIT = 8.0, 1.5, 1.0
FROM_BASE = 0.5  # the same for a model without tags, which is guided away from its base
OUTER = 3  # how often the outer tags of a dial are taught for each time that a tag between them is


@dataclass(frozen=True)
class Lesson:
    """One tag of the teacher with its guidance, and the tag that the student reads in its place.

    Attributes:
        tag, negative, scale: The teacher's tag, the tag that guidance moves away from, and the guidance scale. A teacher
            without tags has None: it is moved away from its base.
        student_tag: The tag that the student reads; None = the bare prompt.
        share: How often the lesson is taught, relative to others.
    """

    tag: str | None
    negative: str | None
    scale: float
    student_tag: str | None
    share: int = 1


def lessons(policy: Policy, options: DistillOptions) -> list[Lesson]:
    """The lessons of a teacher: one tag for a student without tags; with `keep_tags` all tags, and guidance for the
    best and the worst tag only.

    Raises:
        UserError: the model lacks a tag that the options name.
    """
    assert policy.scheme is not None  # else the model is the teacher of `dial_lessons`
    by_credit = bool(trained_run(options.model).get("credit_coef"))
    named = options.tag or ("best" if by_credit else "middle")
    tag, negative = chosen_tag(policy, named), negative_tag(policy, options.negative_tag)
    if tag is None:
        raise UserError("--tag none leaves nothing to teach; name a tag, or 'best'")
    from_middle = tag == chosen_tag(policy, "middle") and not options.keep_tags
    usual = BY_CREDIT if by_credit else FROM_MIDDLE if from_middle else FROM_BEST
    scale = usual if options.guidance_scale is None else options.guidance_scale
    if not options.keep_tags:
        return [Lesson(tag, negative, scale, None)]
    best, worst = policy.scheme.best, policy.scheme.worst
    opposite = {best: worst, worst: best}
    return [
        Lesson(each, opposite.get(each, worst), scale if each in opposite else 0.0, each)
        for each in policy.scheme.tags
    ]


def dial_lessons(tags: Sequence[str], guidance_scale: float | None) -> list[Lesson]:
    """The lessons of a model without tags: log q + s · (log p - log q), for the model p and its base q.

    s falls in equal parts from 1 + g under the best tag to -(1 + g) under the worst, and is 0 without a tag. If p maximises
    a reward r less β KL(p‖q), this is the optimum for the reward s · r (Liu et al. 2024, arXiv 2402.02992): the best tag asks
    for more of the reward than the model was trained for, and the worst for the opposite.

    Args:
        tags: The student's, best first.
        guidance_scale: g; None = `FROM_BASE`.
    """
    most = 1 + (FROM_BASE if guidance_scale is None else guidance_scale)
    strengths = np.linspace(most, -most, len(tags))
    taught = [Lesson(None, None, float(s) - 1, tag) for s, tag in zip(strengths, tags, strict=True)]
    ends = [replace(taught[0], share=OUTER), *taught[1:-1], replace(taught[-1], share=OUTER)]
    return [*ends, Lesson(None, None, -1.0, None)]


# ---- batches ------------------------------------------------------------------------------------------------------


class TeacherCompletion(NamedTuple):
    """One completion that the teacher wrote: completion number `place` of a line of generations."""

    lesson: Lesson
    line: Generation
    place: int

    @property
    def ids(self) -> list[int]:
        return self.line["completion_ids"][self.place]


@dataclass(frozen=True)
class Example:
    """Token ids of one completion of the teacher.

    Attributes:
        best, worst: The prompt as the teacher reads it, under its tag and under the negative tag; for a teacher without tags,
            the prompt as it and its base read it.
        scale: The guidance scale.
        student: The prompt as the student reads it.
        num_tokens: Completion tokens of the whole optimizer step.
    """

    best: list[int]
    worst: list[int]
    scale: float
    student: list[int]
    completion: list[int]
    num_tokens: int


class LessonGroup(TypedDict):
    """B examples of similar length with N completion tokens in all."""

    student: ForwardInputs  # (B, L)
    teacher: ForwardInputs  # (2B, L'), all `best` rows before all `worst` rows
    scale: Tensor  # (N,), guidance scale of each completion token
    num_tokens: Tensor  # (), of the whole optimizer step


class LessonBatch(TypedDict):
    """One micro-batch. Its loss is the sum of its groups' losses."""

    groups: list[LessonGroup]


class LessonDataset(Dataset):
    """`steps × batch_size` completions of the teacher, in seeded permutations. Item i depends on (seed, i) only."""

    def __init__(
        self,
        completions: Sequence[TeacherCompletion],
        encoder: PromptEncoder,
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        self.completions, self.encoder, self.batch_size = completions, encoder, batch_size
        self.order = choose_prompts(len(completions), steps * batch_size, seed, 0)
        lengths = np.array([len(each.ids) for each in completions])
        self.step_tokens = lengths[self.order].reshape(steps, batch_size).sum(1).tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Example:
        chosen = self.completions[self.order[i]]
        lesson, line = chosen.lesson, chosen.line
        best, worst, student = (
            self.encoder.query_ids(tag, line["prompt_ids"], line["prompt"])
            for tag in (lesson.tag, lesson.negative, lesson.student_tag)
        )
        return Example(best, worst, lesson.scale, student, chosen.ids, self.step_tokens[i // self.batch_size])


def collate(examples: Sequence[Example], pad_id: int, pass_tokens: int | None = None) -> LessonBatch:
    """One micro-batch, cut into groups of examples of similar length.

    Args:
        pass_tokens: See `group_by_length`.
    """
    lengths = [max(len(e.best), len(e.worst)) + len(e.completion) for e in examples]
    groups = group_by_length(lengths, pass_tokens)
    return {"groups": [_collate_group([examples[i] for i in group], pad_id) for group in groups]}


def _collate_group(examples: Sequence[Example], pad_id: int) -> LessonGroup:
    completions = [e.completion for e in examples]
    return {
        "student": forward_inputs([e.student for e in examples], completions, pad_id),
        "teacher": forward_inputs([e.best for e in examples] + [e.worst for e in examples], completions * 2, pad_id),
        "scale": torch.tensor([e.scale for e in examples for _ in e.completion]),
        "num_tokens": torch.tensor(examples[0].num_tokens),
    }


# ---- the loss -----------------------------------------------------------------------------------------------------


def lesson_loss(
    student: nn.Module,
    teacher: Policy,
    group: LessonGroup,
    plan: LogitsPlan,
    top_k: int = 0,
    base: nn.Module | None = None,
) -> Tensor:
    """KL(teacher‖student) summed over the completion tokens of a group: its share in the loss of the step.

    Args:
        plan: How student and teacher compute logits.
        top_k: Number of likeliest tokens that the teacher keeps; 0 keeps all.
        base: The model that guidance moves away from; None = the teacher, under its negative tag.
    """
    with torch.no_grad():
        best, worst = _teacher_outputs(teacher.model, base, group["teacher"], plan)  # (N, D or V) each
    own = completion_outputs(student, group["student"], plan.bare, plan.model_mlp)  # (N, D' or V')

    def kl(own: Tensor, best: Tensor, worst: Tensor, scale: Tensor) -> Tensor:
        with torch.no_grad():
            if plan.bare:
                best, worst = project(teacher.model, best), project(base or teacher.model, worst)  # (n, V) each
            target = teacher_log_probs(
                best, worst, scale[:, None], top_k=top_k,
                kept_ids=teacher.eos_token_ids, excluded_ids=teacher.banned_token_ids,
            )  # fmt: skip
        return distillation_kl(target, project(student, own) if plan.bare else own)  # (n,)

    parts = in_chunks(kl, rows_at_a_time(student, plan), own, best, worst, group["scale"])
    return torch.cat(parts).sum() / group["num_tokens"]


def _teacher_outputs(
    teacher: nn.Module, base: nn.Module | None, inputs: ForwardInputs, plan: LogitsPlan
) -> tuple[Tensor, Tensor]:
    """Outputs of the teacher at the `best` and the `worst` rows, the latter by the base if there is one."""
    if base is None:
        best, worst = completion_outputs(teacher, inputs, plan.bare, plan.reference_mlp).chunk(2)
        return best, worst
    half = len(inputs["input_ids"]) // 2
    tensors = cast(dict[str, Tensor], inputs)
    first, second = (
        cast(ForwardInputs, {name: value[rows] for name, value in tensors.items()})
        for rows in (slice(half), slice(half, None))
    )
    return completion_outputs(teacher, first, plan.bare, plan.reference_mlp), completion_outputs(
        base, second, plan.bare
    )
