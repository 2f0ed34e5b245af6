"""Number formats of weights, activations and states: their names in settings, and PyTorch's dtypes.

torch is imported only when a dtype is asked for, so that a job file is checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

DtypeName = Literal["float32", "bfloat16", "float16"]
StateDtypeName = Literal["float32", "float16"]

DTYPES: tuple[DtypeName, ...] = get_args(DtypeName)
"""Dtypes of weights and activations."""

STATE_DTYPES: tuple[StateDtypeName, ...] = get_args(StateDtypeName)
"""Dtypes of recurrent states. bfloat16 has too few bits: a state drifts by factors within a few thousand tokens."""

SHORT_NAMES: dict[str, DtypeName] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""ChatRWKV's names → the library's."""

SPELLINGS: dict[str, DtypeName] = {**{name: name for name in DTYPES}, **SHORT_NAMES}
"""Every accepted name → the library's name."""


def torch_dtype(name: str) -> torch.dtype:
    """Returns PyTorch's dtype of an accepted name: "float32" and "fp32" are both torch.float32.

    Raises:
        KeyError: the name is not in `SPELLINGS`.
    """
    import torch

    dtype: torch.dtype = getattr(torch, SPELLINGS[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a PyTorch dtype without "torch."; any dtype has one."""
    return str(dtype).removeprefix("torch.")
