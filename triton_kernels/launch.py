"""What every launcher shares: why a kernel cannot serve, and checks of what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATE_DTYPES = (torch.float32, torch.float16)
MIN_CAPABILITY = (8, 0)
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 128


def is_interpreted() -> bool:
    """Kernels run in Triton's interpreter, on tensors in host memory. Decided when triton is imported."""
    return bool(triton.knobs.runtime.interpret)


def unsupported(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """Why these kernels cannot serve, if so."""
    if device.type == "cpu":
        if not is_interpreted():
            return "runs on a GPU, not on a CPU"
    elif device.type != "cuda":
        return f"runs on a CUDA or ROCm device, not on {device.type}"
    elif torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"needs compute capability {'.'.join(map(str, MIN_CAPABILITY))}, found {found}"
    if dtype not in DTYPES:
        return f"no kernel for {dtype}"
    if state_dtype not in STATE_DTYPES:
        return f"no kernel for a state of {state_dtype}"
    return None


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


def check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor, if it is contiguous, of exactly this shape and dtype, and on this device.

    Raises:
        ValueError: the message names the tensor, what was given and what was expected.
    """
    if (
        tuple(tensor.shape) != tuple(shape)
        or tensor.dtype != dtype
        or tensor.device != device
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"{name}: got {tensor.dtype} {list(tensor.shape)} on {tensor.device} with strides {tensor.stride()}, "
            f"expected a contiguous {dtype} {list(shape)} on {device}"
        )
    return tensor


def check_pool(
    name: str, state: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device
) -> int:
    """The slot stride, in elements, of one layer's state [P, *shape] on this device, contiguous but for its first axis.

    Raises:
        ValueError: the message names the tensor, what was given and what was expected.
    """
    strides: list[int] = []
    size = 1
    for axis in reversed(shape):
        strides.insert(0, size)
        size *= axis
    if (
        tuple(state.shape[1:]) != tuple(shape)
        or list(state.stride()[1:]) != strides
        or state.dtype not in dtypes
        or state.device != device
        or len(state) == 0
    ):
        raise ValueError(
            f"{name}: got {state.dtype} {list(state.shape)} on {state.device} with strides {state.stride()}, expected "
            f"{' or '.join(map(str, dtypes))} [P, {', '.join(map(str, shape))}] on {device} whose slots are contiguous"
        )
    return state.stride(0)
