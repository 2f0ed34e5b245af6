"""The forms of a row: what they hold."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_batch.engine.request import Request
from rwkv_batch.errors import RowError
from rwkv_batch.rows import ROW_BYTES, ErrorRow, GenerateRow, RowInFlight, ScoreRow, held_bytes, input_bytes
from rwkv_batch.sampling_params import SamplingParams

PARAMS = SamplingParams()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a" * 10_000, 10_000),
        ("é" * 10_000, 10_000),
        ("中" * 10_000, 20_000),
        (np.zeros(10_000, np.int32), 40_000),
        ([70_000] * 10_000, 360_000),
        ({"messages": [{"role": "user", "content": "a" * 10_000}]}, 10_000),
        ({"prompt_token_ids": [1] * 1000}, 36_000),
        (5, 0),
    ],
)
def test_the_bytes_of_a_prompt(prompt, expected):
    assert expected <= input_bytes(GenerateRow(0, 0, prompt, PARAMS)) < expected + ROW_BYTES + 200


def test_samples_share_their_prompt_and_continuations_do_not():
    prompt = np.zeros(10_000, np.int32)
    row = RowInFlight(GenerateRow(0, 0, "a" * 1000, PARAMS), [Request(0, prompt, PARAMS, sample=i) for i in range(3)])
    assert 41_000 <= held_bytes(row) < 41_000 + 5 * ROW_BYTES
    parts = [Request(0, prompt.copy(), PARAMS, sample=i) for i in range(3)]
    scored = RowInFlight(ScoreRow(0, 0, "a" * 1000, ["b" * 500] * 3), parts)
    assert 122_500 <= held_bytes(scored) < 122_500 + 5 * ROW_BYTES
    assert 1000 <= held_bytes(ErrorRow(0, 0, RowError("bad_type", ""), prompt="a" * 1000)) < 1000 + 2 * ROW_BYTES


def test_an_error_row_keeps_no_variables_of_the_calls_that_failed():
    def fail():
        try:
            raise ValueError("large")
        except ValueError as cause:
            raise RowError("bad_type", "small") from cause

    with pytest.raises(RowError) as failed:
        fail()
    error = ErrorRow(0, 0, failed.value).error
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
