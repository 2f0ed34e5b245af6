"""Compiles every specialization with every supported Triton for every target, and prints what exceeds the limits.

    make kernels [TARGETS="sm_90 gfx942"]

It prints a line for each version and target. What is compiled lies in Triton's own cache, in build/, so that a run that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kernels.aot_limits import ANY_VERSION, TARGETS, faults, twin_faults

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("aot_worker.py")
CACHE = ROOT / "build/triton_cache"
WHEELS = Path(sys.prefix) / "triton"
"""The folder in which the Makefile installs Tritons, each in a folder named by its version."""
MODULES = sorted(p.stem for p in (ROOT / "triton_kernels").glob("*.py") if "def specializations(" in p.read_text())
NUM_PROCESSES = 2


def is_installed(version: str) -> bool:
    """The Makefile has installed this Triton beside the environment's own."""
    return (WHEELS / version / ".installed").exists()


def compile_all(target: str, version: str | None = None, whole: Sequence[str] = MODULES) -> list[dict[str, Any]]:
    """The lines that `aot_worker.py` prints for specializations of all modules, compiled in a separate process.

    Args:
        target: one of `TARGETS`.
        version: of a Triton that the Makefile installed; None for the environment's own.
        whole: modules of which all specializations are compiled; of the others one of each kernel.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(CACHE)
    environment["PYTHONPATH"] = os.pathsep.join([*([str(WHEELS / version)] if version else []), str(ROOT)])
    backend, architecture, warp_size, *_ = TARGETS[target]
    chosen = [name if name in whole else f"{name}:probes" for name in MODULES]
    command = [sys.executable, str(WORKER), backend, architecture, str(warp_size), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def all_faults(compiled: Sequence[dict[str, Any]], target: str, version: str) -> list[str]:
    """Lists, as sentences, the limits that compilations of one version and target exceed."""
    found = [
        f"{one['kernel']} ({one['label']}): {reason}" for one in compiled for reason in faults(one, target, version)
    ]
    return found + (twin_faults(compiled) if TARGETS[target].backend == "cuda" else [])


def describe(compiled: Sequence[dict[str, Any]], num_faults: int, seconds: float) -> str:
    """A summary: the number of compilations, and their largest resources."""
    done = [one for one in compiled if "error" not in one]
    text = f"{len(done)} of {len(compiled)} compiled, {num_faults} beyond limits"
    for name, unit in (("registers", "registers"), ("spilled", "bytes spilled"), ("shared", "bytes shared")):
        worst = max(done, key=lambda one: one[name], default=None)
        if worst is not None:
            text += f", {worst[name]} {unit}" + (f" ({worst['kernel']})" if worst[name] else "")
    return f"{text}, {seconds:.0f} s"


def main(targets: Sequence[str]) -> int:
    """Compile the matrix for these targets, or for all if there are none; 1 if anything is beyond the limits."""
    if unknown := sorted({*targets} - {*TARGETS}):
        print(f"targets: got {', '.join(unknown)}, expected some of {', '.join(TARGETS)}")
        return 1
    if missing := [version for version in ANY_VERSION if not is_installed(version)]:
        print(f"no Triton {', '.join(missing)} in {WHEELS}: `make kernels` installs them")
        return 1
    num_faults = 0

    def one(version: str, target: str) -> tuple[list[dict[str, Any]], float]:
        start = time.monotonic()
        return compile_all(target, version), time.monotonic() - start

    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        running: dict[tuple[str, str], Future[tuple[list[dict[str, Any]], float]]] = {
            (version, target): pool.submit(one, version, target)
            for target in targets or TARGETS
            for version in ANY_VERSION
        }
        for (version, target), future in running.items():
            compiled, seconds = future.result()
            reasons = all_faults(compiled, target, version)
            print(f"triton {version} {target:<6} {describe(compiled, len(reasons), seconds)}", flush=True)
            print(*(f"  {reason}" for reason in reasons), sep="\n", end="\n" if reasons else "", flush=True)
            num_faults += len(reasons)
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
