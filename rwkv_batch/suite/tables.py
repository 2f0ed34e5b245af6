"""The tables of a suite: table.md, table.csv and report.html, made of its results alone."""

from __future__ import annotations

from collections.abc import Sequence


def write_tables(folder: str, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[str]:
    """Writes table.md, table.csv and report.html into a suite's output folder. Returns lines for a terminal.

    Args:
        folder: of the suite's output.
        models, tasks: those of the suite in the order in which they are shown; others that have results come after
            them. A pair without a result is shown as missing.
    """
    return []
