"""The part `sanitizer`: ops under compute-sanitizer, for accesses out of bounds (memcheck) and races (racecheck).

Each point is the smallest input of a case of `rwkv_batch.checks`, in a process of its own. The first run has a planted
error. If the tool is missing, refuses the device or misses the planted error, all points are skipped: neither green nor
red. A point whose report names no kernel of this project is skipped too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

from rwkv_batch.checks.result import OK
from rwkv_batch.measure.table import format_lines

from .context import Context
from .record import Point
from .smoke import KERNELS, kernel_cases

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck")
FOUND = 9
"""Exit code of the tool after it has found an error."""
CASE_SECONDS = 50.0
PLANTED = "planted error"
SHOWN = 8
"""The largest number of reasons below the table."""
_KERNEL_NAMES = re.compile(r"^def (\w+_kernel)\(|__global__ void \w+\([^)]*\) (\w+)\(", re.MULTILINE)
_PLACES = "/usr/local/cuda/bin", "/opt/cuda/bin"
_SIGN = "========= "
"""Prefix of the tool's lines."""


def run(context: Context) -> list[str]:
    tool = Tool(shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(_PLACES)))
    for kind in TOOLS:
        for name, backend in chosen(context):
            context.record.measure(f"{kind} {name} {backend}", partial(_case, tool, kind, name, backend))
    return _table(context.record.points)


@dataclass(frozen=True)
class Tool:
    """compute-sanitizer on this machine.

    Args:
        path: of the program; None if it is not installed.
    """

    path: str | None

    @cached_property
    def refusal(self) -> str:
        """Reason to skip all points; empty if the tool finds the planted error. Computed on first use."""
        return why_not_believed(*self.run("memcheck", [PLANTED])) if self.path else "compute-sanitizer is not installed"

    def run(self, kind: str, arguments: Sequence[str]) -> tuple[int | None, str]:
        """Runs a case under the tool; returns the exit code, None after the time limit, and all output."""
        assert self.path is not None
        options = ["--tool", kind, "--error-exitcode", str(FOUND)]
        command = [self.path, *options, sys.executable, "-m", "benchmarks.gpu_parts.sanitizer_case", *arguments]
        # Every tensor gets an allocation of its own, so that the tool sees accesses beyond its end.
        environment = dict(os.environ) | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=CASE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return None, (error.output or b"").decode(errors="replace")
        return done.returncode, done.stdout.decode(errors="replace")


def chosen(context: Context) -> list[tuple[str, str]]:
    """Chooses (case, backend): the first case of each op of a GPU backend that works without the tool."""
    found: dict[tuple[str, str], str] = {}
    for backend in () if context.is_rehearsal else KERNELS:
        for case in kernel_cases(context.device, backend):
            if context.smoke.get(f"{case.name} {backend}", {"status": OK})["status"] == OK:
                found.setdefault((case.op, backend), case.name)
    return [(name, backend) for (_, backend), name in found.items()]


def why_not_believed(code: int | None, output: str) -> str:
    """Returns the reason not to trust the tool, from its run with a planted error; empty if it found the error."""
    if code == FOUND and "Invalid __global__ write" in output:
        return ""
    return f"the tool does not find a planted error: exit code {code}; {_last_words(output)}"


def _case(tool: Tool, kind: str, name: str, backend: str) -> Point:
    return {"skipped": tool.refusal} if tool.refusal else outcome(*tool.run(kind, [name, backend]))


def outcome(code: int | None, output: str) -> Point:
    """Judges one run: an error in a kernel of this project is red, any other failure is skipped."""
    if code == FOUND and names_kernel(output):
        return {"ok": False, "why": _first_words(output), "output": output[-4000:]}
    if code == FOUND:
        return {"skipped": f"the report names no kernel of this project: {_first_words(output)}"}
    if code == 0:
        return {"ok": True, "why": ""}
    end = f"took longer than {CASE_SECONDS:.0f} s" if code is None else f"exit code {code}"
    return {"skipped": f"{end}; {_last_words(output)}"}


@cache
def kernel_names() -> frozenset[str]:
    """Lists the names of this project's kernels, from their sources."""
    sources = (*ROOT.glob("rwkv_batch/triton_kernels/*.py"), *ROOT.glob("rwkv_batch/cuda_kernels/csrc/*.cu"))
    found = (name for path in sources for pair in _KERNEL_NAMES.findall(path.read_text()) for name in pair)
    return frozenset(filter(None, found))


def names_kernel(report: str) -> bool:
    """True if the report names a kernel of this project before the host's call stack."""
    lines = [line for line in report.splitlines() if line.startswith(_SIGN) and "Host Frame" not in line]
    return not kernel_names().isdisjoint(re.findall(r"\w+", " ".join(lines)))


def _first_words(output: str) -> str:
    """Returns the tool's first line about an error, with the place."""
    lines = [line.removeprefix(_SIGN).strip() for line in output.splitlines() if line.startswith(_SIGN)]
    about = [line for line in lines if line and not line.startswith(("COMPUTE-SANITIZER", "Internal"))]
    return " ".join(about[:2])[:300]


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip().strip("=")]
    return lines[-1][:300] if lines else "it wrote nothing"


def _table(points: dict[str, Point]) -> list[str]:
    rows = []
    for kind in TOOLS:
        own = [point for name, point in points.items() if name.startswith(f"{kind} ")]
        counts = [sum(point.get("ok") is value for point in own) for value in (True, False, None)]
        rows.append([kind, *map(str, counts)])
    skipped = Counter(point["skipped"] for point in points.values() if "skipped" in point)
    reasons = [f"skipped {count}: {why}" for why, count in skipped.most_common(SHOWN)]
    return [*format_lines(["compute-sanitizer", "nothing found", "red", "skipped"], rows), *reasons]
