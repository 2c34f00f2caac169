"""`nlf distill`: a guided, tagged policy → one plain model, which needs no tag, no guidance and none of this software.

The teacher is the policy under a tag, contrasted with another at strength g, its distribution renormalised without the
separator. It writes completions of the run's training prompts (temperature 1, nothing filtered), and the student learns

    L = Σ KL(teacher ‖ student) / tokens          over the full vocabulary, at the completion's tokens

on them. The student is the base model on the bare prompt; or, with `keep_tags`, the policy itself under all its tags: the
two extremes learn from themselves under guidance, the others stay as they are. Teacher logits are recomputed, never stored.
"""

import copy
import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from nlf import __version__
from nlf.config import (
    COMMAND_GROUPS,
    EVAL_SAMPLING_DEFAULTS,
    DistillOptions,
    LoadOptions,
    ModelOptions,
    SamplingOptions,
    check,
)
from nlf.data.files import write_folder, write_text
from nlf.data.generations import read
from nlf.data.prompts import all_conversations, load_prompts
from nlf.data.run_folder import CONFIG, FACTS, run_settings
from nlf.errors import UserError
from nlf.evaluation.evaluate import DISTILLED, System, evaluate
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.systems import chosen_tag, load_for_commands, negative_tag, slug
from nlf.method.losses import distillation_kl, teacher_log_probs
from nlf.method.prompt_order import choose_prompts
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder, group_by_length, pass_tokens, read_whole, with_feedback
from nlf.models.identity import revision_of, vocabulary_digest
from nlf.models.policy import Policy, add_adapter, lora_config, save_policy, switch_off_dropout
from nlf.models.reading import bare_head, last_feed_forward, predicting, project
from nlf.training.objective import in_chunks, loss_of_groups, rows_at_a_time

logger = logging.getLogger(__name__)

FREE = {"output_dir", "max_eval_prompts", "sampling_batch_tokens"}  # change no result
FROM_MIDDLE, FROM_BEST = 8.0, 1.5  # how strong guidance is unless it is said
SAMPLES = "samples"  # folder of what the teacher wrote, in the student's


@dataclass(frozen=True)
class Lesson:
    """What one tag of the teacher teaches: `tag` against `negative` at strength `scale`; the student hears `heard`."""

    tag: str
    negative: str
    scale: float
    heard: str | None


@dataclass(frozen=True)
class Example:
    """One completion with what teacher and student read before it."""

    best: list[int]
    worst: list[int]
    scale: float
    student: list[int]
    completion: list[int]
    num_tokens: int  # of the whole optimizer step


def lessons(policy: Policy, options: Any) -> list[Lesson]:
    """What is taught: one tag without its words, or with `keep_tags` all tags, the extremes guided.

    Raises:
        UserError: the model has no tags, or not the ones that are named.
    """
    if policy.scheme is None:
        raise UserError(f"{options.model} has no tags.json; expected a model that nlf has trained")
    tag, negative = chosen_tag(policy, options.tag), negative_tag(policy, options.negative_tag)
    if tag is None:
        raise UserError("--tag none leaves nothing to teach; name a tag, or 'best'")
    from_middle = tag == chosen_tag(policy, "middle") and not options.keep_tags
    scale = options.guidance_scale if options.guidance_scale is not None else FROM_MIDDLE if from_middle else FROM_BEST
    if not options.keep_tags:
        return [Lesson(tag, negative, scale, None)]
    best, worst = policy.scheme.best, policy.scheme.worst
    opposite = {best: worst, worst: best}
    return [
        Lesson(each, opposite.get(each, worst), scale if each in opposite else 0.0, each)
        for each in policy.scheme.tags
    ]


class LessonDataset(Dataset):
    """`steps × batch_size` completions of the teacher, in seeded permutations; item i depends on (seed, i) only."""

    def __init__(
        self, rows: Sequence[tuple[Lesson, dict, int]], encoder: PromptEncoder, steps: int, batch: int, seed: int
    ):
        self.rows, self.encoder, self.batch = rows, encoder, batch
        self.order = choose_prompts(len(rows), steps * batch, seed, 0)
        lengths = np.array([len(row["completion_ids"][j]) for _, row, j in rows])
        self.step_tokens = lengths[self.order].reshape(steps, batch).sum(1).tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Example:
        lesson, row, j = self.rows[self.order[i]]
        best, worst, student = (
            self.encoder.query_ids(words, row["prompt_ids"], row["prompt"])
            for words in (lesson.tag, lesson.negative, lesson.heard)
        )
        return Example(best, worst, lesson.scale, student, row["completion_ids"][j], self.step_tokens[i // self.batch])


def collate(examples: Sequence[Example], pad_id: int, pass_tokens: int | None = None) -> dict[str, list[dict]]:
    """One micro-batch as `groups` of examples of like length (all, where `pass_tokens` is None). For each group of B
    examples with N completion tokens: `student`, `read_whole` of B rows; `teacher`, of 2B, best tag first; `scale` `(N,)`,
    how strong guidance is; `num_tokens` of the whole step, a scalar.
    """
    lengths = [max(len(e.best), len(e.worst)) + len(e.completion) for e in examples]
    groups = group_by_length(lengths, pass_tokens)
    return {"groups": [_collate_group([examples[i] for i in group], pad_id) for group in groups]}


def _collate_group(examples: Sequence[Example], pad_id: int) -> dict:
    completions = [e.completion for e in examples]
    return {
        "student": read_whole([e.student for e in examples], completions, pad_id),
        "teacher": read_whole([e.best for e in examples] + [e.worst for e in examples], completions * 2, pad_id),
        "scale": torch.tensor([e.scale for e in examples for _ in e.completion]),
        "num_tokens": torch.tensor(examples[0].num_tokens),
    }


def lesson_loss(
    student: torch.nn.Module,
    teacher: Policy,
    group: dict,
    *,
    bare: bool,
    top_k: int = 0,
    most_logits: int | None = None,
    last: tuple[torch.nn.Module | None, torch.nn.Module | None] = (None, None),
) -> torch.Tensor:
    """KL(teacher‖student) over the completion tokens of a group of `collate`: its share in the loss of the step.

    Args:
        bare, most_logits, last: As of `objective.completion_stats`, of student and teacher.
    """
    with torch.no_grad():
        best, worst = predicting(teacher.model, group["teacher"], bare, last[1]).chunk(2)  # (N, D or V) each
    own = predicting(student, group["student"], bare, last[0])  # (N, D' or V')

    def kl(own: torch.Tensor, best: torch.Tensor, worst: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if bare:
                best, worst = project(teacher.model, best), project(teacher.model, worst)  # (n, V) each
            target = teacher_log_probs(
                best, worst, scale[:, None], top_k=top_k,
                kept_ids=teacher.eos_token_ids, excluded_ids=teacher.banned_token_ids,
            )  # fmt: skip
        return distillation_kl(target, project(student, own) if bare else own)  # (n,)

    parts = in_chunks(kl, rows_at_a_time(student, most_logits) if bare else None, own, best, worst, group["scale"])
    return torch.cat(parts).sum() / group["num_tokens"]


class DistillTrainer(Trainer):
    """Trainer whose loss is the KL to a guided teacher."""

    def __init__(self, *args, teacher: Policy, top_k: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher, self.top_k = teacher, top_k
        self.bare = bare_head(self.model) and bare_head(teacher.model)
        self.loss_is_scaled_for_ga = True  # it has the step's denominator already

    @functools.cached_property
    def last_layers(self) -> tuple[torch.nn.Module | None, ...]:
        """Of student and teacher; known once training has set its mode."""
        return tuple(last_feed_forward(each) if self.bare else None for each in (self.model, self.teacher.model))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        def loss(group: dict) -> torch.Tensor:
            found = lesson_loss(model, self.teacher, group, bare=self.bare, top_k=self.top_k, last=self.last_layers)
            return found * self.accelerator.num_processes

        return loss_of_groups(inputs["groups"], loss, self.accelerator.backward)

    def _get_train_sampler(self, *args):
        """In the data set's own order."""
        return torch.utils.data.SequentialSampler(self.train_dataset)


def distill(options: Any = None, **knobs) -> Path:
    """Teach a plain model what a guided, tagged one does.

    Args:
        options: All fields of `config.LoadOptions` and `config.DistillOptions`, as the command line gives them.
        knobs: Or some of them by name, the others as they are: `distill(model="runs/demo", guidance_scale=2)`.

    Returns:
        The student's folder, an ordinary model of transformers. What is there already is not done again.

    Raises:
        UserError: an unknown knob; the model has no tags or no known base; prompts or models cannot be loaded, or know
            other tokens than each other; the folder holds something else, or cannot be written.
    """
    options = options or options_of(knobs)
    return distill_from(load_for_commands(options.model, options), options)


def options_of(knobs: dict[str, Any]) -> SimpleNamespace:
    """Options as the command line makes them, of some by name.

    Raises:
        UserError: there is no such option, or its value makes no sense.
    """
    defaults = asdict(LoadOptions()) | asdict(DistillOptions())
    unknown = [name for name in knobs if name not in defaults]
    if unknown:
        raise UserError(f"distill has no option {unknown[0]!r}; there are {', '.join(defaults)}")
    options = SimpleNamespace(**defaults | knobs)
    check(options)
    return options


def distill_from(teacher: Policy, options: Any) -> Path:
    """The same with the teacher loaded. All that can be refused is, before anything is written."""
    run = run_settings(Path(options.model))
    folder, base = Path(options.output_dir or Path(options.model, DISTILLED)), base_of(options, run)
    if options.max_steps < 1:
        raise UserError(f"max_steps: {options.max_steps} where a number above 0 was expected")
    taught = lessons(teacher, options)
    settings = {name: value for name, value in vars(options).items() if name not in FREE}
    settings |= {"teacher": revision_of(teacher.model), "base": base.model}
    if is_done(folder, settings):
        return folder
    prompts = chosen_prompts(options, run)
    student = copy.deepcopy(teacher) if options.keep_tags else load_for_commands(base.model, base)
    check_vocabulary(teacher, student, options.model, base.model)
    write_text(folder / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    rows = [row for lesson in taught for row in taught_by(lesson, teacher, prompts, options, run, folder, len(taught))]
    teach(student, teacher, rows, options, folder, run.get("max_prompt_length"))
    write_folder(folder, partial(save_policy, student))
    conversational = not isinstance(prompts[0]["prompt"], str)
    card = distilled_card(options.model, base.model, taught, teacher.scheme, folder, conversational)
    write_text(folder / "README.md", card)
    write_text(
        folder / FACTS, json.dumps({"model_name_or_path": base.model, "distilled_from": options.model}, indent=1)
    )
    return folder


def base_of(options: Any, run: dict) -> SimpleNamespace:
    """How to load the start that the student has and is compared with: the one named, or the run's own.

    Raises:
        UserError: neither is known.
    """
    base = options.base_model or run.get("model_name_or_path")
    if not base:
        raise UserError(f"{options.model} does not say what it was trained from; name it with --base_model")
    revision = "main" if options.base_model else run.get("model_revision") or "main"
    return SimpleNamespace(**vars(options) | {"model": base, "model_revision": revision})


def check_vocabulary(teacher: Policy, student: Policy, model: str, base: str) -> None:
    """Refuse a student for which the teacher's token ids mean something else.

    Raises:
        UserError: naming both models.
    """
    if vocabulary_digest(teacher.tokenizer, teacher.added_token_ids) != vocabulary_digest(
        student.tokenizer, student.added_token_ids
    ):
        raise UserError(
            f"{base} has other tokens than {model}; expected the model it was trained from: name it with --base_model"
        )


def is_done(folder: Path, settings: dict) -> bool:
    """Whether the student is there already; `run.json` is written last.

    Raises:
        UserError: it was made with other settings, or from another model; or the folder holds no student.
    """
    old = run_settings(folder)
    if "teacher" not in old and any((folder / name).exists() for name in (CONFIG, FACTS, "config.json")):
        raise UserError(f"{folder} holds a run or a model that is no student; choose another --output_dir")
    for name, value in settings.items() if old else ():
        if old.get(name) != value:
            raise UserError(
                f"{folder} was distilled with {name}={old.get(name)!r}, now it is {value!r}; "
                "go on with the old settings, or choose another --output_dir"
            )
    return "distilled_from" in old


def chosen_prompts(options: Any, run: dict) -> list[dict]:
    """The prompts that the teacher completes: drawn by the seed from those that are named, or the run's own.

    Raises:
        UserError: they cannot be read, or some are text and some are messages.
    """
    sources = options.prompts or [run.get("dataset", "embedded")]
    column = options.dataset_prompt_column if options.prompts else run.get("dataset_prompt_column", "prompt")
    limit = None if options.prompts else run.get("max_prompts")
    rows = [
        row
        for source in sources
        for row in load_prompts(source, column=column, split=options.dataset_train_split, limit=limit)
    ]
    all_conversations(rows)
    return [rows[i] for i in choose_prompts(len(rows), options.num_prompts, options.seed, 0)]


def taught_by(
    lesson: Lesson, teacher: Policy, prompts: Sequence[dict], options: Any, run: dict, folder: Path, num_lessons: int
) -> list[tuple[Lesson, dict, int]]:
    """What the teacher wrote under one tag: (lesson, line of generations, which of its completions)."""
    sampling = SamplingOptions(
        num_generations=max(options.num_generations // num_lessons, 1),
        max_completion_length=options.max_completion_length or run.get("max_completion_length", 20),
        guidance_scale=lesson.scale,
        negative_tag=lesson.negative if lesson.scale else None,
    )
    path = folder / SAMPLES / f"generations-{slug(lesson.tag)}.jsonl"
    with prompt_sampler(
        teacher, sampling, seed=options.seed, token_budget=options.sampling_batch_tokens,
        max_prompt_length=run.get("max_prompt_length"),
    ) as sampler:  # fmt: skip
        sample_file(path, sampler, prompts, lesson.tag, what="distilling")
    return [(lesson, row, j) for row in read(path) for j, ids in enumerate(row["completion_ids"]) if ids]


def teach(
    student: Policy,
    teacher: Policy,
    rows: Sequence[tuple[Lesson, dict, int]],
    options: Any,
    folder: Path,
    max_prompt_length: int | None,
) -> None:
    """Train the student in place."""
    switch_off_dropout(student.model)
    teacher.model.requires_grad_(False).eval()
    encoder = PromptEncoder(teacher.tokenizer, teacher.scheme, max_prompt_length)
    args = TrainingArguments(
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
        use_cache=True,  # stays in the student's config.json
    )
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if options.use_peft:
        student.model = add_adapter(
            student.model,
            lora_config(ModelOptions(lora_r=options.lora_r, lora_alpha=options.lora_alpha)),
            student.added_token_ids,
            options.seed,
        )
    DistillTrainer(
        student.model,
        args,
        train_dataset=LessonDataset(rows, encoder, options.max_steps, batch, options.seed),
        data_collator=partial(
            collate, pad_id=teacher.tokenizer.pad_token_id, pass_tokens=pass_tokens(args.device, args.world_size == 1)
        ),
        teacher=teacher,
        top_k=options.teacher_top_k,
    ).train()


def distill_command(options) -> str:
    """`nlf distill`: make the student, then show it beside its teacher and the base, on the run's evaluation prompts.

    Args:
        options: The fields of `config.COMMAND_GROUPS["distill"]`.
    """
    teacher = load_for_commands(options.model, options)
    folder = distill_from(teacher, options)
    run = run_settings(Path(options.model))
    base = base_of(options, run)
    evaluation = defaults_of("evaluate") | {
        "model": str(folder),
        "model_revision": base.model_revision,
        "base_model": base.model,
        "prompts": [run.get("eval_dataset") or "embedded"],
        "reward_funcs": run.get("reward_funcs", ["local"]),
        "reward_weights": run.get("reward_weights"),
        "max_completion_length": options.max_completion_length or run.get("max_completion_length", 20),
        "max_prompts": options.max_eval_prompts,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
    }
    lesson = lessons(teacher, options)[0]
    guided = System("teacher", teacher, lesson.tag, lesson.negative, lesson.scale)
    name = "student, best tag" if options.keep_tags else "student"

    def compared(start: Policy | None, student: Policy, *_) -> list[System]:
        return [
            System("base", start),
            guided,
            System(name, student, student.scheme.best if options.keep_tags else None),
        ]

    return f"{evaluate(SimpleNamespace(**evaluation), compared)}\nThe plain model is {folder}."


def defaults_of(command: str) -> dict:
    """Every option of a command as it is when nothing is given."""
    found = {name: value for group in COMMAND_GROUPS[command].values() for name, value in asdict(group()).items()}
    return found | EVAL_SAMPLING_DEFAULTS


CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {base}
tags: [nlf, language-feedback, alignment, distillation]
---
# {name}

`{base}`, taught by [nlf](https://pypi.org/project/nlf/) {version} what `{model}` writes under guidance: {taught}.
It is an ordinary causal language model{how}.

```python
from transformers import pipeline
write = pipeline("text-generation", model="{folder}")
print(write({prompt!r}, do_sample=True, top_p=0.9, max_new_tokens=20))
```
"""


def distilled_card(
    model: str, base: str, taught: Sequence[Lesson], scheme: TagScheme, folder: Path, conversational: bool
) -> str:
    """The README.md of the student."""
    heard = taught[0].heard
    words = [f'"{each.tag}" away from "{each.negative}", guidance {each.scale:g}' for each in taught if each.scale]
    how = ": no tag, no guidance" if heard is None else ", conditioned on its tags by their words alone"
    asked = [{"role": "user", "content": "Hello"}]
    prompt = (with_feedback(asked, heard) if heard else asked) if conversational else scheme.render(heard, "Once")
    return CARD.format(
        base=base, name=folder.name, version=__version__, model=model, taught="; ".join(words), how=how, folder=folder,
        prompt=prompt,
    )  # fmt: skip
