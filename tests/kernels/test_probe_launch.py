"""The trial launch of a Triton kernel when an engine is built: its result, and that it leaves no traces."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

import claimed_gpu
import triton

from rwkv_batch.triton_kernels import launch, probe
from rwkv_batch.triton_kernels.probe import Outcome

TESTS = Path(__file__).parents[1]
OPS = ("wkv4", "score")


class Kernel:
    """Stands in for the kernel that is launched: records Triton's folder, and writes or raises `result`."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.result: int | Exception = 1

    def __getitem__(self, grid):
        def run(out):
            self.folders.append(Path(triton.knobs.cache.dir))
            assert self.folders[-1].is_dir()
            assert probe._launching.locked()
            if isinstance(self.result, Exception):
                raise self.result
            out.fill_(self.result)

        return run


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Kernel:
    """The kernels that are launched on a claimed GPU, in a process that has launched nothing yet."""
    found, zeros = Kernel(), torch.zeros
    monkeypatch.setattr(triton, "jit", lambda function: found)
    monkeypatch.setattr(probe, "_launches", {})
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=SimpleNamespace(utils=None)))
    monkeypatch.setattr(torch.cuda, "device", claimed_gpu.no_guard)
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **kwargs: zeros(*size, **kwargs))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton" / "cache"))
    return found


def test_a_launch_leaves_triton_as_it_was(kernel, tmp_path):
    """Libraries are loaded from Triton's own folder, as other folders may forbid that."""
    before = dict(os.environ)
    assert probe.launch_failure(0) is probe.launch_failure(0) is None
    (folder,) = kernel.folders  # once
    assert folder.parent == tmp_path / "triton" / "cache"
    assert not folder.exists()
    assert dict(os.environ) == before
    assert triton.knobs.cache.dir == str(folder.parent)


def test_a_failed_launch_is_tried_again_for_another_engine(kernel, monkeypatch):
    """A launch is tried once for all ops of an engine. A launch that has succeeded is not tried again."""
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(probe, "outcomes", lambda ops, target: dict.fromkeys(ops, Outcome(None)))
    for name, answer in claimed_gpu.ANSWERS.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    gpu, reasons = torch.device("cuda"), []
    for kernel.result in (RuntimeError("driver is busy\nmore"), 0, 1, RuntimeError("later")):
        probe.prepare(OPS, gpu)
        first, second = (probe.failure(op, gpu) for op in OPS)
        assert first == second
        reasons.append(first)
    assert reasons == [
        f"Triton {triton.__version__} cannot launch kernels here: driver is busy",
        "a kernel that Triton launched did not write its result",
        None,
        None,
    ]
    assert len(kernel.folders) == 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no words"), RuntimeError("Triton Error [CUDA]: out of memory"), MemoryError()],
    ids=repr,
)
def test_memory_that_is_used_up_is_not_tritons_failure(error, kernel):
    kernel.result = error
    with pytest.raises(type(error)) as caught:
        probe.launch_failure(0)
    assert caught.value is error
    kernel.result = 1
    assert probe.launch_failure(0) is None


@pytest.fixture
def launch_failure(tmp_path) -> Callable[..., str]:
    """The result of `launch_failure` in a process that claims a GPU, with these programs on its path."""

    def run(*programs: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for program in programs:
            (folder / program).symlink_to(shutil.which(program))
        environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "CC")}
        environment |= {
            "PATH": str(folder),
            "HOME": str(tmp_path),
            "TRITON_CACHE_DIR": str(tmp_path / "triton"),
            "TRITON_LIBCUDA_PATH": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, *sys.path))),
        }
        code = (
            "import claimed_gpu; claimed_gpu.claim(); from rwkv_batch.triton_kernels import probe; "
            "print(probe.launch_failure(0))"
        )
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    return run


def test_an_image_without_a_c_compiler_is_found_out_about(launch_failure):
    found = launch_failure()
    assert found.startswith(f"Triton {triton.__version__} cannot launch kernels here: ")
    assert "Failed to find C compiler" in found


def test_an_image_without_the_drivers_library_is_found_out_about(launch_failure):
    """A compiler without the libraries that it links."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine")
    assert "gcc" in launch_failure("gcc", "as", "ld")


@pytest.mark.gpu
def test_a_gpu_launches_and_every_probe_compiles_for_it(monkeypatch):
    """The probes run in a process that compiles, because this one interprets kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = (
        "from rwkv_batch.triton_kernels import probe; ops = {ops}; device = probe.torch.device('cuda'); "
        "probe.prepare(ops, device); print([probe.failure(op, device) for op in ops])"
    ).format(ops=[path.stem for path in probe.SOURCES.glob("*.py") if "= probed(" in path.read_text()])
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) == {None}
