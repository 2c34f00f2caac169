"""The names that the package offers stay what they are, whatever else has been imported."""

import subprocess
import sys

CODE = """
import importlib, pkgutil
import nlf
for module in pkgutil.walk_packages(nlf.__path__, "nlf."):
    if "assets" not in module.name and not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # vllm, which is not installed
            assert not error.name.startswith("nlf"), error
print(*[name for name in nlf.__all__ if type(getattr(nlf, name)).__name__ == "module"], callable(nlf.distill))
"""


def test_no_module_takes_the_place_of_a_public_name():
    """`nlf.distill(…)` once worked a single time: then the name was the module."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
