"""Tests of the CPU kernels under sanitizers of addresses and of undefined behavior: python -m kernels.sanitizers TESTS.

This module is also the plugin of pytest that has the library built with the sanitizers' flags.
"""

from __future__ import annotations

import os
import subprocess
import sys

from rwkv_batch.cpu_kernels import build

FLAGS = (
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
)


def active() -> tuple[str, ...]:
    """Flags of the compiler for a test that compiles sources itself; none in an ordinary run."""
    return FLAGS if FLAGS[-1] in build.FLAGS else ()


def pytest_configure() -> None:
    build.FLAGS = " ".join([build.FLAGS.replace("-O3", "-O1"), *FLAGS])


def main(arguments: list[str]) -> int:
    """Runs pytest in a process whose first libraries are those of the sanitizers. Returns its exit code."""
    # The sanitizer finds the C++ runtime, whose exceptions it watches, only where that is loaded before it starts.
    libraries = [_library(name) for name in ("libasan.so", "libstdc++.so")]
    environment = {**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    # What a sanitizer prints before it ends the process must not go to pytest's temporary file.
    command = [sys.executable, "-m", "pytest", "-p", "kernels.sanitizers", "--capture=sys", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def _library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
