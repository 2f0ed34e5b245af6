"""Tables in plain text, of cells that are texts already."""

from __future__ import annotations

from collections.abc import Sequence


def format_lines(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1) -> list[str]:
    """The lines of a table whose columns are as wide as their widest cell, with two spaces between them.

    Args:
        rows: as many cells each as the header has.
        left_columns: the first columns, aligned to the left; those after them, usually numbers, to the right.
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column < left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as one text: see `format_lines`."""
    return "\n".join(format_lines(header, rows))
