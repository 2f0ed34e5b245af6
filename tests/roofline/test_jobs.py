"""Predictions of whole jobs."""

from __future__ import annotations

import pytest

SCORE_RATE = 475e12


def test_the_rate_of_a_long_job_is_that_of_a_steady_one(recorded):
    """Beside docs/explanation/prediction.md: prompts of 64, completions of 256 tokens, all slots in use."""
    assert recorded["estimates"]["rate"] == pytest.approx(52_236, rel=0.02)


def test_a_job_of_a_checkpoint(recorded):
    """The time is no shorter than the arithmetic of the demo's 1.3 million weights in products, nor than its steps."""
    demo = recorded["estimates"]["demo"]
    slots, seconds = demo["few"]
    assert slots == 10 and 8 * 1e-5 < seconds < 8 * 1e-2
    slots, seconds = demo["many"]
    tokens = 10**6 * (64 + 256)
    assert slots == 1024 and tokens * 2 * 1.3e6 / 750e12 < seconds < tokens * 1e-5
    assert seconds > 256 * 10**6 / 1024 * 50e-6  # 40 launches or more of a step
    assert demo["scored"][1] < seconds
    assert recorded["estimates"]["small card"] == "the model does not fit"


def test_a_checkpoint_makes_the_launches_of_its_sizes(recorded):
    of_file, of_sizes = recorded["estimates"]["launches"]
    assert of_file == of_sizes


def test_scored_tokens_take_the_time_of_the_head(recorded):
    """2,048 tokens times 65,536 rows of 768 weights; a token more or less in a tile does not matter."""
    steps = recorded["steps"]
    operations = 2 * 2048 * 65536 * 768
    more = steps["small, all scored"]["microseconds"] - steps["small, 3 scored"]["microseconds"]
    assert more == pytest.approx(1e6 * operations / SCORE_RATE, rel=0.25)
    assert steps["small, 3 scored"]["kernels"]["score_kernel"] == 1
    assert "select_kernel" not in steps["small, all scored"]["kernels"]
    assert "score_kernel" not in steps["small, unscored"]["kernels"]
