"""The lengths of finished completions, counted so that a run can tell how long its last rows will take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...rows import ErrorRow, Finished

BINS_PER_DOUBLING = 8
"""A bin's upper edge is 9 % above its lower one."""


@dataclass
class LengthCounts:
    """How many completions had which length, in tokens.

    Args:
        count: of completions.
        total, squares: sums of their lengths, and of the squares.
        largest: of their lengths.
        bins: number of a bin → completions.
        limit: the largest length that a completion can have; None where there is none.
    """

    count: int = 0
    total: int = 0
    squares: int = 0
    largest: int = 0
    bins: Counter[int] = field(default_factory=Counter)
    limit: int | None = None

    def add(self, lengths: Iterable[int]) -> None:
        """Counts these lengths."""
        for length in lengths:
            self.count += 1
            self.total += length
            self.squares += length * length
            self.largest = max(self.largest, length)
            self.bins[math.ceil(BINS_PER_DOUBLING * math.log2(max(length, 1)))] += 1

    @property
    def variation(self) -> float:
        """The squared coefficient of variation: variance / mean²; 0 without lengths."""
        return max(self.squares * self.count / self.total**2 - 1, 0.0) if self.total else 0.0

    def survival(self) -> tuple[list[float], list[float]]:
        """Returns lengths, ascending from 0, and the share of completions that are longer than each.

        Between two lengths the share falls evenly.
        """
        lengths, shares, left = [0.0], [1.0], self.count
        for number, count in sorted(self.bins.copy().items()):
            low, high = (2.0 ** (edge / BINS_PER_DOUBLING) for edge in (number - 1, number))
            if low > lengths[-1]:
                lengths.append(low)
                shares.append(shares[-1])
            left -= count
            lengths.append(max(min(high, float(self.largest)), low))
            shares.append(max(left, 0) / max(self.count, 1))
        return lengths, shares


def completion_lengths(rows: Sequence[Finished]) -> list[int]:
    """Returns the tokens of each completion of finished rows; none of rows that were scored."""
    served = (row for row in rows if not isinstance(row, ErrorRow) and row.scoring is None)
    return [len(completion.token_ids) for row in served for completion in row.completions]
