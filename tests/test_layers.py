"""Imports go down, never up and never in a circle, annotations included; light modules load no heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlf

ROOT = Path(nlf.__file__).parent
TOOLS = Path(__file__).parents[1] / "tools"
FLOORS = [  # from the ground up; rooms of one floor do not import each other
    {"errors"},
    {"secrets"},
    {"method", "services"},
    {"config"},
    {"data"},
    {"models"},
    {"sampling", "rewards"},
    {"evaluation"},
    {"training", "report", "serving"},
    {"cli"},
    {"__main__", "__init__"},
]
LIGHT = ["__init__", "__main__", "cli/main", "cli/arguments", "config", "errors", "method/tags", "data/prompts"]
HEAVY = {"torch", "transformers", "pandas", "sklearn", "datasets", "accelerate", "peft", "trl", "pyarrow"}
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in ROOT.rglob("*.py")
    if "assets" not in path.parts
}


def room(module: str) -> str:
    return module.split("/")[0]


def floor(module: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert found, f"src/nlf/{module}.py stands on no floor; add its room to FLOORS"
    return found[0]


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names a module imports: anywhere, or only when it is loaded (type checking does not load)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in _loaded(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write nlf.… out"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _loaded(node):
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not guarded and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _loaded(child)


def ours(module: str, top_only: bool = False) -> set[str]:
    """The modules of this package among them."""
    found = set()
    for name in imported(MODULES[module], top_only):
        if name.split(".")[0] == "nlf":
            parts = name.split(".")[1:]
            paths = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)] + ["__init__"]
            hits = [hit for p in paths for hit in (p, f"{p}/__init__") if hit in MODULES]
            found.add(hits[0])
    return found - {module}


def assert_no_circle(edges: dict[str, set[str]]) -> None:
    edges = dict(edges)
    while free := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in free:
            del edges[module]
    assert not edges, f"these import each other in a circle: {sorted(edges)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    if module == "__init__":
        return  # it only names what the package offers
    others = [other for other in ours(module) if other != "__init__" and room(other) != room(module)]
    upward = [other for other in others if floor(other) >= floor(module)]
    assert not upward, f"{module} imports {upward}, which stand above it or beside it"


def test_no_circle_annotations_included():
    assert_no_circle({module: ours(module) for module in MODULES if module != "__init__"})


def test_no_circle_among_the_tools():
    tools = {path.stem: imported(path) for path in TOOLS.glob("*.py")}
    assert_no_circle({name: {other.split(".")[0] for other in found} - {name} for name, found in tools.items()})


def test_the_top_of_the_package_is_small():
    entries = [path.name for path in ROOT.iterdir() if not path.name.startswith((".", "__pycache__"))]
    assert len([name for name in entries if name != "py.typed"]) <= 17, sorted(entries)


def test_modules_and_functions_are_short():
    long_modules = [m for m, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 500]
    assert not long_modules, f"over 500 lines: {long_modules}"
    long_functions = [
        f"{module}: {node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 40
    ]
    assert len(long_functions) <= 5, f"over 40 lines: {long_functions}"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    """Directly or through another of our modules: the command line starts in well under a second."""
    todo, seen = [module if module in MODULES else f"{module}/__init__"], set()
    while todo:
        current = todo.pop()
        seen.add(current)
        heavy = {name.split(".")[0] for name in imported(MODULES[current], top_only=True)} & HEAVY
        assert not heavy, f"{module} loads {sorted(heavy)} through {current}"
        todo += [other for other in ours(current, top_only=True) if other not in seen]


def test_the_method_needs_torch_and_numpy_at_most():
    allowed = sys.stdlib_module_names | {"torch", "numpy", "nlf"}
    for module in MODULES:
        if room(module) in ("method", "errors", "config"):
            assert {name.split(".")[0] for name in imported(MODULES[module])} <= allowed, module


def test_importing_the_package_is_light():
    code = f"import sys, nlf, nlf.config, nlf.method.tags, nlf.method.quantize; print(*({HEAVY} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_no_print_and_no_bare_except_in_the_library():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"src/nlf/{module}.py:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{where}: bare except"
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called or room(module) == "cli", f"{where}: print in the library"
