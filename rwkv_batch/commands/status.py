"""The command `status`: how far a job is, who serves it, how fast, and what to do next."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..job.messages import printable
from ..job.report.run_status import RATES
from ..job.report.status import JobWatch, Status
from ..job.report.time_left import in_words
from ..job.report.wording import count, counted, percent, rounded, size

EXIT_RUNNING = 6
EXIT_CODES = {"finished": 0, "errors": 3, "running": EXIT_RUNNING, "stopped": 75}
"""State of a job → exit code. Those that are no run's own differ from all exit codes of `rwkv-batch run`."""
WATCH_SECONDS = 2.0
REDRAW = "\x1b[H\x1b[J"
"""Moves the cursor of a terminal to its first line, and clears what is below."""


def status(out: str, *, watch: bool, as_json: bool) -> int:
    """Prints the status of a job. Nothing is written, and no running job is disturbed.

    Args:
        out: the job's output folder, or its state folder.
        watch: print it every `WATCH_SECONDS` while the job runs: in place on a terminal, else as a line.
        as_json: print a JSON object; with `watch` one on each line.

    Returns:
        The exit code, one of `EXIT_CODES`.

    Raises:
        ConfigurationError, ResumeError: there is no such job, or job.json is damaged.
        OSError: a folder cannot be read. While a job is watched, it is tried again.
    """
    job = JobWatch(out)
    found = job.look()
    is_redrawn = watch and not as_json and sys.stdout is not None and sys.stdout.isatty()
    while watch and found["state"] == "running":
        if is_redrawn:
            print(REDRAW + _text(found, as_json=False), flush=True)
        else:
            print(_json(found) if as_json else printable(line(found)), flush=True)
        time.sleep(WATCH_SECONDS)
        try:
            found = job.look()
        except OSError as error:
            print(printable(f"{error}; it is tried again"), file=sys.stderr)
    if watch and as_json:
        print(_json(found))
    else:
        print(REDRAW * is_redrawn + _text(found, as_json))
    return EXIT_CODES[found["state"]]


def _text(found: Status, as_json: bool) -> str:
    if as_json:
        return _json(found, indent=1)
    return printable("\n".join(describe(found)))


def _json(found: Status, indent: int | None = None) -> str:
    return printable(json.dumps({**found, "next": next_step(found)}, indent=indent, ensure_ascii=False))


def line(found: Status) -> str:
    """Returns the status in a line, after the time of day."""
    clock = time.strftime("%H:%M:%S", time.localtime(found["time"]))
    left = "" if found["state"] != "running" else f" | eta {in_words(found['seconds_left'])}"
    parts = found["parts"]
    return (
        f"{clock} {_rows(found)} | {' | '.join(_rates(found)) or 'no rate yet'}{left} | "
        f"parts {parts['published']:,}/{parts['planned']:,} | errors {count(_num_errors(found))}"
    )


def describe(found: Status) -> Iterator[str]:
    """Yields the lines for a terminal."""
    words = {"errors": "finished, with error rows"}
    yield f"{found['output']}: {words.get(found['state'], found['state'])}"
    yield f"rows     {_rows(found)}, {count(found['rows']['committed'])} committed"
    unreadable = found["parts"]["unreadable"]
    damaged = f"; cannot be read: {', '.join(unreadable)}" if unreadable else ""
    yield f"parts    {found['parts']['published']:,} of {found['parts']['planned']:,} published{damaged}"
    codes = [f"{code} {count(number)}" for code, number in found["errors"]["published"].items()]
    if running := found["errors"]["running"]:
        codes.append(f"{count(running)} of the present run, some of them in published parts")
    yield f"errors   {'; '.join(codes) or 'none'}"
    if found["state"] == "running":
        yield f"speed    {', '.join(_rates(found)) or 'not known yet'}"
        left = found["seconds_left"]
        yield f"left     {'about ' * (left is not None)}{in_words(left)}"
    for shard in found["shards"]:
        yield from _shard(shard)
    sizes = (("output", found["disk"]["output"]), ("state folder", found["disk"]["state_folder"]))
    yield "disk     " + ", ".join(
        f"{name} {size(used['bytes'])} in {counted(used['files'], 'file')}" if used else f"{name} not known"
        for name, used in sizes
    )
    yield f"next     {next_step(found)}"


def _shard(shard: dict[str, Any]) -> Iterator[str]:
    """Yields the lines about a shard and its workers."""
    claim, run = shard["claim"], shard["run"]
    name = "process " if shard["shard"] == "0/1" else f"{shard['shard']:<8}"
    if claim is not None:
        doing = {"alive": shard["doing"], "stale": f"stale: no sign of life since {claim['renewed']}"}
        what = doing.get(claim["state"], "ended, and left its claim")
        yield f"{name} {claim['pid']} on {claim['host']}, since {claim['since']}: {what}{_progress(shard)}"
    if run is not None and run["outcome"] != "running":
        where = "" if run["host"] is None else f" on {run['host']}"
        yield f"{name} the last run{where} ended at {run['last_event']}: {run['outcome'].splitlines()[0]}"
    for worker in shard["workers"] if shard["doing"] else ():
        where = f"process {worker.get('pid', '?')} on {worker.get('host', '?')}"
        how = f" ({worker['how']})" if worker.get("how") else ""
        again = f", started {worker['processes']} times" if worker["processes"] > 1 else ""
        yield f"worker   {worker['worker']}: {worker['state']} since {worker['since']}, {where}{how}{again}"


def _progress(shard: dict[str, Any]) -> str:
    progress = shard["progress"]
    if not progress or not shard["doing"]:
        return ""
    return (
        f", {count(progress['rows_done'])} of {count(progress['rows_total'])} rows, "
        f"slots {count(progress['slots_in_use'])}/{count(progress['slots'])}"
    )


def _rows(found: Status) -> str:
    rows = found["rows"]
    share = rows["done"] / rows["total"] if rows["total"] else 1.0
    return f"rows {count(rows['done'])} of {count(rows['total'])} ({percent(share)})"


def _rates(found: Status) -> list[str]:
    """The rates of the job's kinds of tokens, and of rows, in words."""
    rates = found["rates"]
    if not rates:
        return []
    kinds = [f"{rounded(rates[f'{kind}_tokens'])} {kind} tokens/s" for kind in RATES[found["task"]]]
    return [*kinds, f"{rounded(rates['rows'])} rows/s"]


def _num_errors(found: Status) -> int:
    published = sum(found["errors"]["published"].values())
    return max(published, int(found["errors"]["running"]))


def next_step(found: Status) -> str:
    """Says what to do next, in a sentence."""
    missing = found["missing_shards"]
    several = len(found["shards"]) > 1 or any(shard["shard"] != "0/1" for shard in found["shards"])
    match found["state"]:
        case "running" if several and missing:
            return f"nobody serves the shards {', '.join(missing)}: start each with --shard"
        case "running":
            return "nothing; rwkv-batch status --watch follows the job to its end"
        case "stopped" if several and missing:
            return f"start the same command again for the shards {', '.join(missing)}: finished rows are kept"
        case "stopped":
            return "start the same command again: finished rows are kept"
        case "errors":
            return "rwkv-batch report shows the error rows; rwkv-batch run --retry-errors serves them again"
    return "rwkv-batch report shows the results"
