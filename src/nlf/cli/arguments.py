"""From flags and YAML to checked values, without importing anything heavy.

A `Knob` is one setting: ours come from the dataclasses of `nlf.config`, the inherited ones are read by `ast` from the
installed `transformers/training_args.py` (importing it takes seconds, and `--help` or a typing mistake need not wait
for that). Both a recipe and the command line end in one flat dict of the values that were *given*; `trainer.ALTConfig`
adds the defaults.
"""

import argparse
import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, get_args, get_origin

from nlf.config import OPTION_GROUPS, TRAINING_DEFAULTS
from nlf.errors import UserError, near_matches

INHERITED = "Trainer (inherited)"
ALIASES = {"reward": "reward_funcs"}  # shorter names that are understood where the long one is


@dataclass(frozen=True)
class Knob:
    """One setting: its name, the types it takes ('float | None'), default, help and group."""

    name: str
    type: str
    default: Any
    help: str
    group: str
    choices: tuple = ()

    @property
    def kinds(self) -> list[str]:
        return [kind.strip() for kind in self.type.split("|")]

    @property
    def listed(self) -> bool:
        return any(kind.startswith("list") for kind in self.kinds)


# ---- where knobs come from ----------------------------------------------------------------------------------------


def knobs_of(group: str, options: type, defaults: Mapping[str, Any] | None = None) -> dict[str, Knob]:
    """The knobs of one of our dataclasses, with some defaults replaced."""
    found = {}
    for f in fields(options):
        choices = get_args(f.type) if get_origin(f.type) is Literal else ()
        kind = (
            "str" if choices else f.type.__name__ if isinstance(f.type, type) and not get_args(f.type) else str(f.type)
        )
        default = f.default if f.default_factory is MISSING else f.default_factory()
        found[f.name] = Knob(f.name, kind, (defaults or {}).get(f.name, default), f.metadata["help"], group, choices)
    return found


@cache
def train_knobs() -> dict[str, Knob]:
    """Every knob of `nlf train`, in the order of the help; ours come before the inherited ones."""
    ours: dict[str, Knob] = {}
    for group, options in OPTION_GROUPS.items():
        ours |= knobs_of(group, options)
    return ours | {name: knob for name, knob in inherited_knobs().items() if name not in ours}


def inherited_knobs() -> dict[str, Knob]:
    """The fields of the installed TrainingArguments, read without importing it.

    Raises:
        UserError: transformers is not installed.
    """
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise UserError("transformers is not installed; run `pip install -c constraints.txt -e .`")
    source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    start = source.index("\nclass TrainingArguments")
    body = ast.parse(source[start : source.index("\n    def ", start)]).body[0].body
    found = [_inherited(node) for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)]
    return {knob.name: knob for knob in found}


def _inherited(node: ast.AnnAssign) -> Knob:
    """The knob of one line `name: type = field(default=…, metadata={"help": …})`."""
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    metadata = given.get("metadata", ast.Dict([], []))
    about = {key.value: value for key, value in zip(metadata.keys, metadata.values, strict=True)}
    name, default = node.target.id, _literal(given["default"]) if "default" in given else []
    help = str(_literal(about["help"])).replace("%%", "%") if "help" in about else ""
    choices = tuple(_literal(about["choices"]) or ()) if isinstance(about.get("choices"), ast.List) else ()
    return Knob(name, ast.unparse(node.annotation), TRAINING_DEFAULTS.get(name, default), help, INHERITED, choices)


def _literal(node: ast.expr) -> Any:
    """The value of a constant; of a name (`default_optim`), None: only its code knows it."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


# ---- values -------------------------------------------------------------------------------------------------------


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _integer(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return value if isinstance(value, int) else float(value)  # YAML reads 1e-5 as text


def _mapping(value: Any) -> dict:
    value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


READERS: dict[str, Callable[[Any], Any]] = {"bool": _boolean, "int": _integer, "float": _number, "dict": _mapping}


def convert(knob: Knob, value: Any, where: str = "") -> Any:
    """A flag's text or a YAML value as what the knob takes.

    Raises:
        UserError: naming where, the knob, the value and what was expected.
    """
    if value is None or value in ("null", ["null"]):
        if "None" in knob.kinds:
            return None
    else:
        for kind, each in _readings(knob, value):
            try:
                result = _read(kind, each)
            except (ValueError, TypeError, KeyError):
                continue
            if not knob.choices or result in knob.choices:
                return result
    expected = "one of " + ", ".join(map(str, knob.choices)) if knob.choices else knob.type.replace("None", "null")
    raise UserError(f"{where}{knob.name}: {value!r} where {expected} was expected")


def _readings(knob: Knob, value: Any) -> list[tuple[str, Any]]:
    """(type, value) to try in turn, text last; one item of a list that may be alone is taken alone."""
    plain = [kind for kind in knob.kinds if kind != "None" and not kind.startswith("list")]
    if not plain or (isinstance(value, list) and len(value) != 1):
        return [(kind, value) for kind in knob.kinds if kind.startswith("list")]
    alone = value[0] if isinstance(value, list) else value
    return [(kind, alone) for kind in sorted(plain, key=lambda kind: kind.split("[")[0] not in READERS)]


def _read(kind: str, value: Any) -> Any:
    if kind.startswith("list"):
        items = value if isinstance(value, list) else [value]
        return [_read(kind[5:-1], item) for item in items]
    return READERS.get(kind.split("[")[0], _text)(value)


# ---- YAML ---------------------------------------------------------------------------------------------------------


def read_recipe(path: str | Path, knobs: Mapping[str, Knob]) -> dict[str, Any]:
    """The values of a flat YAML file.

    Raises:
        UserError: no such file, not YAML, not a flat mapping, an unknown or repeated key, a wrong type; with its line.
    """
    import yaml

    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected one `name: value` a line")
    loader, values = yaml.SafeLoader(""), {}
    for key, node in root.value:
        where, name = f"{path}:{key.start_mark.line + 1}: ", str(key.value)
        if name not in knobs:
            raise unknown(name, knobs, where)
        if name in values:
            raise UserError(f"{where}{name} is given twice")
        values[name] = convert(knobs[name], loader.construct_object(node, deep=True), where)
    return values


def unknown(name: str, known: Sequence[str] | Mapping[str, Any], where: str = "", what: str = "key") -> UserError:
    """The error for a name that is not known, with the names it is nearest to."""
    near = near_matches(name.lstrip("-"), known, 3)
    dashes = "--" if what == "flag" else ""
    hint = f"did you mean {' or '.join(dashes + n for n in near)}?" if near else "see --help"
    return UserError(f"{where}unknown {what} {name}; {hint}")


# ---- flags --------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors and whose flags are never abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        formatter = kwargs.pop("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, formatter_class=formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_knobs(parser: argparse.ArgumentParser, knobs: Mapping[str, Knob]) -> None:
    """A flag for each knob, under the heading of its group."""
    groups = {group.title: group for group in parser._action_groups}
    for knob in knobs.values():
        if knob.group not in groups:
            groups[knob.group] = parser.add_argument_group(knob.group)
        shape: dict[str, Any] = {"nargs": "+"} if knob.listed else {}
        if "bool" in knob.kinds:
            shape = {"nargs": "?", "const": "true"}
        groups[knob.group].add_argument(
            f"--{knob.name}",
            default=argparse.SUPPRESS,
            metavar="|".join(map(str, knob.choices)) or _kind_shown(knob.kinds),
            help=f"{knob.help} [{_shown(knob.default)}]".replace("%", "%%"),
            **shape,
        )


def _kind_shown(kinds: Sequence[str]) -> str:
    """`list[float] | None` takes floats, which the flag's repetition says."""
    kinds = [kind[5:-1] if kind.startswith("list[") else kind.split("[")[0] for kind in kinds if kind != "None"]
    return "|".join(dict.fromkeys(kinds))


def _shown(default: Any) -> str:
    if isinstance(default, str):
        return default or "''"
    return json.dumps(default, ensure_ascii=False)


def spelled(argv: Sequence[str], knobs: Mapping[str, Knob]) -> list[str]:
    """Flags as they are declared: `--top-p` is `--top_p`, `--no_log_completions` is `--log_completions false`."""
    written = []
    for word in argv:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        name = ALIASES[name] if ALIASES.get(name) in knobs else name
        positive = name.removeprefix("no_")
        if not word.startswith("--") or name == "":
            written.append(word)
        elif name not in knobs and positive in knobs and "bool" in knobs[positive].kinds and not equals:
            written += [f"--{positive}", "false"]
        else:
            written.append(f"--{name}{equals}{value}")
    return written


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str], knobs: Mapping[str, Knob]) -> SimpleNamespace:
    """The flags that were given: knobs converted, the parser's other arguments as they are.

    Raises:
        UserError: an unknown flag, with near matches; a stray word; a value of the wrong type.
    """
    given, rest = parser.parse_known_args(spelled(argv, knobs))
    if rest:
        known = [option[2:] for action in parser._actions for option in action.option_strings]
        flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
        raise unknown(flags[0], known, what="flag") if flags else UserError(f"unexpected {rest[0]!r}; see --help")
    values = vars(given)
    return SimpleNamespace(**{n: convert(knobs[n], v, "--") if n in knobs else v for n, v in values.items()})
