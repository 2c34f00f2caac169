"""Imports go down or sideways, never up, never in a circle; light modules load no heavy library at the top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlf

ROOT = Path(nlf.__file__).parent
LEVELS = [  # a folder stands for all its modules
    {"errors", "config", "tags", "quantize", "losses", "metrics", "published"},
    {"prompts", "rollouts", "feedback", "rundir", "generations", "environment", "http"},
    {"sampling", "rewards", "activations", "packing", "policy", "sharding", "batches", "likelihoods", "objective"},
    {
        "completions",
        "handover",
        "iteration",
        "sample",
        "score",
        "perplexity",
        "evaluate",
        "monitor",
        "modelcard",
        "trainer",
        "distill",
    },
    {"cli", "__main__", "__init__", "arguments", "planning", "report", "importing"},
]
LIGHT = ["__init__", "__main__", "cli", "arguments", "config", "errors", "tags", "prompts", "quantize"]
HEAVY = {"torch", "transformers", "pandas", "sklearn", "datasets", "accelerate", "peft", "trl", "pyarrow"}
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in ROOT.rglob("*.py")
    if "assets" not in path.parts
}


def level(module: str) -> int:
    found = [i for i, names in enumerate(LEVELS) if module.split("/")[0] in names]
    assert found, f"src/nlf/{module}.py belongs to no level; add it to LEVELS"
    return found[0]


def imported(module: str, top_only: bool = False) -> set[str]:
    """Dotted names a module imports: anywhere, or only when it is loaded (type checking does not load)."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set()
    for node in _loaded(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"src/nlf/{module}.py:{node.lineno}: relative import; write nlf.… out"
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
    for name in imported(module, top_only):
        if name.split(".")[0] == "nlf":
            parts = name.split(".")[1:]
            paths = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)] + ["__init__"]
            hits = [hit for p in paths for hit in (p, f"{p}/__init__") if hit in MODULES]
            found.add(hits[0])
    return found - {module}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_or_sideways(module):
    if module == "__init__":
        return  # it only names what the package offers
    upward = [other for other in ours(module) if other != "__init__" and level(other) > level(module)]
    assert not upward, f"{module} imports {upward}, which stand above it"


def test_no_circle():
    edges = {module: ours(module, top_only=True) for module in MODULES}
    while free := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in free:
            del edges[module]
    assert not edges, f"these import each other in a circle: {sorted(edges)}"


@pytest.mark.parametrize("module", [m for m in LIGHT if m in MODULES])
def test_light_modules_import_nothing_heavy(module):
    """Directly or through another of our modules: the command line starts in well under a second."""
    todo, seen = [module], set()
    while todo:
        current = todo.pop()
        seen.add(current)
        heavy = {name.split(".")[0] for name in imported(current, top_only=True)} & HEAVY
        assert not heavy, f"{module} loads {sorted(heavy)} through {current}"
        todo += [other for other in ours(current, top_only=True) if other not in seen]


def test_pure_modules_need_torch_and_numpy_at_most():
    allowed = sys.stdlib_module_names | {"torch", "numpy", "nlf"}
    for module in LEVELS[0] & MODULES.keys():
        assert {name.split(".")[0] for name in imported(module)} <= allowed, module


def test_importing_the_package_is_light():
    code = f"import sys, nlf, nlf.config, nlf.tags, nlf.quantize; print(*({HEAVY} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_no_print_and_no_bare_except_in_the_library():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"src/nlf/{module}.py:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{where}: bare except"
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called or level(module) == len(LEVELS) - 1, f"{where}: print in the library"
