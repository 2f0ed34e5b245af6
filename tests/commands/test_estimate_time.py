"""The steps of a job, compared with known answers and with a loop over all steps."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_batch.commands.estimate_time import StepTimes, Work, steps_of


def test_equal_lengths() -> None:
    """Ten sequences of five tokens in four slots: two full waves, and one of two sequences."""
    assert steps_of(Work(0, 10, [5]), 4) == {4: 10, 2: 5}
    assert steps_of(Work(0, 3, [5]), 4) == {3: 5}
    assert steps_of(Work(0, 8, [1]), 8) == {8: 1}


def test_a_long_job_is_like_its_end_and_full_steps() -> None:
    """4,003 sequences are not simulated one by one; the steps are those of the waves, and of three sequences."""
    assert steps_of(Work(0, 4003, [7]), 8) == {8: 4000 / 8 * 7, 3: 7}


@pytest.mark.parametrize("count", [5, 30, 200])
def test_ragged_lengths(count: int) -> None:
    lengths = np.random.default_rng(2).integers(1, 60, count).tolist()
    found = steps_of(Work(0, count, lengths), 10)
    assert sum(rows * steps for rows, steps in found.items()) == pytest.approx(sum(lengths))
    shuffled = [lengths[i] for i in np.random.default_rng(0).permutation(count)]
    if count <= 30:
        assert found == brute_force(shuffled, 10)
    else:
        assert sum(found.values()) == pytest.approx(sum(brute_force(shuffled, 10).values()), rel=0.1)


def brute_force(waiting: list[int], slots: int) -> dict[int, float]:
    """Step by step: free slots take the next sequences."""
    running: list[int] = []
    found: dict[int, float] = {}
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
        found[len(running)] = found.get(len(running), 0) + 1
        running = [left - 1 for left in running if left > 1]
    return found


def test_the_time_is_that_of_prompts_and_steps() -> None:
    times = StepTimes(0.5, {1: 1.0, 5: 3.0})
    work = Work(100, 10, [5])
    assert times.seconds(work, 4) == 100 * 0.5 + 10 * 2.5 + 5 * 1.5
    assert times.seconds(work.divided_by(2), 5) == 50 * 0.5 + 5 * 3.0
    assert StepTimes(0.5, {}).seconds(Work(100, 0, []), 4) == 50
