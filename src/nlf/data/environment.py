"""`nlf env`: the machine and its versions, for bug reports and results."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("nlf", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "tokenizers", "safetensors"),
    *("numpy", "pyarrow"),
)


def describe() -> dict[str, str]:
    """Facts by name, in the order in which they are shown."""
    found = {"python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    found |= {name: _version(name) for name in PACKAGES}
    found["git"] = git_revision()
    found["cpus"] = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    found["memory"] = _memory()
    return found | _torch_facts()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "nlf":
            from nlf import __version__

            return f"{__version__} (not installed)"
        return "not installed"


def git_revision() -> str:
    """The checkout's commit, with '+changes' if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "no git"
    return done.stdout.strip() if done.returncode == 0 else "not a checkout"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):  # not available on this system
        return "unknown"


def _torch_facts() -> dict[str, str]:
    """Facts from torch: threads and accelerators."""
    try:
        import torch
    except ImportError as error:
        return {"torch import": f"failed: {error}"}
    facts = {"torch threads": str(torch.get_num_threads()), "cuda": str(torch.version.cuda)}
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        facts[f"gpu {i}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    return facts
