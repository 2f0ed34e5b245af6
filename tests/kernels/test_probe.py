"""Compilers that fail, crash or hang are found when an engine is built, and a sentence reports the failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

pytest.importorskip("triton")

import claimed_gpu
import triton

from rwkv_batch.kernel_support import builds, cache
from rwkv_batch.triton_kernels import launch, probe
from rwkv_batch.triton_kernels.probe import Outcome, Target, outcomes

HOPPER = Target("cuda", 90, 32)
TESTS = Path(__file__).parents[1]
OPS = ("wkv4", "score", "shift_lerp", "linear")
COMPILED = Outcome(None, 1 << 20, True)
"""The outcome of a fake compiler, whose kernels need 1 MiB of shared memory."""


class Compiler:
    """Stands in for the processes that compile: notes for which ops they were started, and gives the outcomes."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.outcomes: dict[str, Outcome] = {}

    def run(self, ops, target):
        self.started.append(list(ops))
        return [{}, *(self.outcomes.get(op, COMPILED)._asdict() for op in ops)], "ended"

    def forget(self) -> None:
        """Forgets the verdicts in memory, so that the next question reads the files, as in a new process."""
        probe._known.clear()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without a cache, in a process that knows nothing yet."""
    monkeypatch.setattr(cache, "places", lambda name: [tmp_path / ".cache" / "rwkv_batch" / name])
    monkeypatch.setattr(probe, "_known", {})
    return tmp_path


@pytest.fixture
def compiler(home, monkeypatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(probe, "_run", found.run)
    return found


@pytest.fixture
def misbehave(home, monkeypatch) -> Callable[..., None]:
    """`misbehave(kernel=how)`: processes that compile have the compiler of compile_stub.py, which does this."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def install(**kernels: str) -> None:
        stub = f"import compile_stub; compile_stub.install({kernels!r}, {str(home)!r}); "
        monkeypatch.setattr(probe, "CODE", probe.CODE.replace("import_module(given", f"{stub}import_module(given"))

    return install


def cached(home: Path) -> list[str]:
    """The ops whose outcome is on disk."""
    return sorted(path.name.partition("-")[0] for path in (home / ".cache/rwkv_batch/triton_kernels").glob("*.json"))


def test_every_way_to_fail_is_told_in_a_line_and_costs_no_other_op(home, misbehave):
    misbehave(wkv4_kernel="pages", combine_kernel="abort", shift_lerp_kernel="source", prepare_kernel="exit")
    assert outcomes([*OPS[:3], "mm8", "linear"], HOPPER) == {
        "wkv4": Outcome(
            "wkv4_kernel: RuntimeError: PassManager::run failed kernel.py:7:2: error: operand #0 is wrong", 0, True
        ),
        "score": Outcome("the compiler was ended by signal 6 (Aborted): compiler.cpp:12: Assertion `x > 0' failed."),
        "shift_lerp": Outcome("shift_lerp_kernel: CompilationError: z is not defined", 0, True),
        "mm8": Outcome("the compiler ended with code 3"),
        "linear": COMPILED,
    }
    assert cached(home) == ["linear", "shift_lerp", "wkv4"]  # what crashed is tried again next time


def test_a_compiler_that_lacks_memory_or_disk_may_succeed_next_time(home, misbehave):
    misbehave(wkv4_kernel="memory", shift_lerp_kernel="file")
    assert outcomes(["wkv4", "shift_lerp"], HOPPER) == {
        "wkv4": Outcome("wkv4_kernel: CompilationError: MemoryError()"),
        "shift_lerp": Outcome("shift_lerp_kernel: OSError: No space left on device"),
    }
    assert cached(home) == []


def test_entries_of_the_path_that_are_no_text_are_passed_on(home, misbehave, monkeypatch):
    misbehave()
    monkeypatch.setattr(sys, "path", [*sys.path, home])
    assert outcomes(["wkv4"], HOPPER) == {"wkv4": COMPILED}


def test_a_process_group_that_has_ended_may_refuse_to_be_killed(home, misbehave, monkeypatch):
    def killpg(group, number):
        raise PermissionError("Operation not permitted")

    misbehave()
    monkeypatch.setattr(os, "killpg", killpg)
    assert outcomes(["wkv4"], HOPPER) == {"wkv4": COMPILED}


@pytest.mark.parametrize("lacking", ["", None, "folder"])
def test_a_process_that_cannot_be_started_refuses_every_op(lacking, home, monkeypatch):
    if lacking == "folder":
        monkeypatch.setattr(tempfile, "tempdir", str(home / "missing"))
    else:
        monkeypatch.setattr(sys, "executable", lacking)
    found = outcomes(OPS, HOPPER)
    assert {outcome.is_final for outcome in found.values()} == {False}
    assert all(outcome.failure.startswith("its process cannot start: [Errno ") for outcome in found.values())
    assert list(found) == [*OPS]


@pytest.mark.skipif(sys.platform != "linux", reason="by a call of Linux")
def test_a_compiler_ends_with_the_process_that_asked(home, misbehave):
    """The process that asked is killed, so it cannot end the compiler that it has started."""
    misbehave(wkv4_kernel="wait")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from rwkv_batch.triton_kernels import probe; "
        f"probe.CODE = {probe.CODE!r}; probe._run(['wkv4'], probe.Target(*{tuple(HOPPER)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=TESTS.parent)
    file = home / "worker"
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(int(file.read_text()))
    process.kill()
    process.wait()
    try:
        worker.wait(60)
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="by a call of Linux")
def test_a_compiler_whose_parent_has_ended_does_not_start(home):
    code = "from rwkv_batch.triton_kernels import probe_worker; probe_worker.main({}, 'results', '', 9, (), ())"
    run = partial(subprocess.run, cwd=home, capture_output=True, text=True, check=False)
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = run([sys.executable, "-c", code.format(1 << 30)], env=environment)
    assert (done.returncode, done.stderr) == (1, "the process that asked has ended\n")
    assert not (home / "results").exists()
    done = run([sys.executable, "-c", code.format(os.getpid())], env=environment)
    assert (home / "results").exists(), done.stderr


def test_a_compiler_that_hangs_is_ended_with_the_programs_that_it_started(home, misbehave):
    misbehave(wkv4_kernel="hang")
    assert outcomes(["wkv4"], HOPPER) == {"wkv4": Outcome("the compiler did not end within 120 s")}
    assembler = int((home / "assembler").read_text())
    while psutil.pid_exists(assembler) and psutil.Process(assembler).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)  # the test's own time limit ends this
    assert cached(home) == []


def test_a_process_that_does_not_start_refuses_every_op(home, monkeypatch):
    monkeypatch.setattr(probe, "CODE", "raise ImportError('no such library')")
    reason = "its process ended with code 1: Traceback (most recent call last): ImportError: no such library"
    assert outcomes(OPS, HOPPER) == dict.fromkeys(OPS, Outcome(reason))


def test_triton_itself_is_asked(home, monkeypatch):
    """Triton itself compiles here, and refuses gfx000, an architecture that does not exist."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    failure = outcomes(["wkv4"], Target("hip", "gfx000", 64))["wkv4"].failure
    assert failure is not None and failure.startswith("wkv4_kernel: ") and "gfx000" in failure
    assert len(failure) < 400


def test_an_outcome_is_kept_on_disk_for_this_triton_this_device_and_these_kernels(compiler, home, monkeypatch):
    compiler.outcomes = {"wkv4": Outcome("No space left on device"), "score": Outcome("z is not defined", 0, True)}
    first = outcomes(OPS, HOPPER)
    assert first == dict.fromkeys(OPS, COMPILED) | compiler.outcomes
    assert outcomes(OPS, HOPPER) == first
    compiler.forget()
    compiler.outcomes = {}
    assert outcomes(OPS, HOPPER) == first | {"wkv4": COMPILED}
    assert compiler.started == [[*OPS], ["wkv4"]]
    assert (home / ".cache/rwkv_batch/triton_kernels").stat().st_mode & 0o777 == 0o700

    outcomes(["wkv4"], Target("cuda", 86, 32))
    monkeypatch.setattr(triton, "__version__", "0.1")
    compiler.forget()
    outcomes(["wkv4"], HOPPER)
    sources = shutil.copytree(probe.SOURCES, home / "kernels")
    (sources / "tiles.py").write_text("another kernel")
    monkeypatch.setattr(probe, "SOURCES", sources)
    compiler.forget()
    outcomes(["wkv4"], HOPPER)
    assert compiler.started[2:] == [["wkv4"]] * 3


@pytest.mark.parametrize("content", [b"", b'{"fail', b"[1]", b'{"failure": null, "shared": "much"}', b'{"other": 1}'])
def test_a_damaged_file_is_made_again(content, compiler, home):
    outcomes(["wkv4"], HOPPER)
    (path,) = (home / ".cache/rwkv_batch/triton_kernels").glob("*.json")
    intact = path.read_bytes()
    path.write_bytes(content)
    compiler.forget()
    assert outcomes(["wkv4"], HOPPER) == {"wkv4": COMPILED}
    assert path.read_bytes() == intact
    assert len(compiler.started) == 2


def test_what_is_kept_is_read_without_a_lock(compiler, home, monkeypatch):
    """The home may be read-only, and another process may hold the lock while it compiles."""
    outcomes(OPS, HOPPER)
    compiler.forget()
    for path, name in ((Path, "chmod"), (cache, "_make_private"), (tempfile, "mkstemp")):
        monkeypatch.setattr(path, name, read_only)
    assert outcomes(OPS, HOPPER) == dict.fromkeys(OPS, COMPILED)
    assert len(compiler.started) == 1
    outcomes(["mm8"], HOPPER)
    assert compiler.started[1:] == [["mm8"]]


def read_only(*_, **__):
    raise OSError("Read-only file system")


def test_what_another_process_compiled_meanwhile_is_not_compiled_again(compiler, home, monkeypatch):
    @contextmanager
    def lock(path):
        """Is waited for while another process writes an outcome."""
        builds.write_whole(path.parent / probe._file_name("wkv4", HOPPER), json.dumps(COMPILED._asdict()).encode())
        yield

    monkeypatch.setattr(probe, "one_at_a_time", lock)
    assert outcomes(["wkv4", "score"], HOPPER) == dict.fromkeys(["wkv4", "score"], COMPILED)
    assert compiler.started == [["score"]]


def test_another_assembler_makes_another_outcome(compiler, home, monkeypatch):
    assembler = home / "ptxas"
    assembler.write_text("#!/bin/sh\necho Cuda compilation tools, release 99.1, V99.1.2\n")
    assembler.chmod(0o755)
    outcomes(["wkv4"], HOPPER)
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.setenv(name, str(assembler))
        compiler.forget()
        outcomes(["wkv4"], HOPPER)
    os.utime(assembler, (1, 1))
    compiler.forget()
    outcomes(["wkv4"], HOPPER)
    assert len(compiler.started) == 4
    compiler.forget()
    outcomes(["wkv4"], HOPPER)
    assert len(compiler.started) == 4


def test_without_a_home_kernels_are_compiled_once_in_each_process(compiler, home):
    (home / ".cache").write_text("not a folder")
    assert outcomes(["wkv4"], HOPPER) == outcomes(["wkv4"], HOPPER) == {"wkv4": COMPILED}
    compiler.forget()
    outcomes(["wkv4"], HOPPER)
    assert len(compiler.started) == 2


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is claimed to be there, on which launches succeed."""
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    for name, answer in claimed_gpu.ANSWERS.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(probe, "launch_failure", lambda index: None)
    return torch.device("cuda")


def test_more_shared_memory_than_the_device_has_is_a_reason(gpu, compiler, monkeypatch):
    reason = probe.probed("wkv4")(gpu, torch.bfloat16, {})
    assert reason == "its kernels need 1048576 bytes of shared memory, the device has 232448"
    large = SimpleNamespace(shared_memory_per_block=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    assert probe.probed("wkv4")(gpu, torch.bfloat16, {}) is None


def test_a_failure_names_triton_and_settings_come_first(gpu, compiler, monkeypatch):
    compiler.outcomes = {"wkv4": Outcome("wkv4_kernel: z is not defined", 0, True)}
    unsupported_reason = probe.probed("wkv4")
    assert unsupported_reason(gpu, torch.float64, {}) == "no kernel for torch.float64"
    assert not compiler.started
    expected = f"Triton {triton.__version__} does not compile its kernels: wkv4_kernel: z is not defined"
    assert unsupported_reason(gpu, torch.bfloat16, {}) == expected
    monkeypatch.setattr(probe, "launch_failure", lambda index: "no launch")
    assert unsupported_reason(gpu, torch.bfloat16, {}) == expected  # nothing is launched after a compiler that failed
    large = SimpleNamespace(shared_memory_per_block=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    assert probe.probed("score")(gpu, torch.bfloat16, {}) == "no launch"


def test_a_rocm_device_is_compiled_for_by_its_name(gpu, compiler, monkeypatch):
    device = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-", warp_size=64, shared_memory_per_block=1 << 20)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    assert probe.probed("wkv4")(gpu, torch.bfloat16, {}) is None
    assert list(probe._known) == [("wkv4", Target("hip", "gfx942", 64))]


def test_ops_of_a_model_are_compiled_in_one_process(gpu, compiler):
    probe.prepare([*OPS, "no_such_op"], gpu)
    for op in OPS:
        probe.probed(op)(gpu, torch.bfloat16, {})
    assert compiler.started == [[*OPS]]


def test_another_engine_asks_again_what_may_have_passed(gpu, compiler):
    compiler.outcomes = {"wkv4": Outcome("its process cannot start"), "score": Outcome("z is not defined", 0, True)}
    for _ in range(2):
        probe.prepare(OPS, gpu)
        probe.probed("wkv4")(gpu, torch.bfloat16, {})
    assert compiler.started == [[*OPS], ["wkv4"]]


@pytest.mark.parametrize("change", ["interpreter", "cpu", "old gpu"])
def test_nothing_is_compiled_where_it_would_not_serve(change, gpu, compiler, monkeypatch):
    device = torch.device("cpu") if change == "cpu" else gpu
    if change == "interpreter":
        monkeypatch.setattr(launch, "is_interpreted", lambda: True)
    if change == "old gpu":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    probe.prepare(OPS, device)
    probe.probed("wkv4")(device, torch.bfloat16, {})
    assert not compiler.started
