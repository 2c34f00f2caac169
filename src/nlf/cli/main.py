"""`nlf`: the command line. One function a command; what they share is how arguments are read and errors are shown.

Heavy imports happen inside the commands, after the arguments have been checked: help and mistakes answer at once.
"""

import argparse
import errno
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nlf import __version__, config
from nlf.cli.arguments import (
    Knob,
    Parser,
    add_knobs,
    knobs_of,
    parse_flags,
    read_recipe,
    train_knobs,
    unknown,
)
from nlf.data.files import ASSETS
from nlf.errors import UserError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


# ---- train --------------------------------------------------------------------------------------------------------

TRAIN_USAGE = """nlf train [--config FILE.yaml] [--NAME VALUE ...]

Sample, score, tag, train, and again: align a language model with language tags. Without arguments it trains the small
model shipped here, in minutes on two cores. Every name below is also a key of the YAML file; flags override the file."""


LAUNCH_FLAGS = {  # handed to `accelerate launch`
    "num_processes": (int, "processes on all machines together [one for each GPU]"),
    "num_machines": (int, "machines of the run; start the same command on each [1]"),
    "machine_rank": (int, "which of the machines this is, from 0 [0]"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "a free port of machine 0"),
    "mixed_precision": (str, "no, bf16 or fp16 [bf16]"),
}


def train_settings_knobs() -> dict[str, Knob]:
    """The knobs of train; resuming takes true or a checkpoint's folder."""
    knobs = dict(train_knobs())
    help = "Go on with the run in output_dir: 'true' for its last whole checkpoint, or a checkpoint's folder."
    knobs["resume_from_checkpoint"] = Knob("resume_from_checkpoint", "bool | str | None", None, help, "Run")
    return knobs


def train_parser(knobs: dict[str, Knob]) -> argparse.ArgumentParser:
    parser = Parser(prog="nlf train", usage=TRAIN_USAGE)
    run = parser.add_argument_group("Run")
    run.add_argument("--config", metavar="FILE", help="YAML file of settings; see recipes/.")
    run.add_argument("--dry_run", action="store_true", help="Print what the run will cost, and stop.")
    names = ", ".join(accelerate_configs())
    run.add_argument(
        "--accelerate_config", metavar="NAME|PATH", help=f"Start through `accelerate launch` with: {names}, or a file."
    )
    for name, (kind, about) in LAUNCH_FLAGS.items():
        run.add_argument(f"--{name}", type=kind, metavar=kind.__name__, help=f"With --accelerate_config: {about}.")
    add_knobs(parser, {"resume_from_checkpoint": knobs["resume_from_checkpoint"]} | knobs)
    return parser


def train(argv: Sequence[str]) -> int:
    """`nlf train`."""
    knobs = train_settings_knobs()
    given = vars(parse_flags(train_parser(knobs), argv, knobs))
    special = {name: given.pop(name) for name in ("config", "dry_run", "accelerate_config", *LAUNCH_FLAGS)}
    values = (read_recipe(special["config"], knobs) if special["config"] else {}) | given
    settings = SimpleNamespace(**{name: values.get(name, knob.default) for name, knob in knobs.items()})
    config.join_attributes(settings)
    config.check(settings)
    if special["dry_run"]:
        from nlf.cli.dry_run import plan

        return show(plan(settings))
    wanted = {name: special[name] for name in LAUNCH_FLAGS if special[name] is not None}
    if special["accelerate_config"]:
        launch(special["accelerate_config"], wanted, argv, bool(settings.use_cpu))
    if wanted:
        raise UserError(
            f"--{next(iter(wanted))} belongs to --accelerate_config; give that too, or start with torchrun"
        )
    resume = values.pop("resume_from_checkpoint", None)
    log_to_stderr()
    args, model_options, data_options = build(values)
    trainer = importlib.import_module("nlf.cli.train")
    trainer.train_from_config(args, model_options, data_options, resume)
    if args.distill:
        distill_run(args.output_dir)
    if is_first_process():
        report = importlib.import_module("nlf.report")
        print(f"report: {report.write_report([Path(args.output_dir)])}")
    return 0


def distill_run(run_dir: str) -> None:
    """The last stage of training, by one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if is_first_process():
            print(f"distill: run `nlf distill --model {run_dir}` in one process")
        return
    importlib.import_module("nlf.training.distill").distill(model=run_dir)


def build(values: dict[str, Any]) -> tuple[Any, config.ModelOptions, config.DataOptions]:
    """The dataclasses of a run, out of the values that were given.

    Raises:
        UserError: TrainingArguments refuses a combination of values.
    """
    from transformers import HfArgumentParser

    from nlf.training.config import ALTConfig

    try:
        return HfArgumentParser((ALTConfig, config.ModelOptions, config.DataOptions)).parse_dict(values)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error


def accelerate_configs() -> dict[str, Path]:
    """The configurations shipped here, by name."""
    folder = ASSETS / "accelerate_configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def launch(name: str, wanted: dict[str, Any], argv: Sequence[str], use_cpu: bool) -> None:
    """Become `accelerate launch --config_file … -m nlf train …`, with the same arguments.

    Args:
        wanted: Those of `LAUNCH_FLAGS` that were given.

    Raises:
        UserError: neither one of our configurations nor a file; what it needs is not installed or not there; or
            torchrun has started this process already.
    """
    if "RANK" in os.environ:
        raise UserError("--accelerate_config starts the processes itself: leave out torchrun, or this flag")
    known = accelerate_configs()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise unknown(name, known, what="accelerate config (or file)")
    settings = accelerate_settings(path)
    kind, precision = settings["distributed_type"], wanted.get("mixed_precision", settings.get("mixed_precision"))
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(f"accelerate config {name} needs DeepSpeed: pip install deepspeed, or take fsdp2")
    if use_cpu and kind in ("FSDP", "DEEPSPEED"):
        print(
            f"nlf: {name}: accelerate shards on GPUs only; on CPU each process holds the whole model", file=sys.stderr
        )
    if name in known and "num_processes" not in wanted:
        wanted = wanted | {"num_processes": count_gpus(name, use_cpu) * wanted.get("num_machines", 1)}
    flags = [word for flag, value in wanted.items() for word in (f"--{flag}", str(value))]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *flags]
    own = without(argv, ("accelerate_config", *LAUNCH_FLAGS))
    if precision in ("bf16", "fp16") and without(own, [precision]) == own:
        own += [f"--{precision}", "true"]  # DeepSpeed compares the two
    os.execv(sys.executable, [*start, "-m", "nlf", "train", *own])


def accelerate_settings(path: Path) -> dict[str, Any]:
    """What an accelerate configuration holds.

    Raises:
        UserError: the file is not one.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise UserError(
            f"{path}: expected an accelerate config with a distributed_type; `accelerate config` writes one"
        )
    return settings


def count_gpus(name: str, use_cpu: bool) -> int:
    """GPUs of this machine, each of which gets a process.

    Raises:
        UserError: there are none, or they are not wanted.
    """
    import torch

    found = 0 if use_cpu else torch.accelerator.device_count()
    if not found:
        raise UserError(f"accelerate config {name}: no GPU to count here; add --num_processes N (and --use_cpu true)")
    return found


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments less these flags and their values."""
    rest, skip = [], False
    for word in argv:
        flag = word.partition("=")[0].replace("-", "_").removeprefix("__")
        if not skip and not (word.startswith("--") and flag in names):
            rest.append(word)
        skip = not skip and word.startswith("--") and flag in names and "=" not in word
    return rest


def log_to_stderr() -> None:
    """What the library logs reaches the terminal, from the first process only."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nlf").setLevel(logging.INFO if is_first_process() else logging.WARNING)


# ---- the commands that take a model or files ----------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command whose options are the groups of `config.COMMAND_GROUPS`, carried out by `run` in a module.

    `positional` is the option that is given without a flag; `required` those that have no default; `instead` those that
    ask for something else, which needs none of these: (module, function) by option.
    """

    module: str
    run: str
    usage: str
    required: tuple[str, ...] = ()
    positional: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    instead: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __call__(self, name: str, argv: Sequence[str]) -> int:
        knobs = {}
        for group, options in config.COMMAND_GROUPS[name].items():
            knobs |= knobs_of(group, options, self.defaults)
        parser = Parser(prog=f"nlf {name}", usage=self.usage)
        plain = knobs.pop(self.positional) if self.positional else None
        if plain:
            parser.add_argument(plain.name, nargs="*" if plain.listed else "?", help=plain.help)
        add_knobs(parser, knobs)
        given = vars(parse_flags(parser, argv, knobs))
        if plain:
            given[plain.name] = given[plain.name] or plain.default
            knobs[plain.name] = plain
        other = next((self.instead[name] for name in self.instead if given.get(name)), None)
        for needed in self.required if other is None else ():
            if not given.get(needed):
                what = knobs[needed].help.rstrip(".")
                flag = needed if needed == self.positional else f"--{needed}"
                raise UserError(f"{flag} is missing: {what[0].lower()}{what[1:]}; {self.usage.splitlines()[0]}")
        task = task_file(given["task"]) if given.get("task") else None
        values = (read_recipe(task, knobs) if task else {}) | given
        if "reward_funcs" in values:  # also `local,sentiment`
            values["reward_funcs"] = [name for each in values["reward_funcs"] for name in each.split(",")]
        options = SimpleNamespace(**{name: values.get(name, knob.default) for name, knob in knobs.items()})
        config.check(options)
        log_to_stderr()
        module, run = other or (self.module, self.run)
        print(getattr(importlib.import_module(module), run)(options))
        return 0


def task_file(name: str) -> Path:
    """A task shipped here, by name, or the file itself.

    Raises:
        UserError: neither.
    """
    known = {path.stem: path for path in sorted((ASSETS / "tasks").glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise unknown(name, known, what="task (or file)")
    return path


SAMPLE = Command(
    "nlf.evaluation.sample",
    "sample_command",
    "nlf sample --model MODEL --output_dir DIR [--NAME VALUE ...]\n\n"
    "Sample completions of prompts under a tag, into DIR/generations.jsonl. Stopped, it goes on where it was.",
    required=("model", "output_dir"),
    defaults=config.EVAL_SAMPLING_DEFAULTS,
)
SCORE = Command(
    "nlf.evaluation.score",
    "score_command",
    "nlf score FILE_OR_FOLDER [--NAME VALUE ...]\n\n"
    "Add scores to generations, or to any .jsonl, .csv or .parquet with a text column, in place. What has a score of\n"
    "the same scorer version is not scored again; a score whose text has changed is.",
    required=("path",),
    positional="path",
    instead={
        "list": ("nlf.rewards.registry", "listing"),
        "export_cache": ("nlf.evaluation.score", "export_command"),
        "import_cache": ("nlf.evaluation.score", "import_command"),
    },
)
PERPLEXITY = Command(
    "nlf.evaluation.perplexity",
    "perplexity_command",
    "nlf perplexity FILE_OR_FOLDER [--NAME VALUE ...]\n\n"
    "Perplexity of completions given their prompts, under a model of your choice.",
    required=("path",),
    positional="path",
)
EVALUATE = Command(
    "nlf.evaluation.evaluate",
    "evaluate_command",
    "nlf evaluate --model MODEL [--task NAME|FILE.yaml] [--NAME VALUE ...]\n\n"
    "Sample a model and its base on the same prompts, score and measure both, with intervals. Stopped, it goes on\n"
    "where it was.",
    required=("model",),
    defaults=config.EVAL_SAMPLING_DEFAULTS,
)
DISTILL = Command(
    "nlf.training.distill",
    "distill_command",
    "nlf distill --model RUN [--NAME VALUE ...]\n\n"
    "Teach the base model what the tagged one writes under guidance: one plain model, without tags, for any server.",
    required=("model",),
)
REPORT = Command(
    "nlf.report",
    "report_command",
    "nlf report RUN [RUN ...] [--NAME VALUE ...]\n\nOne self-contained page: tables, plots and samples of runs.",
    required=("runs",),
    positional="runs",
)
IMPORT = Command(
    "nlf.cli.import_checkpoint",
    "import_command",
    "nlf import CHECKPOINT.pth --output_dir DIR [--NAME VALUE ...]\n\n"
    "Turn a checkpoint of the published code into a model folder. The file is read without running anything in it.",
    required=("checkpoint", "output_dir"),
    positional="checkpoint",
)


# ---- env ----------------------------------------------------------------------------------------------------------


def env(argv: Sequence[str]) -> int:
    """`nlf env`."""
    parse_flags(Parser(prog="nlf env", usage="nlf env\n\nVersions and hardware, for a bug report."), argv, {})
    from nlf.data.environment import describe

    return show(describe())


def show(table: dict[str, str]) -> int:
    """Names and values in two columns."""
    width = max(map(len, table))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table.items()))
    return 0


# ---- main ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "align a model: sample, score, tag, train, again"),
    "sample": (partial(SAMPLE, "sample"), "sample completions of prompts under a tag"),
    "score": (partial(SCORE, "score"), "add scores to samples, or to any texts"),
    "perplexity": (partial(PERPLEXITY, "perplexity"), "perplexity of samples under another model"),
    "evaluate": (partial(EVALUATE, "evaluate"), "all of that, for a model and its base, with intervals"),
    "distill": (partial(DISTILL, "distill"), "one plain model out of a guided, tagged one"),
    "report": (partial(REPORT, "report"), "one page: tables, plots and samples of runs"),
    "import": (partial(IMPORT, "import"), "a checkpoint of the published code as a model folder"),
    "env": (env, "versions and hardware, for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a mistake that a line on stderr explains, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        print(interrupted(argv), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return complain(error)


def dispatch(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]][0](argv[1:])
    if argv and argv[0] == "--version":
        print(f"nlf {__version__}")
    elif not argv or argv[0] in ("-h", "--help"):
        lines = [f"  nlf {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
        print("Align language models with textual feedback.\n", *lines, "\n`nlf COMMAND --help` says more.", sep="\n")
    else:
        raise unknown(argv[0], COMMANDS, what="command")
    return 0 if argv else 2


def complain(error: Exception) -> int:
    """One line on stderr, from the first process only."""
    if is_first_process():
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # of a progress bar that was being shown
        print(f"{clear}nlf: error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def interrupted(argv: list[str]) -> str:
    """What to say after Ctrl-C: for a training run, how it goes on."""
    if argv[:1] != ["train"]:
        return "nlf: interrupted; what is finished is kept. Run the same command again to go on"
    resume = [] if any("resume" in word for word in argv) else ["--resume_from_checkpoint", "true"]
    return f"nlf: interrupted; what is finished is kept. Go on with: {shlex.join(['nlf', *argv, *resume])}"


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
