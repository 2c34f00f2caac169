"""`nlf distill`: a guided, tagged policy → one plain model, which needs no tag, no guidance and none of this software. And the
other way, from a model without tags to one that has them (`nlf.training.dial`).

The teacher writes completions of the run's training prompts (temperature 1, no top-k or top-p), and the student learns
the teacher's distribution on these completions (`nlf.training.lessons`). The student starts from the base model and
reads the bare prompt. With `keep_tags` it starts from the policy and reads all tags: under the best and the worst tag
it learns from the guided policy, and under the other tags it learns to stay unchanged.
"""

import copy
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments

from nlf import __version__
from nlf.config import DistillOptions, EvaluateOptions, ModelOptions, SamplingOptions, full_name
from nlf.data.files import refuse_others, write_folder, write_text
from nlf.data.generations import read
from nlf.data.locks import locked_folder
from nlf.data.prompts import PromptRow, all_conversations, load_prompts
from nlf.data.run_folder import CONFIG, DISTILLED, FACTS, MODEL_FILES, PLAIN, model_folder, run_settings, trained_run
from nlf.errors import UserError
from nlf.evaluation.evaluate import evaluate
from nlf.evaluation.run_defaults import recorded_base, recorded_prompts, scorers_of, with_prompts
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.systems import System, load_for_commands, tag_slug
from nlf.method.prompt_order import choose_prompts
from nlf.method.tags import TagScheme
from nlf.models.adapter import add_adapter, lora_config
from nlf.models.dropout import check_training_mode, switch_off_dropout
from nlf.models.encoder import PADDING, pass_tokens
from nlf.models.identity import ModelIdentity
from nlf.models.policy import Policy, save_policy
from nlf.models.reading import LogitsPlan, plan_logits
from nlf.training.console import Console
from nlf.training.dial import DIAL, check_options, makes_dial, rate_of, student_with_tags, systems, tags_of_student
from nlf.training.dial import STEPS as DIAL_STEPS
from nlf.training.lessons import (
    Lesson,
    LessonDataset,
    LessonGroup,
    TeacherCompletion,
    collate,
    dial_lessons,
    lesson_loss,
    lessons,
)
from nlf.training.model_card import CardFacts, head, is_local, licence_of, usage
from nlf.training.objective import loss_of_groups
from nlf.training.settings import model_facts

FREE = {"output_dir", "max_eval_prompts", "reward_funcs", "sampling_batch_tokens"}  # options that change no result
NAMES = {"model", "model_revision"}  # they may change when a folder is moved; `teacher` is the digest of the weights
RATE, STEPS = 5e-4, 50  # the learning rate and the steps of a student of a model with tags
BARE = Lesson(None, None, 0.0, None)  # the bare prompt, without guidance
SAMPLES = "samples"  # folder of the teacher's completions, in the student's folder
STUDENT_FILES = (CONFIG, FACTS, SAMPLES, "README.md", *MODEL_FILES)


def distill(options: DistillOptions | None = None, **knobs) -> Path:
    """Teach a plain model what a guided, tagged model does: `distill(model="runs/demo", guidance_scale=2)`.

    Args:
        options: The options of the command line.
        knobs: Options by name, in place of `options`; the other options keep their defaults.

    Returns:
        The student's folder, a transformers model. An existing student is kept.

    Raises:
        UserError: an unknown knob; the model has no tags or no known base; prompts or models cannot be loaded; the models
            have different vocabularies; the folder holds another run or model, or cannot be written.
    """
    options = options_of(knobs) if options is None else options
    options = replace(options, model=model_folder(options.model))
    return distill_from(load_for_commands(options.model, options), options)


def default_folder(teacher: Policy, model: str) -> Path:
    """The folder of a student: `distilled` in its teacher's. A student with tags is the run of a plain model, whose teacher is
    the folder `plain` in it; of another model it is `dial`.
    """
    if not makes_dial(teacher):
        return Path(model, DISTILLED)
    return Path(model).parent if Path(model).name == PLAIN else Path(model, DIAL)


@contextmanager
def student_folder(teacher: Policy, options: DistillOptions) -> Iterator[Path]:
    """The student's folder, locked inside the `with` block.

    Raises:
        UserError: options do not go with the teacher; another command writes the folder, or it holds files where the student
            would write its own.
    """
    check_options(teacher, options)
    folder = Path(options.output_dir or default_folder(teacher, options.model))
    with locked_folder(folder):
        if "teacher" not in run_settings(folder):
            refuse_others(folder, STUDENT_FILES)
        yield folder


def options_of(knobs: dict[str, Any]) -> DistillOptions:
    """The options as a record, from some options by name.

    Raises:
        UserError: an unknown name, or an impossible value.
    """
    defaults = asdict(DistillOptions())
    knobs = {full_name(name, defaults): value for name, value in knobs.items()}
    unknown = [name for name in knobs if name not in defaults]
    if unknown:
        raise UserError(f"distill has no option {unknown[0]!r}; there are {', '.join(defaults)}")
    return DistillOptions(**knobs)


def distill_from(teacher: Policy, options: DistillOptions) -> Path:
    """`distill` with a loaded teacher. All checks come before the first write."""
    with student_folder(teacher, options) as folder:
        _distill(teacher, options, folder)
    return folder


def _distill(teacher: Policy, options: DistillOptions, folder: Path) -> None:
    """Write the student into its folder, unless it is there."""
    run, options = run_of(options), with_defaults(options, teacher)
    base = base_of(options, run)
    tags = tags_of_student(options, run) if makes_dial(teacher) else []  # none: the student of a model with tags
    taught = dial_lessons(tags, options.guidance_scale) if tags else lessons(teacher, options)
    settings = {name: value for name, value in asdict(options).items() if name not in FREE}
    settings |= {"teacher": teacher.revision, "base": base.model}
    if is_done(folder, settings):
        return
    prompts = chosen_prompts(options, run)
    teacher.encoder(run.get("max_prompt_length")).check(prompts)
    start = copy.deepcopy(teacher) if options.keep_tags else load_for_commands(base.model, base, digest=False)
    student = student_with_tags(start, tags, prompts, run, options.seed) if tags else start
    check_vocabulary(teacher, student, options.model, base.model)
    switch_off_dropout(student.model)
    check_training_mode(student.model)
    write_text(folder / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    if tags:
        written = completions_of({"teacher": (teacher, BARE), "base": (start, BARE)}, prompts, options, run, folder)
        written = [each._replace(lesson=lesson) for lesson in taught for each in written * lesson.share]
    else:
        writers = {tag_slug(str(lesson.tag), teacher): (teacher, lesson) for lesson in taught}
        written = completions_of(writers, prompts, options, run, folder)
    teach(student, teacher, written, options, folder, run.get("max_prompt_length"), start.model if tags else None)
    student.identity = ModelIdentity(str(folder))  # its weights are no longer those that were loaded
    write_folder(folder, partial(save_policy, student))
    shown = usage(student if tags else teacher, str(folder), taught[0].student_tag, all_conversations(prompts))
    facts_of_card = CardFacts(licence=licence_of(base.model), dataset_name=run.get("dataset_name"))
    card = distilled_card(options.model, base.model, taught, shown, folder, facts_of_card)
    write_text(folder / "README.md", card)
    facts = model_facts(base.model) | {"distilled_from": options.model}
    write_text(folder / FACTS, json.dumps(facts, indent=1))


def with_defaults(options: DistillOptions, teacher: Policy) -> DistillOptions:
    """The options with the learning rate and the number of steps that suit the student, where they are open."""
    rate, steps = (rate_of(teacher), DIAL_STEPS) if makes_dial(teacher) else (RATE, STEPS)
    return replace(
        options,
        learning_rate=rate if options.learning_rate is None else options.learning_rate,
        max_steps=steps if options.max_steps is None else options.max_steps,
    )


def run_of(options: DistillOptions) -> dict[str, Any]:
    """The settings of the run that made the teacher; of a teacher that was distilled, those of its own teacher's run."""
    return trained_run(options.model) or run_settings(Path(options.model))


def base_of(options: DistillOptions, run: dict[str, Any]) -> DistillOptions:
    """The options that load the base model, from which the student starts: `base_model`, or the start of the run.

    Raises:
        UserError: neither is known.
    """
    base = options.base_model or recorded_base(run, options.model)
    if not base:
        raise UserError(f"{options.model} does not name the model it was trained from; name it with --base_model")
    revision = "main" if options.base_model else run.get("model_revision") or "main"
    variables = options.chat_template_kwargs or run.get("chat_template_kwargs")
    return replace(options, model=base, model_revision=revision, chat_template_kwargs=variables)


def check_vocabulary(teacher: Policy, student: Policy, model: str, base: str) -> None:
    """Refuse a student whose vocabulary differs from the teacher's.

    Args:
        model, base: Names of the teacher and of the student's start, for the error.

    Raises:
        UserError: the vocabularies differ.
    """
    if not teacher.has_tokens_of(student):
        raise UserError(
            f"{base} has another vocabulary than {model}; expected the model that {model} was trained from: name it with "
            "--base_model"
        )


def is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the finished student; `run.json` is written last.

    Raises:
        UserError: the student was made with other settings or by another teacher.
    """
    old = run_settings(folder)
    for name, value in settings.items() if old else ():
        if name not in NAMES and old.get(name) != value:
            raise UserError(
                f"{folder} was distilled with {name}={old.get(name)!r}, now it is {value!r}; "
                "continue with the old settings, or choose another --output_dir"
            )
    return "distilled_from" in old


# ---- the teacher's completions ------------------------------------------------------------------------------------


def chosen_prompts(options: DistillOptions, run: dict[str, Any]) -> list[PromptRow]:
    """The prompts that the teacher completes, drawn by the seed from the prompts of the options, or else of the run.

    Raises:
        UserError: the run does not record its prompts, or they cannot be read, or they mix text and conversations.
    """
    sources = options.prompts or [recorded_prompts(run, "dataset_name", options.model)]
    column = options.dataset_prompt_column if options.prompts else run.get("dataset_prompt_column", "prompt")
    limit = None if options.prompts else run.get("max_prompts")
    subset = options.dataset_config if options.prompts else run.get("dataset_config")
    load = partial(
        load_prompts, column=column, split=options.dataset_train_split, limit=limit, config=subset,
        streaming=options.dataset_streaming,
    )  # fmt: skip
    rows = [row for source in sources for row in load(source)]
    all_conversations(rows)
    return [rows[i] for i in choose_prompts(len(rows), options.num_prompts, options.seed, 0)]


def completions_of(
    writers: Mapping[str, tuple[Policy, Lesson]],
    prompts: Sequence[PromptRow],
    options: DistillOptions,
    run: dict[str, Any],
    folder: Path,
) -> list[TeacherCompletion]:
    """Completions without empty ones; missing ones are sampled into the student's folder.

    Args:
        writers: Models, and the lessons whose tag and guidance they write under, by the name of their file. Each writes its
            part of `num_generations`.
    """
    found = []
    for name, (writer, lesson) in writers.items():
        sampling = SamplingOptions(
            num_generations=max(options.num_generations // len(writers), 1),
            max_completion_length=options.max_completion_length or run.get("max_completion_length", 20),
            guidance_scale=lesson.scale,
            negative_tag=lesson.negative if lesson.scale else None,
        )
        path = folder / SAMPLES / f"generations-{name}.jsonl"
        with prompt_sampler(
            writer, sampling, seed=options.seed, token_budget=options.sampling_batch_tokens,
            max_prompt_length=run.get("max_prompt_length"),
        ) as sampler:  # fmt: skip
            sample_file(path, sampler, prompts, lesson.tag, what="base" if name == "base" else "teacher")
        lines = read(path)
        found += [
            TeacherCompletion(lesson, line, j) for line in lines for j, ids in enumerate(line["completion_ids"]) if ids
        ]
    return found


# ---- training -----------------------------------------------------------------------------------------------------


class DistillTrainer(Trainer):
    """A Trainer whose loss is the KL to a guided teacher.

    Args:
        top_k, base: See `lesson_loss`.
    """

    def __init__(
        self, student: Policy, *args, teacher: Policy, top_k: int = 0, base: torch.nn.Module | None = None, **kwargs
    ):
        super().__init__(student.model, *args, **kwargs)
        Console("distilling").show_in(self)
        self.student, self.teacher, self.top_k, self.base = student, teacher, top_k, base
        self.loss_is_scaled_for_ga = True  # the loss is already divided by the counts of the step

    @functools.cached_property
    def plan(self) -> LogitsPlan:
        """How student and teacher compute logits, found in the first step."""
        return plan_logits(self.student.model, self.teacher.model)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        def loss(group: LessonGroup) -> torch.Tensor:
            own = lesson_loss(model, self.teacher, group, self.plan, self.top_k, self.base)
            return own * self.accelerator.num_processes

        return loss_of_groups(inputs["groups"], loss, self.accelerator.backward)

    def _get_train_sampler(self, *args):
        """The data set in its own order."""
        return torch.utils.data.SequentialSampler(self.train_dataset)


def teach(
    student: Policy,
    teacher: Policy,
    completions: Sequence[TeacherCompletion],
    options: DistillOptions,
    folder: Path,
    max_prompt_length: int | None,
    base: torch.nn.Module | None = None,
) -> None:
    """Train the student in place.

    Args:
        base: The model that a teacher without tags is moved away from.
    """
    teacher.model.requires_grad_(False).eval()
    encoder = (teacher if base is None else student).encoder(max_prompt_length)
    args = training_arguments(options, folder)
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if options.use_peft:
        lora = lora_config(ModelOptions(lora_r=options.lora_r, lora_alpha=options.lora_alpha))
        student.model = add_adapter(student.model, lora, student.added_token_ids, options.seed)
    DistillTrainer(
        student,
        args,
        train_dataset=LessonDataset(
            completions, encoder, steps=args.max_steps, batch_size=batch_size, seed=options.seed
        ),
        data_collator=partial(collate, pad_id=PADDING, pass_tokens=pass_tokens(args.device, args.world_size == 1)),
        teacher=teacher,
        top_k=options.teacher_top_k,
        base=base,
    ).train()


def training_arguments(options: DistillOptions, folder: Path) -> TrainingArguments:
    """Trainer's arguments, without checkpoints and reports."""
    assert options.max_steps is not None and options.learning_rate is not None  # `with_defaults` has filled them in
    return TrainingArguments(
        str(folder),
        max_steps=options.max_steps,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        seed=options.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cache=True,  # Trainer writes it into the student's config.json
    )


# ---- the command --------------------------------------------------------------------------------------------------


def distill_command(options: DistillOptions) -> str:
    """`nlf distill`: make the student, then compare it with its teacher and the base on the run's evaluation prompts.

    Args:
        options: The options of the command line.
    """
    options = replace(options, model=model_folder(options.model))
    teacher = load_for_commands(options.model, options)
    with student_folder(teacher, options) as folder:
        lesson = (
            BARE if makes_dial(teacher) else lessons(teacher, options)[0]
        )  # an unknown tag, before scorers are loaded
        comparison = evaluation_options(options, folder)
        scorers = scorers_of(comparison, options.model)  # before the work: a reward may have to be named
        distill_from(teacher, options)
    guided = System("teacher", teacher, lesson.tag, lesson.negative, lesson.scale)

    def compared(start: Policy | None, student: Policy, *_) -> list[System]:
        assert start is not None  # the base model has been named
        if makes_dial(teacher):
            return systems(start, teacher, student)
        if not options.keep_tags:
            return [System("base", start), guided, System("student", student)]
        return [System("base", start), guided, System("student, best tag", student, tags_of(student).best)]

    return f"{evaluate(comparison, compared, scorers)}\nmodel: {folder}"


def evaluation_options(options: DistillOptions, folder: Path) -> EvaluateOptions:
    """The options of `nlf evaluate` for the student, on the evaluation prompts of the teacher's run.

    Raises:
        UserError: the run does not record its prompts or its base model.
    """
    run = run_of(options)
    base = base_of(options, run)
    compared = EvaluateOptions(
        model=str(folder),
        model_revision=base.model_revision,
        base_model=base.model,
        chat_template_kwargs=base.chat_template_kwargs,
        reward_funcs=options.reward_funcs,
        max_completion_length=options.max_completion_length or run.get("max_completion_length", 20),
        max_prompts=options.max_eval_prompts,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    return with_prompts(compared, options.model)


# ---- the model card -----------------------------------------------------------------------------------------------

CARD = """---
{head}---
# {name}

`{base}`, taught by `nlf` {version} {what}.
It is an ordinary causal language model{how}.

{usage}
"""


def distilled_card(model: str, base: str, taught: Sequence[Lesson], usage: str, folder: Path, facts: CardFacts) -> str:
    """The README.md of the student.

    Args:
        usage: A code block that uses the student.
        facts: Licence of the base, and the source of the prompts.
    """
    top = head(folder.name, base, facts, ["language-feedback", "alignment", "distillation"], {})
    base, model = (Path(each).name if is_local(each) else each for each in (base, model))
    if taught[0].tag is None:  # the student of a model without tags
        places = ", ".join(f'"{each.student_tag}" {each.scale + 1:g}' for each in taught if each.student_tag)
        what = f"places on the line from `{base}` (0) through `{model}` (1): {places}; a bare prompt is at 0"
    else:
        guided = [f'"{one.tag}" away from "{one.negative}", guidance {one.scale:g}' for one in taught if one.scale]
        what = f"what `{model}` writes under guidance: {'; '.join(guided)}"
    plain = taught[0].student_tag is None
    how = ": no tag, no guidance" if plain else ", conditioned on its tags by their words alone"
    return CARD.format(
        head=top, base=base, name=folder.name, version=__version__,
        what=what, how=how, usage=usage,
    )  # fmt: skip


def tags_of(policy: Policy) -> TagScheme:
    assert policy.scheme is not None  # `lessons` refuses a teacher without tags
    return policy.scheme
