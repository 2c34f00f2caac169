"""Write src/nlf/cli/training_arguments.json: the arguments of the installed transformers.TrainingArguments.

    python tools/training_arguments.py

`nlf train` makes its inherited flags from that file, since importing transformers takes seconds. A test compares the
file with the installed version; run this tool after a change of the version in constraints.txt.
"""

import ast
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "src/nlf/cli/training_arguments.json"


def snapshot() -> dict[str, Any]:
    """The version of transformers, and the name, type, default, help and choices of each argument."""
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None, "transformers is not installed"
    source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    arguments = [argument(n) for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.value, ast.Call)]
    return {"transformers": version("transformers"), "arguments": arguments}


def argument(node: ast.AnnAssign) -> dict[str, Any]:
    """The argument of one line `name: type = field(default=…, metadata={"help": …})`."""
    assert isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call)
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    metadata = given.get("metadata")
    about: dict[str, ast.expr] = {}
    if isinstance(metadata, ast.Dict):
        about = {key.value: value for key, value in zip(metadata.keys, metadata.values, strict=True)}
    return {
        "name": node.target.id,
        "type": ast.unparse(node.annotation),
        "default": constant(given["default"]) if "default" in given else [],
        "help": str(constant(about["help"])).replace("%%", "%") if "help" in about else "",
        "choices": constant(about["choices"]) or [] if isinstance(about.get("choices"), ast.List) else [],
    }


def constant(node: ast.expr) -> Any:
    """The value of a constant; None for a name such as `default_optim`, whose value only its code knows."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def write(target: Path = TARGET) -> None:
    """Write the snapshot as JSON."""
    target.write_text(json.dumps(snapshot(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
