"""Compilers that fail, crash or hang are found out about when an engine is built, and a sentence says what they did."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

pytest.importorskip("triton")

import claimed_gpu

from rwkv_batch.triton_kernels import launch, probe
from rwkv_batch.triton_kernels.probe import Outcome, Target, outcomes

HOPPER = Target("cuda", 90, 32)
TESTS = Path(__file__).parents[1]
OPS = ("wkv4", "score", "shift_lerp", "linear")
COMPILED = Outcome(None, 1 << 20, True)
"""By a stand-in, which says that every kernel needs 1 MiB of shared memory."""


class Compiler:
    """In place of the processes that compile: notes for which ops they were started, and gives the outcomes."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.outcomes: dict[str, Outcome] = {}

    def run(self, ops, target):
        self.started.append(list(ops))
        return [{}, *(self.outcomes.get(op, COMPILED)._asdict() for op in ops)], "ended"

    def forget(self) -> None:
        """As another process would."""
        probe._known.clear()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without a cache, in a process that knows nothing yet."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
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
    """The ops whose outcome is kept."""
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
    """Without the stub. There is no architecture gfx000."""
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
    monkeypatch.setattr(probe.triton, "__version__", "0.1")
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
    expected = f"Triton {probe.triton.__version__} does not compile its kernels: wkv4_kernel: z is not defined"
    assert unsupported_reason(gpu, torch.bfloat16, {}) == expected
    monkeypatch.setattr(probe, "launch_failure", lambda index: "no launch")
    assert unsupported_reason(gpu, torch.bfloat16, {}) == "no launch"


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


@pytest.mark.parametrize("change", ["interpreter", "cpu", "old gpu", "no launch"])
def test_nothing_is_compiled_where_it_would_not_serve(change, gpu, compiler, monkeypatch):
    device = torch.device("cpu") if change == "cpu" else gpu
    if change == "interpreter":
        monkeypatch.setattr(launch, "is_interpreted", lambda: True)
    if change == "old gpu":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    if change == "no launch":
        monkeypatch.setattr(probe, "launch_failure", lambda index: "no launch")
    probe.prepare(OPS, device)
    probe.probed("wkv4")(device, torch.bfloat16, {})
    assert not compiler.started


@pytest.fixture
def launch_failure(tmp_path) -> Callable[..., str]:
    """What `launch_failure` says in a process that claims a GPU, with these programs on its path."""

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
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
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
    assert found.startswith(f"Triton {probe.triton.__version__} cannot launch kernels here: ")
    assert "Failed to find C compiler" in found


def test_an_image_without_the_drivers_library_is_found_out_about(launch_failure):
    """A compiler is there; what it links is not."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine")
    assert "gcc" in launch_failure("gcc", "as", "ld")


@pytest.mark.gpu
def test_a_gpu_launches_and_every_probe_compiles_for_it(monkeypatch):
    """In a process that compiles: this one interprets."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code = (
        "from rwkv_batch.triton_kernels import probe; ops = {ops}; device = probe.torch.device('cuda'); "
        "probe.prepare(ops, device); print([probe.failure(op, device) for op in ops])"
    ).format(ops=[path.stem for path in probe.SOURCES.glob("*.py") if "= probed(" in path.read_text()])
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) == {None}
