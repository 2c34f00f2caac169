"""A side of a benchmark in a process of its own, so that memory and caches of the other do not count."""

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def peak_megabytes() -> float:
    """The highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(target: Callable, side: str, *options) -> Any:
    """What `target(side, *options, results)` puts into `results`, a queue; it is run in a new process."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=target, args=(side, *options, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{side}: stopped with {process.exitcode} (out of memory?)")
    return results.get()
