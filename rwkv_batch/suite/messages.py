"""The messages between a suite and its process that evaluates. Each question gets one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..job.config import EngineSection, ModelSection
from .tasks import HarnessTask, Task

if TYPE_CHECKING:
    from .models import Checkpoint
    from .result import Metric, Samples


@dataclass(frozen=True)
class Start:
    """The first message, which has no answer.

    Args:
        model, engine: settings for all checkpoints; the path means nothing.
        harness_tasks: all tasks of the lm-evaluation-harness.
    """

    model: ModelSection
    engine: EngineSection
    harness_tasks: tuple[HarnessTask, ...]


@dataclass(frozen=True)
class Check:
    """Asks whether the harness knows its tasks, and the adapter its arguments."""


@dataclass(frozen=True)
class Checked:
    """What is wrong: a line each."""

    problems: tuple[str, ...]


@dataclass(frozen=True)
class Evaluate:
    """Asks for the metrics of a task.

    Args:
        folder: of all results.
    """

    checkpoint: Checkpoint
    task: Task
    folder: str


@dataclass(frozen=True)
class Done:
    """Metrics.

    Args:
        seconds: that the task took.
        settings: facts about the evaluation that its results record, in plain JSON.
    """

    metrics: tuple[Metric, ...]
    samples: Samples | None
    seconds: float
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """There are no metrics.

    Args:
        reason: in words.
        is_of_checkpoint: the checkpoint cannot be used, whatever the task is.
        ends: the process ends, as its device may be in no good state.
    """

    reason: str
    is_of_checkpoint: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Interrupted:
    """A signal has ended the task, and ends the process. Started again, the task goes on."""


@dataclass(frozen=True)
class Ended:
    """The process has ended without an answer.

    Args:
        how: in words.
    """

    how: str


Answer = Checked | Done | Failed | Interrupted | Ended
