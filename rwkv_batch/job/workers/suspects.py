"""Rows that were in flight when the process of their worker ended: one of them may have ended it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

GROUPS = 16
"""A group of suspects that has ended a process again is divided into so many."""


class Suspects:
    """Finds the rows that end their process.

    The rows in flight are served again together, as most processes end for other reasons. If the process ends again,
    the rows that it was serving are served in sixteenths, one after another, and so on, until a single row has ended
    two processes in which it was alone. To find one row among 4,096 takes six ends.
    """

    def __init__(self) -> None:
        self._groups: list[list[int]] = []  # the last one is served next
        self._current: list[int] = []
        self._ended_alone: set[int] = set()  # rows that have ended one process in which they were alone

    def __bool__(self) -> bool:
        """Whether there are suspects, those that are being served among them."""
        return bool(self._groups or self._current)

    def add(self, rows: Collection[int]) -> None:
        """Adds rows that were in flight when the process of their worker ended."""
        if rows:
            self._groups.insert(0, sorted(rows))

    def next_group(self) -> list[int]:
        """The rows to serve now, in order, and nothing else beside them."""
        self._current = self._groups.pop()
        return self._current

    def finish_group(self) -> None:
        """The rows of the latest group are committed."""
        self._current = []

    def retry_group(self) -> None:
        """The process that served the latest group has ended for another reason: the group is served again."""
        if self._current:
            self._groups.append(self._current)
            self._current = []

    def end(self, in_flight: Collection[int]) -> int | None:
        """The process that served the latest group has ended.

        Args:
            in_flight: the rows that it was serving; those of the group that it had not begun are no suspects then.

        Returns:
            The row that ended it, if that is known now; else None, and there are smaller groups.
        """
        group, self._current = self._current, []
        rows = sorted(set(in_flight) & set(group)) or group  # it may have ended before it said what it serves
        if len(group) == 1:
            if group[0] in self._ended_alone:
                return group[0]
            self._ended_alone.update(group)
        self._groups += reversed(_divided(rows))
        return None

    @property
    def rows(self) -> list[int]:
        """All suspects."""
        return [*self._current, *(row for group in self._groups for row in group)]


def _divided(rows: Sequence[int]) -> list[list[int]]:
    """Divides rows into at most GROUPS groups of about the same size."""
    size = max(1, -(-len(rows) // GROUPS))
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
