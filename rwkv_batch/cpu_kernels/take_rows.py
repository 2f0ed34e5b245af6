"""Copies of rows of a table; see `take_rows` in models/blocks.py for the definition."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .call import INT, address, pointers, run
from .call import unsupported as unsupported_reason

__all__ = ["take_rows", "unsupported_reason"]


class TakeRows(ctypes.Structure):
    """`TakeRows` of csrc/rows.cpp."""

    _fields_ = (("table_rows", INT), ("num_rows", INT), ("row_bytes", INT), *pointers("table", "index", "out"))


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """As the definition."""
    num_rows, width = table.shape
    out = torch.empty(len(index), width, dtype=table.dtype, device="cpu")
    arguments = TakeRows(
        table_rows=num_rows,
        num_rows=len(index),
        row_bytes=width * table.itemsize,
        table=address("table", table, (num_rows, width), table.dtype),
        index=address("index", index, (len(index),), torch.int64),
        out=out.data_ptr(),
    )
    if bad := run("take_rows", arguments):
        raise IndexError(f"index: got {int(index[bad - 1])} at {bad - 1}, expected 0 to {num_rows - 1}")
    return out
