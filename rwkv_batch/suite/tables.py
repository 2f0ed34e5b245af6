"""The tables of a suite: table.md, table.csv and report.html, made of its results alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..commands.target_file import target_file
from .grid import FAILED, MISSING, read_grid
from .table_files import csv_text, markdown_text, terminal_lines


def write_tables(folder: str, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[str]:
    """Writes table.md, table.csv and report.html into a suite's output folder. Returns lines for a terminal.

    Args:
        folder: of the suite's output.
        models, tasks: those of the suite in the order in which they are shown; others that have results come after
            them. A pair without a result is shown as missing. Checkpoints whose names differ in one number are shown in
            the order of that number.

    Raises:
        ConfigurationError: a result cannot be read, or a file cannot be written.
    """
    from .page import render  # jinja2 is not needed before

    grid = read_grid(folder, models, tasks)
    name = os.path.basename(os.path.abspath(folder))
    differences = grid.differences()
    texts = {
        "table.md": markdown_text(name, grid, differences),
        "table.csv": csv_text(grid),
        "report.html": render(name, grid, differences),
    }
    for file_name, text in texts.items():
        with target_file(os.path.join(folder, file_name), overwrite=True) as file:
            file.write(text.encode(errors="backslashreplace"))
    failed, missing = grid.count(FAILED), grid.count(MISSING)
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{missing} missing"] if missing else []
    return [
        *terminal_lines(grid),
        *([f"results   {', '.join(notes)}"] if notes else []),
        *(f"remark    {remark}" for remark in grid.remarks()),
        *(f"written   {os.path.join(folder, file_name)}" for file_name in texts),
    ]
