"""Conversations of rows whose sampling parameters constrain the text."""

from __future__ import annotations

import pytest

from ..conftest import Job

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("think", ["fake", "none"])
def test_a_constrained_completion_begins_after_a_closed_thought(job: Job, real_engine: None, think: str) -> None:
    job.input(messages=[HELLO]).set(sampling__regex="yes", model__dtype="float32", engine__device="cpu")
    job.set(chat__think=think, output__extra=["prompt"])
    assert job.run() == 0
    (row,) = job.rows()
    assert (row["completion"], row["finish_reason"]) == ("yes", "stop")
    assert row["prompt"] == "User: hi\n\nAssistant:" + (" <think></think>" if think == "fake" else "")


def test_a_row_with_a_constraint_has_no_open_thought(job: Job) -> None:
    job.input(messages=[HELLO, HELLO], regex=["yes", None]).set(chat__think="open")
    assert job.run() == 3
    bad, good = job.rows()
    assert (bad["error_code"], good["error_code"]) == ("bad_sampling", None)
    assert bad["error"].startswith("think: got an open thought beside regex, which holds for the whole completion")
