"""Print the import structure of a package: its floors, and who imports whom.

    python tools/import_picture.py src/nlf            # rooms (folders), the default
    python tools/import_picture.py src/nlf --modules  # every module

A floor holds what imports only lower floors. What imports each other in a circle is listed apart. Imports inside functions
and under TYPE_CHECKING count.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path


def imports(root: Path) -> dict[str, set[str]]:
    """Each module's imports of this package, by dotted names below it."""
    modules = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items() if name != "__init__"}
    return {name: set(_imported(path, root.name, modules)) - {name} for name, path in modules.items()}


def _imported(path: Path, package: str, known: dict[str, Path]) -> Iterator[str]:
    for name in _names(path):
        parts = name.split(".")
        homes = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)] if parts[0] == package else []
        yield from [home for home in homes if home in known][:1]  # a module, not a name in it


def _names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def by_room(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports between rooms: a folder stands for its modules."""
    rooms: dict[str, set[str]] = {}
    for module, others in edges.items():
        room = module.split(".")[0]
        rooms.setdefault(room, set()).update(other.split(".")[0] for other in others)
        rooms[room].discard(room)
    return rooms


def floors(edges: dict[str, set[str]]) -> tuple[list[list[str]], list[str]]:
    """The floors from the ground up, and what is left in circles."""
    left, found = dict(edges), []
    while free := sorted(name for name, others in left.items() if not others & left.keys()):
        found.append(free)
        for name in free:
            del left[name]
    return found, sorted(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--modules", action="store_true", help="modules in place of rooms")
    args = parser.parse_args()
    edges = imports(args.package)
    edges = edges if args.modules else by_room(edges)
    found, circles = floors(edges)
    for number, names in reversed(list(enumerate(found))):
        print(f"{number:2}  {', '.join(names)}")
    print(f"{len(edges)} entries on {len(found)} floors; in circles: {', '.join(circles) or 'none'}")


if __name__ == "__main__":
    main()
