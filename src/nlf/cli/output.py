"""Output of the commands: the log, tables of names and values, and the process that prints.

Results go to stdout; the log, bars and errors go to stderr.
"""

import logging
import os
import sys
import warnings


def is_first_process() -> bool:
    """Whether this process prints for all processes of the run."""
    return os.environ.get("RANK", "0") == "0"


class AboveBars(logging.StreamHandler):
    """Writes the log to stderr; each message gets lines of its own, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from nlf.data.progress import above_bars

        with above_bars():
            super().emit(record)


def log_to_stderr(quiet: bool = False) -> None:
    """Send the library's log to stderr, from the first process only, and tell tqdm which bars to show.

    No library shows bars where stderr is no terminal, nor for work of less than a second.

    Args:
        quiet: Show errors only.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[AboveBars()])
    level = logging.ERROR if quiet else logging.INFO if is_first_process() else logging.WARNING
    logging.getLogger("nlf").setLevel(level)
    os.environ.setdefault("TQDM_DELAY", "1")  # tqdm reads both when it is imported
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if quiet:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")


def show(table: dict[str, str]) -> int:
    """Print names and values in two columns, and return the exit code."""
    width = max(map(len, table))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table.items()))
    return 0
