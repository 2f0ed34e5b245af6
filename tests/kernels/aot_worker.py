"""Compiles every specialization of some kernel modules for one target, and prints what came out as JSON.

    python aot_worker.py <backend> <architecture> <warp size> <module> ...

A process of its own: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_one(spec: Any, target: GPUTarget) -> dict[str, Any]:
    """Registers, spills and shared memory of one specialization, and which matrix instructions it has."""
    names = spec.kernel.arg_names
    signature = {name: "constexpr" if name in spec.constexprs else spec.signature[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constexprs = {(names.index(name),): value for name, value in spec.constexprs.items()}
    source = ASTSource(fn=spec.kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=target, options=options)
    found: dict[str, Any] = {"label": spec.label, "kernel": spec.kernel.__name__, "shared": compiled.metadata.shared}
    if target.backend == "cuda":
        return found | _read_cubin(compiled.asm["cubin"]) | {"wgmma": "wgmma.mma_async" in compiled.asm["ptx"]}
    return found | _read_amdgcn(compiled.asm["amdgcn"])


def _read_cubin(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled": stack + local}


def _read_amdgcn(text: str) -> dict[str, int]:
    counts = (re.search(rf"\.{name}:\s*(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count"))
    registers, spilled = (int(match[1]) for match in counts)
    return {"registers": registers, "spilled": spilled}


def main() -> None:
    backend, architecture, warp_size, *modules = sys.argv[1:]
    target = GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp_size))
    found = {}
    for module in modules:
        specs = import_module(f"rwkv_batch.triton_kernels.{module}").specializations()
        found[module] = [compile_one(spec, target) for spec in specs]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
