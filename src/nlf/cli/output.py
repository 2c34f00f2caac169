"""Output of the commands: the log, tables of names and values, and the process that prints."""

import logging
import os


def is_first_process() -> bool:
    """Whether this process prints for all processes of the run."""
    return os.environ.get("RANK", "0") == "0"


def log_to_stderr() -> None:
    """Send the library's log to the terminal, from the first process only."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nlf").setLevel(logging.INFO if is_first_process() else logging.WARNING)


def show(table: dict[str, str]) -> int:
    """Print names and values in two columns, and return the exit code."""
    width = max(map(len, table))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table.items()))
    return 0
