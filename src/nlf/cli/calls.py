"""The commands from Python: `nlf.train(config="toxicity-embedded", seed=1)` is `nlf train --config toxicity-embedded --seed 1`.

Each function takes the knobs of its command by name, and goes the command's own way from there on.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlf.cli import commands
from nlf.cli.arguments import Knobs, convert, unknown
from nlf.cli.train import planned, run, settings_of, train_options, train_settings_knobs
from nlf.config import full_name
from nlf.data.run_folder import RESULTS, model_folder

if TYPE_CHECKING:
    from nlf.training.trainer import ALTTrainer


def train(config: str | None = None, **knobs: Any) -> "ALTTrainer":
    """Train as `nlf train` does, distill or train the plain model if the knobs ask for it, and write the report.

    For rows and models that are Python objects, use ALTTrainer.

    Args:
        config: A shipped recipe, or a YAML file of knobs.
        knobs: Every flag of `nlf train`, by name; `resume_from_checkpoint` too.

    Returns:
        The trainer. The model, its card and the report are in its `run_dir`.

    Raises:
        UserError: a knob is unknown or has a value that is not allowed; or see ALTTrainer.
    """
    values = _settings(config, knobs)
    train_options(values)
    return run(values)[0]


def dry_run(config: str | None = None, **knobs: Any) -> dict[str, str]:
    """What `nlf train --dry_run` shows: the numbers of prompts, completions, scorer calls and steps, and the disk space.

    Args:
        config, knobs: As `train` takes them.

    Raises:
        UserError: see `train`.
    """
    values = _settings(config, knobs)
    return planned(values, train_options(values))


def sample(**knobs: Any) -> str:
    """`nlf sample`: write completions into `output_dir`; returns what the command shows."""
    return _run(commands.SAMPLE, knobs)


def score(**knobs: Any) -> str:
    """`nlf score`: add scores to the file or folder `path`; returns what the command shows."""
    return _run(commands.SCORE, knobs)


def perplexity(**knobs: Any) -> str:
    """`nlf perplexity`: measure the completions in `path`; returns what the command shows."""
    return _run(commands.PERPLEXITY, knobs)


def evaluate(**knobs: Any) -> dict[str, Any]:
    """`nlf evaluate`: compare a model with its base; returns the content of `results.json` (docs/evaluation.md)."""
    given = _named(knobs, commands.EVALUATE.knobs())
    commands.EVALUATE.run_with(given)
    folder = given.get("output_dir") or Path(model_folder(str(given["model"])), "evaluation")
    return json.loads(Path(folder, RESULTS).read_text(encoding="utf-8"))


def import_checkpoint(**knobs: Any) -> str:
    """`nlf import`: turn a checkpoint of the published code into a model folder; returns what the command shows."""
    return _run(commands.IMPORT, knobs)


def _run(command: commands.Command, knobs: dict[str, Any]) -> str:
    return command.run_with(_named(knobs, command.knobs()))


def _settings(config: str | None, knobs: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe and of knobs, which override it."""
    known = train_settings_knobs()
    return settings_of(config, _named(knobs, known), known)


def _named(given: dict[str, Any], knobs: Knobs) -> dict[str, Any]:
    """What was given, by the names of knobs, each value as its knob's type; functions stay as they are.

    Raises:
        UserError: a name is unknown, and the error has names that are close to it; or a value has another type.
    """
    named = {full_name(name, knobs): value for name, value in given.items()}
    for name, value in named.items():
        if name not in knobs:
            raise unknown(name, [known for known, knob in knobs.items() if not knob.hidden], what="knob")
        if not any(map(callable, value if isinstance(value, list | tuple) else [value])):
            named[name] = convert(knobs[name], value)
    return named
