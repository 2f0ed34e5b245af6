"""The results of one part: a JSON file, written after every point and continued at the next start."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

Point = dict[str, Any]

DONE, UNFINISHED, FAILED = "done", "unfinished", "failed"
RUNNING = "running"
"""Reason of an unfinished part whose process still runs, or ended without writing another reason."""
LEFT_OUT = "left out: "
"""Prefix of the reason of an unfinished part that lacks a package."""
IDENTITY = ("card", "rwkv_batch", "rehearsal")
"""Facts that must be equal for earlier results to be kept."""


class DeviceLost(RuntimeError):
    """This process can no longer use the device."""


class Record:
    """The points of a part, by name.

    Args:
        path: the JSON file.
        about: hardware and versions.
        seconds: time limit of the part. Points that would start later are left out.
        earlier: results of an earlier start. Points of the same card and commit are kept.
        say: prints progress.
        share: (i, n) to measure every n-th point from the i-th on; empty for all.
        is_dry: write nothing.
        goes_on: do not try failed points again, because this process continues one of the same start.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        seconds: float,
        earlier: dict[str, Any] | None,
        say: Callable[[str], None],
        share: Sequence[int] = (),
        is_dry: bool = False,
        goes_on: bool = False,
    ) -> None:
        self.path, self.about, self._say, self._share, self._is_dry = path, about, say, share, is_dry
        self._count = -1
        self._start = monotonic()
        self._deadlines = [self._start + seconds]
        kept = earlier if earlier is not None and is_same(earlier["about"], about) else {}
        self.points: dict[str, Point] = dict(kept.get("points", {}))
        self._seconds_before = float(kept.get("seconds", 0.0))
        self.failed: dict[str, str] = dict(kept.get("failed", {})) if goes_on else {}
        self.tracebacks: dict[str, str] = dict(kept.get("tracebacks", {})) if goes_on else {}
        self._current = ""
        if goes_on and kept.get("current"):
            self.failed[kept["current"]] = kept["why"]
        self.left_out: list[str] = []
        self.notes: dict[str, str] = {}

    @property
    def seconds_left(self) -> float:
        """Seconds until no further point is started."""
        return min(self._deadlines) - monotonic()

    @contextmanager
    def box(self, seconds: float) -> Iterator[None]:
        """Limits the time in which the points inside must start."""
        self._deadlines.append(monotonic() + seconds)
        try:
            yield
        finally:
            self._deadlines.pop()

    def close(self) -> None:
        """Stops measuring. Another pass over all points then collects those that are missing."""
        self._count, self._deadlines, self.left_out = -1, [-inf], []

    def measure(self, name: str, function: Callable[[], Point]) -> Point | None:
        """Returns a point: kept from before, or measured now by `function`; None if it failed or is left out.

        Raises:
            DeviceLost: the device reported an error from which a process cannot recover.
        """
        self._count += 1
        if name in self.points:
            return self.points[name]
        if name in self.failed or (self._share and self._count % self._share[1] != self._share[0]):
            return None
        if self.seconds_left <= 0:
            self.leave_out(name)
            return None
        start, self._current = monotonic(), name
        self.write(UNFINISHED, RUNNING)
        try:
            self.points[name] = function()
        except Exception as error:
            self.failed[name] = reason(error)
            self.tracebacks[name] = traceback.format_exc()[-3000:]
            self._say(f"  {name}: {self.failed[name]}")
            if is_fatal(error):
                raise DeviceLost(f"{name}: {self.failed[name]}") from error
            self._current = ""
            return None
        took = monotonic() - start
        self.points[name] = self.points[name] | {"took_seconds": round(took, 2)}
        if took > 2 or is_red(self.points[name]):
            self._say(f"  {name}: {took:.1f} s {self.points[name].get('why', '')}".rstrip())
        self._current = ""
        self.write(UNFINISHED, RUNNING)
        return self.points[name]

    def keep(self, name: str, point: Point) -> None:
        """Adds a point that another process measured."""
        self.points[name] = point
        self.write(UNFINISHED, RUNNING)

    def leave_out(self, name: str) -> None:
        """Notes that there was no time for a point."""
        self.left_out.append(name)

    def refuse(self, name: str, why: str) -> None:
        """Counts a point as failed without trying it."""
        if name not in self.points:
            self.failed[name] = f"not tried: {why}"

    def note(self, name: str, what: str) -> None:
        """Adds a remark that readers of the figures must know."""
        if name not in self.notes:
            self._say(f"  {name}: {what}")
        self.notes[name] = what

    def write(self, status: str, why: str = "", table: list[str] | None = None) -> None:
        """Replaces the file."""
        if self._is_dry:
            return
        found = {
            "part": self.path.stem,
            "status": status,
            "why": why,
            "current": self._current if status != DONE else "",
            "seconds": round(self._seconds_before + monotonic() - self._start, 1),
            "about": self.about,
            "points": self.points,
            "failed": self.failed,
            "left_out": self.left_out,
            "notes": self.notes,
            "table": table or [],
            "tracebacks": self.tracebacks,
        }
        replace_file(self.path, found)


def replace_file(path: Path, found: dict[str, Any]) -> None:
    """Writes a JSON file atomically: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(unfinished, path)


def is_same(about: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two results are of the same card and commit."""
    return all(about.get(name) == other.get(name) for name in IDENTITY)


def note_end(path: Path, why: str, is_late: bool) -> None:
    """Writes to a part's file how its process ended, if the process did not.

    Args:
        is_late: the part's time was over, so that the current point did not fail.
    """
    found = read(path)
    if found is None:
        found = {"part": path.stem, "why": RUNNING, "current": "", "seconds": 0.0, "about": {}, "points": {}}
        found |= {"failed": {}, "left_out": [], "notes": {}, "table": [], "tracebacks": {}}
    if found["why"] != RUNNING:
        return
    found |= {"status": UNFINISHED if is_late else FAILED, "why": why}
    others = [name for name in found["left_out"] if name != found["current"]]
    if is_late and found["current"]:
        found["left_out"] = [*others, found["current"]]
    elif found["current"]:
        found["left_out"] = others
        found["failed"][found["current"]] = why
    if found["table"]:
        found["table"].append(f"{why}; {len(found['left_out'])} points were not reached")
    replace_file(path, found)


def merge(path: Path, shares: Iterable[Path]) -> None:
    """Merges the results of processes that shared the points of a part into one file.

    Args:
        shares: their files. Those of another card or commit than the first are left out.
    """
    found = [one for one in map(read, shares) if one is not None]
    if not found:
        return
    first = next((one for one in found if one["about"]), found[0])  # the file of a process that died early has no facts
    found = [one for one in found if not one["about"] or is_same(one["about"], first["about"])]
    whole = first | {"part": path.stem, "status": UNFINISHED, "why": RUNNING, "current": ""}
    whole |= {"seconds": max(one["seconds"] for one in found), "left_out": [], "table": []}
    for field in ("points", "failed", "notes", "tracebacks"):
        whole[field] = {name: value for one in found for name, value in one[field].items()}
    replace_file(path, whole)


def read(path: Path) -> dict[str, Any] | None:
    """Reads the results of a part; None without a readable file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "points" in found else None


def reason(error: BaseException) -> str:
    """Formats the class of an error and the first lines of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}" if lines else type(error).__name__


def is_fatal(error: BaseException) -> bool:
    """True for errors after which every later call fails, such as an illegal access; not for a lack of memory."""
    text = str(error)
    return "out of memory" not in text and any(
        sign in text
        for sign in ("CUDA error", "illegal memory access", "unspecified launch failure", "misaligned address")
    )


def is_red(point: Point) -> bool:
    """True for a check that does not hold."""
    return point.get("ok") is False
