"""Arguments of the recurrences over heads, checked, by the names that kernels have for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensor_checks import check, check_all, check_pool

MAX_PENDING = 3
"""Updates of a slot that the kernels can apply, at most."""
Arguments = dict[str, Tensor | None]
"""Name of a kernel's argument → tensor; None where the kernel is launched without it."""


def wkv56_parameters(head: Any, device: torch.device) -> Arguments:
    """Parameters of RWKV-5's and RWKV-6's heads.

    Args:
        head: `Head5`: decay and bonus [H, N], norm weight and bias [A], float32.

    Raises:
        ValueError: a shape, dtype, device or stride differs.
    """
    num_heads, size = head.bonus.shape
    matrices = {"head.decay": head.decay, "head.bonus": head.bonus}
    check_all(matrices, (num_heads, size), torch.float32, device)
    check_all(_norm(head), (num_heads * size,), torch.float32, device)
    return {
        "decay": head.decay,
        "bonus": head.bonus,
        "norm_weight": head.norm.weight,
        "norm_bias": head.norm.bias,
    }


def wkv7_parameters(head: Any, has_residual: bool, device: torch.device) -> Arguments:
    """Parameters of RWKV-7's heads; `v0` is None without the value residual.

    Args:
        head: `Head7`: r_k [H, N]; w0, a0, v0, k_k, k_a, norm weight and bias [A], float32.

    Raises:
        ValueError: a shape, dtype, device or stride differs.
    """
    num_heads, size = head.r_k.shape
    v0 = head.v0 if has_residual else None
    vectors = {"head.w0": head.w0, "head.a0": head.a0, "head.v0": v0, "head.k_k": head.k_k, "head.k_a": head.k_a}
    check_all(vectors, (num_heads * size,), torch.float32, device)
    check_all(_norm(head), (num_heads * size,), torch.float32, device)
    check("head.r_k", head.r_k, (num_heads, size), torch.float32, device)
    return {
        "w0": head.w0,
        "a0": head.a0,
        "v0": v0,
        "k_k": head.k_k,
        "k_a": head.k_a,
        "r_k": head.r_k,
        "norm_weight": head.norm.weight,
        "norm_bias": head.norm.bias,
    }


def check_ring(ring: Tensor, num_heads: int, size: int, device: torch.device) -> int:
    """The slot stride, in elements, of a ring of RWKV-7's updates [P, n - 1, H, 5, N], n from 2 to 4.

    Raises:
        ValueError: the shape, dtype, device, strides or address are others.
    """
    length = ring.shape[1] if ring.dim() > 1 else 0
    stride = check_pool("ring", ring, (length, num_heads, 5, size), (torch.float32,), device)
    if not 1 <= length <= MAX_PENDING:
        raise ValueError(f"ring: got {length} updates for each slot, expected 1 to {MAX_PENDING}")
    if ring.data_ptr() % 16 or stride % 4:
        raise ValueError(
            f"ring: got address {ring.data_ptr():#x} and slots {stride} numbers apart, expected multiples of 16 and 4"
        )
    return stride


def _norm(head: Any) -> dict[str, Tensor]:
    return {"head.norm.weight": head.norm.weight, "head.norm.bias": head.norm.bias}
