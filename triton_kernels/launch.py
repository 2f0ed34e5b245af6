"""Helpers of all launchers: prepared launches, settings that the Triton kernels serve, and arithmetic on the host."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..kernel_support.unsupported import low_capability, no_kernel_for

STATE_DTYPES = (torch.float32, torch.float16)
MIN_CAPABILITY = (8, 0)
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 128


class _Prepared(NamedTuple):
    """A kernel that is compiled and loaded."""

    compiled: Any
    """Triton's `CompiledKernel`."""
    constants: tuple[Any, ...]
    """Values of the parameters after the run-time arguments."""


_prepared: dict[Hashable, _Prepared] = {}


def start_kernel(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Launches a kernel on the current device and stream.

    Triton binds and specializes the arguments of each launch anew, which takes most of the host's time for it. Here it
    does so in the first launch of a kind: arguments that differ in nothing that Triton compiles for. Later launches go
    to the kernel that it has compiled then. On AMD's GPUs, where Triton also compiles for the size of tensors, and in
    the interpreter, each launch is Triton's own.

    Args:
        kernel: a `@triton.jit` function of this package.
        grid: programs in each dimension.
        arguments: the run-time arguments, in order: tensors, numbers and None.
        constants: the remaining parameters, and the launch options.
    """
    if torch.version.hip is not None or is_interpreted():
        kernel[grid](*arguments, **constants)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = (id(kernel), device, *map(_kind, arguments), *constants, *constants.values())
    prepared = _prepared.get(key)
    if prepared is None:
        compiled = kernel[grid](*arguments, **constants)
        if compiled is not None:  # a hook of Triton can keep a kernel from being compiled
            rest = kernel.arg_names[len(arguments) :]
            _prepared[key] = _Prepared(compiled, tuple(constants[name] for name in rest))
    else:
        prepared.compiled[(*grid, 1, 1)[:3]](*arguments, *prepared.constants)


def _kind(argument: Any) -> Any:
    """All that Triton compiles for in an argument; it may tell kinds apart that Triton does not."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return type(argument)


@cache
def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors in host memory. Decided when triton is imported."""
    return bool(triton.knobs.runtime.interpret)


def unsupported(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """The reason why kernels cannot serve with these settings, if so. Compiles nothing; probe.py does that."""
    if device.type == "cpu":
        if not is_interpreted():
            return "runs on a GPU, not on a CPU"
    elif device.type != "cuda":
        return f"runs on a CUDA or ROCm device, not on {device.type}"
    elif torch.version.hip is None and (reason := low_capability(device, MIN_CAPABILITY)):
        return reason
    return no_kernel_for(dtype) or no_kernel_for(state_dtype, STATE_DTYPES, "a state of ")


def unsupported_heads(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """As `unsupported`, for kernels that keep the state of a head [N, N] in registers."""
    size = sizes.get("N", MIN_HEAD_SIZE)
    if size & (size - 1) or not MIN_HEAD_SIZE <= size <= MAX_HEAD_SIZE:
        return f"head size {size} is not a power of two from {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE}"
    return unsupported(device, dtype, sizes, state_dtype)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up. `triton.cdiv` is for kernels: on the host it takes a microsecond."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n > 0."""
    return 1 << (n - 1).bit_length()
