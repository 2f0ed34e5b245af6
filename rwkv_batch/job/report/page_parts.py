"""What the template of the report page shows: tables, charts with the tables behind them, and divided bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .wording import count

MOST_ROWS = 200
"""Rows of a table of the page. report.json has all of them."""
NUM_COLOURS = 10
"""The last of them is for what is left."""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        head: names of the columns.
        rows: cells, as many in each row as there are names.
        numbers: which columns are aligned to the right.
        more: a sentence about rows that are left out; "" where none are.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: frozenset[int] = frozenset()
    more: str = ""

    @classmethod
    def of(cls, head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> Table:
        """A table of the first rows, at most `MOST_ROWS`."""
        left = len(rows) - MOST_ROWS
        more = f"and {count(left)} more: see report.json" if left > 0 else ""
        return cls(head, rows[:MOST_ROWS], frozenset(numbers), more)


@dataclass(frozen=True)
class Figure:
    """A chart with its title, a remark, the names of its colours, and the numbers behind it."""

    title: str
    svg: Markup
    table: Table
    note: str = ""
    legend: Sequence[str] = ()


@dataclass(frozen=True)
class Slice:
    """A part of a divided bar: its colour from 1 to `NUM_COLOURS`, its width in percent, and what it is."""

    colour: int
    width: float
    tip: str


@dataclass(frozen=True)
class Bar:
    """A divided bar with a title above it, and a table behind it."""

    title: str
    parts: Sequence[Slice]
    table: Table | None = None

    @property
    def label(self) -> str:
        """What a screen reader says."""
        return "; ".join(part.tip for part in self.parts)

    @classmethod
    def of(cls, title: str, values: Mapping[str, tuple[float, str]], rest: str = "", table: Table | None = None) -> Bar:
        """A bar of values, each with its colour by its place.

        Args:
            values: name → the value, and what is said of it.
            rest: the name of what is left, which has the last colour.
        """
        total = sum(value for value, _ in values.values()) or 1.0
        colours = {name: min(place, NUM_COLOURS - 1) for place, name in enumerate(values, 1)} | {rest: NUM_COLOURS}
        slices = [
            Slice(colours[name], round(100 * value / total, 2), f"{name}: {said}")
            for name, (value, said) in values.items()
        ]
        return cls(title, slices, table)
