"""Helpers of all launchers: settings that the CUDA kernels serve, builds for `unsupported_reason`, and the launch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..kernel_support.builds import in_short, is_out_of_memory
from ..kernel_support.unsupported import Settings, UnsupportedReason, low_capability, no_kernel_for
from . import driver
from .build import BuildError, Specialization, unavailable

DTYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "f16"}
"""dtype → the type's name in the sources."""
STATE_DTYPES = (torch.float32, torch.float16)
MIN_CAPABILITY = (7, 0)
HEAD_SIZES = (16, 32, 64, 128)
PACK_BYTES = 16
"""Bytes that a thread loads at once, at most."""

HostRunner = Callable[[Specialization, Sequence[int], int, ctypes.Structure, Mapping[str, Tensor]], None]
host_runner: HostRunner | None = None
"""A function that runs a kernel on tensors in host memory; None unless a test sets an emulator."""


def unsupported(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """The reason why kernels cannot serve with these settings, if so. Compiles nothing; `built` does."""
    if device.type == "cpu":
        if host_runner is None:
            return "runs on a GPU, not on a CPU"
    elif device.type != "cuda" or torch.version.hip is not None:
        return f"runs on a CUDA device, not on {'ROCm' if device.type == 'cuda' else device.type}"
    elif reason := low_capability(device, MIN_CAPABILITY):
        return reason
    return no_kernel_for(dtype) or no_kernel_for(state_dtype, STATE_DTYPES, "a state of ")


def unsupported_heads(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """As `unsupported`, for kernels that keep the state of a head [N, N] in registers."""
    size = sizes.get("N", HEAD_SIZES[0])
    if size not in HEAD_SIZES:
        return f"head size {size} is not one of {', '.join(map(str, HEAD_SIZES))}"
    return unsupported(device, dtype, sizes, state_dtype)


def built(op: str, settings: Settings = unsupported) -> UnsupportedReason:
    """The `unsupported_reason` of an op: the reason of `settings`, else why its kernels cannot be built or loaded.

    A call compiles and loads one specialization of each kernel. A recurrence has one only for a dtype, a dtype of the
    state and a head size, so that no step of the model loads it later.
    """
    return UnsupportedReason(settings, partial(_build_failure, op))


def _build_failure(
    op: str, device: torch.device, dtype: torch.dtype, sizes: Mapping[str, int], state_dtype: torch.dtype
) -> str | None:
    """The reason why a kernel cannot be compiled or loaded, if so; tries the last specialization of each, the hardest.

    Raises:
        OSError, RuntimeError: out of memory, which is no fault of the kernels.
    """
    if device.type != "cuda":
        return None
    if reason := unavailable():
        return reason
    major, minor = torch.cuda.get_device_capability(device)
    specs = import_module(f".{op}", __package__).specializations()
    fitting = [s for s in specs if f"DTYPE={DTYPES[dtype]}" in s.defines and s.min_architecture <= 10 * major + minor]
    own = [_for_model(spec, sizes, state_dtype) for spec in fitting]
    try:
        for spec in {spec.kernel: spec for spec in own}.values():
            driver.load(device, spec)
    except (BuildError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return in_short(str(error))
    return None


def _for_model(spec: Specialization, sizes: Mapping[str, int], state_dtype: torch.dtype) -> Specialization:
    """The specialization for a model's head size and dtype of the state, where the kernel is compiled for them."""
    values = {"STATE": DTYPES[state_dtype]}
    if "N" in sizes:
        values["SIZE"] = str(sizes["N"])
    pairs = (define.split("=", 1) for define in spec.defines)
    return spec._replace(defines=tuple(f"{name}={values.get(name, value)}" for name, value in pairs))


def vector_width(sizes: Sequence[int], tensors: Sequence[Tensor | None]) -> int:
    """Numbers of one dtype that a thread can load at once, 1, 2 or 4: all sizes and addresses are multiples of it."""
    given = [tensor for tensor in tensors if tensor is not None]
    for count in (4, 2):
        is_whole = all(size % count == 0 for size in sizes)
        if is_whole and all(tensor.data_ptr() % (count * tensor.element_size()) == 0 for tensor in given):
            return count
    return 1


class Kernel:
    """A kernel of one parameter, a struct.

    Args:
        name: the name of its source file and of its function.
        pointers, int64s, int32s, floats: the struct's fields, in this order.
    """

    def __init__(
        self,
        name: str,
        pointers: Sequence[str],
        int64s: Sequence[str] = (),
        int32s: Sequence[str] = (),
        floats: Sequence[str] = (),
    ) -> None:
        kinds = (
            (pointers, ctypes.c_void_p),
            (int64s, ctypes.c_int64),
            (int32s, ctypes.c_int),
            (floats, ctypes.c_float),
        )
        self.name = name
        self.fields = [(field, kind) for names, kind in kinds for field in names]
        self._params: type[ctypes.Structure] = type(f"{name}_params", (ctypes.Structure,), {"_fields_": self.fields})

    def launch(self, defines: Sequence[str], grid: Sequence[int], threads: int, **values: Any) -> None:
        """Launches the kernel on the device of its tensors; None becomes a null pointer.

        Args:
            grid: blocks, [x] or [x, y].
            threads: threads of a block.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        params = self._params(**(values | addresses))
        spec = Specialization(self.name, tuple(defines))
        device = next(iter(tensors.values())).device
        x, y = (*grid, 1)[:2]
        if device.type == "cpu" and host_runner is not None:
            host_runner(spec, (x, y), threads, params, tensors)
        else:
            driver.launch(device, spec, (x, y), threads, params)
