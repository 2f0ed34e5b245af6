"""The run of a suite: every task with every checkpoint, but those that have a result already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from time import monotonic, sleep
from typing import NamedTuple, Protocol

from ..errors import ConfigurationError, RwkvBatchError, Stopped
from ..job.report.wording import counted
from ..job.stopping import StopSignals
from .config import Suite
from .messages import Answer, Check, Checked, Done, Ended, Evaluate, Failed, Interrupted
from .models import Arrivals, Checkpoint, Checkpoints, check_found, find_paths, stamp_of
from .result import Metric, TaskResult, read_results, result_path, write_failure, write_result
from .tables import write_tables
from .tasks import HarnessTask, Task

MOST_METRICS = 3
"""So many metrics of a task are shown when it is done."""
TABLES_SHARE = 10
"""While tasks run, the tables are written again after so many times the time that it took last."""


class Evaluator(Protocol):
    """What evaluates, see `Child`."""

    def ask(self, question: Check | Evaluate) -> Answer: ...

    def interrupt(self) -> Answer: ...

    def close(self) -> None: ...


class Pair(NamedTuple):
    """A task with a checkpoint."""

    checkpoint: Checkpoint
    task: Task

    @property
    def fingerprint(self) -> str:
        """Of everything that its result depends on."""
        return self.task.fingerprint(self.checkpoint.sha256)

    def __str__(self) -> str:
        return f"{self.checkpoint.id}: {self.task.name}"


class SuiteRun:
    """Runs a suite.

    Args:
        patterns: what `--models` names.
        evaluator: evaluates a task with a checkpoint.
        stop: handles signals; its `with` block runs.
        say: shows a line of progress.
        interval: seconds between two looks for new checkpoints; None looks once.
    """

    def __init__(
        self,
        suite: Suite,
        patterns: Sequence[str],
        evaluator: Evaluator,
        stop: StopSignals,
        say: Callable[[str], None],
        interval: float | None = None,
    ) -> None:
        self._suite = suite
        self._patterns = patterns
        self._evaluator = evaluator
        self._stop = stop
        self._say = say
        self._interval = interval
        self._arrivals = None if interval is None else Arrivals(interval, say)
        self._checkpoints = Checkpoints(suite.output, say)
        self._made = {(one.model, one.task): one.settings.get("fingerprint") for one in read_results(suite.output)}
        self._failed: dict[tuple[str, str], str] = {}  # id of the checkpoint, fingerprint → reason
        self._pairs: list[Pair] = []
        self._tables_due = 0.0

    def failures(self) -> Iterator[str]:
        """A line for each task that has failed in this run; one for all tasks of a checkpoint that fail alike."""
        for checkpoint, pairs in groupby(self._pairs, key=lambda pair: pair.checkpoint):
            tasks: dict[str, list[str]] = {}
            for pair in pairs:
                if (reason := self._reason(pair)) is not None:
                    tasks.setdefault(reason, []).append(pair.task.name)
            for reason, names in tasks.items():
                yield f"failed: {checkpoint.id}: {', '.join(names)}: {reason}"

    def look(self) -> list[Pair]:
        """Finds the checkpoints, and returns all pairs, those of a checkpoint together.

        Raises:
            ConfigurationError: a pattern names nothing, or a checkpoint cannot be read; not where new ones are awaited.
        """
        paths, missing = find_paths(self._patterns)
        if self._arrivals is None:
            check_found(missing)
        else:
            paths = self._arrivals.complete(paths)
        found: dict[str, Checkpoint] = {}
        problems = []
        for path in paths:
            try:
                checkpoint = self._checkpoints.open(path)
            except (RwkvBatchError, OSError) as error:
                problems.append(f"--models: {path}: {error}")
            else:
                found[checkpoint.id] = checkpoint
        if problems and self._arrivals is None:
            raise ConfigurationError("\n".join(problems))
        self._pairs = [Pair(checkpoint, task) for checkpoint in found.values() for task in self._suite.tasks]
        return self._pairs

    def is_done(self, pair: Pair) -> bool:
        """Whether there is a result of the same checkpoint and the same settings."""
        return self._made.get((pair.checkpoint.id, pair.task.name)) == pair.fingerprint

    def is_changed(self, pair: Pair) -> bool:
        """Whether there is a result of another checkpoint of this name, or of other settings."""
        return (pair.checkpoint.id, pair.task.name) in self._made and not self.is_done(pair)

    def check_harness(self, pairs: Sequence[Pair]) -> None:
        """Checks the names of the harness's tasks, where some are to be evaluated, or may be later.

        Raises:
            ConfigurationError: one line for each that is wrong.
        """
        wanted = (
            [pair.task for pair in pairs if not self.is_done(pair)] if self._arrivals is None else self._suite.tasks
        )
        if not any(isinstance(task, HarnessTask) for task in wanted):
            return
        answer = self._ask(Check())
        if isinstance(answer, Checked) and not answer.problems:
            return
        problems = answer.problems if isinstance(answer, Checked) else [f"the harness cannot be loaded: {answer}"]
        raise ConfigurationError("\n".join(f"{self._suite.file}: {problem}" for problem in dict.fromkeys(problems)))

    def run(self) -> list[str]:
        """Evaluates what has no result yet, and returns the lines of the table.

        Raises:
            ConfigurationError: before anything is evaluated, see `look` and `check_harness`.
            Stopped: a signal came while something was to be evaluated. What is finished is kept.
        """
        with self._stop.interruptible():
            pairs = self.look()
        self.check_harness(pairs)
        self._say(
            f"suite {self._suite.name}: {counted(len(pairs) // len(self._suite.tasks), 'checkpoint')}, "
            f"{counted(len(self._suite.tasks), 'task')}; {sum(map(self.is_done, pairs))} of {len(pairs)} results are "
            "there"
        )
        os.makedirs(self._suite.output, exist_ok=True)
        self._checkpoints.save()
        self._evaluate_all(pairs)
        lines = self._write_tables()
        while self._interval is not None:
            try:
                with self._stop.interruptible():
                    sleep(self._interval)
                    pairs = self.look()
            except Stopped:  # nothing was left to do
                break
            self._checkpoints.save()
            if self._evaluate_all(pairs):
                lines = self._write_tables()
        return lines

    def _evaluate_all(self, pairs: Sequence[Pair]) -> bool:
        """Evaluates the pairs that have no result, and have not failed in this run. Returns whether there were any."""
        self._stop.check()
        missing = [pair for pair in pairs if not self.is_done(pair) and self._reason(pair) is None]
        for number, pair in enumerate(missing, len(pairs) - len(missing) + 1):
            if self._reason(pair) is not None:  # its checkpoint cannot be used
                continue
            label = f"[{number}/{len(pairs)}] {pair}"
            self._say(label)
            answer = self._ask(Evaluate(pair.checkpoint, pair.task, self._suite.output))
            if isinstance(answer, Done) and _is_unchanged(pair.checkpoint):
                self._keep(pair, answer)
                self._say(f"{label}: {_in_words(answer)}")
            else:
                self._fail(pair, answer, pairs)
            if monotonic() >= self._tables_due:
                self._write_tables()
        return bool(missing)

    def _ask(self, question: Check | Evaluate) -> Answer:
        """Asks, and waits for the answer, or for a signal."""
        try:
            with self._stop.interruptible():
                answer = self._evaluator.ask(question)
                if _is_terminated(answer):
                    self._stop.request("the process that evaluates got SIGTERM")
                    self._stop.check()
                return answer
        except Stopped:
            answer = self._evaluator.interrupt()
            if isinstance(question, Evaluate) and isinstance(answer, Done) and _is_unchanged(question.checkpoint):
                self._keep(Pair(question.checkpoint, question.task), answer)
                self._write_tables()
            raise

    def _keep(self, pair: Pair, done: Done) -> None:
        checkpoint, task = pair
        settings = {
            **task.settings,
            "fingerprint": pair.fingerprint,
            "checkpoint": checkpoint.path,
            "sha256": checkpoint.sha256,
            "evaluation": dict(done.settings),
        }
        result = TaskResult(checkpoint.id, task.name, task.kind, done.metrics, done.samples, done.seconds, settings)
        write_result(self._suite.output, result)
        self._made[checkpoint.id, task.name] = pair.fingerprint

    def _fail(self, pair: Pair, answer: Answer, pairs: Sequence[Pair]) -> None:
        """Notes a failure; where the checkpoint is at fault, that of all of its tasks which have no result."""
        reason = _why(answer)
        is_of_checkpoint = isinstance(answer, Failed) and answer.is_of_checkpoint
        others = [one for one in pairs if one.checkpoint == pair.checkpoint and not self.is_done(one)]
        for one in others if is_of_checkpoint else [pair]:
            if self.is_changed(one):
                os.unlink(result_path(self._suite.output, one.checkpoint.id, one.task.name))
                del self._made[one.checkpoint.id, one.task.name]
            write_failure(self._suite.output, one.checkpoint.id, one.task.name, reason)
            self._failed[one.checkpoint.id, one.fingerprint] = reason
        self._say(f"failed: {pair.checkpoint.id if is_of_checkpoint else pair}: {reason}")

    def _write_tables(self) -> list[str]:
        start = monotonic()
        models = list(dict.fromkeys(pair.checkpoint.id for pair in self._pairs))
        lines = write_tables(self._suite.output, models, [task.name for task in self._suite.tasks])
        self._tables_due = monotonic() + TABLES_SHARE * (monotonic() - start)
        return lines

    def _reason(self, pair: Pair) -> str | None:
        """Why a pair has failed in this run; None where it has not."""
        return self._failed.get((pair.checkpoint.id, pair.fingerprint))


def _is_unchanged(checkpoint: Checkpoint) -> bool:
    """Whether the file is as it was when its checksum was computed."""
    try:
        return stamp_of(checkpoint.path) == checkpoint.stamp
    except OSError:
        return False


def _is_terminated(answer: Answer) -> bool:
    """Whether somebody has asked the process to end, as systems do that send SIGTERM to all processes of a program."""
    return isinstance(answer, Interrupted) or (isinstance(answer, Ended) and answer.how.startswith("signal 15 "))


def _why(answer: Answer) -> str:
    """Why there is no result, in words."""
    if isinstance(answer, Failed):
        return answer.reason
    if isinstance(answer, Ended):
        return f"its process ended with {answer.how}"
    return "the checkpoint has changed while it was evaluated"


def _in_words(done: Done) -> str:
    shown = ", ".join(map(_shown, done.metrics[:MOST_METRICS]))
    return f"done in {done.seconds:.1f} s" + (f": {shown}" if shown else "")


def _shown(metric: Metric) -> str:
    return f"{metric.name} {metric.value:.4g}"
