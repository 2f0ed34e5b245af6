"""The kernel packages, as tests see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from kernels import cuda_on_host
from kernels.cuda_on_host import HostRunner
from kernels.kernel_cases import BACKENDS, CPU, Function

from rwkv_batch.cuda_kernels import launch


class Backend:
    """A kernel package, of which some ops may be missing, or not run here."""

    def __init__(self, name: str) -> None:
        self.package = f"rwkv_batch.{name}_kernels"

    def serve(
        self, op: str, dtype: torch.dtype = torch.float32, state_dtype: torch.dtype = torch.float32, size: int = 16
    ) -> tuple[Function, torch.device]:
        """The op's function and a device that it runs on; skips the test where there is none."""
        if find_spec(f"{self.package}.{op}") is None:
            pytest.skip(f"{self.package} has no {op}")
        module = import_module(f"{self.package}.{op}")
        sizes = {"H": 2, "N": size, "A": 2 * size, "C": 2 * size}
        reasons = []
        for device in (CPU, torch.device("cuda")) if torch.cuda.is_available() else (CPU,):
            reason = module.unsupported_reason(device, dtype, sizes, state_dtype)
            if reason is None:
                return getattr(module, op), device
            reasons.append(reason)
        pytest.skip(" · ".join(reasons))


@pytest.fixture(scope="session")
def host_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostRunner]:
    """Runs CUDA kernels on the CPU; each is compiled once in a session."""
    if reason := cuda_on_host.unavailable():
        pytest.skip(reason)
    with HostRunner(tmp_path_factory.mktemp("cuda_on_host")) as runner:
        yield runner


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """CUDA kernels serve tensors in host memory."""
    monkeypatch.setattr(launch, "host_runner", request.getfixturevalue("host_runner"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "cuda" and not torch.cuda.is_available():
        request.getfixturevalue("cuda_on_cpu")
    return Backend(request.param)


@pytest.fixture
def nearest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts bits off where it makes bfloat16 of float32; GPUs round to nearest."""
    if find_spec("triton") is None:
        return
    interpreter = import_module("triton.runtime.interpreter")
    language = import_module("triton.language")
    convert = interpreter._convert_float

    def convert_nearest(x: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (given, wanted) == (language.float32, language.bfloat16):
            return torch.from_numpy(x.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(x, given, wanted, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert_nearest)


@pytest.fixture(scope="module")
def sums_may_overflow() -> Iterator[None]:
    """The interpreter looks for overflow in every sum. This fixture lets sums overflow, as some of `sample` do on
    purpose.
    """
    from triton.runtime import interpreter

    from rwkv_batch.triton_kernels.launch import is_interpreted
    from rwkv_batch.triton_kernels.sample import unsupported_reason

    if reason := unsupported_reason(CPU if is_interpreted() else torch.device("cuda"), torch.float32, {}):
        pytest.skip(reason)
    if not is_interpreted():
        yield
        return
    builder = interpreter.interpreter_builder
    options = builder.options
    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    yield
    builder.options = options


@pytest.fixture
def device_is_served() -> None:
    """Skips the test where Triton's kernels serve no device."""
    from kernels.glue_cases import modules
    from kernels.shift_cases import DEVICE

    if reason := modules["linear"].unsupported_reason(DEVICE, torch.float32, {}):
        pytest.skip(reason)


@pytest.fixture
def same_number_of_threads_afterwards() -> Iterator[None]:
    """For tests that change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
