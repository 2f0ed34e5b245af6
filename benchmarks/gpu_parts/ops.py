"""The ops of the kernel packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rwkv_batch.checks.target import Target


def op(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    state_dtype: torch.dtype = torch.float32,
    backend: str = "triton",
    **sizes: int,
) -> Callable[..., Any]:
    """An op's function, by default Triton's; `Target.op` has the errors."""
    return Target(backend, device).op(name, dtype, state_dtype, **sizes)


def backends(is_rehearsal: bool) -> dict[str, str]:
    """Kernel package → what marks an op's name in results. CUDA kernels cannot be rehearsed."""
    return {"triton": ""} if is_rehearsal else {"triton": "", "cuda": "/cuda"}
