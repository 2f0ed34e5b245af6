"""The part of the report page about speed: throughput and slots over time, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import time_chart
from .page_parts import Bar, Figure, Table
from .phases import READING, SERVING, WRITING
from .run_status import RATES
from .wording import count, counted, date, duration, percent, rounded

NAMES = {"prompt": "prompt", "completion": "completion", "scored": "scored"}
TRACKS = {
    "serving": ("The thread that runs the model", SERVING),
    "reading ahead": ("The thread that reads and tokenizes ahead", READING),
    "writing": ("The thread that writes", WRITING),
}
"""Track → its title, and the words for its phases."""
MOST_MARKS = 40


def speed(report: Mapping[str, Any]) -> dict[str, Any]:
    """Charts over the time of serving, and sentences about what happened; {} without any progress."""
    time = report["timeline"]
    if not time["seconds"]:
        return {}
    marks = [{**mark, "text": _said(mark)} for mark in report.get("marks", [])][:MOST_MARKS]
    return {
        "figures": [_throughput(report, marks), _slots(report, marks)],
        "marks": [f"After {duration(mark['seconds'])} of serving: {mark['text']}." for mark in marks],
    }


def where_the_time_went(report: Mapping[str, Any]) -> tuple[list[Bar], str]:
    """A divided bar for each thread, and a sentence about all of them."""
    bars = []
    for track in report.get("phases", []):
        title, words = TRACKS[track["name"]]
        values = {
            words.get(phase, phase): (spent, f"{duration(spent)} ({percent(spent / track['seconds'])})")
            for phase, spent in track["phases"].items()
        }
        bars.append(Bar.of(title, values, rest=[*values][-1]))
    loading = report.get("loading_seconds", 0.0)
    before = f"Before that, {duration(loading)} went into loading the model. " if loading >= 1 else ""
    note = f"{before}Reading and writing have threads of their own: they cost time only where the model waits for them."
    return bars, note if bars else ""


def _throughput(report: Mapping[str, Any], marks: Sequence[Mapping[str, Any]]) -> Figure:
    time, kinds = report["timeline"], [*reversed(RATES[report["task"]])]
    series = {NAMES[kind]: time[f"{kind}_tokens"] for kind in kinds}
    rows = [
        [duration(at), *(rounded(values[index]) for values in series.values())]
        for index, at in enumerate(time["seconds"])
    ]
    return Figure(
        "Tokens per second",
        time_chart("tokens per second over the time of serving", time["seconds"], series, unit="tokens/s", marks=marks),
        Table.of(["at", *(f"{name} tokens/s" for name in series)], rows, range(1, 1 + len(series))),
        "" if report["task"] == "score" else "prompt tokens are those computed: a shared prefix counts once",
        [*series],
    )


def _slots(report: Mapping[str, Any], marks: Sequence[Mapping[str, Any]]) -> Figure:
    time = report["timeline"]
    shares = [used / slots if slots else 0.0 for used, slots in zip(time["slots_in_use"], time["slots"], strict=True)]
    used = report["utilisation"]
    rows = [
        [duration(at), rounded(in_use), rounded(slots)]
        for at, in_use, slots in zip(time["seconds"], time["slots_in_use"], time["slots"], strict=True)
    ]
    chart = time_chart(
        "share of slots in use over the time of serving",
        time["seconds"],
        {"in use": shares},
        unit="of the slots",
        top=1.0,
        marks=marks,
        words=percent,
    )
    note = (
        f"mean over all steps {percent(used['slots'])}; steps had {percent(used['step_tokens'])} of the tokens "
        "that fit into one"
    )
    return Figure("Slots in use", chart, Table.of(["at", "slots in use", "slots"], rows, (1, 2)), note)


def _said(mark: Mapping[str, Any]) -> str:
    """What a mark on the timeline is, in words."""
    when = date(mark["time"])
    if mark["kind"] == "halved":
        before, after = count(mark["slots_before"]), counted(mark["slots_after"], "slot")
        return f"memory ran out, {before} slots became {after} ({when})"
    return f"resumed after a pause of {duration(mark['pause_seconds'])} ({when})"
