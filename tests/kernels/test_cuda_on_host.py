"""CUDA kernels on a CPU: that the emulator sees what is wrong with a kernel, and that whole models run on them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernels.cuda_on_host import HostRunner, KernelError
from kernels.kernel_cases import CPU, make_case, run
from kernels.shift_cases import Shift, ragged
from running import Session
from tolerances import assert_close
from torch import Tensor
from versions import served_by

from rwkv_batch import ops
from rwkv_batch.cuda_kernels import driver, launch, mm8, shift_lerp, wkv4, wkv5, wkv6, wkv7
from rwkv_batch.cuda_kernels.build import SOURCES, BuildError
from rwkv_batch.errors import BackendError
from rwkv_batch.models.matrices.mm8 import quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear
from rwkv_batch.ops import OpSpec, resolve

pytestmark = [
    pytest.mark.usefixtures("cuda_on_cpu"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU"),
]
BARRIER = "__syncthreads();"
HELPERS_WAIT = f"if (t >= 2 && t < length + 3) {BARRIER}"
FIRST = [(f"    {BARRIER}\n    ring", "    ring"), (HELPERS_WAIT, f"if (t >= 3 && t < length + 3) {BARRIER}")]
NEXT = [(f"if (at_token > position) {BARRIER}", ""), (HELPERS_WAIT, f"if (t == 2 || t == length + 2) {BARRIER}")]
LAST = [(f"    {BARRIER}\n    if", "    if"), (HELPERS_WAIT, f"if (t >= 2 && t < length + 2) {BARRIER}")]
WITHOUT = {
    ("wkv7", "heads.h"): [FIRST, NEXT, LAST],
    ("wkv56", "heads.h"): [FIRST, NEXT, LAST],
    ("shift_lerp", "shift_lerp.cu"): [
        [(f"{BARRIER}  // all threads have read", "// all threads have read")],
        [(f"{BARRIER}\n", "\n")],
    ],
    ("mm8_inputs", "mm8_inputs.cu"): [[(BARRIER, "")]],
    ("mm8_seq", "mm8_seq.cu"): [[(BARRIER, "")]],
}
"""(kernel, its file with barriers) → how each barrier is taken out of it, for each of the kinds of warps."""


def run_head(function: Callable[..., Tensor], variant: str) -> list[Tensor]:
    case = make_case(variant, (2, 0), (6, 1), 1, 64)
    return [function(**case.arguments, **case.states, rows=case.rows), *case.pools.values()]


def run_shift() -> list[Tensor]:
    case = Shift(10, torch.float32, 272, 1, CPU)
    return [shift_lerp.shift_lerp(*case.arguments(case.pool), ragged(CPU))[2], case.pool]


def run_mm8(num_tokens: int) -> list[Tensor]:
    p = Mm8Linear(quantize_mm8(torch.randn(24, 512)))
    x = torch.randn(num_tokens, 512).bfloat16()
    return [mm8.mm8(x, p.weight, p.rx, p.my, p.ry, p.corrections)]


CALLS: dict[str, Callable[[], list[Tensor]]] = {
    "wkv7": lambda: run_head(wkv7.wkv7, "wkv7"),
    "wkv56": lambda: run_head(wkv5.wkv5, "wkv5"),
    "shift_lerp": run_shift,
    "mm8_inputs": lambda: run_mm8(1),
    "mm8_seq": lambda: run_mm8(9),
}


@pytest.mark.parametrize(
    ("kernel", "file", "edits"), [(*where, edits) for where, all_ in WITHOUT.items() for edits in all_]
)
def test_every_barrier_is_needed(kernel, file, edits, tmp_path, monkeypatch):
    """The emulator's order of threads makes the result another one."""
    right = CALLS[kernel]()
    torch.manual_seed(0)
    sources = shutil.copytree(SOURCES, tmp_path / "csrc")
    text = (sources / file).read_text()
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (sources / file).write_text(text)
    with HostRunner(tmp_path, sources) as runner:
        monkeypatch.setattr(launch, "host_runner", runner)
        wrong = CALLS[kernel]()
    assert not all(map(torch.equal, wrong, right))


def test_no_barrier_is_forgotten():
    found = {path.name: path.read_text().count(BARRIER) for path in SOURCES.iterdir()}
    counted = {file: len({old for edits in all_ for old, _ in edits}) for (_, file), all_ in WITHOUT.items()}
    assert counted == {file: count for file, count in found.items() if count}


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Callable[[str, str], HostRunner]]:
    """`broken(old, new)`: runs kernels whose recurrence of v4 has one piece of its text replaced."""
    runners = []

    def make(old: str, new: str) -> HostRunner:
        sources = shutil.copytree(SOURCES, tmp_path / "csrc")
        text = (sources / "wkv4.cu").read_text()
        assert old in text
        (sources / "wkv4.cu").write_text(text.replace(old, new, 1))
        runners.append(HostRunner(tmp_path, sources))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("if (channel >= p.width) return;", "", "heap-buffer-overflow"),
        ("t + 1 < length", "t < length", "heap-buffer-overflow"),
        ("i64 at = (i64)start", "i64 at = 2147483647 * (start + 2)", "signed integer overflow"),
        ("const int row = gridDim.x", "if (threadIdx.x < 7) __syncthreads();\n  const int row = gridDim.x", "wait"),
    ],
)
def test_the_emulator_says_what_is_wrong(old, new, words, broken, monkeypatch):
    monkeypatch.setattr(launch, "host_runner", broken(old, new))
    case = make_case("wkv4", (2, 0), (3, 1))
    with pytest.raises(KernelError, match=words):
        wkv4.wkv4(**case.arguments, **case.states, rows=case.rows)
    with pytest.raises(KernelError, match=words):  # in a process of its own again
        wkv4.wkv4(**case.arguments, **case.states, rows=case.rows)


@pytest.mark.parametrize("version", served_by("cuda"))
def test_a_model_of_every_version_runs(version, checkpoint_file):
    path = checkpoint_file(version, n_layer=2, n_embd=32, n_att=32, n_ffn=64, head_size=16, vocab=97)
    session, right = Session(path, backend="cuda"), Session(path, backend="reference")
    served = {choice.op: choice.backend for choice in session.model.ops.choices}
    assert served.pop("shift_lerp") == "cuda"
    assert sum(backend == "cuda" for backend in served.values()) == 1  # the recurrence
    for step in ({3: [5, 6, 7], 0: [8], -1: [1, 2]}, {0: [9], 3: [10]}):
        got, want = session.feed(step), right.feed(step)
        for slot in (0, 3):
            assert_close(f"logits of slot {slot}", got[slot], want[slot], "float32", 20)
    for name, state in right.state(3).items():
        assert_close(name, session.state(3)[name].float(), state.float(), "float32", 20)


def test_cuda_kernels_serve_among_tritons(checkpoint_file, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(ops._AUTO, "cpu", ("triton", "cuda", "reference"))
    for op in ("shift_lerp", "wkv7", "score"):
        module = import_module(f"rwkv_batch.triton_kernels.{op}")
        monkeypatch.setattr(module, "unsupported_reason", lambda *_: "does not compile")
    path = checkpoint_file("7.0", n_layer=2, n_embd=32, n_att=32, n_ffn=64, head_size=16, vocab=97)
    session, right = Session(path), Session(path, backend="reference")
    served = {choice.op: choice.backend for choice in session.model.ops.choices}
    expected = {"shift_lerp": "cuda", "wkv7": "cuda", "score": "reference", "linear": "triton", "low_rank": "triton"}
    assert expected.items() <= served.items()
    for step in ({3: [5, 6], 0: [8]}, {0: [9], 3: [10]}):
        got, want = session.feed(step), right.feed(step)
        for slot in (0, 3):
            assert_close(f"logits of slot {slot}", got[slot], want[slot], "float32", 20)


def test_without_a_gpu_it_says_so(checkpoint_file, monkeypatch):
    monkeypatch.setattr(launch, "host_runner", None)
    with pytest.raises(BackendError, match="shift_lerp: runs on a GPU, not on a CPU"):
        Session(checkpoint_file("7.0"), backend="cuda")


@pytest.mark.parametrize(
    ("module", "device", "dtype", "size", "state_dtype", "reason"),
    [
        (wkv7, "xpu", torch.float32, 64, torch.float32, "runs on a CUDA device, not on xpu"),
        (wkv7, "cpu", torch.float64, 64, torch.float32, "no kernel for torch.float64"),
        (wkv5, "cpu", torch.float32, 64, torch.bfloat16, "no kernel for a state of torch.bfloat16"),
        (wkv5, "cpu", torch.float32, 48, torch.float32, "head size 48 is not one of 16, 32, 64, 128"),
        (wkv4, "cpu", torch.float32, 48, torch.float32, None),
        (mm8, "cpu", torch.float64, 64, torch.float32, "no kernel for torch.float64"),
    ],
)
def test_what_cannot_be_served_is_said(module, device, dtype, size, state_dtype, reason):
    assert module.unsupported_reason(torch.device(device), dtype, {"N": size}, state_dtype) == reason


@pytest.mark.parametrize(
    ("capability", "hip", "compiler", "reason"),
    [
        ((9, 0), None, None, None),
        ((7, 0), None, None, None),
        ((6, 1), None, None, "needs compute capability 7.0, found 6.1"),
        ((9, 0), "7.1", None, "runs on a CUDA device, not on ROCm"),
        ((9, 0), None, "no compiler", "no compiler"),
    ],
)
def test_what_a_gpu_must_have(capability, hip, compiler, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(launch, "unavailable", lambda: compiler)
    monkeypatch.setattr(driver, "load", lambda device, spec: None)
    assert wkv4.unsupported_reason(torch.device("cuda"), torch.bfloat16, {}) == reason


@pytest.mark.parametrize(
    ("capability", "kernels"), [((9, 0), ["mm8_inputs", "mm8_one", "mm8_seq"]), ((7, 5), ["mm8_inputs", "mm8_one"])]
)
def test_a_kernel_that_is_not_built_or_not_loaded_is_a_reason(capability, kernels, monkeypatch):
    """Each kernel of the op is tried that the device can have, in the dtype that is asked for."""
    tried = []

    def load(device, spec):
        tried.append(spec)
        if spec.kernel == failing:
            raise BuildError(f"cannot build {spec.kernel}: nvrtc-1.2 failed:\nmm8.cu(3): error: no such type\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch, "unavailable", lambda: None)
    monkeypatch.setattr(driver, "load", load)
    failing = None
    assert mm8.unsupported_reason(torch.device("cuda"), torch.float16, {}) is None
    assert [spec.kernel for spec in tried] == kernels
    assert all("DTYPE=f16" in spec.defines for spec in tried)
    failing = "mm8_one"
    reason = mm8.unsupported_reason(torch.device("cuda"), torch.float16, {})
    assert reason == "cannot build mm8_one: nvrtc-1.2 failed: mm8.cu(3): error: no such type"


def test_memory_that_is_used_up_is_no_reason(monkeypatch):
    def load(device, spec):
        raise BuildError("cannot load wkv4: cuModuleLoadData: error 2, out of memory")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "unavailable", lambda: None)
    monkeypatch.setattr(driver, "load", load)
    with pytest.raises(BuildError, match="out of memory"):
        wkv4.unsupported_reason(torch.device("cuda"), torch.bfloat16, {})


def test_auto_takes_cuda_for_recurrences_and_triton_where_cuda_refuses(monkeypatch):
    """The choice, its reason, and that both can be recorded."""
    pytest.importorskip("triton")
    compiler = None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "unavailable", lambda: compiler)
    monkeypatch.setattr(driver, "load", lambda device, spec: None)
    monkeypatch.setattr(import_module("rwkv_batch.triton_kernels.wkv4"), "unsupported_reason", lambda *_: None)
    specs, device = [OpSpec("wkv4", lambda: None)], torch.device("cuda")
    table = resolve(specs, "auto", device, torch.float16, {})
    assert table.wkv4 is wkv4.wkv4
    assert (table.choices[0].backend, table.choices[0].is_fallback, table.can_be_recorded) == ("cuda", False, True)
    assert table.choices[0].refused == (ops._CUDA_FIRST,)
    compiler = "no compiler"
    table = resolve(specs, "auto", device, torch.float16, {})
    assert (table.choices[0].backend, table.choices[0].refused) == ("triton", ("cuda: no compiler",))
    assert table.can_be_recorded


def test_auto_takes_cuda_where_triton_is_missing_or_refuses(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(launch, "unavailable", lambda: None)
    monkeypatch.setattr(driver, "load", lambda device, spec: None)
    specs, device = [OpSpec("shift_lerp", lambda: None)], torch.device("cuda")
    table = resolve(specs, "auto", device, torch.float16, {"C": 64})
    assert (table.choices[0].backend, table.can_be_recorded) == ("cuda", False)
    assert table.choices[0].refused == ("triton: needs compute capability 8.0, found 7.5",)
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in ("shift_lerp", "launch"):
        monkeypatch.delitem(sys.modules, f"rwkv_batch.triton_kernels.{module}")
    table = resolve(specs, "auto", device, torch.float16, {"C": 64})
    assert table.shift_lerp is shift_lerp.shift_lerp
    assert "import of triton halted" in table.choices[0].refused[0]


@pytest.mark.parametrize("variant", ["wkv7", "wkv6", "wkv4"])
def test_padding_of_any_length_and_rows_of_no_tokens(variant):
    """The rows between keep their bits; a row without tokens leaves its state."""
    functions: dict[str, Callable[..., Tensor]] = {"wkv7": wkv7.wkv7, "wkv6": wkv6.wkv6, "wkv4": wkv4.wkv4}
    function = functions[variant]
    case = make_case(variant, (-1, 2, -1, 0, 3, -1), (0, 6, 9, 1, 0, 1))
    out, after = run(function, case)
    alone, alone_after = run(function, case.pick(1, 0, 6))
    assert torch.equal(out[:6], alone)
    assert not out[6:15].any()
    assert not out[16:].any()
    for name, state in after.states.items():
        assert torch.equal(state[2], alone_after.states[name][2])
        assert torch.equal(state[3], case.states[name][3])


def test_a_state_at_an_odd_address_is_refused():
    case = make_case("wkv7", (0,), (1,))
    shape = (2, 2, 16, 16)
    state = torch.zeros(2 * 512 + 1)[1:].view(shape)
    with pytest.raises(ValueError, match=r"state: got address .* expected multiples of 16 and 4"):
        wkv7.wkv7(**case.arguments, state=state, rows=case.rows)
    head = SimpleNamespace(**case.arguments["head"]._asdict() | {"r_k": torch.zeros(2, 24)})
    with pytest.raises(ValueError, match=r"r: got .* expected a contiguous torch.float32 \[1, 48\]"):
        wkv7.wkv7(**case.arguments | {"head": head}, state=state, rows=case.rows)
