"""Run a side of a benchmark in a fresh process, so that the other side's memory and caches do not count."""

import multiprocessing
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_megabytes() -> float:
    """The highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux `ru_maxrss` includes the memory of the parent at the start
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def in_fresh_process(target: Callable, side: str, *options) -> Any:
    """Run `target(side, *options, results)` in a new process and return what it puts into the queue `results`."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=target, args=(side, *options, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{side}: stopped with {process.exitcode} (out of memory?)")
    return results.get()
