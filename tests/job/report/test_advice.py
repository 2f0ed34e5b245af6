"""Warnings of a report: each comes for its own finding, and a sound job has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rwkv_batch.job.report.advice import warnings_of

Change = Callable[[dict[str, Any]], object]


def sound() -> dict[str, Any]:
    """A finished job of an hour, which leaves nothing to be desired."""
    reason = "triton: nvcc is missing"
    backends = [
        {"op": "wkv7", "backend": "cpu", "not_used": [reason]},
        {"op": "score", "backend": "reference", "not_used": [reason]},
        {"op": "linear", "backend": "reference", "not_used": ["cpu: no such kernel"]},
    ]
    config = {"sampling": {"max_tokens": 48}}
    return {
        "task": "generate",
        "complete": True,
        "damaged": {},
        "parts": {"published": 3, "planned": 3},
        "rows": {"ok": 2997, "error": 1},
        "input_rows": {"ok": 999, "error": 1},
        "errors": {"null_prompt": 1},
        "finish_reasons": {"stop": 900, "length": 99, "repetition": 1},
        "unrecorded_steps": {"asks for much": 90},
        "runs": [{"outcome": "finished", "steps": 1000, "model": {"backends": backends}, "config": config}],
        "marks": [{"kind": "resumed"}],
        "serving_seconds": 3600.0,
        "phases": [{"name": "serving", "seconds": 3600.0, "phases": {"model": 3400.0, "input": 100.0, "write": 100.0}}],
        "utilisation": {"slots": 0.9, "step_tokens": 0.2},
        "timeline": {"slots": [128.0]},
    }


BIAS = {"position": 2, "rows": 200, "chosen": 0.4, "expected": 0.25, "compared_with": "answers", "p_value": 1e-9}
HALVED = {"kind": "halved", "slots_before": 128, "slots_after": 64}
FOUND: dict[str, Change] = {
    "1 part cannot be read: part-1": lambda r: r.update(damaged={"part-1": "torn"}, complete=False),
    "1 of 3 parts are there": lambda r: r.update(complete=False, parts={"published": 1, "planned": 3}),
    "9.1 % of the rows are errors, most of them null_prompt": lambda r: r.update(input_rows={"ok": 10, "error": 1}),
    "50 % of the rows are errors": lambda r: (r.pop("input_rows"), r.update(rows={"ok": 1, "error": 1})),
    "20 % of the steps were not replayed from recordings, and took more time of the CPU: steps in which a row asks for "
    "much (15 %), or does more (5.0 %)": lambda r: r.update(unrecorded_steps={"asks for much": 150, "does more": 50}),
    "The model chose position C in 40 % of 200 rows, and 25 % of the answers are there": lambda r: r.update(
        choices={"position_bias": BIAS}
    ),
    "position C in 40 % of 200 rows, and at random it would be 25 %": lambda r: r.update(
        choices={"position_bias": {**BIAS, "compared_with": "random"}}
    ),
    "50 % of the completions were cut at max_tokens, which was 48": lambda r: r.update(
        finish_reasons={"stop": 5, "length": 5}
    ),
    "10 % of the completions were ended because they repeated": lambda r: r.update(
        finish_reasons={"stop": 9, "repetition": 1}
    ),
    "Device memory ran out 1 time; the last time, the slots went from 128 to 64": lambda r: r.update(marks=[HALVED]),
    "served wkv7: triton: nvcc is missing": lambda r: r["runs"][0]["model"]["backends"][0].update(backend="reference"),
    "11 % of the time the engine waited for rows": lambda r: r["phases"][0]["phases"].update(input=400.0),
    "11 % of the time the engine waited for results": lambda r: r["phases"][0]["phases"].update(write=400.0),
    "Only 30 % of the 128 slots were in use": lambda r: r.update(utilisation={"slots": 0.3, "step_tokens": 0.2}),
}


@pytest.mark.parametrize("found", FOUND)
def test_each_finding_has_its_warning(found: str) -> None:
    report = sound()
    FOUND[found](report)
    (warning,) = warnings_of(report)
    assert found in warning["found"] and warning["do"].endswith(".")


def test_a_sound_job_has_none() -> None:
    assert warnings_of(sound()) == []


def test_a_failed_run_is_named_until_a_later_one_has_finished() -> None:
    report = sound()
    report["runs"].append({"outcome": "RuntimeError: the engine exploded", "steps": 0})
    assert warnings_of(report) == []
    report["complete"] = False
    assert any("RuntimeError: the engine exploded" in warning["found"] for warning in warnings_of(report))


def test_a_run_that_was_killed_or_still_runs() -> None:
    """Nobody knows why a process was killed; one that runs, or may go on, has not failed."""
    report = sound() | {"complete": False}
    for outcome, expected in (("killed", 2), ("running", 1), ("suspended, or its machine is gone", 1)):
        report["runs"][-1]["outcome"] = outcome
        assert len(found := warnings_of(report)) == expected, found
    report["runs"][-1]["outcome"] = "killed"
    assert "its process was killed" in warnings_of(report)[1]["found"]


def test_steps_that_score_are_never_recorded() -> None:
    report = sound() | {"unrecorded_steps": {"scores tokens": 1000}}
    assert len(warnings_of(report)) == 1
    report["runs"][0]["model"]["backends"] = []
    assert warnings_of(report | {"task": "score"}) == []


def test_a_short_job_hears_nothing_of_speed() -> None:
    report = sound() | {"serving_seconds": 5.0, "utilisation": {"slots": 0.1, "step_tokens": 0.9}}
    report["phases"][0]["phases"]["input"] = 3000.0
    assert warnings_of(report) == []


def test_warnings_fit_the_terminal_as_well_as_the_page() -> None:
    """No section is named, which only the page has, and no job file, as a setting may come from the command line."""
    report = sound()
    report.update(input_rows={"ok": 10, "error": 1}, finish_reasons={"length": 10})
    said = [f"{one['found']} {one['do']}" for one in warnings_of(report)]
    assert any("cut at max_tokens, which was 48." in text for text in said) and len(said) == 2
    assert not any("section" in text or "job file" in text for text in said)
