"""A wheel, an editable install and a plain checkout find the same modules; locks pin what the project asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
USE = (
    "import rwkv_batch.triton_kernels, rwkv_batch.cuda_kernels, rwkv_batch\n"
    "from rwkv_batch.model_summary import inspect_model\n"
    "print(rwkv_batch.__file__); print(inspect_model().tokenizer.name)\n"
    "from rwkv_batch.text.load_tokenizer import load_tokenizer\n"
    "print(load_tokenizer('world', vocab_size=65536, model_path=None).encode('ok'))"
)


def pins(name: str) -> dict[str, SpecifierSet]:
    """Returns package → pinned version of a lock, for this Python."""
    lines = [line.partition("#")[0] for line in (ROOT / "locks" / f"{name}.txt").read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {one.name: one.specifier for one in requirements if one.marker is None or one.marker.evaluate()}


@pytest.mark.parametrize(
    ("lock", "extras"), [("demo", ()), ("test", ("test", "structured", "lm-eval", "lighteval", "inspect-ai"))]
)
def test_a_lock_pins_what_the_project_asks_for(lock, extras):
    """Installations resolve no dependencies, so a package that is not in the lock would be missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [one for extra in extras for one in project["optional-dependencies"][extra]]
    pinned = pins(lock)
    assert "triton" not in pinned  # each build of torch for CUDA pins its own
    for requirement in map(Requirement, asked):
        if requirement.name not in ("triton", "rwkv_batch"):
            (version,) = pinned[canonicalize_name(requirement.name)]
            assert version.operator == "=="
            assert requirement.specifier.contains(version.version), requirement


def test_the_locks_agree():
    """`make test` adds packages to an environment that `make demo` made."""
    assert pins("demo").items() <= pins("test").items()


def use(path: Path, cwd: Path) -> list[str]:
    """Runs `USE` with `path` in front of sys.path; returns the lines that it prints."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the checkout because a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/source/"], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), f"{folder}/source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def packaged_files() -> set[str]:
    """Returns the paths in a wheel of all files that git tracks for the package."""
    folders = ("rwkv_batch", "triton_kernels", "cuda_kernels")
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in done.stdout.split("\0") if name}
    links = {f"rwkv_batch/{name}" for name in folders[1:]}
    assert links <= tracked
    return {name if name.startswith("rwkv_batch/") else f"rwkv_batch/{name}" for name in tracked - links}


def test_a_wheel_has_the_files_that_git_tracks(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == packaged_files()


def test_a_wheel_works_elsewhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    location, *rest = use(path=tmp_path, cwd=tmp_path)
    assert location == str(tmp_path / "rwkv_batch" / "__init__.py")
    assert rest == ["bytes", "[2095]"]


def test_a_plain_checkout_works():
    location, *rest = use(path=ROOT, cwd=ROOT)
    assert location == str(ROOT / "rwkv_batch" / "__init__.py")
    assert rest == ["bytes", "[2095]"]


def test_an_editable_install_works(tmp_path):
    """The installation has an environment of its own, which borrows the dependencies of this one."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={source}/"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    (options,) = re.findall(r"(--config-settings \S+) --editable", (ROOT / "Makefile").read_text())
    subprocess.run([*pip, *options.split(), "--editable", source], check=True)
    (path,) = site.glob("__editable__*.pth")
    assert path.read_text().strip() == str(source), "type checkers follow a path and no import hook"
    done = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(source / "rwkv_batch" / "__init__.py"), "bytes", "[2095]"]
