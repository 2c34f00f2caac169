"""Tables in Markdown and in plain text: of figures shown in a terminal, in a model card, and in the pages of docs/."""

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table without a line break at its end; cells are shown as `str` shows them."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def text_table(rows: Sequence[Sequence[str]], align: str = "<") -> str:
    """Rows of cells as columns of plain text.

    Args:
        align: "<" or ">" for the columns after the first one, which is aligned on the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<"] + [align] * (len(widths) - 1)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)).rstrip()
        for cells in rows
    )


def rounded(value: float) -> str:
    """A number in three significant digits, or whole from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}"


def printable(text: str) -> str:
    """A text in one line, without characters that steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
