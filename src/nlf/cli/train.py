"""`nlf train`: read its settings, load the model and the prompts that they name, and train.

Heavy imports happen inside the functions, after the settings have been checked, so help and errors appear at once.
"""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlf import config
from nlf.cli.arguments import (
    DEFAULTS,
    Knob,
    Parser,
    add_knobs,
    parse_flags,
    read_recipe,
    retired_knobs,
    shipped,
    shipped_or_file,
    train_knobs,
)
from nlf.cli.launch import LAUNCH_FLAGS, accelerate_configs, launch, without
from nlf.cli.output import is_first_process, show
from nlf.data.run_folder import check_free, plain_folder, without_unused
from nlf.errors import UserError

if TYPE_CHECKING:
    from nlf.data.prompts import PromptRow
    from nlf.training.config import ALTConfig
    from nlf.training.trainer import ALTTrainer

logger = logging.getLogger(__name__)

TRAIN_USAGE = (
    """nlf train [--config NAME|FILE.yaml] [--NAME VALUE ...]

Align a language model with language tags. Each iteration samples completions, scores them, tags them by quantile of the
reward, and trains on them. Without arguments, the command trains the embedded model, in minutes on two cores.

Every knob below is a flag and a key of the YAML file; flags override the file. This page shows the most common knobs;
`nlf train --help all` shows every knob. """
    + DEFAULTS
)

DRY_RUN = (
    "Print the numbers of prompts, completions, scorer calls and steps, and the disk space of the run, then stop."
)


# ---- the command line ---------------------------------------------------------------------------------------------


def train_settings_knobs() -> dict[str, Knob]:
    """The knobs of train: `resume_from_checkpoint` takes true or a checkpoint's folder; retired knobs are read too."""
    help = "Resume the run in output_dir, from its newest whole checkpoint (true) or from the checkpoint folder given here."
    resume = Knob("resume_from_checkpoint", "bool | str | None", None, help, "Run", short=True)
    return train_knobs() | {resume.name: resume} | retired_knobs()


def train_parser(knobs: Mapping[str, Knob], short: bool = True) -> argparse.ArgumentParser:
    """The flags of `nlf train`; with `short`, the help shows the most common knobs."""
    parser = Parser(prog="nlf train", usage=TRAIN_USAGE, add_help=False)
    run = parser.add_argument_group("Run")
    run.add_argument("--help", "-h", nargs="?", metavar="all", help="Show this page; with 'all', show every knob.")
    recipes = ", ".join(shipped("recipes"))
    run.add_argument("--config", metavar="NAME|FILE", help=f"A YAML file of knobs, or a shipped recipe: {recipes}.")
    run.add_argument("--dry_run", action="store_true", help=DRY_RUN)
    names = ", ".join(accelerate_configs())
    run.add_argument(
        "--accelerate_config",
        metavar="NAME|PATH",
        help=f"Start through `accelerate launch` with one of {names}, or your own file.",
    )
    for name, (kind, about) in LAUNCH_FLAGS.items():
        help = argparse.SUPPRESS if short else f"With --accelerate_config: {about}."
        run.add_argument(f"--{name}", type=kind, metavar=kind.__name__, help=help)
    add_knobs(parser, {"resume_from_checkpoint": knobs["resume_from_checkpoint"]} | dict(knobs), short)
    return parser


def train(argv: Sequence[str]) -> int:
    """Run `nlf train` and return its exit code."""
    knobs = train_settings_knobs()
    if page := help_page(argv):
        train_parser(knobs, short=page != "all").print_help()
        raise SystemExit(0)
    given = parse_flags(train_parser(knobs), argv, knobs)
    special = {name: given.pop(name) for name in ("help", "config", "dry_run", "accelerate_config", *LAUNCH_FLAGS)}
    values = settings_of(special["config"], given, knobs)
    options = train_options(values)
    if special["dry_run"]:
        return show(planned(values, options))
    wanted = {name: special[name] for name in LAUNCH_FLAGS if special[name] is not None}
    if special["accelerate_config"]:
        if given.get("hub_token"):  # accelerate shows its arguments when a process fails
            os.environ["HF_TOKEN"] = given["hub_token"]
        launch(special["accelerate_config"], wanted, without(argv, ["hub_token"]), bool(values.get("use_cpu")))
    if wanted:
        raise UserError(
            f"--{next(iter(wanted))} belongs to --accelerate_config; give --accelerate_config too, or start with torchrun"
        )
    for report in run(values)[1]:
        print(f"model: {report.parent}\nreport: {report}")
    return 0


def help_page(argv: Sequence[str]) -> str | None:
    """The help page that is asked for, "short" or "all"; None where no help is asked for.

    Raises:
        UserError: there is no such page.
    """
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("-h", "--help"):
            page = value if equals else "" if following.startswith("-") else following
            if page not in ("", "all"):
                raise UserError(f"--help {page}: there is no such page; expected --help, or --help all")
            return page or "short"
    return None


def settings_of(recipe: str | None, flags: Mapping[str, Any], knobs: Mapping[str, Knob]) -> dict[str, Any]:
    """The settings of a recipe and of flags, which override it; removed knobs are checked and dropped.

    Raises:
        UserError: the recipe cannot be read; or a retired knob has a value that training no longer knows, as a flag or,
            if it changes results, in the recipe.
    """
    read = recipe_settings(str(shipped_or_file(recipe, "recipes", "recipe")), knobs) if recipe else {}
    values = config.current(read | dict(flags))
    given = {name: value for name, value in flags.items() if name in values}
    if (
        read.get("tags")
        and "tags" not in flags
        and flags.get("reward_funcs", read.get("reward_funcs")) != read.get("reward_funcs")
    ):
        logger.warning(
            "tags, best first: %s (the words of %s, whose reward is another one; set `tags`, or --tags null for the reward's "
            "own words)",
            ", ".join(map(str, read["tags"])),
            recipe,
        )
    return values | given  # a retired knob of the recipe does not change what a flag says


def recipe_settings(recipe: str, knobs: Mapping[str, Knob]) -> dict[str, Any]:
    """The settings of a recipe. Retired knobs that change no result are dropped, so the `config.yaml` of an old run works.

    A warning names the dropped knobs whose values differ from what training does today.
    """
    values = read_recipe(recipe, knobs)
    kept = without_unused(values)
    other = [name for name in values if name not in kept and not config.RETIRED[name].accepts(values[name], values)]
    if other:
        logger.warning("%s: %s: these are no longer settings of training, and are ignored", recipe, ", ".join(other))
    return kept


def train_options(values: Mapping[str, Any]) -> config.TrainOptions:
    """nlf's knobs of a run, checked; the bounds of inherited knobs are checked too.

    Raises:
        UserError: a value is not allowed, or contradicts another.
    """
    ours = {f.name for f in fields(config.TrainOptions)}
    inherited = {name: value for name, value in values.items() if name not in ours}
    config.check_inherited({name: value for name, value in inherited.items() if name != "resume_from_checkpoint"})
    options = config.TrainOptions(**{name: value for name, value in values.items() if name in ours})
    if values.get("fp16") and options.dtype == "float16":
        raise UserError("fp16 keeps the weights in float32: set dtype float32, or use bf16")
    return options


def planned(values: Mapping[str, Any], options: config.TrainOptions) -> dict[str, str]:
    """The cost of a run, as `nlf train --dry_run` shows it: names and figures.

    Args:
        values: The given settings, from which `train_options` made the options.
    """
    from nlf.cli.dry_run import Schedule, plan

    return plan(options, Schedule.of(values, train_settings_knobs(), options))


# ---- the run ------------------------------------------------------------------------------------------------------


def run(values: dict[str, Any]) -> tuple["ALTTrainer", list[Path]]:
    """Train and write the reports; returns the trainer, and the page of each model that this process wrote."""
    from nlf.data.locks import locked_folder

    resume = values.pop("resume_from_checkpoint", None)
    if isinstance(resume, str) and not Path(resume).is_dir():  # a checkpoint that is not whole is found with the run
        raise UserError(f"{resume}: no such checkpoint; name its folder, or give true for the newest whole one")
    args, model_options, data_options = build(values)
    with locked_folder(Path(args.output_dir)):
        if is_first_process():
            check_free(Path(args.output_dir), bool(resume))
        trainer = train_from_config(args, model_options, data_options, resume)
        folders = [Path(args.output_dir), *([plain_folder(args.output_dir)] if args.plain == "true" else [])]
        # several processes leave the plain model to another command
        written = [each for each in folders if is_first_process() and (each / "config.json").is_file()]
        if written:
            from nlf.report import write_report
        return trainer, [write_report([folder]) for folder in written]


def build(values: dict[str, Any]) -> tuple["ALTConfig", config.ModelOptions, config.DataOptions]:
    """Make the dataclasses of a run from the given values.

    Raises:
        UserError: a value, or a combination of values, cannot be used.
    """
    from nlf.training.config import ALTConfig

    def made(kind: type) -> Any:
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

    return made(ALTConfig), made(config.ModelOptions), made(config.DataOptions)


def train_from_config(
    args: "ALTConfig",
    model_options: config.ModelOptions,
    data_options: config.DataOptions,
    resume: str | bool | None = None,
) -> "ALTTrainer":
    """Load the model and the prompts that the options name, train, and leave the model at the run's root."""
    from nlf.data.logged import LoggedFiles
    from nlf.models.adapter import lora_config
    from nlf.models.policy import load_model
    from nlf.models.quantized import check_quantization
    from nlf.training.trainer import ALTTrainer

    check_quantization(model_options.bits, args.device)
    load = partial(
        load_model,
        dtype=model_options.dtype,
        attn_implementation=model_options.attn_implementation,
        trust_remote_code=model_options.trust_remote_code,
        bits=model_options.bits,
    )
    if args.feedback:
        LoggedFiles.open(args.feedback, args.feedback_columns)  # a mistake is found before the model is loaded
    train_rows, eval_rows = prompt_rows(data_options, args.evaluates, args.distill, bool(args.num_train_epochs))
    model, tokenizer = load(model_options.model_name_or_path, revision=model_options.model_revision)
    reference = model_options.ref_model_name_or_path and load(model_options.ref_model_name_or_path)[0]
    trainer = ALTTrainer(
        model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_options) if model_options.use_peft else None,
        reference_model=reference or None,
        disable_dropout=model_options.disable_dropout,
        max_prompt_length=data_options.max_prompt_length,
    )
    trainer.options = vars(model_options) | vars(data_options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def prompt_rows(
    options: config.DataOptions, evaluates: bool, distills: bool, samples: bool = True
) -> tuple[list["PromptRow"] | None, list["PromptRow"] | None]:
    """The prompts to train on, or None, and the prompts to evaluate on or None.

    Args:
        evaluates: Training evaluates; otherwise evaluation prompts are not given to it.
        distills: Distillation follows. It compares the models on the evaluation prompts, so they must be usable.
        samples: Training samples; otherwise it needs no prompts of its own.

    Raises:
        UserError: a source cannot be used, or one holds text and the other messages.
    """
    from nlf.data.prompts import all_conversations, load_prompts

    def load(source: str, split: str, limit: int | None) -> list["PromptRow"]:
        return load_prompts(
            source, column=options.dataset_prompt_column, split=split, limit=limit,
            config=options.configuration_of(source), streaming=options.dataset_streaming,
        )  # fmt: skip

    train_rows = None
    if samples:
        train_rows = load(options.dataset_name, options.dataset_train_split, options.max_prompts)
    if not options.eval_dataset or not (evaluates or distills):
        return train_rows, None
    eval_rows = load(options.eval_dataset, options.dataset_test_split, options.max_eval_prompts)
    eval_chats = all_conversations(eval_rows)
    chats = all_conversations(train_rows) if train_rows else eval_chats
    if chats != eval_chats:
        kinds = {True: "messages", False: "text"}
        raise UserError(
            f"dataset_name {options.dataset_name} holds {kinds[chats]}, and eval_dataset {options.eval_dataset} holds "
            f"{kinds[eval_chats]}: give an --eval_dataset of {kinds[chats]}, or --eval_strategy no"
        )
    return train_rows, eval_rows if evaluates else None
