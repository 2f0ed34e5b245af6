"""Estimates of the time left, compared with the end of simulated runs, whose lengths and step times are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from rwkv_batch.job.output.length_counts import LengthCounts
from rwkv_batch.job.report.run_status import RunStatus
from rwkv_batch.job.report.time_left import TimeLeft, harmonic, in_words, longest_left

STEP = 0.02
SLOTS = 64


@dataclass
class Simulated:
    """A run that is over.

    Args:
        seconds: at which each status was taken.
        estimates: at these seconds.
        end: the second at which the last row was finished.
    """

    seconds: list[float]
    estimates: list[float | None]
    end: float

    @property
    def errors(self) -> list[tuple[float, float]]:
        """How far the run was, and the error of the estimate, both as shares of the run's duration."""
        pairs = zip(self.seconds, self.estimates, strict=True)
        return [(at / self.end, (left - (self.end - at)) / self.end) for at, left in pairs if left is not None]

    def worst(self, start: float, stop: float = 1.0) -> float:
        return max(abs(error) for at, error in self.errors if start <= at <= stop)

    @property
    def mean(self) -> float:
        return sum(abs(error) for _, error in self.errors) / len(self.errors)

    @property
    def measured_from(self) -> float:
        """The share of the run after which there is an estimate."""
        return self.errors[0][0]

    def at(self, second: float) -> float | None:
        return next((left for at, left in zip(self.seconds, self.estimates, strict=True) if at >= second), 0.0)


def simulate(
    lengths: Sequence[int],
    slots: int = SLOTS,
    step: Callable[[int], float] = lambda running: STEP,
    limit: int | None = None,
    resumed: int = 0,
    samples: int = 1,
) -> Simulated:
    """A run that serves rows of these lengths in their order, with a status each second.

    Args:
        step: number of running sequences → seconds of a step, in which each of them gets a token.
        resumed: rows beside these that an earlier run has made.
        samples: sequences of each row, one after another in `lengths`.
    """
    rows = [lengths[i : i + samples] for i in range(0, len(lengths), samples)]
    waiting = [(index, length) for index, row in enumerate(rows) for length in row][::-1]
    open_samples = [len(row) for row in rows]
    running: list[list[int]] = []  # row, tokens to go
    estimate, counts = TimeLeft(), LengthCounts(limit=limit)
    status = RunStatus(rows_total=len(rows) + resumed, rows_resumed=resumed, rows_done=resumed, slots=slots)
    found = Simulated([0.0], [estimate.update(status, counts)], 0.0)
    now = 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append([*waiting.pop()])
        now += step(len(running))
        status = replace(status, completion_tokens=status.completion_tokens + len(running))
        for one in running:
            one[1] -= 1
        ended, running = [one[0] for one in running if one[1] == 0], [one for one in running if one[1]]
        for row in ended:
            open_samples[row] -= 1
            if open_samples[row] == 0:
                counts.add(rows[row])
                status = replace(status, rows_done=status.rows_done + 1)
        if now >= found.seconds[-1] + 1:
            status = replace(status, seconds=now, slots_in_use=len(running))
            found.seconds.append(now)
            found.estimates.append(estimate.update(status, counts))
    found.end = now
    return found


def ragged(mean: float, count: int, seed: int = 1) -> list[int]:
    """Lengths of an exponential distribution: some are many times the mean."""
    generator = random.Random(seed)
    return [max(1, round(generator.expovariate(1 / mean))) for _ in range(count)]


def lognormal(median: float, count: int) -> list[int]:
    generator = random.Random(2)
    return [max(1, round(generator.lognormvariate(math.log(median), 1))) for _ in range(count)]


def test_rows_of_one_length() -> None:
    run = simulate([200] * 2000)
    assert run.measured_from < 0.04
    assert run.worst(0.0) < 0.03 and run.mean < 0.02
    few = simulate([100] * 300, slots=8, step=lambda running: 0.005 + 0.003 * running)
    assert few.worst(0.0) < 0.03


def test_rows_of_any_length() -> None:
    """The end is as long as the longest of the last rows: several times the mean length."""
    run = simulate(ragged(200, 2000))
    assert run.measured_from < 0.03
    assert run.worst(0.1) < 0.12 and run.worst(0.2) < 0.05 and run.mean < 0.03
    capped = simulate([min(length, 400) for length in ragged(200, 2000)], limit=400)
    assert capped.worst(0.1) < 0.1 and capped.mean < 0.05
    heavy = simulate(lognormal(100, 6000))
    assert heavy.worst(0.1) < 0.2 and heavy.mean < 0.1


def test_the_last_rows_are_in_the_estimate() -> None:
    """Half of a short job's time is its end. At the rate of its rows it would last half as long."""
    run = simulate(lengths := [min(length, 1000) for length in ragged(200, 256)], limit=1000)
    at_full_rate = sum(lengths) / SLOTS * STEP
    assert at_full_rate < 0.6 * run.end
    assert run.mean < 0.15 and run.worst(0.0) < 0.3


def test_a_tenth_of_the_rows_is_twenty_times_as_long_as_the_others() -> None:
    generator = random.Random(1)
    run = simulate([1000 if generator.random() < 0.1 else 50 for _ in range(3000)])
    assert run.worst(0.15) < 0.15


def test_steps_that_become_faster_when_slots_become_empty() -> None:
    run = simulate(ragged(200, 4000), slots=128, step=lambda running: 0.01 + 0.0002 * running)
    assert run.worst(0.15) < 0.2 and all(error > -0.05 for _, error in run.errors)


def test_fewer_rows_than_slots() -> None:
    """Nothing is known of lengths beyond those that have ended but that no completion is longer than its limit."""
    run = simulate([min(length, 500) for length in ragged(400, 60)], limit=500)
    assert run.measured_from < 0.4 and run.worst(0.0) < 0.3
    generator = random.Random(3)
    alike = simulate([generator.randint(190, 210) for _ in range(60)])
    assert alike.worst(0.0) < 0.1


def test_a_row_with_several_samples_is_done_when_its_longest_one_is() -> None:
    run = simulate(ragged(200, 2000), samples=4)
    assert run.worst(0.0) < 0.12 and run.mean < 0.06


def test_rows_of_an_earlier_run_do_not_count_as_speed() -> None:
    run = simulate([200] * 1000, resumed=100_000)
    assert run.worst(0.0) < 0.06
    assert max(left for left in run.estimates if left is not None) < 2 * run.end


def test_shards_the_last_of_which_decides() -> None:
    """Three shards that run side by side, on devices of different speed. A status has the largest estimate."""
    lengths = ragged(200, 3000)
    steps: list[Callable[[int], float]] = [lambda _: STEP, lambda _: 1.5 * STEP, lambda _: 2 * STEP]
    shards = [simulate(lengths[i::3], step=step) for i, step in enumerate(steps)]
    end = max(shard.end for shard in shards)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        second = share * end
        left = [shard.at(second) for shard in shards]
        assert max(one for one in left if one is not None) == pytest.approx(end - second, abs=0.15 * end)


def scored(seconds: float, rows_done: int, rows_total: int = 1000) -> RunStatus:
    return RunStatus(seconds=seconds, rows_total=rows_total, rows_done=rows_done, slots=8, slots_in_use=8)


def test_rows_that_are_scored_have_no_completions() -> None:
    """10 rows a second, and later 20: the recent rate counts. During a pause the estimate does not grow for ever."""
    estimate, counts = TimeLeft(), LengthCounts()
    left = [estimate.update(scored(second, 10 * second), counts) for second in range(40)]
    assert left[:3] == [None, None, None] and left[39] == pytest.approx(61, abs=1)
    left = [estimate.update(scored(40 + second, 400 + 20 * second), counts) for second in range(25)]
    assert left[24] == pytest.approx(6, abs=1)
    left = [estimate.update(scored(65 + second, 900), counts) for second in range(1000)]
    assert left[999] is not None and left[999] < 10 * 100 / 900 * 1064 + 1
    assert estimate.update(scored(2000, 1000), counts) == 0.0


@pytest.mark.parametrize(("done", "seconds"), [(0, 1000.0), (19, 1000.0), (500, 2.0)])
def test_there_is_no_estimate_without_a_basis(done: int, seconds: float) -> None:
    """After no row, few of many rows, or in the first seconds."""
    estimate, counts = TimeLeft(), LengthCounts()
    assert estimate.update(scored(0, 0), counts) is None
    counts.add([100] * done)
    status = replace(scored(seconds, done), completion_tokens=100 * done)
    assert estimate.update(status, counts) is None
    assert in_words(None) == "measuring"


def test_error_rows_are_no_basis() -> None:
    """They are finished at once."""
    estimate, counts = TimeLeft(), LengthCounts()
    for second in range(20):
        status = replace(scored(second, 100), errors=100)
        assert estimate.update(status, counts) is None


def test_an_estimate_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.0, 0.2, 251.5, 187_000.0)] == ["0 s", "1 s", "4 min 12 s", "2 d 3 h"]


def test_slots_that_are_empty_at_every_look_are_no_reason_to_fail() -> None:
    """As of a fast job, whose rows come and go between two looks."""
    estimate, counts = TimeLeft(), LengthCounts()
    for second in range(20):
        counts.add([5] * 10)
        status = RunStatus(seconds=second, rows_total=400, rows_done=10 * second, completion_tokens=50 * second)
        left = estimate.update(status, counts)
    assert left == pytest.approx(21, abs=2)


def test_the_longest_of_some_sequences() -> None:
    """Of one length, residual lives are spread evenly: the longest of n is n / (n + 1) of it. Of an exponential
    distribution they have its mean again, whatever their age: the longest of n is the mean × (1 + 1/2 + … + 1/n)."""
    counts = LengthCounts()
    counts.add([256] * 100)
    for running in (1, 4, 50):
        assert longest_left(counts, running) == pytest.approx(256 * running / (running + 1), rel=0.1)
    assert longest_left(counts, 4, age=128) == pytest.approx(128 * 4 / 5, rel=0.15)
    counts = LengthCounts()
    counts.add(ragged(300, 20_000))
    assert counts.variation == pytest.approx(1, abs=0.05)
    for running in (1, 4, 50):
        exact = 300 * sum(1 / n for n in range(1, running + 1))
        assert longest_left(counts, running) == pytest.approx(exact, rel=0.08)
        assert longest_left(counts, running, age=200) == pytest.approx(exact, rel=0.1)
        assert harmonic(running) == pytest.approx(exact / 300, rel=0.05)


def test_counted_lengths_are_those_of_a_sorted_list() -> None:
    lengths = ragged(100, 1000)
    counts = LengthCounts()
    counts.add(lengths)
    assert (counts.count, counts.total, counts.largest) == (1000, sum(lengths), max(lengths))
    edges, shares = counts.survival()
    assert edges == sorted(edges) and shares == sorted(shares, reverse=True) and edges[-1] == max(lengths)
    for edge, share in zip(edges, shares, strict=True):
        longer = sum(length > edge for length in lengths) / 1000
        assert longer - 0.001 <= share <= sum(length > edge / 1.1 for length in lengths) / 1000
    assert LengthCounts().survival() == ([0.0], [1.0])
