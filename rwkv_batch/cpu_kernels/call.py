"""Calls of native kernels: checks of tensors, their addresses in a C struct, and the call."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernel_support.unsupported import UnsupportedReason, no_kernel_for
from .build import library, unavailable

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
MAX_HEAD_SIZE = 256


class RowsStruct(ctypes.Structure):
    """`Rows` of csrc/common.h."""

    _fields_ = (("num_rows", ctypes.c_int64), ("slot", ctypes.c_void_p), ("start", ctypes.c_void_p))


def struct(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    """A C struct whose first field is the rows."""
    return type(name, (ctypes.Structure,), {"_fields_": [("rows", RowsStruct), *fields]})


INT, FLOAT, POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def pointers(*names: str) -> list[tuple[str, Any]]:
    """Pointer fields of a struct."""
    return [(name, POINTER) for name in names]


def _settings(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """The reason why no kernel is written for these settings, if so; the dtype of a state does not matter."""
    if device.type != "cpu":
        return f"runs on a CPU, not on {device}"
    if reason := no_kernel_for(dtype):
        return reason
    if sizes.get("N", 0) > MAX_HEAD_SIZE:
        return f"head size {sizes['N']} is above {MAX_HEAD_SIZE}"
    return None


def _settings_of_state(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    """As `_settings`, for kernels that advance a matrix state, which is float32."""
    return no_kernel_for(state_dtype, (torch.float32,), "a state of ") or _settings(device, dtype, sizes)


unsupported = UnsupportedReason(_settings, lambda *_: unavailable())
unsupported_state = UnsupportedReason(_settings_of_state, lambda *_: unavailable())
"""For kernels that advance a matrix state."""


def address(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
    """The address of a contiguous tensor of exactly this shape and dtype; None for None.

    Raises:
        ValueError: the message names the tensor, what was given and what was expected.
    """
    if tensor is None:
        return None
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}, expected a contiguous "
            f"{dtype} {list(shape)}"
        )
    return tensor.data_ptr()


def pool_address(name: str, state: Tensor, shape: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """Address and slot stride, in elements, of one layer's state [P, *shape], contiguous except for its first axis."""
    strides: list[int] = []
    size = 1
    for axis in reversed(shape):
        strides.insert(0, size)
        size *= axis
    if tuple(state.shape[1:]) != tuple(shape) or list(state.stride()[1:]) != strides or state.dtype != dtype:
        raise ValueError(
            f"{name}: got {state.dtype} {list(state.shape)} with strides {state.stride()}, expected {dtype} "
            f"[P, {', '.join(map(str, shape))}] whose slots are contiguous"
        )
    return state.data_ptr(), state.stride(0)


def kernels() -> ctypes.CDLL:
    """The library, whose kernels then use as many threads as torch's operations do in the calling thread."""
    loaded = library()
    loaded.set_region_threads(torch.get_num_threads())
    return loaded


def run(name: str, params: ctypes.Structure, *others: Any) -> int:
    """Runs a kernel of a forward pass to its end. The tensors behind the addresses must live until then.

    If this thread records calls, the call is added to the recording.

    Args:
        name: of the C function.
        params: the struct that the function takes.
        others: ctypes objects that `params` has the addresses of.

    Returns:
        0, or what is wrong with the inputs, as the kernel says it.
    """
    function = getattr(kernels(), name)
    wrong: int = function(ctypes.byref(params))
    if _thread.calls is not None:
        _thread.calls.append(RecordedCall(function, params, others))
    return wrong


def call(name: str, dtype: torch.dtype, kind: type[ctypes.Structure], rows: Any, **fields: Any) -> None:
    """Runs a kernel whose struct begins with the rows."""
    rows_struct = RowsStruct(rows.num_rows, rows.slot_index.data_ptr(), rows.cu_seqlens.data_ptr())
    run(f"{name}_{DTYPES[dtype]}", kind(rows=rows_struct, **fields))


class RecordedCall(NamedTuple):
    """A call of a kernel, with everything that its struct has the addresses of, but for the tensors."""

    function: Any
    params: ctypes.Structure
    others: tuple[Any, ...]


class _Thread(threading.local):
    """What a thread records."""

    calls: list[RecordedCall] | None = None


_thread = _Thread()


@contextmanager
def recorded_calls() -> Iterator[list[RecordedCall]]:
    """Records the calls of `run` that this thread makes inside the `with` block."""
    calls: list[RecordedCall] = []
    _thread.calls = calls
    try:
        yield calls
    finally:
        _thread.calls = None
