"""Markdown tables: of figures shown in a terminal, in a model card, and in the pages of docs/."""

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table without a line break at its end; cells are shown as `str` shows them."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
