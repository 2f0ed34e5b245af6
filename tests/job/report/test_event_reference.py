"""The page of the event log, compared with the events that the code can write and with those that jobs have written."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from job.conftest import Job
from rwkv_batch.job.report.log_files import with_sums
from rwkv_batch.job.report.run_status import RunStatus

ROOT = Path(__file__).parents[3]
WRITERS = ("job/execute.py", "job/shard_run.py", "job/serve.py", "job/output", "job/workers", "job/report")
COMMON = {"time", "run", "shard", "event", "worker"}
LOGS = {"log", "_log", "self"}
"""What a log is called where an event is written. `self` is that of `EventLog`."""
ADDED_LATER = {"commit": {"commits"}}
"""Keys that events get when their file is old."""


def documented() -> tuple[set[str], dict[str, set[str]]]:
    """The keys of all events, and event → its other keys, from the tables of the page."""
    page = (ROOT / "docs" / "reference" / "output.md").read_text(encoding="utf-8")
    section = page.split("## log.jsonl\n", 1)[1].split("\n## ", 1)[0]
    common, events = (table for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE))
    keys = set(re.findall(r"^\| `(\w+)` \|", common, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", events, re.MULTILINE)
    return keys, {name: keys_in(cell) for name, cell in rows}


def keys_in(cell: str) -> set[str]:
    """The names in a cell, without those of values: `state` is a key, what follows its colon are values of it."""
    for key in re.findall(r"`(state)`:", cell):
        values = {"placed", "ready", "left", "ended"}
        return {key, *(name for name in re.findall(r"`(\w+)`", cell) if name not in values | {key})}
    return set(re.findall(r"`(\w+)`", cell))


def event_calls() -> Iterator[tuple[str, set[str]]]:
    """Event → its keys, at each place of the code that writes one."""
    paths = [path for name in WRITERS for path in sorted((ROOT / "rwkv_batch").glob(f"{name}*"))]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                dictionaries = {
                    target.id: {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
                    for assign in ast.walk(function)
                    if isinstance(assign, ast.Assign)
                    for target in assign.targets
                    if isinstance(target, ast.Name)
                    for node in ast.walk(assign.value)
                    if isinstance(node, ast.Dict) and node.keys
                }
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and _is_log(call.func) and call.args:
                        first = call.args[0]
                        if isinstance(first, ast.Constant) and isinstance(first.value, str):
                            yield first.value, _keys(call, dictionaries)


def _is_log(function: ast.expr) -> bool:
    name = getattr(function, "id", getattr(function, "attr", ""))
    return name in LOGS


def _keys(call: ast.Call, dictionaries: dict[str, set[str]]) -> set[str]:
    """The keyword arguments of a call; ** takes a name of a dictionary, or asdict(…) of a status."""
    found = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    for keyword in call.keywords:
        if keyword.arg is None and isinstance(keyword.value, ast.Name):
            found |= dictionaries[keyword.value.id]
        elif keyword.arg is None:
            assert isinstance(keyword.value, ast.Call) and getattr(keyword.value.func, "id", "") == "asdict"
            found |= {one.name for one in fields(RunStatus)}
    return found


def test_the_page_has_every_event_and_key_that_the_code_writes() -> None:
    common, events = documented()
    assert common == COMMON
    written: dict[str, set[str]] = {name: set() for name, _ in event_calls()}
    for name, keys in event_calls():
        written[name] |= keys - COMMON
    for name, keys in ADDED_LATER.items():
        written[name] |= keys
    assert events == written


def test_the_page_has_every_event_and_key_that_jobs_have_written(job: Job) -> None:
    """A job that ends at a bad row, goes on, and makes a damaged part again."""
    common, events = documented()
    job.set(output__flush_seconds=0).input(prompt=["a", None, *"bcdefghijklm"])
    assert job.run("-o", "run.on_row_error=stop") == 3
    assert job.run() == 3
    for path in job.output.glob("part-*"):
        path.write_bytes(b"damaged")
    assert job.run() == 3
    (log,) = job.state.glob("log*.jsonl")
    found = [json.loads(line) for data in (log.read_bytes(), with_sums(log.read_bytes())) for line in data.splitlines()]
    names = {event["event"] for event in found}
    assert names >= {"start", "model", "progress", "commit", "publish", "occupancy", "memory", "damaged", "end"}
    for event in found:
        assert event.keys() <= common | events[event["event"]], event
    assert {"stopped_at"} <= set().union(*(event.keys() for event in found if event["event"] == "end"))
    assert any("commits" in event for event in found)
