"""Results get numbers, and errors among them a warning."""

from __future__ import annotations

import logging

import pytest

from rwkv_batch.outputs import RequestOutput
from rwkv_batch.results import RequestNumbers, warn_of_errors


def outputs(*indices: int) -> list[tuple[int, RequestOutput]]:
    return [(i, RequestOutput(None, [], None, [])) for i in indices]


def test_each_result_of_all_calls_has_a_number() -> None:
    numbers = RequestNumbers()
    found = [[output.request_id for _, output in numbers.given_to(outputs(*call))] for call in ((2, 0, 1), (), (0, 1))]
    assert found == [["2", "0", "1"], [], ["3", "4"]]


def test_a_call_that_ends_early_leaves_its_numbers_behind() -> None:
    numbers = RequestNumbers()
    call = numbers.given_to(outputs(5, 0))
    assert next(iter(call))[1].request_id == "5"
    assert [output.request_id for _, output in numbers.given_to(outputs(0))] == ["6"]


def test_errors_are_counted_and_the_first_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_errors("prompt", [None, None])
    assert not caplog.records
    warn_of_errors("prompt", [None, "too long", "no text"])
    (record,) = caplog.records
    assert record.getMessage() == "2 of 3 results are errors; the first one is of prompt 1: too long"
    assert record.levelno == logging.WARNING
