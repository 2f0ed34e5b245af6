"""The measured times of steps, of an engine whose times are known."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_batch.commands import estimate_measure
from rwkv_batch.commands.estimate_measure import _Round, _rounds

PROMPT_TOKEN, STEP, ROW = 0.0002, 0.004, 0.0001


class KnownRuns:
    """Each row has a prompt of 50 tokens. Times follow a law; nothing is served."""

    num_rows = 300

    def __init__(self, slowdown: float = 1.0) -> None:
        self.slowdown, self.calls = slowdown, 0

    def serve(self, count: int, tokens: int | None, kept: int = 1024) -> _Round:
        self.calls += 1
        steps = tokens or 0
        prompts = count * min(50, kept)
        seconds = prompts * PROMPT_TOKEN + (steps - 1) * (STEP + count * ROW) * (steps > 1)
        return _Round(seconds * self.slowdown, prompts, count * steps)


@pytest.mark.parametrize("slowdown", [1.0, 300.0])
def test_prompts_and_steps_are_told_apart(slowdown: float) -> None:
    """Also on a machine so slow that a round is a single run."""
    runs: Any = KnownRuns(slowdown)
    rounds = list(_rounds(runs, 64, is_score=False))
    assert len(rounds) == estimate_measure.ROUNDS
    for times in rounds:
        assert times.prompt_token == pytest.approx(PROMPT_TOKEN * slowdown)
        assert sorted(times.decode) == [1, 16, 64]
        for rows, seconds in times.decode.items():
            assert seconds == pytest.approx((STEP + rows * ROW) * slowdown, rel=0.3)
    fast = next(iter(_rounds(KnownRuns(), 64, is_score=False)))  # type: ignore[arg-type]
    assert fast.decode[64] == pytest.approx(STEP + 64 * ROW, rel=0.03)


def test_scored_rows_have_no_steps() -> None:
    runs: Any = KnownRuns()
    rounds = list(_rounds(runs, 64, is_score=True))
    assert [times.decode for times in rounds] == [{}] * estimate_measure.ROUNDS
    assert rounds[0].prompt_token == pytest.approx(PROMPT_TOKEN)


def test_rounds_are_neither_short_nor_long() -> None:
    """Of a machine where a single row takes long, few rows are served."""
    runs: Any = KnownRuns(1000.0)
    list(_rounds(runs, 64, is_score=True))
    assert runs.calls <= 8
