"""Work in progress as a person sees it, on stderr: bars on a terminal, plain lines in a file or a pipe.

The environment variable TQDM_DISABLE hides bars. If the log shows only errors (`--quiet`), nothing is shown.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

EVERY = 60.0  # seconds between the lines of a task that shows no bar


def is_quiet() -> bool:
    """Whether the log shows only errors."""
    return logging.getLogger("nlf").getEffectiveLevel() > logging.WARNING


def has_bars() -> bool:
    """Whether bars are shown: stderr is a terminal, and neither TQDM_DISABLE nor `--quiet` hides them."""
    return sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE") and not is_quiet()


def open_bar(title: str, total: int, done: int = 0, unit: str = "completion", hidden: bool = False) -> tqdm:
    """A bar that disappears at its end. For the arguments see `progress_bar`."""
    hidden = hidden or done >= total or not has_bars()
    columns, lines = shutil.get_terminal_size()  # 80 × 24 where the terminal does not say its size
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=f" {unit}s",
        leave=False,
        disable=hidden,
        ncols=columns,
        nrows=lines,
    )


def progress_bar(title: str, total: int, done: int = 0, hidden: bool = False) -> Callable[[int], None]:
    """Show a progress bar; without bars, log a line a minute.

    Args:
        title: The text before the bar.
        total: Completions in all.
        done: Completions that were finished before.
        hidden: Show nothing.

    Returns:
        A function that advances the bar by a number of completions.
    """
    bar, last = open_bar(title, total, done, hidden=hidden), time.monotonic()
    plain = bar.disable and not hidden

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        bar.update(count)
        if done >= total:
            bar.close()
        elif plain and time.monotonic() - last > EVERY:
            last = time.monotonic()
            logger.info("%s: %s of %s completions", title, f"{done:,}", f"{total:,}")

    return advance


@contextlib.contextmanager
def above_bars() -> Iterator[None]:
    """Inside the `with` block, bars are cleared, so that text on stderr gets lines of its own."""
    with tqdm.external_write_mode(file=sys.stderr):
        yield


def say(text: str) -> None:
    """Write lines to stderr, above the bars."""
    if not is_quiet():
        with above_bars():
            sys.stderr.write(text + "\n")


def close_bars() -> None:
    """Remove every bar, so that the next text starts on its own line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: `35 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
