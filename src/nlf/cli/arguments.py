"""From flags and YAML to checked values, without importing anything heavy.

A `Knob` is one setting. nlf's knobs come from the dataclasses of `nlf.config`. The knobs of transformers'
TrainingArguments come from a snapshot, `training_arguments.json`, since importing transformers takes seconds
(`tools/training_arguments.py` writes it). A recipe and the command line both become one flat dict of the given values.
"""

import argparse
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from nlf.config import OPTION_GROUPS, RETIRED, TRAINING_DEFAULTS, TRAINING_SHORT, TRAINING_TYPES, Options, full_name
from nlf.config.knobs import Following, default_of, help_of
from nlf.config.values import annotations_of, choices_of, converted, type_of
from nlf.data.files import ASSETS
from nlf.data.yaml_files import read_entries
from nlf.errors import UserError, did_you_mean, near_matches

INHERITED = "Trainer (inherited)"
ABOUT = {
    INHERITED: "The arguments of transformers' TrainingArguments, with its help.\n"
    "One epoch is one iteration, so num_train_epochs is the number of iterations."
}  # heading → the lines below it
DEFAULTS = (
    "Each flag's default stands in brackets at the end of its help. Spaces or commas\n"
    "separate numbers and names in a list."
)
SNAPSHOT = Path(__file__).with_name("training_arguments.json")
NAMES = {"reward_funcs", "audit_funcs", "lora_target_modules", "report_to"}  # lists of names without commas


@dataclass(frozen=True)
class Knob:
    """One setting: its name, the types it takes ('float | None'), default, help and group.

    `short`: the short help shows it. `hidden`: no help shows it.
    """

    name: str
    type: str
    default: Any
    help: str
    group: str
    choices: tuple = ()
    short: bool = False
    hidden: bool = False

    @property
    def kinds(self) -> list[str]:
        return [kind.strip() for kind in self.type.split("|")]

    @property
    def listed(self) -> bool:
        return any(kind.startswith("list") for kind in self.kinds)


Knobs = Mapping[str, Knob]


# ---- where knobs come from ----------------------------------------------------------------------------------------


def knobs_of(group: str, options: type[Options]) -> dict[str, Knob]:
    """The knobs of one of our dataclasses, under the heading `group`."""
    found, annotations = {}, annotations_of(options)
    for f in fields(options):
        kind, default = annotations[f.name], default_of(f)
        found[f.name] = Knob(
            f.name, _nullable(type_of(kind), default), default, help_of(f), group, choices_of(kind), help_of(f).short
        )
    return found


def _nullable(kinds: str, default: Any) -> str:
    """The types of a knob with this default: null stands for a default that follows other knobs."""
    return f"{kinds} | None" if isinstance(default, Following) and "None" not in kinds else kinds


@cache
def train_knobs() -> dict[str, Knob]:
    """Every knob of `nlf train`, in the order of the help; ours come before the inherited ones."""
    ours: dict[str, Knob] = {}
    for group, options in OPTION_GROUPS.items():
        ours |= knobs_of(group, options)
    return ours | {name: knob for name, knob in inherited_knobs().items() if name not in ours}


def inherited_knobs() -> dict[str, Knob]:
    """The arguments of transformers' TrainingArguments, from the snapshot."""
    rows = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["arguments"]
    return {row["name"]: _inherited(**row) for row in rows}


def _inherited(name: str, type: str, default: Any, help: str, choices: list) -> Knob:
    default, type = TRAINING_DEFAULTS.get(name, default), TRAINING_TYPES.get(name, type)
    kinds = _nullable(type, default)
    return Knob(name, kinds, default, help, INHERITED, tuple(choices), short=name in TRAINING_SHORT)


def retired_knobs() -> dict[str, Knob]:
    """The removed knobs of `nlf train`. They are read, so that `config.current` can check their values."""
    return {name: Knob(name, old.type, None, "", "", hidden=True) for name, old in RETIRED.items()}


# ---- values -------------------------------------------------------------------------------------------------------


def convert(knob: Knob, value: Any, where: str = "") -> Any:
    """Turn the text of a flag, or a YAML value, into a value of the knob's type, as `config.values` does.

    Raises:
        UserError: the value has another type; the error names the place, the knob and the expected type.
    """
    return converted(knob.name, knob.type, knob.choices, _separated(knob, value), where)


def _separated(knob: Knob, value: Any) -> Any:
    """The items of a list of names or numbers; commas separate them too: `local,audit`."""
    if knob.name not in NAMES and "list[float]" not in knob.kinds:
        return value
    items = value if isinstance(value, list) else [value]
    if not any(isinstance(item, str) and "," in item for item in items):
        return value
    return [word for item in items for word in (_words(item) if isinstance(item, str) else [item])]


def _words(text: str) -> list[str]:
    """The words between commas; everything after `regex:` is one pattern."""
    head, mark, pattern = text.partition("regex:")
    return [word.strip() for word in head.split(",") if word.strip()] + ([mark + pattern] if mark else [])


# ---- YAML ---------------------------------------------------------------------------------------------------------


def shipped(folder: str) -> dict[str, Path]:
    """The YAML files in a folder of the package's assets, by name."""
    return {path.stem: path for path in sorted((ASSETS / folder).glob("*.yaml"))}


def shipped_or_file(name: str, folder: str, what: str) -> Path:
    """The shipped file of this name, or else the named file.

    Args:
        folder: The folder of the package's assets that holds the shipped files.
        what: What such a file is, for the error.

    Raises:
        UserError: there is neither.
    """
    known = shipped(folder)
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there is no file {name}, and no shipped {what} of that name;{did_you_mean(name, known)} "
            f"the shipped ones are {', '.join(known)}"
        )
    return path


def read_recipe(path: str | Path, knobs: Knobs) -> dict[str, Any]:
    """Read the values of a flat YAML file.

    Raises:
        UserError: the file is missing, is not a flat YAML mapping, or has an unknown key, a repeated key or a wrong type;
            the error names the line.
    """
    values: dict[str, Any] = {}
    for key, entry in read_entries(Path(path)).items():
        where, name = f"{path}:{entry.line}: ", full_name(key, knobs)
        if name not in knobs:
            raise unknown(name, [known for known, knob in knobs.items() if not knob.hidden], where)
        if name in values:
            raise UserError(f"{where}{name} is given twice")
        values[name] = convert(knobs[name], entry.value, where)
    return values


def unknown(name: str, known: Iterable[str], where: str = "", what: str = "key") -> UserError:
    """The error for an unknown name, with the known names that are close to it."""
    near = near_matches(name.lstrip("-"), known, 3)
    dashes = "--" if what == "flag" else ""
    hint = f"did you mean {' or '.join(dashes + n for n in near)}?" if near else "see --help"
    return UserError(f"{where}unknown {what} {name}; {hint}")


# ---- flags --------------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps names with hyphens whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError and never abbreviates flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.add_argument("--quiet", action="store_true", help="Show errors and the result, but no progress.")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_knobs(
    parser: argparse.ArgumentParser, knobs: Knobs, short: bool = False, required: Sequence[str] = ()
) -> None:
    """A flag for each knob, under the heading of its group; with `short`, the help shows the short knobs only.

    Args:
        required: Knobs that the help calls required, in place of their default.
    """
    groups = {group.title: group for group in parser._action_groups}
    for knob in knobs.values():
        if knob.group not in groups:
            groups[knob.group] = parser.add_argument_group(knob.group, ABOUT.get(knob.group))
        shape: dict[str, Any] = {"nargs": "+"} if knob.listed else {}
        if "bool" in knob.kinds:
            shape = {"nargs": "?", "const": "true"}
        shown = not (knob.hidden or (short and not knob.short))
        default = "(required)" if knob.name in required else f"[{_shown(knob.default)}]"
        groups[knob.group].add_argument(
            f"--{knob.name}",
            default=argparse.SUPPRESS,
            metavar="|".join(map(str, knob.choices)) or _kind_shown(knob.kinds),
            help=f"{knob.help} {default}".replace("%", "%%") if shown else argparse.SUPPRESS,
            **shape,
        )


def _kind_shown(kinds: Sequence[str]) -> str:
    """The types for the help; for `list[float] | None`, the type of an item."""
    kinds = [kind[5:-1] if kind.startswith("list[") else kind.split("[")[0] for kind in kinds if kind != "None"]
    return "|".join(dict.fromkeys(kinds))


def _shown(default: Any) -> str:
    """The default as it is written on the command line, or the words for one that follows other knobs."""
    if isinstance(default, Following):
        return repr(default)
    if isinstance(default, str):
        return json.dumps(default, ensure_ascii=False) if " " in default or not default else default
    if isinstance(default, list):
        return " ".join(map(_shown, default))
    return json.dumps(default, ensure_ascii=False)


def spelled(argv: Sequence[str], knobs: Knobs) -> list[str]:
    """Rewrite flags as they are declared: `--top-p` is `--top_p`, `--no_replay` is `--replay false`."""
    written = []
    for word in argv:
        flag, equals, value = word.partition("=")
        name = full_name(flag[2:].replace("-", "_"), knobs)
        positive = name.removeprefix("no_")
        if not word.startswith("--") or name == "":
            written.append(word)
        elif name not in knobs and positive in knobs and "bool" in knobs[positive].kinds and not equals:
            written += [f"--{positive}", "false"]
        else:
            written.append(f"--{name}{equals}{value}")
    return written


def parse_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str], knobs: Knobs, positional: str | None = None
) -> dict[str, Any]:
    """The given flags by name: values of knobs are converted, the parser's other arguments are not.

    Args:
        positional: The argument without a flag. If it is missing, a file that a flag before it has taken is meant.

    Raises:
        UserError: an unknown flag, with close names; a stray word; a value of the wrong type.
    """
    given, rest = parser.parse_known_args(spelled(argv, knobs))
    if rest:
        flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
        options = [option[2:] for action in parser._actions for option in action.option_strings]
        known = [name for name in options if name not in knobs or not knobs[name].hidden]
        raise unknown(flags[0], known, what="flag") if flags else UserError(f"unexpected {rest[0]!r}; see --help")
    values = {name: value for name, value in vars(given).items() if name != "quiet"}
    if positional and not values.get(positional):
        taken = _taken_file(values, knobs)
        values[positional] = [taken] if taken and isinstance(values.get(positional), list) else taken
    return {name: convert(knobs[name], v, "--") if name in knobs else v for name, v in values.items()}


def _taken_file(values: dict[str, Any], knobs: Knobs) -> str | None:
    """Give back the file that a list or a switch took as its last value: `--reward_funcs local FILE`, `--list FILE`."""
    for name, value in values.items():
        switch = name in knobs and knobs[name].kinds == ["bool"]
        words = value if isinstance(value, list) else [value] if switch else []
        if words and len(words) + switch > 1 and Path(words[-1]).exists():
            values[name] = "true" if switch else words[:-1]
            return words[-1]
    return None
