"""A contender: one commit of the package in a process of its own, which takes one measurement at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..peer_process import end
from .cases import Case

ROOT = Path(__file__).parent.parent.parent
PARTS = ("engine", "job")
"""What is measured: the engine alone, and a whole job."""
# rwkv_batch comes from PYTHONPATH. The benchmarks come from this tree, also where the other commit has some. Processes
# that rwkv_batch starts get the path as it was: they import the rwkv_batch of this process.
_START = "import sys, rwkv_batch; sys.path.insert(0, sys.argv.pop(1)); from benchmarks.host_parts.{0} import main; "
_START += "del sys.path[0]; main(sys.argv[1:])"


class ContenderFailed(Exception):
    """A process cannot measure. The message gives the reason."""


@dataclass(frozen=True)
class Package:
    """One commit of the package, checked out in a folder.

    Args:
        root: the folder that contains `rwkv_batch`.
        commit: name of the commit in reports.
        driver: name of the driver, a module of `benchmarks.host_parts`.
    """

    root: Path
    commit: str
    driver: str

    def command(self, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Makes arguments and environment of a process that runs `main` of a module of `benchmarks.host_parts`."""
        command = [sys.executable, "-c", _START.format(module), str(ROOT), *arguments]
        return command, {**os.environ, "PYTHONPATH": str(self.root)}


def package(root: Path) -> Package:
    """Describes the package in a folder that has a commit checked out."""
    commit = git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    drivers = [path.stem for path in Path(__file__).parent.glob("driver_*.py")]
    own = [name for name in drivers if commit.startswith(name.removeprefix("driver_"))]
    return Package(root, commit or "no git repository", own[0] if own else "driver")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Checks a commit out in a temporary git worktree.

    Raises:
        ContenderFailed: the repository lacks the commit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "tree")
        command = ["git", "worktree", "add", "--detach", str(folder), commit]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ContenderFailed(f"commit {commit}: {done.stderr.strip()}; fetch it, or give its --worktree")
        try:
            yield folder
        finally:
            git(ROOT, "worktree", "remove", "--force", str(folder))


def git(folder: Path, *arguments: str) -> str:
    """Returns the output of git; empty if git fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Contender:
    """A running process.

    Args:
        options: `step_ms`, `recorded` and `threads`, as `worker.main` takes them.
        log: file for what the process prints.

    Raises:
        ContenderFailed: the process does not start.
    """

    def __init__(self, package: Package, options: dict[str, Any], log: Path) -> None:
        self.package = package
        self._log = log
        command, environment = package.command("worker", package.driver, str(package.root), json.dumps(options))
        pipe = subprocess.PIPE
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdin=pipe, stdout=pipe, stderr=file, text=True
            )
        try:
            self.about = self._read()
        except ContenderFailed:
            self.close()
            raise

    def measure(self, part: str, case: Case, watch: bool = False) -> dict[str, Any]:
        """Runs one measurement and returns the answer.

        Args:
            part: one of `PARTS`.
            watch: also count the time in more functions, which slows the run.

        Raises:
            ContenderFailed: the run failed, or the process ended.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"part": part, "case": asdict(case), "watch": watch}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the process has ended: reading the answer raises the reason
        answer = self._read()
        if "error" in answer:
            raise ContenderFailed(f"{self.package.commit}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        end(self._process)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        said = self._log.read_text(errors="replace").strip()[-2000:]
        raise ContenderFailed(f"{self.package.commit}: its process ended with {code}: {said}")
