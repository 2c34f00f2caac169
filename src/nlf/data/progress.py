"""Progress bars."""

from collections.abc import Callable

from tqdm.auto import tqdm


def progress_bar(title: str, total: int, done: int = 0, hidden: bool = False) -> Callable[[int], None]:
    """Show a progress bar on stderr.

    Args:
        title: The text before the bar.
        total: Completions in all.
        done: Completions that were finished before.
        hidden: Show nothing.

    Returns:
        A function that advances the bar by a number of completions.
    """
    bar = tqdm(total=total, initial=done, desc=title, unit="completion", leave=False, disable=hidden or done == total)

    def advance(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return advance
