"""Draws small changes of the core by a seed, tries each on the tests, and lists those that no test notices.

    make mutants [N=100] [SEED=0] [ONLY=engine/prefix.py,serving.py] [JOBS=2]

Each change is made in a copy of the working tree. The tests of its module run first. If they pass, the wider ones of
`targets.py` run. `survivors.yaml` lists changes that may go unnoticed, with the reason. The exit code is 1 if the tests
notice fewer than 97 % of the changes that make a difference.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import yaml

from mutation.edits import Edit, edits, is_change
from mutation.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.yaml")
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache")
BAR = 0.97
MAX_BYTES = 24 << 30
"""Limit of a test process's address space, because a change can make a loop fill the memory."""


_measuring = threading.Lock()


class Mutant(NamedTuple):
    """A change of a module. `file` is relative to the project."""

    target: Target
    file: str
    source: str
    edit: Edit

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of a change in `survivors.yaml`. It does not depend on the lines above the change."""
        return self.file, self.edit.scope, self.edit.change(self.source)

    def __str__(self) -> str:
        return f"{self.file}:{self.edit.line(self.source)} [{self.edit.kind}] {self.edit.change(self.source)}"


class Survivor(NamedTuple):
    """A change that may go unnoticed."""

    reason: str
    is_equivalent: bool


def survivors() -> dict[tuple[str, str, str], Survivor]:
    """Reads `survivors.yaml`: key of a mutant → the reason why no test notices it."""
    listed = yaml.safe_load(SURVIVORS.read_text()) or []
    return {
        (one["file"], one["scope"], one["change"]): Survivor(one["reason"], one.get("equivalent", False))
        for one in listed
    }


def all_mutants() -> Iterator[Mutant]:
    """Yields every change of every module of `TARGETS`."""
    seen = set()
    for target in TARGETS:
        for path in sorted(path for pattern in target.files for path in (ROOT / "rwkv_batch").glob(pattern)):
            if path not in seen:
                seen.add(path)
                source = path.read_text()
                yield from (Mutant(target, str(path.relative_to(ROOT)), source, edit) for edit in edits(source))


def draw(seed: int, number: int, only: str) -> list[Mutant]:
    """Draws the changes of a run, sorted by target and place.

    Args:
        only: parts of "target path", such as "engine" or "job/output/commit.py", separated by commas; empty for all.
    """
    parts = only.split(",")
    mutants = [m for m in all_mutants() if any(part in f"{m.target.name} {m.file}" for part in parts)]
    random.Random(seed).shuffle(mutants)
    drawn: list[Mutant] = []
    for mutant in mutants:
        if len(drawn) == number:
            break
        if is_change(mutant.source, mutant.edit):
            drawn.append(mutant)
    return sorted(drawn, key=lambda mutant: (TARGETS.index(mutant.target), mutant.file, mutant.edit.start))


class Copy:
    """A copy of the working tree, for one change at a time and the tests of it."""

    def __init__(self, folder: Path, limits: dict[tuple[str, ...], float]) -> None:
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        self._folder = folder
        self._limits = limits
        self._num_changes = 0

    def first_failure(self, tests: Sequence[str], limit: float | None = None) -> str | None:
        """Returns the test that fails first, or None. Tests that take more than `limit` seconds count as a failure."""
        environment = {**os.environ, "PYTHONPATH": str(self._folder), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "pytest", "-x", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
        with subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES)),
        ) as process:
            try:
                printed, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                printed = f"FAILED no end after {limit:.0f} s"
            finally:  # ends all processes that the tests have started
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", printed, re.MULTILINE)
        return failed[1] if failed else f"pytest ended with {process.returncode}: {printed[-500:]}"

    def limit(self, tests: list[str]) -> float:
        """Returns the time limit of tests in seconds, a multiple of their time without a change. That is measured once.

        Raises:
            RuntimeError: the tests fail without a change.
        """
        key = tuple(tests)
        with _measuring:
            if key not in self._limits:
                start = time.monotonic()
                if failure := self.first_failure(tests):
                    raise RuntimeError(f"without any change: {failure}")
                self._limits[key] = 5 * (time.monotonic() - start) + 60
            return self._limits[key]

    def try_out(self, mutant: Mutant) -> str | None:
        """Returns the test that notices a change, or None."""
        for tests in stages(mutant):
            limit = self.limit(tests)
            with self._changed(mutant):
                if failure := self.first_failure(tests, limit):
                    return failure
        return None

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        path = self._folder / mutant.file
        self._num_changes += 1
        path.write_text(mutant.edit.apply(mutant.source))
        # Python recompiles a module whose size or modification time, in whole seconds, has changed.
        os.utime(path, (self._num_changes, self._num_changes))
        yield
        shutil.copy2(ROOT / mutant.file, path)


def stages(mutant: Mutant) -> list[list[str]]:
    """Returns the arguments of successive runs of pytest: files named like the module, tests of the target, wider ones.

    Only the wider ones include tests that `slow.py` lists.
    """
    name = f"test_{Path(mutant.file).stem}.py"
    same = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob(name))
    own, wider = ([f"tests/{test}" for test in tests] for tests in (mutant.target.tests, mutant.target.wider))
    other = [test for test in own if test not in same]
    return [stage for stage in (same, other and [*other, "-m", "not slow and not soak"], wider) if stage]


def run(mutants: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, str | None]]:
    """Tries changes; yields each with the test that notices it, or None."""
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        limits: dict[tuple[str, ...], float] = {}
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for i in range(jobs):
            copies.put(Copy(Path(folder, str(i), "tree"), limits))

        def try_out(mutant: Mutant) -> tuple[Mutant, str | None]:
            copy = copies.get()
            try:
                return mutant, copy.try_out(mutant)
            finally:
                copies.put(copy)

        yield from pool.map(try_out, mutants)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument("--number", type=int, default=100, help="number of changes (default: 100)")
    parser.add_argument(
        "--only",
        default="",
        help="draw from targets and files with these names, such as engine,job/output/commit.py",
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of changes tried at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="print the drawn changes and try none")
    options = parser.parse_args(arguments)
    drawn = draw(options.seed, options.number, options.only)
    if not drawn:
        print(f"no module has {options.only!r} in its target and path; targets: {', '.join(t.name for t in TARGETS)}")
        return 1
    if options.list:
        print(*drawn, sep="\n")
        return 0
    listed = survivors()
    tried = [mutant for mutant in drawn if not (mutant.key in listed and listed[mutant.key].is_equivalent)]
    unnoticed = []
    for mutant, noticed_by in run(tried, options.jobs):
        if noticed_by is None:
            unnoticed.append(mutant)
        verdict = "UNNOTICED" if noticed_by is None else "noticed  "
        print(f"{verdict} {mutant}" + (f"\n    by {noticed_by}" if noticed_by else ""), flush=True)
        if noticed_by and mutant.key in listed:
            print("    which survivors.yaml lists: take it out there")
    if unnoticed:
        print("\nunnoticed:")
    for mutant in unnoticed:
        reason = listed[mutant.key].reason if mutant.key in listed else "?"
        entry = dict(zip(("file", "scope", "change"), mutant.key, strict=True), reason=reason)
        print(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=10**6), end="")
    share = 1 - len(unnoticed) / max(len(tried), 1)
    print(
        f"\nseed {options.seed}: {len(drawn)} drawn, {len(drawn) - len(tried)} make no difference, "
        f"{len(tried) - len(unnoticed)} noticed, {len(unnoticed)} unnoticed: {share:.1%} noticed (bar {BAR:.0%})"
    )
    return int(share < BAR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
