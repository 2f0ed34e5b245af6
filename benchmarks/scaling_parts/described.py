"""What is simulated: the rows of a job, its workers, what they cost beside their steps, and what came out."""

from __future__ import annotations

from dataclasses import dataclass

TAKEN_ROWS = 256
"""Rows of a message that says which rows a worker has taken."""


@dataclass(frozen=True)
class Work:
    """The rows of a job.

    Args:
        rows: number of rows.
        rows_per_unit: rows of each unit; the last unit may have fewer.
        steps: mean number of steps in which a row has a slot.
        spread: lengths are uniform between (1 - spread) and (1 + spread) times the mean.
    """

    rows: int
    rows_per_unit: int
    steps: int = 256
    spread: float = 0.0

    @property
    def units(self) -> int:
        return max(1, -(-self.rows // self.rows_per_unit))

    def unit_rows(self, unit: int) -> int:
        return min(self.rows_per_unit, self.rows - unit * self.rows_per_unit)


@dataclass(frozen=True)
class Fleet:
    """The workers of a job.

    Args:
        workers: number of workers.
        slots: of each worker.
        step_seconds: time of a step of a worker of mean speed, whatever the number of its rows.
        speed_sigma: standard deviation of the logarithm of the workers' speeds, whose mean is 1.
        failures_per_day: failures of each worker in 24 hours, at random moments.
        cold_start: seconds from the start of a worker until it serves.
        isolated: the most workers that serve suspects at the same time.
    """

    workers: int
    slots: int = 1024
    step_seconds: float = 0.02
    speed_sigma: float = 0.0
    failures_per_day: float = 0.0
    cold_start: float = 60.0
    isolated: int = 1


@dataclass(frozen=True)
class Costs:
    """Seconds and requests that a job spends beside the steps of its workers.

    Args:
        request_seconds: latency of a request to the store of the output.
        survey_requests: requests of the coordinator for each unit before it starts workers.
        finish_requests: the same, after the last unit is published.
        requests_at_once: how many of those the coordinator makes at the same time.
        take_requests: requests of a worker for each unit before its first row.
        publish_requests: requests of a worker for each unit that it publishes.
        segment_requests: the same, for each segment of the unit.
        publish_row_seconds: seconds of a worker's writer for each row that it publishes.
        flush_seconds: seconds between two commits of a worker.
        read_ahead: rows that a worker's reader has read before they have slots.
        unit_seconds: processor seconds of the coordinator for each unit.
        message_seconds: the same, for each message about rows, and for each other message of a worker.
        row_seconds: the same, for each row: one message says that it is taken, a later one that it is finished.
        report_row_seconds: the same, for each row, after the last unit is published: the report counts it.
    """

    request_seconds: float = 0.0
    survey_requests: float = 0.0
    finish_requests: float = 0.0
    requests_at_once: float = 1.0
    take_requests: float = 0.0
    publish_requests: float = 0.0
    segment_requests: float = 0.0
    publish_row_seconds: float = 0.0
    flush_seconds: float = 30.0
    read_ahead: int = 0
    unit_seconds: float = 0.0
    message_seconds: float = 0.0
    row_seconds: float = 0.0
    report_row_seconds: float = 0.0


FREE = Costs()
"""A store and a coordinator that take no time."""


@dataclass(frozen=True)
class Outcome:
    """What a simulated job took.

    Args:
        seconds: from the start of the job to its end.
        rows: rows of published units.
        tokens: tokens of published units: one for each step of a row.
        wasted_tokens: tokens that failures have lost.
        failures: number of failures.
        mean_speed: of the workers; 1 on average over all seeds.
        coordinator_seconds: processor seconds of the coordinator.
    """

    seconds: float
    rows: int
    tokens: float
    wasted_tokens: float
    failures: int
    mean_speed: float
    coordinator_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def coordinator_share(self) -> float:
        """The part of the job's time in which the coordinator is busy."""
        return self.coordinator_seconds / self.seconds


def efficiency(outcome: Outcome, workers: int, one: Outcome) -> float:
    """Returns the tokens per second of a job ÷ (workers × their mean speed × those of one worker of speed 1)."""
    return outcome.tokens_per_second / (workers * outcome.mean_speed * one.tokens_per_second)
