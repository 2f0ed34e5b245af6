"""An estimate in words and tables, for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..job.report.wording import count, counted, duration, percent, rounded, size
from ..measure.table import format_lines

WIDTH = 12
"""Columns of the names at the beginning of lines."""


def describe(found: dict[str, Any]) -> Iterator[str]:
    """Yields the lines."""
    for name, text in _lines(found):
        yield f"{name:<{WIDTH}}{text}"


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the lines, each as a name, which may be empty, and a text."""
    sample, parts = found["sample"], found["parts"]
    yield "job", f"{found['job']}: {found['task']} with {found['model']}"
    rows_per_part = f" of up to {count(parts['rows_per_part'])}" if parts["count"] > 1 else ""
    yield "rows", f"{count(found['rows'])} in {counted(parts['count'], 'part')}{rows_per_part}"
    if sample["whole"]:
        yield "", "all of them were read and tokenized: the numbers of their tokens are exact"
    else:
        where = f"in {sample['windows']} places all over the input"
        yield "", f"{count(sample['rows'])} of them were read and tokenized, {where}; ranges are 95 % intervals"
    yield "errors", _errors(found)
    yield from _tokens(found)
    yield "memory", found["memory"]["plan"].removeprefix("memory: ")
    yield from _disk(found)
    yield from _time(found)


def _number(estimate: dict[str, Any]) -> str:
    """An estimate with its interval, or a number that is known."""
    if estimate["low"] == estimate["high"]:
        return count(estimate["estimate"])
    return f"about {count(estimate['estimate'])} ({count(estimate['low'])} to {count(estimate['high'])})"


def _errors(found: dict[str, Any]) -> str:
    errors, sample = found["error_rows"], found["sample"]
    codes = ", ".join(f"{code} {count(number)}" for code, number in errors["sampled"].items())
    if not codes:
        return f"none among the {count(sample['rows'])} rows that were read"
    if sample["whole"]:
        return f"{counted(errors['estimate'], 'row')}: {codes}"
    return f"{_number(errors)} rows; of those read: {codes}"


def _tokens(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    computed, requested = found["computed_tokens"], found["requested_tokens"]
    if found["task"] == "score":
        yield "contexts", f"{_number(found['context_tokens'])} tokens"
        yield "scored", f"{_number(found['scored_tokens'])} tokens"
    else:
        yield "samples", _number(found["samples"])
        yield "prompts", f"{_number(found['prompt_tokens'])} tokens"
    saved = 1 - computed["estimate"] / requested["estimate"] if requested["estimate"] else 0.0
    shared = f"shared prefixes save {percent(saved)} of {count(requested['estimate'])}"
    yield "computed", f"{_number(computed)} tokens that are read: {shared}"
    if found["task"] != "score":
        yield from _completions(found)


def _completions(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tokens, earlier = found["completion_tokens"], found["time"]["earlier"]
    if tokens["kind"] == "upper bound":
        yield "completions", f"at most {count(tokens['high'])} tokens: max_tokens of all samples, an upper bound"
        yield "", "an expectation comes from --mean-completion-tokens N, or from a trial: rwkv-batch run --limit"
    elif tokens["kind"] == "given":
        yield "completions", f"expected: {_number(tokens)} tokens, by --mean-completion-tokens"
    else:
        mean = f"{rounded(earlier['mean_completion_tokens'])} a completion"
        basis = f"the mean of {count(earlier['completions'])} completions in {_shortest(earlier['output'])}"
        yield "completions", f"expected: {_number(tokens)} tokens, {mean}, {basis}"


def _disk(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    disk = found["disk"]
    if disk["output_bytes"] is None:
        yield "disk", "not known: no row that was read can be served"
        return
    most = "at most about" if disk["kind"] == "upper bound" else "about"
    free = "" if disk["free_bytes"] is None else f"; {size(disk['free_bytes'])} are free"
    basis = f"by {counted(disk['records'], 'output row')} made of sampled rows"
    yield "disk", f"{most} {size(disk['output_bytes'])} of parts, {basis}{free}"
    yield "", f"about {size(disk['segment_bytes'])} more, while it runs, for rows that are in no part yet"


def _time(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    time, earlier = found["time"], found["time"]["earlier"]
    most = "at most " if found.get("completion_tokens", {}).get("kind") == "upper bound" else ""
    if time["measured"]:
        yield from _measured(time["measured"], most)
    if earlier and earlier["seconds"] is not None:
        yield from _earlier(earlier)
    elif not time["measured"]:
        yield "time", "on this machine: not known; --measure serves rows of the job for half a minute to say it"
    if time["predicted"]:
        yield from _predicted(found, most)


def _measured(made: dict[str, Any], most: str) -> Iterator[tuple[str, str]]:
    low, high = duration(made["low"]), duration(made["high"])
    yield "time", f"{most}{duration(made['seconds'])} on this machine, by a measured run ({low} to {high})"
    rates = [f"{rounded(made['prompt_tokens_per_second'])} prompt tokens/s"]
    if (decode := made["decode_tokens_per_second"]) is not None:
        rates.append(f"{rounded(decode)} sampled tokens/s of {counted(made['slots'], 'sequence')} at a time")
    yield "", ", ".join(rates)
    tokens = f"{count(made['measured_prompt_tokens'])} prompt and {count(made['measured_completion_tokens'])} sampled"
    yield "", f"it rests on {duration(made['measured_seconds'])} of serving {tokens} tokens of this job"
    yield "", "the range: the fastest and the slowest of 3 rounds, with the interval of the prompt tokens"
    yield "", "the end, when slots run empty, is included; reading and writing files is not, nor is"
    yield "", f"loading the model ({duration(made['load_seconds'])} here)"
    if made["engines"] > 1:
        yield "", f"one worker was measured; the time is divided by {made['engines']}, which have a GPU each"
    if made["constraints"]:
        yield "", "rows have constraints: their compilation is not included"


def _earlier(earlier: dict[str, Any]) -> Iterator[tuple[str, str]]:
    what = "a trial" if earlier["trial"] else "an earlier run"
    where = f" on {', '.join(earlier['hosts'])}" if earlier["hosts"] else ""
    rate = f"{count(earlier['rows'])} rows in {duration(earlier['serving_seconds'])}"
    yield "time", f"{duration(earlier['seconds'])} for all rows at the rate of {what}{where}: {rate}"
    yield "", f"{_shortest(earlier['output'])}; its rows may be shorter or longer than the others"


def _shortest(path: str) -> str:
    """The absolute path, or the one relative to the current folder if that is shorter; an address as it is."""
    return path if "://" in path else min(path, os.path.relpath(path), key=len)


def _predicted(found: dict[str, Any], most: str) -> Iterator[tuple[str, str]]:
    rows = []
    for one in found["time"]["predicted"]:
        if one["problem"]:
            rows.append([one["card"], "-", "-", one["problem"]])
        else:
            rate, time = rounded(one["tokens_per_second"]), f"{most}{duration(one['seconds'])}"
            rows.append([one["card"], count(one["slots"]), rate, time])
    yield "predicted", "the time on one GPU of another kind, by the launches that this model makes there; not measured"
    header = ["GPU", "slots", "computed tokens/s" if found["task"] == "score" else "sampled tokens/s", "predicted"]
    yield from (("", line) for line in format_lines(header, rows))
    yield "", "weights in bfloat16, or in the job's weight format; files and the host are assumed to keep up"
    yield "", "steps measured on an H100 are within 13 % of their prediction, whole jobs have not been compared;"
    yield "", "figures of the other GPUs are published ones or the H100's"
