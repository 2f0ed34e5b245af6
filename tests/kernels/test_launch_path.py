"""Every launcher through Triton's own launch path, on cards that are not there: all but the launch itself happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernels.aot_matrix import MODULES

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
WORKER = "launch_worker.py"
WHEELS = Path(sys.prefix) / "triton"
"""The folder in which the Makefile installs Tritons, each in a folder named by its version."""


def is_installed(version: str) -> bool:
    return (WHEELS / version / ".installed").exists()


CARDS: dict[str | None, tuple[int, ...]] = {"3.6.0": (80, 86, 90, 100, 120), "3.7.1": (86, 90), None: (86, 90)}
"""Version of Triton → the cards whose launches are tried with it. None is the environment's own."""
OLDEST = "3.6.0" if is_installed("3.6.0") else None


def run_worker(name: str, version: str | None, *arguments: Any) -> list[dict[str, Any]]:
    """The lines of a worker in this folder, with this Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(ROOT / "build/triton_cache")
    environment["PYTHONPATH"] = os.pathsep.join(
        [*([str(WHEELS / version)] if version else []), str(ROOT), str(ROOT / "tests")]
    )
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_launched(found: list[dict[str, Any]]) -> None:
    """Asserts that all ops were launched without an error, with aligned pointers and with known specializations."""
    assert {one["op"] for one in found} == {*MODULES}
    for one in found:
        assert "error" not in one, one
        assert one["launched"] or one["op"] == "linear", one  # which leaves large products to the library
        assert not one["unaligned"], one
        assert not one["unknown"], one


@pytest.mark.timeout(900)
def test_no_number_of_tokens_is_compiled_for_itself():
    """Three tokens, one, and as many as Triton would make a case of their own: with the tile of sixteen."""
    found = run_worker(WORKER, OLDEST, 86, "--tokens", 16, 1, 3)
    assert_launched(found)
    again = [one for one in found if one["tokens"] != 16 and one["num_loaded"]]
    assert not again, again


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", CARDS)
def test_shapes_of_all_models(version):
    if version is not None and not is_installed(version):
        pytest.skip(f"triton {version} is not installed in {WHEELS}")
    models = ("0.1B", "1.5B", "7.2B")
    assert_launched(run_worker(WORKER, version, *CARDS[version], "--models", *models, "--tokens", 1, 16, 64, 256, 1024))


@pytest.mark.timeout(300)
def test_a_card_with_too_little_shared_memory_refuses():
    small, large = run_worker(WORKER, OLDEST, 86, 90, "--large")
    assert "OutOfResources: out of resource: shared memory" in small["error"]
    assert "101376" in small["error"]
    assert large["launched"] == ["linear_kernel"]
