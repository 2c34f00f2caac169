"""YAML files of names and values: recipes, tasks, judges, the settings of runs, configurations of accelerate.

One reader for all, which builds plain values only. Every file that is no such list is one line for the person: another
encoding, no YAML, a tag that makes objects, a name given twice, a name that is not text, a value that contains itself,
and aliases that multiply into millions of values. Differences from YAML 1.1: `yes`, `no`, `on` and `off` are texts, as in
YAML 1.2, so `eval_strategy: no` means what it says; a date is a text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nlf.errors import UserError

LARGEST_FILE = 10_000_000  # bytes
MOST_VALUES = 20_000  # aliases count as often as they are used
DEEPEST = 30  # levels
TAG = "tag:yaml.org,2002:"
PLAIN = {f"{TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


class Entry(NamedTuple):
    """A value and the line of its name, from 1."""

    value: Any
    line: int


class _Loader(yaml.SafeLoader):
    """Reads `yes`, `no`, `on`, `off` and dates as texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # declared by yaml
        first: [(tag, form) for tag, form in forms if tag not in (f"{TAG}bool", f"{TAG}timestamp", f"{TAG}merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(f"{TAG}bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read_mapping(path: Path, what: str = "") -> dict[str, Any]:
    """The names and values of a YAML or JSON file; empty if the file is.

    Args:
        what: What the file is, for errors: "judge ".

    Raises:
        UserError: the file cannot be read, or holds something else; the error names file and line.
    """
    return {name: entry.value for name, entry in read_entries(path, what).items()}


def read_entries(path: Path, what: str = "") -> dict[str, Entry]:
    """The names and values of a YAML or JSON file, with their lines; see `read_mapping`."""
    where = f"{what}{path}"
    try:
        loader = _Loader(_text(path, where))
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise _wrong(where, root, "one `name: value` a line was expected")
        _check_nodes(root, where)
        return {
            key.value: Entry(loader.construct_object(node, deep=True), key.start_mark.line + 1)
            for key, node in root.value
        }
    except yaml.YAMLError as error:
        raise not_yaml(where, error) from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; at most {DEEPEST} levels can be read") from error
    except (ValueError, KeyError) as error:  # of `!!int text` and `!!bool text`
        raise UserError(f"{where}: a value is not of the type that its tag names ({error})") from error


def not_yaml(where: str, error: Exception) -> UserError:
    """The error for text that is not YAML.

    Args:
        where: The file; the number of the wrong line is added.
        error: The parser's error.
    """
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return UserError(f"{where}{line}: not YAML: {' '.join(str(reason).split())}")


def _text(path: Path, where: str) -> str:
    """The text of a file of ordinary size, in UTF-8, with or without a byte order mark."""
    try:
        with open(path, "rb") as file:
            found = file.read(LARGEST_FILE + 1)
        if len(found) > LARGEST_FILE:
            raise UserError(f"{where}: over {LARGEST_FILE // 10**6} MB, which is too large for a file of settings")
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check_nodes(root: yaml.Node, where: str) -> None:
    """Check every node before values are made of them; a loop is a tree without end.

    Raises:
        UserError: there are too many nodes, or a node is not plain.
    """
    waiting, seen = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise _wrong(where, node, f"nested more than {DEEPEST} levels deep, or part of itself")
        if seen > MOST_VALUES:
            raise _wrong(where, root, f"more than {MOST_VALUES:,} values, aliases included")
        if node.tag not in PLAIN:
            raise _wrong(where, node, f"the tag {node.tag.removeprefix(TAG)!r} is not allowed; give a plain value")
        waiting += [(child, depth + 1) for child in _children(node, where)]


def _children(node: yaml.Node, where: str) -> Iterator[yaml.Node]:
    names = set()
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        if isinstance(child, tuple):
            key, child = child
            if key.tag != f"{TAG}str":
                raise _wrong(where, key, "a name that is not text; put it in quotes")
            if key.value in names:
                raise _wrong(where, key, f"{key.value} is given twice")
            names.add(key.value)
        yield child


def _wrong(where: str, node: yaml.Node, what: str) -> UserError:
    return UserError(f"{where}:{node.start_mark.line + 1}: {what}")
