"""Progress bars."""

from collections.abc import Callable

from tqdm.auto import tqdm


def progress_bar(what: str, total: int, done: int = 0, hidden: bool = False) -> Callable[[int], None]:
    """A bar on stderr, as the function that advances it; what was done before counts as done."""
    bar = tqdm(total=total, initial=done, desc=what, unit="completion", leave=False, disable=hidden or done == total)

    def advance(n: int) -> None:
        bar.update(n)
        if bar.n >= total:
            bar.close()

    return advance
