"""Lengths of many texts in a histogram of bounded size, from which percentiles and bins follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np

EXACT_BITS = 8
"""Lengths below 2 to this power have a cell each. A cell above covers at most 1/128 of its length."""
_CELLS_PER_OCTAVE = 1 << (EXACT_BITS - 1)
_NUM_CELLS = (33 - EXACT_BITS) * _CELLS_PER_OCTAVE + _CELLS_PER_OCTAVE
PERCENTILES = (5, 25, 50, 75, 95, 99)
MOST_BINS = 30
_STEPS = (1, 2, 5)


class Lengths:
    """Counts of lengths. The memory does not grow with the number of lengths, nor with their size.

    Attributes:
        count: how many lengths there are.
        total: their sum, exact.
        smallest, largest: exact; 0 without any length.
    """

    def __init__(self) -> None:
        self.count = self.total = self.smallest = self.largest = 0
        self._cells = np.zeros(_NUM_CELLS, np.int64)

    def add(self, lengths: Any) -> None:
        """Adds lengths, an array of integers from 0 to 2³² - 1."""
        lengths = np.asarray(lengths, np.int64)
        if not len(lengths):
            return
        smallest = int(lengths.min())
        self.smallest = min(self.smallest, smallest) if self.count else smallest
        self.largest = max(self.largest, int(lengths.max()))
        self.count += len(lengths)
        self.total += int(lengths.sum())
        self._cells += np.bincount(_cell(lengths), minlength=_NUM_CELLS)

    def percentile(self, percent: float) -> int:
        """The length that so many percent of all lengths do not exceed, to within 1/128 of it."""
        rank = max(1, ceil(self.count * percent / 100))
        cell = int(np.searchsorted(np.cumsum(self._cells), rank))
        return min(max(_end(cell) - 1, self.smallest), self.largest)

    def describe(self) -> dict[str, float]:
        """Numbers for the report; {} without any length."""
        if not self.count:
            return {}
        shares = {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        ends = {"smallest": self.smallest, "largest": self.largest, "mean": round(self.total / self.count, 2)}
        return {"count": self.count, **ends, **shares}

    def doubling_bins(self) -> dict[str, int]:
        """Returns counts in bins that double in width: 0, 1, 2-3, 4-7, …"""
        return {
            str(low) if low >= high else f"{low}-{high}": self._between(low, high + 1)
            for bits in range(self.smallest.bit_length(), self.largest.bit_length() + 1 if self.count else 0)
            for low, high in [((1 << bits) >> 1, (1 << bits) - 1)]
        }

    def equal_bins(self) -> list[dict[str, int]]:
        """Returns counts in at most `MOST_BINS` bins of equal width up to the 99th percentile, and one of the rest.

        Each has "from" and "to", both inclusive, and "count".
        """
        if not self.count:
            return []
        top = self.percentile(99)
        width = _nice((top - self.smallest + 1) / MOST_BINS)
        starts = range(self.smallest // width * width, top + 1, width)
        bins = [(start, start + width - 1) for start in starts]
        found = [{"from": low, "to": high, "count": self._between(low, high + 1)} for low, high in bins]
        rest = self.count - sum(one["count"] for one in found)
        return [*found, *([{"from": bins[-1][1] + 1, "to": self.largest, "count": rest}] if rest > 0 else [])]

    def _between(self, low: int, high: int) -> int:
        """How many lengths are from `low` to before `high`. Cells that a boundary cuts count where their start is."""
        return int(self._cells[_first_cell(low) : _first_cell(high)].sum())


def _nice(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not below `width`."""
    power = 1
    while True:
        for step in _STEPS:
            if step * power >= width:
                return step * power
        power *= 10


def _cell(lengths: Any) -> Any:
    """The cells [n] of lengths [n]."""
    shift = np.maximum(np.frexp(lengths.astype(np.float64))[1] - EXACT_BITS, 0)
    return shift * _CELLS_PER_OCTAVE + (lengths >> shift)


def _first_cell(length: int) -> int:
    """The first cell whose start is not below `length`."""
    cell = int(_cell(np.array([length]))[0])
    return cell if _start(cell) >= length else cell + 1


def _start(cell: int) -> int:
    shift = max(cell // _CELLS_PER_OCTAVE - 1, 0)
    return (cell - shift * _CELLS_PER_OCTAVE) << shift


def _end(cell: int) -> int:
    return _start(cell + 1)


def spread(described: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    """The numbers of `Lengths.describe` with their names for people."""
    names = {"smallest": "smallest", **{f"p{n}": f"{n} % are at most" for n in PERCENTILES}, "largest": "largest"}
    return [(label, described[name]) for name, label in names.items() if name in described]
