"""Helpers of all launchers: settings that the Triton kernels serve, and integer arithmetic on the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton

from ..kernel_support.unsupported import low_capability, no_kernel_for

STATE_DTYPES = (torch.float32, torch.float16)
MIN_CAPABILITY = (8, 0)
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 128


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
