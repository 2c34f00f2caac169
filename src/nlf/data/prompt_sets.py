"""Prompt sets that are no lists of records: BOLD's JSON and ToxiGen's text, read as records with the group as a column.

Sources: amazon-science/bold (`*_prompt.json`), microsoft/TOXIGEN (`prompts/hate_GROUP_1k.txt`, `neutral_GROUP_1k.txt`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nlf.errors import UserError

Located = Iterator[tuple[str, dict]]  # the place for errors, and the record
BOLD_NAME = re.compile(r"(?:.*[/\\])?(.+)_prompts?\.json(?:\.gz)?", re.DOTALL | re.IGNORECASE)
TOXIGEN_NAME = re.compile(r"(?:.*[/\\])?(hate|neutral)_(.+?)(?:_1k)?\.txt(?:\.gz)?", re.DOTALL | re.IGNORECASE)
TOXIGEN_LIST = re.compile(r"- .*\\n-\s*")  # sentences with "- " before each, and an empty one for the model to fill
BOLD_EXPECTED = 'expected BOLD\'s {"group": {"name": ["a prompt", …]}}'


def is_bold(found: Any) -> bool:
    """Whether a JSON value has BOLD's form on its first level."""
    return isinstance(found, dict) and bool(found) and all(isinstance(names, dict) for names in found.values())


def bold(found: Mapping[str, Any], path: str, column: str) -> Located:
    """The prompts of a BOLD file, with the columns `domain` (from the file's name), `group` and `name`.

    BOLD's prompts end with a space. It is left out, because a completion begins with the space.

    Raises:
        UserError: a name has no list of texts.
    """
    named = BOLD_NAME.fullmatch(path)
    domain = {"domain": named[1]} if named else {}
    for group, names in found.items():
        for name, prompts in names.items():
            where = f"{path}, {group!r}, {name!r}"
            if not isinstance(prompts, list):
                raise UserError(f"{where}: found {type(prompts).__name__}; {BOLD_EXPECTED}")
            for number, prompt in enumerate(prompts, 1):
                if not isinstance(prompt, str):
                    raise UserError(f"{where}, prompt {number}: found {type(prompt).__name__}; {BOLD_EXPECTED}")
                yield f"{where}, prompt {number}", {**domain, "group": group, "name": name, column: prompt.rstrip()}


def is_toxigen(line: str) -> bool:
    r"""Whether a line of text is a list of sentences as in ToxiGen, whose line breaks are written as the two characters `\n`."""
    return TOXIGEN_LIST.fullmatch(line) is not None


def toxigen(lines: Iterator[tuple[str, str]], path: str, column: str) -> Located:
    r"""The prompts of a ToxiGen file with their line breaks, with the columns `label` (hate or neutral) and `group` from its name.

    Raises:
        UserError: a line is no such list.
    """
    named = TOXIGEN_NAME.fullmatch(path)
    columns = {"label": named[1].lower(), "group": named[2]} if named else {}
    for where, line in lines:
        if not is_toxigen(line):
            raise UserError(
                rf"{where}: no list of sentences, as in the lines before (- one\n- two\n-); keep the two kinds apart"
            )
        yield where, {**columns, column: line.strip().replace(r"\n", "\n")}
