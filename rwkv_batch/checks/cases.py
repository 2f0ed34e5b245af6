"""What is checked: each op with each dtype, on each backend that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .outcome import Checks
from .sampling import check_log_normalizer
from .target import Target


@dataclass(frozen=True)
class Case:
    """One op with one set of dtypes.

    Args:
        name: unique among the cases of a target.
        check: compares the target's op with its definition. It raises BackendError where the target refuses.
    """

    name: str
    op: str
    check: Callable[[Target], Checks]


def cases(target: Target) -> Iterator[Case]:
    """Those of a backend on a device; the ops that the backend leaves out on purpose are left out."""
    yield from (case for case in _all_cases(target) if target.has(case.op))


def _all_cases(target: Target) -> Iterator[Case]:
    yield Case("log_normalizer", "log_normalizer", check_log_normalizer)
