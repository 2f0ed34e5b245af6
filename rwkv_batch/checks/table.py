"""Results as a table that can be pasted into a bug report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..measure.table import format_lines
from .result import OK, CheckResult

MOST_WORDS = 160
"""Characters of a reason that are shown, at most."""


def format_table(results: Iterable[CheckResult]) -> str:
    """One line for each case, and the number of cases of each status."""
    found = list(results)
    header = ("case", "backend", "device", "result", "error", "limit", "s", "reason")
    lines = format_lines(header, [_row(one) for one in found], left_columns=len(header))
    counts = Counter(one.status for one in found)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda item: item[0] != OK))
    return "\n".join([*lines, "", f"{len(found)} cases: {summary}" if found else "no cases"])


def _row(one: CheckResult) -> tuple[str, ...]:
    numbers = ["" if number is None else f"{number:.1e}" for number in (one.worst_error, one.limit)]
    return one.name, one.backend, one.device, one.status, *numbers, f"{one.seconds:.1f}", one.why[:MOST_WORDS]
