"""CUDA kernels compiled for devices that are not here, and how cubins are kept, found, loaded and launched."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from rwkv_batch.cuda_kernels import build, driver, launch
from rwkv_batch.cuda_kernels.build import SOURCES, BuildError, Specialization, architecture
from rwkv_batch.cuda_kernels.heads import defines
from rwkv_batch.cuda_kernels.launch import Kernel
from rwkv_batch.cuda_kernels.nvrtc import nvrtc
from rwkv_batch.kernel_support import cache as cache_folders

TARGETS = ("sm_80", "sm_90", "sm_120")
WIDEST = [Specialization(k, ("DTYPE=bf16", "STATE=float", "SIZE=128")) for k in ("wkv56", "wkv7")]
SHARED_BYTES, REGISTERS = 48 << 10, 65536
"""Shared memory of a block that every GPU has without an attribute."""
THREADS = {"wkv56": 256, "wkv7": 256, "shift_lerp": 256, "mm8_inputs": 256}
"""Threads of a block, for kernels that do not always have 128."""


def chosen(target: str) -> list[Specialization]:
    """Every source, for bfloat16: with the fewest and the most numbers a thread can have, or one of them."""
    skipped = {"PARTS=2", "PARTS=4", "TOKENS=4"}
    found = [s for s in build.specializations() if "DTYPE=bf16" in s.defines and not skipped & {*s.defines}]
    if target != "sm_90":
        found = list({spec.kernel: spec for spec in found}.values())
    return found + WIDEST


CASES = [(spec, target) for target in TARGETS for spec in chosen(target)]


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Specialization, str], Path]:
    """`cubins(spec, target)`. By NVRTC, two at a time, where it is; else by nvcc."""
    folder, compiler = tmp_path_factory.mktemp("cubins"), nvrtc()
    if build.unavailable():
        pytest.skip(build.NO_COMPILER)

    def compile_one(case: tuple[Specialization, str]) -> Path:
        path = folder / f"{CASES.index(case)}.cubin"
        path.write_bytes(compiler.compile(case[0].source, build.options(*case)))
        return path

    paths = {}
    if compiler:
        with ThreadPoolExecutor(2) as pool:
            paths = dict(zip(CASES, pool.map(compile_one, CASES), strict=True))
    else:
        with patch.object(build, "folder", lambda: folder):
            for target in TARGETS:
                built = build.build_ahead(chosen(target), [target])
                paths |= {(spec, target): path for spec, path in zip(chosen(target), built, strict=True)}
    return lambda spec, target: paths[spec, target]


@pytest.mark.parametrize(("spec", "target"), CASES, ids=str)
@pytest.mark.timeout(900)
def test_compiles_within_the_limits(spec, target, cubins):
    cubin = cubins(spec, target)
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    text = dump(cubin, "--dump-resource-usage")
    assert f"Function {spec.kernel}:" in text
    registers, stack, shared, local = (
        int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "SHARED", "LOCAL")
    )
    threads = 384 if "SIZE=128" in spec.defines else THREADS.get(spec.kernel, 128)
    assert stack + local == 0, "registers are spilled"
    assert -(-registers // 8) * 8 * threads <= REGISTERS
    assert shared <= SHARED_BYTES


def test_every_source_is_compiled():
    sources = {path.stem for path in SOURCES.glob("*.cu")}
    assert all({spec.kernel for spec in chosen(target)} == sources for target in TARGETS)


@pytest.mark.parametrize(
    ("spec", "instruction"),
    [
        (Specialization("wkv7", ("DTYPE=bf16", "STATE=float", "SIZE=64")), "LDG.E.128"),
        (Specialization("wkv56", ("DTYPE=bf16", "STATE=float", "SIZE=64")), "STG.E.128"),
        (
            Specialization("mm8_seq", ("DTYPE=bf16", "INPUT=bf16", "TOKENS=64", "TILES=2", "STAGES=2")),
            "HMMA.16816.F32.BF16",
        ),
        (
            Specialization("mm8_seq", ("DTYPE=bf16", "INPUT=bf16", "TOKENS=64", "TILES=2", "STAGES=2")),
            "LDGSTS.E.BYPASS.128",
        ),
    ],
)
def test_uses_the_wide_instructions(spec, instruction, cubins):
    assert instruction in dump(cubins(spec, "sm_90"), "-sass")


def dump(cubin: Path, option: str) -> str:
    """The output of CUDA's own tool for a cubin; triton brings the tool too."""
    package = find_spec("triton")
    folder = Path(package.origin).parent / "backends/nvidia/bin" if package else None
    tool = shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=folder) if folder else None)
    if tool is None:
        pytest.skip("no cuobjdump on this machine, and no triton that brings it")
    if option == "-sass":
        disassembler = shutil.which("nvdisasm") or shutil.which("nvdisasm", path=folder)
        command = [disassembler, "-c", str(cubin)]
    else:
        command = [tool, option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A home of its own, without a compiler, and what a compiler was asked for."""
    monkeypatch.setattr(cache_folders, "places", lambda name: [tmp_path / name])
    monkeypatch.setattr(build, "nvrtc", lambda: None)
    monkeypatch.setattr(build, "nvcc", lambda: None)
    return tmp_path / "cuda_kernels"


class FakeNvrtc:
    def __init__(self, version: str = "nvrtc-1.2", error: Exception | None = None) -> None:
        self.version, self.error, self.asked = version, error, []

    def architectures(self) -> list[int]:
        return [80, 90]

    def compile(self, source: Path, options: list[str]) -> bytes:
        self.asked.append((source.name, options))
        if self.error:
            raise self.error
        return f"cubin {len(self.asked)}".encode()


SPEC = Specialization("wkv4", ("DTYPE=bf16",))


def test_a_kernel_is_compiled_once(cache, monkeypatch):
    compiler = FakeNvrtc()
    monkeypatch.setattr(build, "nvrtc", lambda: compiler)
    assert build.image(SPEC, (9, 0)) == build.image(SPEC, (9, 0)) == b"cubin 1"
    name, options = compiler.asked[0]
    assert name == "wkv4.cu"
    assert {"--gpu-architecture=sm_90", "-DDTYPE=bf16"} <= set(options)
    assert len(compiler.asked) == 1
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in sorted(cache.iterdir())] == [".cubin", ".lock"]


def test_what_is_there_is_read_without_a_lock(cache, monkeypatch):
    """The folder may be read-only."""
    compiler = FakeNvrtc()
    monkeypatch.setattr(build, "nvrtc", lambda: compiler)
    build.image(SPEC, (9, 0))
    monkeypatch.setattr(build, "one_at_a_time", read_only)
    assert build.image(SPEC, (9, 0)) == b"cubin 1"
    with pytest.raises(BuildError, match="Read-only"):
        build.image(SPEC, (8, 0))


def read_only(*_):
    raise OSError("Read-only file system")


def test_whatever_a_cubin_depends_on_makes_another_one(cache, tmp_path, monkeypatch):
    compiler = FakeNvrtc()
    monkeypatch.setattr(build, "nvrtc", lambda: compiler)
    sources = shutil.copytree(SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "SOURCES", sources)
    other = Specialization("wkv4", ("DTYPE=f16",))
    found = [build.image(SPEC, (9, 0)), build.image(SPEC, (8, 6)), build.image(other, (9, 0))]
    (sources / "shift_lerp.cu").write_text("another kernel")
    assert build.image(SPEC, (9, 0)) == found[0]
    (sources / "common.h").write_text("another header")
    found.append(build.image(SPEC, (9, 0)))
    compiler.version = "nvrtc-1.3"
    found.append(build.image(SPEC, (9, 0)))
    assert len({*found}) == len(found) == len(compiler.asked)


def test_what_fails_leaves_nothing_and_says_why(cache, monkeypatch):
    with pytest.raises(BuildError, match=r"cannot build wkv4 DTYPE=bf16 for sm_90: .*no nvcc on this machine"):
        build.image(SPEC, (9, 0))
    compiler = FakeNvrtc(error=RuntimeError("its own words"))
    monkeypatch.setattr(build, "nvrtc", lambda: compiler)
    with pytest.raises(BuildError, match="cannot build wkv4 DTYPE=bf16 for sm_90: its own words"):
        build.image(SPEC, (9, 0))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    compiler.error = None
    with pytest.raises(BuildError, match="disk full"):
        build.image(SPEC, (9, 0))
    assert all(path.suffix == ".lock" for path in cache.iterdir())


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on this machine")
def test_what_nvcc_built_ahead_of_time_is_taken(cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cache_folders, "places", lambda name: [cache])
    compiler = FakeNvrtc()
    monkeypatch.setattr(build, "nvrtc", lambda: compiler)
    paths = build.build_ahead([SPEC], ["sm_90", "sm_80"])
    times = [path.stat().st_mtime_ns for path in paths]
    assert build.image(SPEC, (9, 0)) == paths[0].read_bytes()
    assert build.image(SPEC, (8, 0)) == paths[1].read_bytes() != paths[0].read_bytes()
    assert not compiler.asked
    assert [path.stat().st_mtime_ns for path in build.build_ahead([SPEC], ["sm_90", "sm_80"])] == times
    with pytest.raises(BuildError, match="failed"):
        build.build_ahead([Specialization("wkv4", ("DTYPE=no_such_type",))], ["sm_90"])
    assert {path.suffix for path in cache.iterdir()} == {".cubin", ".lock"}


def test_without_a_compiler_only_what_was_built_ahead_of_time_serves(cache):
    assert build.unavailable() == build.NO_COMPILER
    target = architecture((9, 0), None)
    (cache / f"{build._name(SPEC, target)}-nvcc-13.0.cubin").write_bytes(b"built elsewhere")
    assert build.unavailable() is None
    assert build.image(SPEC, (9, 0)) == b"built elsewhere"


@pytest.mark.parametrize(
    ("capability", "supported", "expected"),
    [
        ((9, 0), [80, 90, 100], "sm_90"),
        ((8, 9), [80, 86, 90], "sm_86"),
        ((12, 1), [90, 100, 120], "sm_120"),
        ((13, 0), [90, 100, 120], "compute_120"),
        ((9, 0), None, "sm_90"),
    ],
)
def test_what_a_device_is_compiled_for(capability, supported, expected):
    assert architecture(capability, supported) == expected


def test_a_device_that_the_compiler_no_longer_knows():
    with pytest.raises(BuildError, match="knows sm_75 and later, the device is sm_70"):
        architecture((7, 0), [75, 80])


class FakeDriver:
    """Notes what it is asked, as C would see it."""

    def __init__(self) -> None:
        self.calls, self.status, self.launched = [], 0, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuModuleGetFunction"):
                arguments[0]._obj.value = len(self.calls)
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of luck"
                return 0
            if name == "cuLaunchKernel":
                address = arguments[9][0]
                self.launched.append((arguments[1:8], arguments[8].value, ctypes.string_at(address, 24)))
                return self.status
            return 0

        return call


def test_how_a_kernel_is_launched(monkeypatch):
    """A launch passes one struct on the current stream, in torch's context. A kernel is loaded once."""
    fake = FakeDriver()
    monkeypatch.setattr(driver, "_library", lambda: fake)
    monkeypatch.setattr(driver, "image", lambda spec, capability: b"cubin")
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kernel = Kernel("fake", pointers=("x",), int64s=("stride",), int32s=("count",), floats=("eps",))
    params = kernel._params(x=5, stride=6, count=7, eps=0.5)
    spec = Specialization("fake", (f"TEST={id(fake)}",))
    for _ in range(2):
        driver.launch(torch.device("cuda", 1), spec, (3, 2), 128, params)
    geometry = (3, 2, 1, 128, 1, 1, 0)
    content = (5).to_bytes(8, "little") + (6).to_bytes(8, "little") + (7).to_bytes(4, "little") + b"\0\0\0\x3f"
    assert fake.launched == [(geometry, 77, content)] * 2
    assert fake.calls.count("cuModuleLoadData") == 1
    assert fake.calls.index("cuCtxSetCurrent") < fake.calls.index("cuModuleLoadData")
    fake.status = 1
    with pytest.raises(RuntimeError, match="cuLaunchKernel: error 1, out of luck"):
        driver.launch(torch.device("cuda", 1), spec, (3, 2), 128, params)


@pytest.fixture
def captures(monkeypatch):
    """A driver that answers, and `captures.on`: whether the current stream, 77, is being captured."""
    fake, capture = FakeDriver(), SimpleNamespace(on=False)
    capture.driver = fake
    monkeypatch.setattr(driver, "_library", lambda: fake)
    monkeypatch.setattr(driver, "image", lambda spec, capability: b"cubin")
    monkeypatch.setattr(launch, "unavailable", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    answers = {
        "device": lambda index: nullcontext(),
        "current_device": lambda: 0,
        "get_device_capability": lambda index: (9, 0),
        "current_stream": lambda index: SimpleNamespace(cuda_stream=77),
        "is_current_stream_capturing": lambda: capture.on,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    driver._function.cache_clear()
    yield capture
    driver._function.cache_clear()


def launch_empty(spec: Specialization) -> None:
    kernel = Kernel("fake", pointers=("x", "y", "z"))
    driver.launch(torch.device("cuda", 0), spec, (3, 2), 128, kernel._params())


def test_no_kernel_is_loaded_during_a_capture(captures):
    captures.on = True
    with pytest.raises(BuildError, match="cannot be loaded while a graph is captured"):
        launch_empty(SPEC)
    assert "cuModuleLoadData" not in captures.driver.calls
    captures.on = False
    launch_empty(SPEC)
    captures.on = True
    captures.driver.calls.clear()
    launch_empty(SPEC)
    assert set(captures.driver.calls) <= {"cuCtxGetCurrent", "cuCtxSetCurrent", "cuLaunchKernel"}
    assert [stream for _, stream, _ in captures.driver.launched] == [77, 77]


@pytest.mark.parametrize(("op", "kernel"), [("wkv4", "wkv4"), ("wkv5", "wkv56"), ("wkv6", "wkv56"), ("wkv7", "wkv7")])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [32, 64])
def test_the_choice_of_a_recurrence_loads_the_kernel_of_the_model(op, kernel, state_dtype, size, captures):
    reason = import_module(f"rwkv_batch.cuda_kernels.{op}").unsupported_reason
    assert reason(torch.device("cuda", 0), torch.bfloat16, {"N": size}, state_dtype) is None
    captures.on = True
    macros = ("DTYPE=bf16",) if op == "wkv4" else defines(torch.bfloat16, state_dtype, size)
    launch_empty(Specialization(kernel, macros))
    assert captures.driver.calls.count("cuModuleLoadData") == 1
