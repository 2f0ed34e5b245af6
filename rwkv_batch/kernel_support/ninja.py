"""Compilations by ninja: several at a time, in a temporary folder."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def built(parent: Path, lines: Iterable[str], compiler: str, *options: str) -> Iterator[Path]:
    """A temporary folder inside `parent` in which ninja has built a file of these lines.

    The folder is deleted at the end of the context, unless it has been renamed.

    Args:
        compiler: its name, for the error.
        options: further options of ninja.

    Raises:
        OSError: the compiler failed; the message holds its output. Or the folder cannot be made.
        ImportError: there is no ninja.
    """
    work = Path(tempfile.mkdtemp(dir=parent))
    try:
        (work / "build.ninja").write_text("\n".join(lines) + "\n")
        done = subprocess.run([_ninja(), "-C", str(work), *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{compiler} failed:\n{done.stdout[-2000:]}")
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def escaped(path: Path) -> str:
    """A path for a build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja() -> str:
    found = shutil.which("ninja")
    if found is None:
        import ninja

        found = str(Path(ninja.BIN_DIR) / "ninja")
    return found
