"""The part of the report page about speed: throughput and slots over time, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import bar_chart, time_chart
from .page_parts import Bar, Figure, Table
from .page_runs import EngineSpeed, engine_speeds
from .phases import READING, SERVING, WRITING, Words
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
MOST_ENGINES = 64
"""Engines that have a bar each."""


def speed(report: Mapping[str, Any]) -> dict[str, Any]:
    """Charts over the time of serving, and sentences about what happened; {} without any progress."""
    time = report["timeline"]
    if not time["seconds"]:
        return {}
    known = report.get("marks", [])
    marks = [{**mark, "text": _said(mark)} for mark in known[:MOST_MARKS]]
    times = Counter(f"After {duration(mark['seconds'])} of serving: {mark['text']}" for mark in marks)
    sentences = [f"{said}{f', {number} times' if number > 1 else ''}." for said, number in times.items()]
    left = len(known) - len(marks)
    engines = engine_speeds(report)
    return {
        "figures": [
            _throughput(report, marks),
            _slots(report, marks),
            *([_engines(engines)] if len(engines) > 1 else []),
        ],
        "marks": [*sentences, *([f"And {count(left)} more: see report.json."] if left > 0 else [])],
        "recordings": _recordings(report),
    }


def where_the_time_went(report: Mapping[str, Any]) -> tuple[list[Bar], str]:
    """A divided bar for each thread, and a sentence about all of them."""
    bars = []
    for track in report.get("phases", []):
        title, words = TRACKS[track["name"]]
        total = sum(track["phases"].values()) or 1.0
        spent = {words.get(phase, Words(phase, "")): seconds for phase, seconds in track["phases"].items()}
        values = {
            word.name: (seconds, f"{duration(seconds)} ({percent(seconds / total)})") for word, seconds in spent.items()
        }
        rows = [
            [word.name, duration(seconds), percent(seconds / total), word.meaning] for word, seconds in spent.items()
        ]
        table = Table(["phase", "time", "share", "what happens"], rows, frozenset({1, 2}))
        bars.append(Bar.of(title, values, [*values][-1], table))
    loading = report.get("loading_seconds", 0.0)
    before = f"Before that, {duration(loading)} went into loading the model. " if loading >= 1 else ""
    several = len(engine_speeds(report)) > 1
    together = "The times of all workers and shards are added up. " if several else ""
    note = (
        f"{before}{together}Reading and writing have threads of their own: they cost time only where the model waits "
        "for them."
    )
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


def _engines(engines: Sequence[EngineSpeed]) -> Figure:
    """The workers and shards side by side."""
    shown = engines[:MOST_ENGINES]
    rows = [[one.name, rounded(one.tokens), percent(one.slots), percent(min(one.waiting, 1.0))] for one in engines]
    chart = bar_chart(
        "tokens per second of each engine",
        [(one.name, [one.tokens]) for one in shown],
        ["tokens/s"],
        unit="tokens/s",
        axis="",
    )
    table = Table.of(["engine", "tokens/s", "slots in use", "waiting"], rows, (1, 2, 3))
    return Figure("Tokens per second of each engine", chart, table, "of the latest run of each shard")


def _recordings(report: Mapping[str, Any]) -> str:
    """How many steps were replayed from recordings, and why others were not; "" where none was recorded."""
    reasons, share = report.get("unrecorded_steps", {}), report["utilisation"].get("recorded", 0.0)
    if not reasons and not share:
        return ""
    steps = sum(run["steps"] for run in report["runs"])
    others = "; ".join(f"{counted(number, 'step')} in which a row {reason}" for reason, number in reasons.items())
    return (
        f"{percent(share)} of {counted(steps, 'step')} were replayed from recordings (CUDA graphs), which costs the "
        f"CPU little time{f'. Not recorded: {others}' if others else ''}."
    )


def _said(mark: Mapping[str, Any]) -> str:
    """What a mark on the timeline is, in words."""
    when = date(mark["time"])
    if mark["kind"] == "halved":
        before, after = count(mark["slots_before"]), counted(mark["slots_after"], "slot")
        return f"memory ran out, {before} slots became {after} ({when})"
    return f"resumed after a pause of {duration(mark['pause_seconds'])} ({when})"
