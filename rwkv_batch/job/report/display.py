"""How the progress of a run is shown on standard error: as a bar, as lines, as JSON objects, or not at all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal, Protocol, TypeAlias

from ...errors import ConfigurationError, one_of
from .run_status import RunStatus

LINE_SECONDS = 30.0
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""As tqdm has it, without its own estimate of the time that is left."""

ProgressKind: TypeAlias = Literal["auto", "bar", "lines", "json", "none"]
"""auto: a bar on a terminal, else lines."""
KINDS: tuple[ProgressKind, ...] = ("auto", "bar", "lines", "json", "none")


def check_kind(kind: str) -> None:
    """Raises ConfigurationError where this is no kind of progress."""
    if kind not in KINDS:
        raise ConfigurationError(f"progress: got {kind!r}, expected {one_of(KINDS)}")


class Display(Protocol):
    """Shows the status of a run."""

    def show(self, status: RunStatus, text: str, *, is_last: bool) -> None:
        """Shows a status, about each second.

        Args:
            text: the status in words.
            is_last: the run ends.
        """


class Bar:
    """A bar of tqdm. Lines of the log go above it.

    Args:
        rows_total: rows of this process's units.
    """

    def __init__(self, rows_total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=rows_total, unit="row", dynamic_ncols=True, file=sys.stderr, bar_format=BAR)

    def show(self, status: RunStatus, text: str, *, is_last: bool) -> None:
        self._bar.n = status.rows_done
        self._bar.set_postfix_str(text)
        if is_last:
            self._bar.close()


class Lines:
    """A line of text every `LINE_SECONDS`, and one at the end."""

    def __init__(self) -> None:
        self._due = LINE_SECONDS

    def show(self, status: RunStatus, text: str, *, is_last: bool) -> None:
        if status.seconds < self._due and not is_last:
            return
        self._due = status.seconds + LINE_SECONDS
        share = status.rows_done / max(1, status.rows_total)
        rows = f"rows {status.rows_done:,}/{status.rows_total:,} ({share:.1%})"
        print(time.strftime("%H:%M:%S"), rows, "|", text, file=sys.stderr, flush=True)


class JsonLines:
    """A line with a JSON object each time: "time" in seconds since 1970, and the fields of `RunStatus`."""

    def show(self, status: RunStatus, text: str, *, is_last: bool) -> None:
        print(json.dumps({"time": time.time(), **asdict(status)}), file=sys.stderr, flush=True)


class Nothing:
    """Shows nothing."""

    def show(self, status: RunStatus, text: str, *, is_last: bool) -> None:
        """Shows nothing."""


def open_display(kind: ProgressKind, rows_total: int) -> Display:
    """Returns what shows progress; nothing where there is no standard error, or it is closed."""
    with suppress(AttributeError, OSError, ValueError):
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "lines"
        kinds: dict[str, Callable[[], Any]] = {"bar": lambda: Bar(rows_total), "lines": Lines, "json": JsonLines}
        if kind in kinds and sys.stderr is not None:
            display: Display = kinds[kind]()
            return display
    return Nothing()
