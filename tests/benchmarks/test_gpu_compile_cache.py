"""Triton finds kernels that were compiled for an absent card, also in another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from triton.runtime import cache

from benchmarks.gpu_parts.compile_cache import LIBRARY, key_with
from benchmarks.gpu_parts.compiled import adopt, count

ROOT = Path(__file__).parents[2]
DECODE = """
import sys, triton
from benchmarks.gpu_parts.compile_cache import CPU, FakeDriver, model_of, run
from benchmarks.gpu_parts.context import TINY
from benchmarks.gpu_parts.random_model import random_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.rows import padding_rows
import torch

FakeDriver(90).install()
triton.knobs.cache.dir, triton.knobs.compilation.store_binary_only = sys.argv[1], True
hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
with torch.inference_mode():
    run(model_of(ModelFile.open(random_checkpoint(TINY, CPU)), torch.float32, False), padding_rows(2, CPU))
print(hits.count(True), hits.count(False))
"""


def decode(folder: Path) -> tuple[int, int]:
    """Runs a decode step; returns how many kernels were found in a folder, and how many were compiled."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", DECODE, str(folder)]
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, compiled = map(int, done.stdout.split())
    return found, compiled


def test_kernels_are_found_again_elsewhere(tmp_path):
    here, there = tmp_path / "here", tmp_path / "another" / "folder"
    here.mkdir()
    found, compiled = decode(here)
    assert found == 0
    assert compiled == count(here) >= 8  # norms, four products, the low-rank pairs, the recurrence, the sampler
    there.parent.mkdir()
    shutil.move(here, there)
    assert adopt(there) == compiled
    assert decode(there) == (compiled, 0)


def test_a_wheel_for_another_python_changes_the_library_in_the_key(tmp_path):
    own = Path(triton.__file__).parents[1]
    wheel = tmp_path / "triton.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (own / "triton").rglob("*.py"):
            archive.write(path, str(path.relative_to(own)))
        archive.writestr(LIBRARY, "another library")
    before, after = cache.triton_key().split("-"), key_with(wheel)().split("-")
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_a_wheel_of_another_version_is_refused(tmp_path):
    wheel = tmp_path / "triton.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("triton/__init__.py", "__version__ = '1'")
    with pytest.raises(ValueError, match="is not that of the installed triton"):
        key_with(wheel)


def test_paths_of_a_cache_are_those_of_its_place(tmp_path):
    (tmp_path / "KEY").mkdir()
    group = {"child_paths": {"k.json": "/elsewhere/KEY/k.json", "k.cubin": "/elsewhere/KEY/k.cubin"}}
    (tmp_path / "KEY" / "__grp__k.json").write_text(json.dumps(group))
    (tmp_path / "KEY" / "k.cubin").write_bytes(b"")
    assert adopt(tmp_path) == 1
    found = json.loads((tmp_path / "KEY" / "__grp__k.json").read_text())["child_paths"]
    assert found == {name: str(tmp_path / "KEY" / name) for name in group["child_paths"]}
