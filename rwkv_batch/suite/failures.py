"""What has failed: `failures.json` in the folder of a suite's results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from .files import write_whole

FILE = "failures.json"


class Failures:
    """Tasks that have failed, until they have a result.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: str) -> None:
        self._file = os.path.join(folder, FILE)
        self._entries: dict[tuple[str, str], dict[str, str]] = {}
        try:
            recorded = json.loads(Path(self._file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            recorded = []
        for entry in recorded:
            self._entries[entry["model"], entry["task"]] = entry

    def add(self, model: str, task: str, reason: str) -> None:
        """Records that a task has failed."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._entries[model, task] = {"model": model, "task": task, "reason": reason, "time": time}
        self._save()

    def remove(self, model: str, task: str) -> None:
        """A task has a result now."""
        if self._entries.pop((model, task), None) is not None:
            self._save()

    def reason(self, model: str, task: str) -> str | None:
        """Why a task has failed; None where it has not."""
        entry = self._entries.get((model, task))
        return None if entry is None else entry["reason"]

    def lines(self) -> Iterator[str]:
        """A line for each."""
        for (model, task), entry in self._entries.items():
            yield f"failed: {model}: {task}: {entry['reason']}"

    def _save(self) -> None:
        write_whole(self._file, json.dumps(list(self._entries.values()), indent=1))
