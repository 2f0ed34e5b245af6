"""The runs of a report's page: workers and shards side by side, and settings that have changed."""

from __future__ import annotations

from typing import Any

from rwkv_batch.job.report.page_runs import MOST_RUNS, engine_speeds, runs
from rwkv_batch.job.report.page_speed import speed

HEAD = ["run", "machine", "serving", "rows", "tokens/s", "slots in use", "waiting", "outcome"]


def run(tokens: int = 1000, **more: Any) -> dict[str, Any]:
    return {
        "shard": "0/1",
        "started": "2030-01-31T12:00:00+00:00",
        "serving_seconds": 10.0,
        "rows": 5,
        "completion_tokens": tokens,
        "scored_tokens": 0,
        "steps": 7,
        "utilisation": {"slots": 0.5},
        "phases": {"model": 6.0, "input": 1.0, "write": 0.5, "wait": 2.0},
        "machine": {"host": "h"},
        "model": {"device": "cpu"},
        "outcome": "finished",
        **more,
    }


def test_workers_stand_below_their_run() -> None:
    workers = {0: run(400), 1: run(600, utilisation={"slots": 0.25}, phases={"input": 4.0})}
    whole = run(phases={"input": 5.0, "write": 0.5}, workers=workers)
    table = runs({"runs": [whole]})["runs"]
    assert [table.head, *table.rows] == [
        HEAD,
        ["2030-01-31 12:00:00 UTC", "h · 2 workers", "10 s", "5", "100", "50 %", "28 %", "finished"],
        ["worker 0", "h · cpu", "10 s", "5", "40.0", "50 %", "15 %", "finished"],
        ["worker 1", "h · cpu", "10 s", "5", "60.0", "25 %", "40 %", "finished"],
    ]
    assert [(one.name, one.tokens, one.slots) for one in engine_speeds({"runs": [whole]})] == [
        ("worker 0", 40.0, 0.5),
        ("worker 1", 60.0, 0.25),
    ]


def test_the_latest_run_of_each_shard_is_compared() -> None:
    report = {
        "runs": [run(100, shard="1/2"), run(500, shard="0/2"), run(300, shard="1/2"), run(0, shard="0/2", rows=0)]
    }
    assert [(one.name, one.tokens) for one in engine_speeds(report)] == [("shard 0/2", 50.0), ("shard 1/2", 30.0)]
    assert runs(report)["runs"].head[1] == "shard"


def test_a_run_that_met_only_error_rows_does_not_hide_the_speed_of_the_one_before() -> None:
    found = engine_speeds({"runs": [run(100), run(0, rows=6)]})
    assert [(one.name, one.tokens) for one in found] == [("shard 0/1", 10.0)]


def test_a_run_of_an_earlier_version_has_neither_slots_nor_phases() -> None:
    old = run()
    del old["utilisation"], old["phases"], old["steps"]
    assert runs({"runs": [old]})["runs"].rows[0][5:7] == ["", ""]


def test_the_table_stays_small() -> None:
    many = [run(workers={index: run() for index in range(64)}) for _ in range(3 * MOST_RUNS)]
    table = runs({"runs": many})["runs"]
    assert len(table.rows) == 120
    assert table.more == f"and {2 * MOST_RUNS} earlier runs and {MOST_RUNS * 64 - 70:,} workers: see report.json"
    assert table.rows[-1][0] == "worker 63" and table.rows[0][1] == "h · 64 workers"


def test_settings_that_have_changed_are_named() -> None:
    first, second = (
        {"task": "generate", "engine": {"a": 1, "b": None}},
        {"task": "generate", "engine": {"a": 2, "c": "x"}},
    )
    table = runs({"runs": [run(config=first), run(), run(config=first), run(config=second)]})["changes"]
    assert [row[1:] for row in table.rows] == [["engine.a", "1", "2"], ["engine.c", "null", "x"]]


def test_the_speed_section_has_engines_marks_and_recordings() -> None:
    time = {"seconds": [1.0], "completion_tokens": [5.0], "prompt_tokens": [1.0], "slots_in_use": [4.0], "slots": [8.0]}
    halved = {
        "kind": "halved",
        "seconds": 0.5,
        "time": "2030-01-31T12:00:00+00:00",
        "slots_before": 8,
        "slots_after": 4,
    }
    report: dict[str, Any] = {
        "task": "generate",
        "timeline": time,
        "runs": [run(shard=shard, steps=100) for shard in ("0/2", "1/2")],
        "marks": [halved, halved],
        "utilisation": {"slots": 0.5, "step_tokens": 0.5, "recorded": 0.9},
        "unrecorded_steps": {"asks for much": 20},
    }
    found = speed(report)
    assert [figure.title for figure in found["figures"]][2:] == ["Tokens per second of each engine"]
    assert found["marks"] == [
        "After 0.5 s of serving: memory ran out, 8 slots became 4 slots (2030-01-31 12:00:00 UTC), 2 times."
    ]
    assert "90 % of 200 steps were replayed" in found["recordings"]
    assert found["recordings"].endswith("Not recorded: 20 steps in which a row asks for much.")
    del report["unrecorded_steps"], report["utilisation"]["recorded"]
    report["runs"] = report["runs"][:1]
    alone = speed(report)
    assert len(alone["figures"]) == 2 and alone["recordings"] == ""
