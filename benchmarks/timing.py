"""Interleaved rounds, their statistics, and facts of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from rwkv_batch.measure.doctor import CPU_FLAGS

from .workloads import Point

Rates = dict[str, dict[Point, list[float]]]
"""Contender → point → tokens/s of each round."""


class Contender(Protocol):
    """An engine with one form of weights, which can be measured at some points."""

    name: str
    points: list[Point]

    def measure(self, point: Point) -> float:
        """Returns the tokens per second of a point."""


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    say: Callable[[str], None],
    between: Callable[[], object] = lambda: None,
) -> Rates:
    """Measures every contender once in each round, so that a slow moment of the machine affects all of them.

    The order turns round after each round, so that no contender always follows the same other one. `between` is called
    before each round.
    """
    rates: Rates = {contender.name: {point: [] for point in contender.points} for contender in contenders}
    for number in range(rounds):
        between()
        for contender in contenders[:: -1 if number % 2 else 1]:
            say(f"round {number + 1} of {rounds}: {contender.name}")
            for point in contender.points:
                rates[contender.name][point].append(contender.measure(point))
    return rates


def ratios(rates: Rates, name: str, point: Point, base: str) -> list[float]:
    """Returns the ratios to the base contender of the same round, at B=1; empty without the base."""
    base_rates = rates.get(base, {}).get(Point(point.kind, 1), [])
    return [own / other for own, other in zip(rates[name][point], base_rates, strict=False)]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Formats values as median (minimum-maximum)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def machine() -> dict[str, Any]:
    """Returns hardware and versions, for every result file."""
    fields = _cpu_fields()
    flags = set(fields.get("flags", "").split())
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": fields.get("model name", platform.processor()),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "load_before": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rwkv": _installed("rwkv"),
        "rwkv_batch": _commit(),
    }


def _cpu_fields() -> dict[str, str]:
    """Returns the fields of the first processor in /proc/cpuinfo; empty without such a file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git repository"
