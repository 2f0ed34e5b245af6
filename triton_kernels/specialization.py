"""What a launch compiles: enough to compile the same ahead of time, for a device that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Specialization:
    """One compilation of a kernel. All of them are made with `enable_fp_fusion`.

    Args:
        label: what tells it from the kernel's others, for messages.
        kernel: the `@triton.jit` function.
        signature: run-time argument → Triton type. Pointers are aligned to 16 bytes.
        constexprs: compile-time argument → value; None for a pointer that is not given.
        num_warps, num_stages: as at the launch.
        is_probe: the hardest of the kernel's specializations to compile; each module has one for each of its kernels.
            A compiler that makes these is taken to make the others too.
    """

    label: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    is_probe: bool = False


def pointers(dtype: str, *names: str) -> dict[str, str]:
    """The signature of pointer arguments `p_<name>` to one dtype."""
    return {f"p_{name}": f"*{dtype}" for name in names}
