"""Checks of the tensors that a GPU kernel is given, in Triton or CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


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


def check_all(
    tensors: Mapping[str, Tensor | None], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """As `check`, for tensors of one shape and dtype, by name; None is not checked."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check(name, tensor, shape, dtype, device)


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
