"""The report of a job in a few lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from .advice import input_rows
from .run_status import RATES
from .score_conventions import shown_metric
from .wording import count, counted, duration, percent, rounded, shortened

SHOWN_GROUPS = 100
"""Groups of rows that a terminal shows."""
WARNING_WIDTH = 100
"""Characters of a line of a warning."""
WORTH_SAYING = 1.1
"""Shared prefixes are mentioned where so many times fewer prompt tokens were computed."""


def summarise(report: Mapping[str, Any]) -> list[str]:
    """Returns the report in a few lines."""
    parts, rows, tokens = report["parts"], input_rows(report), report["tokens"]
    samples = report["rows"].get("ok", 0)
    used = report["utilisation"]
    none = "0" if report["complete"] else "none in parts yet"
    lines = [
        f"{report['output']}: {parts['published']} of {parts['planned']} parts, {counted(sum(rows.values()), 'row')}",
        f"rows    {', '.join(f'{status} {count(number)}' for status, number in rows.items()) or none}"
        + (f" ({counted(samples, 'sample')})" if samples > rows.get("ok", 0) else ""),
    ]
    if not report["complete"] and report["runs"]:
        made, outcome = sum(run["rows"] for run in report["runs"]), report["runs"][-1]["outcome"]
        lines.append(f"runs    {count(made)} of {count(report['rows_planned'])} rows made; the last run: {outcome}")
    if found := ", ".join(f"{name} {count(number)}" for name, number in tokens.items() if number):
        lines.append(f"tokens  {found}")
    lines += [
        f"speed   {' and '.join(speeds(report))} in {duration(report['serving_seconds'])} of serving",
        f"steps   slots in use {percent(used['slots'])}, tokens {percent(used['step_tokens'])} of what a step may have"
        + (f", {percent(used['recorded'])} recorded" if "recorded" in used else ""),
    ]
    if sharing := describe_sharing(report):
        lines.append(f"shared  {sharing}")
    lines += [
        f"score   {name} {shown_metric(metric)} ({counted(int(metric['rows']), 'row')})"
        for name, metric in report["scores"].items()
    ]
    lines += _groups(report)
    for name, error in report["damaged"].items():
        lines.append(f"damaged {name} cannot be read; start the job again to make it again ({error})")
    return [*lines, *_errors(report), *_warnings(report)]


def speeds(report: Mapping[str, Any]) -> list[str]:
    """Returns the tokens per second of serving, for each kind of token."""
    seconds = report["serving_seconds"]
    totals = {kind: sum(run[f"{kind}_tokens"] for run in report["runs"]) for kind in RATES[report["task"]]}
    return [f"{rounded(total / seconds if seconds else 0.0)} {kind} tokens/s" for kind, total in totals.items()]


def describe_sharing(report: Mapping[str, Any]) -> str:
    """Returns in words what shared prefixes have saved; "" where that is next to nothing."""
    requested, computed = (report["prefixes"][name] for name in ("tokens_requested", "tokens_computed"))
    if not computed or requested / computed < WORTH_SAYING:
        return ""
    return (
        f"{count(requested)} prompt tokens, {count(computed)} of them computed ({requested / computed:.1f} times fewer)"
    )


def _warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the report's warnings, each with what to do."""
    for warning in report.get("warnings", ()):
        first, *others = textwrap.wrap(f"{warning['found']} {warning['do']}", WARNING_WIDTH, break_on_hyphens=False)
        yield f"warning {first}"
        yield from (f"        {line}" for line in others)


def _groups(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each group of rows of a score job, up to `SHOWN_GROUPS`."""
    groups = report.get("score_groups", {}).get("groups", {})
    for name, metrics in [*groups.items()][:SHOWN_GROUPS]:
        shown = ", ".join(f"{metric} {shown_metric(found)}" for metric, found in metrics.items())
        rows = max((found["rows"] for found in metrics.values()), default=0)
        yield f"group   {name} ({rows:,} rows): {shown}"
    if len(groups) > SHOWN_GROUPS:
        yield f"        and {len(groups) - SHOWN_GROUPS:,} more groups, see report.json"


def _errors(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields a table of the error codes, each with its first rows."""
    if not report["error_rows"]:
        return
    yield "errors  " + ", ".join(f"{code} {count(number)}" for code, number in report["errors"].items())
    for code, found in report["error_rows"].items():
        for row in found["first_rows"]:
            named = f" (id {row['id']})" if "id" in row else ""
            yield f"        {code} row {row['row']}{named}: {shortened(' '.join(row['error'].split()), 160)}"
