"""The tasks of a suite. Each gives one result for each checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .config import HarnessSection
    from .grade_section import GradeSection


@dataclass(frozen=True)
class Task:
    """A task of a suite.

    Args:
        name: of its results.
        settings: everything but the checkpoint that its results depend on, in plain JSON.
    """

    name: str
    settings: Mapping[str, Any]
    kind: ClassVar[str]
    """That of its results."""

    def fingerprint(self, sha256: str) -> str:
        """A hash of everything that a result depends on. A result with another one is made again.

        Args:
            sha256: of the checkpoint.
        """
        return digest(self.name, sha256, self.settings)


@dataclass(frozen=True)
class HarnessTask(Task):
    """A task of the lm-evaluation-harness.

    Args:
        task: the harness's name.
        section: the entry of the suite.
        where: the entry, for errors.
    """

    task: str
    section: HarnessSection
    where: str
    kind: ClassVar[str] = "lm_eval"


@dataclass(frozen=True)
class JobTask(Task):
    """A job.

    Args:
        job: its file.
        overrides: "section.key" → value, for settings that replace the file's: all but those of a checkpoint.
        is_score: it scores; otherwise it generates.
        grade: how completions become metrics; None where `is_score`.
    """

    job: str
    overrides: Mapping[str, Any]
    is_score: bool
    grade: GradeSection | None
    kind: ClassVar[str] = "job"

    def fingerprint(self, sha256: str) -> str:
        """As that of any task. What only grading depends on counts too."""
        grade = None if self.grade is None else self.grade.model_dump(mode="json")
        return digest(self.folder_name(sha256), grade)

    def folder_name(self, sha256: str) -> str:
        """The name of the job's output folder. It changes with everything that the job's rows depend on."""
        return f"{self.name}-{super().fingerprint(sha256)[:12]}"


def digest(*parts: Any) -> str:
    """SHA-256 of plain JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
