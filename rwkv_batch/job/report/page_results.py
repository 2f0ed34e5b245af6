"""The part of the report page about results: scores, errors, samples, lengths, and why completions ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .advice import input_rows, latest_config, letter_of
from .charts import bar_chart, calibration_chart
from .lengths import spread
from .page_parts import Bar, Figure, Table
from .wording import count, counted, percent, rounded

NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""
SHARES = ("accuracy", "accuracy_norm", "accuracy_bytes", "greedy_match")
"""Metrics that are shares of rows."""
INTERVALS = (
    "Intervals of shares are Wilson's; those of other metrics are 1.96 standard errors, from a bootstrap over rows. "
    "They say how far chance in the choice of the rows may reach."
)
FOLDED_CHARACTERS = 300
"""A longer prompt of a sample is folded."""
REASONS = {
    "stop": "ended by themselves (stop)",
    "length": "cut at max_tokens (length)",
    "repetition": "ended as they repeat themselves (repetition)",
    "error": "errors",
    "abort": "aborted",
}
LENGTH_NAMES = {
    "prompt_tokens": "Prompt tokens of a row",
    "completion_tokens": "Completion tokens of a sample",
    "num_tokens": "Scored tokens of a text",
}


def scores(report: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with intervals, those of groups, calibration and positions; {} for another task."""
    if not report["scores"] and "conventions" not in report:
        return {}
    rows = [
        [
            _named(name),
            value_text(name, metric["value"]),
            interval_text(name, metric),
            value_text(name, metric["stderr"]),
            count(metric["rows"]) if "rows" in metric else "",
        ]
        for name, metric in report["scores"].items()
    ]
    found: dict[str, Any] = {
        "metrics": Table.of(["metric", "value", "95 % interval", "standard error", "rows"], rows, (1, 2, 3, 4)),
        "note": INTERVALS if rows else "No row has been scored yet, or no row has an answer.",
        "conventions": [
            (name.replace("_", " "), _plain(value)) for name, value in report.get("conventions", {}).items()
        ],
        "figures": _of_choices(report.get("choices", {})),
        "groups": None,
    }
    if groups := report.get("score_groups"):
        metrics = [*dict.fromkeys(name for one in groups["groups"].values() for name in one)]
        table = [_group(name, one, metrics) for name, one in groups["groups"].items()]
        head = [groups["column"], "rows", *map(_named, metrics)]
        found |= {"group_by": groups["column"], "groups": Table.of(head, table, range(1, len(head)))}
    return found


def interval(name: str, metric: Mapping[str, float]) -> tuple[float, float]:
    """The 95 % interval of a metric: of a share that of Wilson, of any other metric by the normal approximation."""
    value, half, rows = metric["value"], NORMAL_95 * metric["stderr"], metric.get("rows", 0)
    if name not in SHARES or not rows:
        return max(value - half, 0.0), value + half
    square = NORMAL_95**2 / rows
    middle = (value + square / 2) / (1 + square)
    half = math.sqrt(value * (1 - value) * square + square * square / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def interval_text(name: str, metric: Mapping[str, float]) -> str:
    """The 95 % interval of a metric in words: "33.5 % to 46.9 %"."""
    return " to ".join(value_text(name, end) for end in interval(name, metric))


def errors(report: Mapping[str, Any]) -> dict[str, Any]:
    """Error codes with what to do, and their first rows; {} without errors."""
    found = report.get("error_rows") or {code: {"count": number} for code, number in report["errors"].items()}
    if not found:
        return {}
    rows = sum(input_rows(report).values())
    total = sum(one["count"] for one in found.values())
    codes = [
        {
            "code": code,
            "count": f"{counted(one['count'], 'row')}, {percent(one['count'] / max(rows, 1))} of all",
            "do": one.get("do", "").rstrip("."),
            "rows": _error_table(one.get("first_rows", [])),
        }
        for code, one in found.items()
    ]
    return {
        "sentence": f"{counted(total, 'row')} of {count(rows)} could not be served. All others were. The first rows of "
        "each error code, with row numbers from 0:",
        "codes": codes,
    }


def samples(report: Mapping[str, Any]) -> dict[str, Any]:
    """Rows with their texts, or a sentence that they are not shown."""
    config = latest_config(report)
    if not config.get("report", {}).get("show_text"):
        note = "Texts are not shown. Set report.show_text: true and start the same command again to see some."
        return {"rows": [], "note": note if "report" in config else ""}
    rows = [_sample(sample) for sample in report.get("samples", [])]
    note = "A random choice that depends on the row numbers alone: every report shows the same rows."
    return {"rows": rows, "note": note if rows else ""}


def lengths(report: Mapping[str, Any]) -> dict[str, Any]:
    """Histograms of lengths, a sentence for each kind of text whose lengths are all equal, and percentiles."""
    charts, sentences, columns = [], [], {}
    for name, found in report.get("lengths", {}).items():
        title = LENGTH_NAMES.get(name, name)
        if found["smallest"] == found["largest"]:
            sentences.append(f"{title}: always {count(found['smallest'])}.")
            continue
        charts.append(_histogram(title, found))
        columns[title] = {"mean": rounded(found["mean"]), **{label: count(value) for label, value in spread(found)}}
    labels = [*dict.fromkeys(label for values in columns.values() for label in values)]
    table = [[label, *(values.get(label, "") for values in columns.values())] for label in labels]
    head = ["", *columns]
    return {
        "lengths": charts,
        "length_sentences": sentences,
        "percentiles": Table.of(head, table, range(1, len(head))),
        "reasons": _reasons(report),
    }


def _reasons(report: Mapping[str, Any]) -> Bar | None:
    found = {reason: number for reason, number in report["finish_reasons"].items() if number and reason != "error"}
    total = sum(found.values())
    values = {
        REASONS.get(reason, reason): (number, f"{count(number)} ({percent(number / total)})")
        for reason, number in found.items()
    }
    return Bar.of("", values) if found else None


def _histogram(title: str, found: Mapping[str, Any]) -> Figure:
    bins = found["bins"]
    names = [
        count(one["from"]) if one["from"] == one["to"] else f"{count(one['from'])}–{count(one['to'])}" for one in bins
    ]
    bars = [(name, [one["count"]]) for name, one in zip(names, bins, strict=True)]
    rows = [[name, count(one["count"])] for name, one in zip(names, bins, strict=True)]
    half, most, all_of_them = (count(found[name]) for name in ("p50", "p95", "largest"))
    note = f"half are at most {half}, 95 % at most {most}, the longest has {all_of_them}"
    short = [(name.split("–")[0], values) for name, values in bars]
    chart = bar_chart(title, short if len(bars) > 4 else bars, ["texts"], unit="texts", axis="tokens")
    return Figure(title, chart, Table.of(["tokens", "texts"], rows, (1,)), note)


def _of_choices(found: Mapping[str, Any]) -> list[Figure]:
    figures = []
    if points := found.get("calibration"):
        rows = [[count(p["rows"]), percent(p["confidence"]), percent(p["accuracy"])] for p in points]
        figures.append(
            Figure(
                "How sure and how often right",
                calibration_chart("accuracy over the probability of the best choice", points),
                Table.of(["rows", "mean probability", "right"], rows, (0, 1, 2)),
                f"on the dashed line the model is as often right as it is sure; on average it is "
                f"{percent(found['calibration_error'])} off. Larger dots have more rows",
            )
        )
    if (positions := found.get("positions")) and len(positions) > 1:
        figures.append(_positions(positions))
    return figures


def _positions(positions: Sequence[Mapping[str, float]]) -> Figure:
    other = "answers" if "answers" in positions[0] else "expected_at_random"
    names = ["chosen by the model", "right answers" if other == "answers" else "chosen at random"]
    bars = [(letter_of(index), [one["chosen"], one[other]]) for index, one in enumerate(positions)]
    rows = [[letter, *map(count, values)] for letter, values in bars]
    chart = bar_chart("choices by position", bars, names, unit="rows", axis="position of the choice")
    note = "a position that is chosen much more often than it is right shows a bias"
    return Figure("Which positions the model chose", chart, Table.of(["position", *names], rows, (1, 2)), note, names)


def _group(name: str, metrics: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> list[str]:
    rows = max((int(metric["rows"]) for metric in metrics.values()), default=0)
    cells = [
        f"{value_text(column, metrics[column]['value'])} ({interval_text(column, metrics[column])})"
        if column in metrics
        else ""
        for column in columns
    ]
    return [name[:FOLDED_CHARACTERS], count(rows), *cells]


def value_text(name: str, value: float) -> str:
    """A value of a metric: "61.3 %" of a share, "5.231" of another one."""
    if name in SHARES:
        return f"{value * 100:.1f} %"
    return f"{value:.4g}" if value < 1e6 else f"{value:.3g}"


def _named(metric: str) -> str:
    return metric.replace("_", " ")


def _plain(value: Any) -> str:
    """A setting in words: null, true and false as in YAML."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, value)
        if not isinstance(value, list)
        else ", ".join(value)
    )


def _error_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    head = ["row", *(name for name in ("id", "prompt") if any(name in row for row in rows)), "error"]
    return Table.of(head, [[row.get(name, "") for name in head] for row in rows])


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its texts, for the page."""
    head = [f"row {count(sample['row'])}"]
    head += [f"id {sample['id']}"] if "id" in sample else []
    head += [f"sample {sample['sample']}"] if sample.get("sample") else []
    if "completion_tokens" in sample:
        head.append(counted(sample["completion_tokens"], "token"))
    head += [str(sample["finish_reason"])] if "finish_reason" in sample else []
    if isinstance(best := sample.get("best_choice"), int):
        head.append(f"best choice {letter_of(best)}")
    head += [{True: "right", False: "wrong"}[sample["correct"]]] if isinstance(sample.get("correct"), bool) else []
    if isinstance(logprob := sample.get("logprob"), float):
        head.append(f"log-likelihood {logprob:.2f}")
    prompt = sample.get("prompt", "")
    is_short = len(prompt) <= FOLDED_CHARACTERS
    return {"head": " · ".join(head), "prompt": prompt, "is_short": is_short, "answer": sample.get("completion")}
