"""Tables of a run: rates, ratios within rounds, differences of log-probabilities, failures."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from rwkv_batch.measure.table import format_table

from . import probes
from .peer_rounds import Round, Run
from .timing import spread
from .workloads import Point

BASE = "rwkv cpu fp32"
OURS = "rwkv_batch"
"""`engine` of the contenders that are this project."""


def same_round_ratios(run: Run, name: str, point: Point, others: list[str]) -> list[float]:
    """Divides a contender's rate by the best of some others in the same round, for every round that has both.

    An engine that runs one sequence at a time counts with its rate at B=1.
    """
    found = []
    for one in run.rounds:
        best = max((rate for other in others if (rate := _at(one, other, point))), default=None)
        own = one.rates.get(name, {}).get(point)
        if own is not None and best is not None:
            found.append(own / best)
    return found


def _at(one: Round, name: str, point: Point) -> float | None:
    rates = one.rates.get(name, {})
    return rates.get(point, rates.get(Point(point.kind, 1)) if name.startswith("rwkv cpu") else None)


def differences(run: Run) -> dict[str, float]:
    """Returns contender → largest difference of a log-probability to that of the base; empty without the base."""
    base = run.logprobs.get(BASE)
    if base is None:
        return {}
    return {name: max(abs(a - b) for a, b in zip(own, base, strict=True)) for name, own in run.logprobs.items()}


def report(run: Run) -> str:
    """Formats all tables as text."""
    parts = [_versions(run), _probes(run)]
    for kind, what in (("decode", "decode, tokens/s"), ("prefill", "prefill, prompt tokens/s")):
        title = f"{what}: median (min-max) of {len(run.rounds)} rounds"
        parts.append(_table(run, title, kind, lambda name, point: spread(run.rates[name][point])))
        if BASE in run.rates:
            title = f"{kind}: times {BASE} of the same round, one sequence; median"
            parts.append(_table(run, title, kind, lambda name, point: _ratio(run, name, point, [BASE])))
        parts += [_beside(run, kind, engine) for engine in _engines(run)]
    if run.failures:
        parts.append("no figures for:\n" + "\n".join(f"  {name}: {why}" for name, why in run.failures.items()))
    return "\n\n".join(part for part in parts if part)


def as_json(run: Run) -> dict[str, Any]:
    """Returns all results, for the JSON file."""
    ours = [name for name in run.rates if name.startswith(OURS)]
    return {
        "scale": vars(run.scale),
        "contenders": run.about,
        "peaks": [{name: round(value, 1) for name, value in one.peaks.items()} for one in run.rounds],
        "largest_logprob_difference": {name: float(f"{value:.2g}") for name, value in differences(run).items()},
        "tokens_per_second": {
            name: {str(point): [round(value, 2) for value in values] for point, values in points.items()}
            for name, points in run.rates.items()
        },
        "median_ratio_to_base": {
            name: {str(point): _median(same_round_ratios(run, name, point, [BASE])) for point in points}
            for name, points in run.rates.items()
        },
        "median_ratio_to_best_form": {
            engine: {
                name: {
                    str(point): _median(same_round_ratios(run, name, point, _names(run, engine)))
                    for point in run.rates[name]
                }
                for name in ours
            }
            for engine in _engines(run)
        },
        "failures": run.failures,
    }


def _versions(run: Run) -> str:
    found = differences(run)
    rows = [
        [name, about["version"], about["what"], f"{found[name]:.1e}" if name in found else ""]
        for name, about in run.about.items()
    ]
    return format_table(["", "version", "each step", f"largest |Δ logprob| to {BASE}"], rows)


def _probes(run: Run) -> str:
    units = {**probes.MATRIX_UNITS, probes.COPY: "GB/s", probes.READ: "GB/s"}
    words = [f"{name} {spread([one.peaks[name] for one in run.rounds])} {unit}" for name, unit in units.items()]
    return "machine, before each round: " + "; ".join(words)


def _table(run: Run, title: str, kind: str, cell: Callable[[str, Point], str]) -> str:
    points = _points(run, kind)
    rows = [[name, *(cell(name, p) if p in rates else "" for p in points)] for name, rates in run.rates.items()]
    return f"{title}\n\n" + format_table(["", *(f"B={point.batch_size}" for point in points)], rows)


def _beside(run: Run, kind: str, engine: str) -> str:
    """Formats the ratios of our rates to another engine's best form."""
    others = _names(run, engine)
    points = [point for point in _points(run, kind) if any(_has(run, name, point) for name in others)]
    rows = [
        [name, *(_ratio(run, name, point, others) for point in points)] for name in run.rates if name.startswith(OURS)
    ]
    if not rows or not points:
        return ""
    title = f"{kind}: ours ÷ {engine} at its best form in the same round; median"
    return f"{title}\n\n" + format_table(["", *(f"B={point.batch_size}" for point in points)], rows)


def _has(run: Run, name: str, point: Point) -> bool:
    return any(_at(one, name, point) is not None for one in run.rounds)


def _points(run: Run, kind: str) -> list[Point]:
    return sorted({point for rates in run.rates.values() for point in rates if point.kind == kind})


def _engines(run: Run) -> list[str]:
    """Lists the other engines that have figures."""
    return list(dict.fromkeys(c.engine for c in run.contenders if c.engine != OURS and c.name in run.rates))


def _names(run: Run, engine: str) -> list[str]:
    return [contender.name for contender in run.contenders if contender.engine == engine]


def _ratio(run: Run, name: str, point: Point, others: list[str]) -> str:
    found = same_round_ratios(run, name, point, others)
    return f"{median(found):.2f}" if found else ""


def _median(values: list[float]) -> float | None:
    return round(median(values), 3) if values else None
