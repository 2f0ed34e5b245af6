"""What a launch compiles: enough to compile the same ahead of time, for a device that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Specialization:
    """One compilation of a kernel.

    Args:
        label: what tells it from the kernel's others, for messages.
        kernel: the `@triton.jit` function.
        signature: run-time argument → Triton type. Pointers are aligned to 16 bytes.
        constexprs: compile-time argument → value; None for a pointer that is not given.
        num_warps, num_stages, enable_fp_fusion: as at the launch.
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
    enable_fp_fusion: bool = True


def compile_for(spec: Specialization, target: GPUTarget) -> Any:
    """A specialization, compiled by Triton for a device that need not be there.

    Returns:
        Triton's `CompiledKernel`: `metadata.shared` is its shared memory in bytes, `asm` what it was compiled to.

    Raises:
        Exception: whatever Triton raises where it fails.
    """
    names = spec.kernel.arg_names
    signature = {name: "constexpr" if name in spec.constexprs else spec.signature[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constexprs = {(names.index(name),): value for name, value in spec.constexprs.items()}
    source = ASTSource(fn=spec.kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    options = {name: getattr(spec, name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    return triton.compile(source, target=target, options=options)


def pointers(dtype: str, *names: str) -> dict[str, str]:
    """The signature of pointer arguments `p_<name>` to one dtype."""
    return {f"p_{name}": f"*{dtype}" for name in names}
