"""The pool of threads of the native kernels: csrc/parallel.cpp."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kernels import sanitizers

from rwkv_batch.cpu_kernels import build, linear

HERE = Path(__file__).parent
REGIONS = 10_000

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


PARTS = ["random", "forked", "extremes", "without threads"]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_tile_is_computed_once(sanitizer: str, tmp_path: Path) -> None:
    """From three threads with random sizes, forked in a region, in extreme sizes, and without enough threads."""
    if sanitizers.active():
        pytest.skip("builds with sanitizers of its own")
    program = tmp_path / "check"
    sources = [str(HERE / "parallel_check.cpp"), str(build.SOURCES / "parallel.cpp")]
    flags = ["-std=c++17", "-O1", "-pthread", f"-fsanitize={sanitizer}", "-I", str(build.SOURCES), "-ldl"]
    if subprocess.run(["g++", *flags, *sources, "-o", str(program)], capture_output=True, check=False).returncode:
        pytest.skip(f"g++ has no sanitizer {sanitizer}")
    # Addresses are not randomized: the thread sanitizer cannot run where the kernel spreads them too widely.
    fixed = [setarch, platform.machine(), "-R"] if (setarch := shutil.which("setarch")) else []
    environment = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
    for part in PARTS:
        command = [*fixed, str(program), part, str(REGIONS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "right\n", (part, done.stderr)
        assert done.returncode == 0, (part, done.stderr)


def test_threads_are_as_many_as_torch_has() -> None:
    """Counts the threads of a process that multiplies with four threads, and then with one."""
    script = """
import os, torch
from rwkv_batch.cpu_kernels import linear
def threads():
    return len(os.listdir("/proc/self/task"))
weight, x = linear.pack(torch.randn(4096, 256)), torch.randn(64, 256)
torch.set_num_threads(1)
before = threads()
linear.linear(x, weight)
alone = threads() - before
torch.set_num_threads(4)
linear.linear(x, weight)
print(alone, threads() - before)
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not list threads")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    alone, several = map(int, done.stdout.split())
    assert alone == 0
    assert several == 3


def test_the_library_needs_no_openmp() -> None:
    """Its threads would wait actively for those of the pool."""
    content = Path(build.library()._name).read_bytes()
    assert b"GOMP_" not in content
    assert b"libgomp" not in content


def test_threads_that_multiply_at_a_time_get_the_results_of_one_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = linear.pack(torch.randn(500, 300, generator=generator))
    inputs = torch.randn(4, 40, 300, generator=generator)
    expected = [linear.linear(x, weight) for x in inputs]
    wrong: list[int] = []

    def multiply(index: int) -> None:
        torch.set_num_threads(1 + index)
        for _ in range(50):
            if not torch.equal(linear.linear(inputs[index], weight), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=multiply, args=(index,)) for index in range(len(inputs))]
    before = torch.get_num_threads()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong
