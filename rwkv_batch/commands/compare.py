"""The command `compare`: the results of two jobs over the same rows, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .finished import Finished, open_finished
from .joined import Joined, Records, join, read_records, texts_at
from .paired import Means, Proportions, compare_means, compare_shares

SHARES = {
    "accuracy": "correct",
    "accuracy_norm": "correct_norm",
    "accuracy_bytes": "correct_bytes",
    "greedy_match": "is_greedy",
}
"""Metric → the column of which it is the share."""
SHOWN_CHARACTERS = 300

Comparison = dict[str, Any]


def compare(out_a: str, out_b: str, *, show: int = 5, is_partial: bool = False) -> Comparison:
    """Compares two jobs of the same task.

    Args:
        out_a, out_b: their output folders, or their state folders.
        show: the most rows that are listed: those that have flipped, or differ.
        is_partial: take jobs of which parts are missing.

    Returns:
        What was found, in plain JSON: "task", "joined_by", "pairs", "only_a", "only_b", "ok" (pairs in which both are),
        "errors_a", "errors_b", and what the task has.

    Raises:
        ConfigurationError: the jobs cannot be compared.
    """
    a, b = (_Side.of(open_finished(out, is_partial=is_partial)) for out in (out_a, out_b))
    if a.finished.task != b.finished.task:
        raise ConfigurationError(
            f"got a job with task {a.finished.task} and one with task {b.finished.task}, expected jobs of one task"
        )
    pairs = join(a.records, b.records)
    ok_a, ok_b = (side.records.values["status"][found] == "ok" for side, found in ((a, pairs.a), (b, pairs.b)))
    both = np.flatnonzero(ok_a & ok_b)
    found: Comparison = {
        "a": a.finished.folders.output,
        "b": b.finished.folders.output,
        "task": a.finished.task,
        "joined_by": pairs.by,
        "pairs": len(pairs.a),
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "ok": len(both),
        "errors_a": int((~ok_a).sum()),
        "errors_b": int((~ok_b).sum()),
    }
    if not len(both):
        return found
    ok = pairs._replace(a=pairs.a[both], b=pairs.b[both])
    return {**found, **(_scores if found["task"] == "score" else _completions)(a, b, ok, show)}


@dataclass(frozen=True)
class _Side:
    """One of the jobs."""

    finished: Finished
    records: Records

    @classmethod
    def of(cls, finished: Finished) -> _Side:
        return cls(finished, read_records(finished))

    def name(self, record: int) -> dict[str, Any]:
        """The row of a record, with its id if rows have one."""
        row = int(self.records.rows[record])
        ids = {} if self.records.ids is None else {"id": self.records.ids[row]}
        return {"row": row, **ids, "sample": int(self.records.samples[record])}


def _completions(a: _Side, b: _Side, pairs: Joined, show: int) -> Comparison:
    """Compares completions."""
    values_a, values_b = a.records.values, b.records.values
    differ = np.flatnonzero(values_a["completion"][pairs.a] != values_b["completion"][pairs.b])
    shown = differ[:show]
    texts = [
        texts_at(side.finished, "completion", found[shown].tolist()) for side, found in ((a, pairs.a), (b, pairs.b))
    ]
    lengths = compare_means(values_a["completion_tokens"][pairs.a], values_b["completion_tokens"][pairs.b])
    reasons = [
        Counter(values["finish_reason"][found].tolist()) for values, found in ((values_a, pairs.a), (values_b, pairs.b))
    ]
    return {
        "equal": len(pairs.a) - len(differ),
        "completion_tokens": lengths._asdict(),
        "finish_reasons_a": dict(reasons[0].most_common()),
        "finish_reasons_b": dict(reasons[1].most_common()),
        "rows": [
            {**a.name(int(record)), "a": text_a, "b": text_b}
            for record, text_a, text_b in zip(pairs.a[shown], *texts, strict=True)
        ],
    }


def _scores(a: _Side, b: _Side, pairs: Joined, show: int) -> Comparison:
    """Compares scores: shares of right rows, log-likelihoods, best choices."""
    values_a, values_b = a.records.values, b.records.values
    found: Comparison = {"metrics": {}}
    flips: Any = np.zeros(0, np.int64)
    for metric, column in SHARES.items():
        if column not in values_a or column not in values_b:
            continue
        one, other = values_a[column][pairs.a], values_b[column][pairs.b]
        known = np.flatnonzero(~(np.isnan(one) | np.isnan(other)))
        if len(known):
            found["metrics"][metric] = compare_shares(one[known] == 1, other[known] == 1)._asdict()
            flips = flips if len(found["metrics"]) > 1 else known[one[known] != other[known]]
    if "logprob" in values_a and "logprob" in values_b:
        one, other = values_a["logprob"][pairs.a], values_b["logprob"][pairs.b]
        found["metrics"]["logprob"] = compare_means(one, other)._asdict()
        found["equal"] = int((one == other).sum())
    if "best_choice" in values_a and "best_choice" in values_b:
        found["equal"] = int((values_a["best_choice"][pairs.a] == values_b["best_choice"][pairs.b]).sum())
    shown = ("best_choice", "correct", "is_greedy", "logprob")
    found["rows"] = [
        {
            **a.name(int(pairs.a[index])),
            "a": _cells(values_a, shown, pairs.a[index]),
            "b": _cells(values_b, shown, pairs.b[index]),
        }
        for index in flips[:show]
    ]
    return found


def _cells(values: dict[str, Any], names: Sequence[str], record: int) -> dict[str, float]:
    return {name: float(values[name][record]) for name in names if name in values}


def describe(found: Comparison) -> Iterator[str]:
    """Yields lines for a terminal."""
    yield f"A       {found['a']}"
    yield f"B       {found['b']}"
    alone = (
        f"; {found['only_a']:,} in A alone, {found['only_b']:,} in B alone"
        if found["only_a"] or found["only_b"]
        else ""
    )
    yield f"pairs   {found['pairs']:,}, joined by {found['joined_by']}{alone}"
    if found["errors_a"] or found["errors_b"]:
        yield f"errors  {found['errors_a']:,} in A, {found['errors_b']:,} in B; {found['ok']:,} pairs without"
    if "equal" in found:
        what = (
            "completions"
            if found["task"] == "generate"
            else "best choices"
            if _has_choices(found)
            else "log-likelihoods"
        )
        yield f"equal   {found['equal']:,} of {found['ok']:,} {what} ({found['equal'] / found['ok']:.1%})"
    for name, metric in found.get("metrics", {}).items():
        yield _shares(name, Proportions(**metric)) if "p_value" in metric else _means(name, Means(**metric))
    if "completion_tokens" in found:
        yield _means("tokens", Means(**found["completion_tokens"]))
        for side in "ab":
            reasons = found[f"finish_reasons_{side}"].items()
            yield f"finish  {side.upper()}: {', '.join(f'{name} {count:,}' for name, count in reasons)}"
    for row in found.get("rows", []):
        name = f"row {row['row']}" + (f" (id {row['id']!r})" if "id" in row else "")
        yield f"{name}, sample {row['sample']}" if row["sample"] else name
        yield f"  A {_shown(row['a'])}"
        yield f"  B {_shown(row['b'])}"


def _has_choices(found: Comparison) -> bool:
    return "logprob" not in found["metrics"]


def _shares(name: str, found: Proportions) -> str:
    return (
        f"{name}  A {found.a:.4f}, B {found.b:.4f}, B - A {found.b - found.a:+.4f} (95 % interval {found.low:+.4f} to "
        f"{found.high:+.4f}, McNemar's p {found.p_value:.3g}); right in A alone {found.only_a:,}, in B alone "
        f"{found.only_b:,}"
    )


def _means(name: str, found: Means) -> str:
    return (
        f"{name}  mean A {found.a:.4f}, B {found.b:.4f}, B - A {found.b - found.a:+.4f} (95 % interval "
        f"{found.low:+.4f} to {found.high:+.4f})"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
