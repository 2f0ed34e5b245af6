"""Compilations of kernels, described so that they can be made ahead of time, for a device that this machine lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Specialization:
    """A compilation of a kernel.

    Args:
        label: tells it from the kernel's other specializations, in messages.
        kernel: the `@triton.jit` function.
        signature: run-time argument → Triton type. Pointers are aligned to 16 bytes.
        constexprs: compile-time argument → value; None for a pointer argument that is None.
        num_warps, num_stages, enable_fp_fusion: as at the launch.
        is_probe: the kernel's specialization that is hardest to compile; one for each kernel of a module. A compiler
            that compiles it is assumed to compile the others.
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
    """Compiles a specialization for a device that this machine need not have.

    Returns:
        Triton's `CompiledKernel`: `metadata.shared` is its shared memory in bytes, `asm` its code in each form.

    Raises:
        Exception: any error of Triton's.
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
