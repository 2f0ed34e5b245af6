"""Compiles specializations of some kernel modules for one target, and prints what came out, a line of JSON each.

    python aot_worker.py <backend> <architecture> <warp size> <module>[:probes] ...

The Triton that this process imports compiles the kernels. A process that interprets kernels cannot compile them, so
that this is one of its own. Of a module with `:probes` one specialization of each kernel is compiled. The line of a
specialization that does not compile has an `error`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from rwkv_batch.checks.calls import RECURRENCES
from rwkv_batch.triton_kernels.specialization import Specialization, compile_for

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
COUNTED = {*RECURRENCES, "shift_lerp"}
"""Modules whose kernels' instructions are counted."""
PACKED = ("FADD2", "FMUL2", "FFMA2")
MATRIX_PTX = r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*"
SASS = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)(.*)")
GCN = re.compile(r"^\t([a-z]\w+)(.*)")
JUMP_SASS = re.compile(r"`\((\.L_\w+)\)")
JUMP_GCN = re.compile(r"(\.LBB\w+)")
FLOAT_SUM = re.compile(r'"tt\.reduce"[^\n]*\n[^\n]*\n[^\n]*arith\.addf')


def compile_one(spec: Specialization, target: GPUTarget, is_counted: bool) -> dict[str, Any]:
    """Resources and, where they are counted, instructions of one specialization."""
    compiled = compile_for(spec, target)
    found = {
        "shared": compiled.metadata.shared,
        "num_warps": spec.num_warps,
        "constexprs": dict(spec.constexprs),
        "signature": dict(spec.signature),
        "sums_before_loops": _sums_before_loops(compiled.asm["ttir"]),
    }
    if target.backend == "cuda":
        matrix = sorted(set(re.findall(MATRIX_PTX, compiled.asm["ptx"])))
        return found | {"matrix": matrix} | _read_cubin(compiled.asm["cubin"], is_counted)
    return found | _read_amdgcn(compiled.asm["amdgcn"], is_counted)


def _sums_before_loops(ttir: str) -> int:
    """The number of sums of floats over threads that come before the last loop whose length depends on data."""
    return len(FLOAT_SUM.findall(ttir, 0, max(ttir.rfind("scf.while"), 0)))


def _read_cubin(cubin: bytes, is_counted: bool) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        counts = _count(_run("nvdisasm", "-c", file.name), SASS, JUMP_SASS) if is_counted else {}
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled": stack + local} | counts


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def _read_amdgcn(text: str, is_counted: bool) -> dict[str, Any]:
    counts = (re.search(rf"\.{name}:\s*(\d+)", text) for name in ("vgpr_count", "private_segment_fixed_size"))
    registers, spilled = (int(match[1]) for match in counts)
    matrix = sorted(set(re.findall(r"v_s?mfmac?_\w+", text)))
    found = {"registers": registers, "spilled": spilled, "matrix": matrix}
    return found | (_count(text, GCN, JUMP_GCN) if is_counted else {})


def _count(text: str, instruction: re.Pattern[str], jump: re.Pattern[str]) -> dict[str, Any]:
    """Counts of instructions, and the number of instructions between a label and each jump back to it.

    An instruction for two numbers has a name that ends in 2. Where none of its operands is a pair it computes one
    number, and is counted as that.
    """
    counts: Counter[str] = Counter()
    places: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            places[label[1]] = counts.total()
        elif found := instruction.match(line):
            name, operands = found.groups()
            is_single = name in PACKED and "HI_LO" not in operands
            counts[name.removesuffix("2") if is_single else name] += 1
            target = jump.search(operands)
            if target and target[1] in places:
                loops.append(counts.total() - places[target[1]])
    return {"instructions": dict(counts), "loops": loops}


def main() -> None:
    backend, architecture, warp_size, *chosen = sys.argv[1:]
    target = GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp_size))
    for module, _, which in (one.partition(":") for one in chosen):
        for spec in import_module(f"rwkv_batch.triton_kernels.{module}").specializations():
            if which == "probes" and not spec.is_probe:
                continue
            found = {"module": module, "kernel": spec.kernel.__name__, "label": spec.label}
            start = time.monotonic()
            try:
                found |= compile_one(spec, target, module in COUNTED)
            except Exception as error:
                found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}"
            print(json.dumps(found | {"seconds": round(time.monotonic() - start, 2)}), flush=True)


if __name__ == "__main__":
    main()
