"""Every kernel compiled for devices that are not here: within their limits, without spills, on the matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("aot_worker.py")
MODULES = sorted(p.stem for p in (ROOT / "triton_kernels").glob("*.py") if "def specializations(" in p.read_text())
TARGETS = {"sm_80": ("cuda", "80", "32"), "sm_90": ("cuda", "90", "32"), "gfx942": ("hip", "gfx942", "64")}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[[str, str], list[dict[str, Any]]]]:
    """`compiled(module, target)`: the module's compilations. Targets are compiled side by side, in processes."""
    with ThreadPoolExecutor(2) as pool:
        running = {target: pool.submit(compile_all, target) for target in TARGETS}
        yield lambda module, target: running[target].result()[module]


def compile_all(target: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(WORKER), *TARGETS[target], *MODULES]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.timeout(900)
def test_compiles_within_the_limits(module, target, compiled):
    for kernel in compiled(module, target):
        assert kernel["spilled"] == 0, kernel
        assert kernel["registers"] <= (512 if target == "gfx942" else 255), kernel
        assert kernel["shared"] <= SHARED_BYTES[target], kernel


@pytest.mark.parametrize("module", ["linear", "low_rank", "score", "mm8", "w8a8"])
def test_products_of_half_precision_use_the_warp_group_instructions(module, compiled):
    """Where a product is named as such in its label."""
    halves = [kernel for kernel in compiled(module, "sm_90") if "bf16" in kernel["label"] or "fp16" in kernel["label"]]
    assert halves
    assert all(kernel["wgmma"] for kernel in halves), [kernel["label"] for kernel in halves if not kernel["wgmma"]]
