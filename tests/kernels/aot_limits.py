"""Limits of compiled kernels, and the faults of a compilation that exceeds them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rwkv_batch.checks.calls import RECURRENCES

Compiled = Mapping[str, Any]
"""The line that `aot_worker.py` prints for a specialization."""

# Matrix instructions that take operands of each type; a product of float32 numbers takes none.
MMA = {"bf16": r"mma\.sync.*\.bf16\.bf16", "fp16": r"mma\.sync.*\.f16\.f16", "i8": r"mma\.sync.*\.s8\.s8"}
WGMMA = {"bf16": r"wgmma.*\.bf16\.bf16", "fp16": r"wgmma.*\.f16\.f16", "i8": r"wgmma.*\.s8\.s8"}
TCGEN05 = {
    "bf16": r"tcgen05\.mma.*kind::f16",
    "fp16": r"tcgen05\.mma.*kind::f16",
    "i8": rf"tcgen05\.mma.*kind::i8|{MMA['i8']}",  # Triton has tcgen05's for int8 from version 3.8 on
}
MFMA = {"bf16": r"v_mfma_f32_\w+_bf16", "fp16": r"v_mfma_f32_\w+_f16", "i8": r"v_mfma_i32_\w+_i8"}


class Target(NamedTuple):
    """A GPU that kernels are compiled for."""

    backend: str
    architecture: str
    warp_size: int
    shared_bytes: int
    """Shared memory that one program can have."""
    wide: Mapping[str, str]
    """Matrix instructions of a product whose first operand has 64 rows or more."""
    narrow: Mapping[str, str]
    """Matrix instructions of a product whose first operand has fewer rows."""


TARGETS = {
    "sm_80": Target("cuda", "80", 32, 163 << 10, MMA, MMA),
    "sm_86": Target("cuda", "86", 32, 99 << 10, MMA, MMA),
    "sm_89": Target("cuda", "89", 32, 99 << 10, MMA, MMA),
    "sm_90": Target("cuda", "90", 32, 227 << 10, WGMMA, MMA),
    "sm_100": Target("cuda", "100", 32, 227 << 10, TCGEN05, MMA),
    "sm_120": Target("cuda", "120", 32, 99 << 10, MMA, MMA),
    "gfx942": Target("hip", "gfx942", 64, 64 << 10, MFMA, MFMA),
}

FIRST_OPERAND = {
    "linear_kernel": ("p_x", "BLOCK_N"),
    "down_kernel": ("p_x", "BLOCK_M"),
    "up_kernel": ("p_low", "BLOCK_M"),
    "project_kernel": ("p_x", "BLOCK_N"),
    "mm8_kernel": ("p_inputs", "BLOCK_N"),
    "w8a8_kernel": ("p_x", "BLOCK_N"),
    "score_kernel": ("p_x", "ROWS"),
    "deep_embed_kernel": ("p_normed", "BLOCK_M"),
}
"""Kernels with matrix products: an argument that has the type of the operands, and the rows of the first operand."""


class Spill(NamedTuple):
    """Local memory that some compilations may have, in bytes a thread."""

    kernel: str
    targets: tuple[str, ...]
    versions: tuple[str, ...]
    num_bytes: int
    reason: str


CUDA_TARGETS = tuple(name for name, target in TARGETS.items() if target.backend == "cuda")
ANY_VERSION = ("3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0")
MAX_SPILL = 64
"""Local memory of kernels other than the recurrences, in bytes a thread. Each version of the assembler spills a few
numbers in another kernel. Recurrences have none, except for `SPILLS`."""
SPILLS = (
    Spill(
        "select_kernel",
        CUDA_TARGETS,
        ANY_VERSION,
        128,
        "The assembler keeps the kernel at 128 registers, so that two programs fit a multiprocessor.",
    ),
    Spill(
        "mm8_kernel",
        ("sm_100",),
        ANY_VERSION,
        600,
        "The sums of the tile of 128 x 128 leave tensor memory all at once, after the loop. A tile of half the size "
        "spills nothing, but takes 1.7 times the instructions in the loop for the same product.",
    ),
    *(
        Spill(
            kernel,
            CUDA_TARGETS,
            ("3.7.0", "3.7.1"),
            16,
            "These versions' assembler keeps the kernel at 168 registers, where it needs up to four more.",
        )
        for kernel in ("wkv56_kernel", "wkv7_kernel")
    ),
)

LOOPS = {
    ("wkv4", "fp32"): (304, 332),
    ("wkv5", "fp32"): (402, 455),
    ("wkv5", "fp16"): (963, 1294),
    ("wkv6", "fp32"): (430, 638),
    ("wkv6", "fp16"): (992, 1405),
    ("wkv7", "fp32"): (717, 1196),
    ("wkv7", "fp16"): (1308, 1887),
}
"""Module and dtype of the state → instructions of a warp for one token, on NVIDIA's GPUs and on AMD's. That is a
tenth more than any version of Triton needs for the loop over tokens."""

WIDE_ACCESS = {"cuda": (r"LDG\.E\.128", r"STG\.E\.128"), "hip": (r"global_load_dwordx4", r"global_store_dwordx4")}
"""Loads and stores of 16 bytes a thread."""
NORM_INSTRUCTIONS = ("FADD", "FMUL", "FFMA", "MUFU", "SHFL")


def faults(found: Compiled, target: str, version: str) -> list[str]:
    """Faults of one compilation: sentences about numbers beyond the limits."""
    if "error" in found:
        return [found["error"]]
    return [
        *_resource_faults(found, target, version),
        *_loop_faults(found),
        *_matrix_faults(found, target),
        *_state_faults(found, target),
    ]


def _resource_faults(found: Compiled, target: str, version: str) -> Iterator[str]:
    allowed = TARGETS[target].shared_bytes
    if found["shared"] > allowed:
        yield f"{found['shared']} bytes of shared memory, a program can have {allowed}"
    allowed = _allowed_spill(found, target, version)
    if found["spilled"] > allowed:
        yield f"{found['spilled']} bytes of local memory a thread, expected at most {allowed}"


def _loop_faults(found: Compiled) -> Iterator[str]:
    """A loop ends for all threads of a program at once, because they meet at barriers inside.

    A sum of floats can differ between threads in its last bit: each thread adds its own product, which the compiler
    does not round, to a neighbor's, which it does. A loop whose length depends on such a sum can wait forever.
    """
    if count := found["sums_before_loops"]:
        yield f"{count} sums of floats before a loop whose length depends on data, expected sums of integers"


def _allowed_spill(found: Compiled, target: str, version: str) -> int:
    for spill in SPILLS:
        if spill.kernel == found["kernel"] and target in spill.targets and version in spill.versions:
            return spill.num_bytes
    return 0 if found["module"] in RECURRENCES else MAX_SPILL


def _matrix_faults(found: Compiled, target: str) -> Iterator[str]:
    used = found["matrix"]
    if found["kernel"] not in FIRST_OPERAND:
        if used:
            yield f"matrix instructions {used}, expected none"
        return
    argument, rows = FIRST_OPERAND[found["kernel"]]
    operand = found["signature"][argument].removeprefix("*")
    if operand == "fp32":
        rounded = [name for name in used if not re.fullmatch(r"v_mfma_f32_\w+_f32", name)]
        if rounded:
            yield f"a product of float32 numbers by {rounded}, expected full precision"
        return
    instructions = TARGETS[target].wide if found["constexprs"][rows] >= 64 else TARGETS[target].narrow
    if not used or not all(re.match(instructions[operand], name) for name in used):
        yield f"a product of {operand} by {used}, expected {instructions[operand]}"


def _state_faults(found: Compiled, target: str) -> Iterator[str]:
    """A recurrence reads and writes its state 16 bytes at a time, and has few instructions for each token."""
    if found["module"] not in RECURRENCES:
        return
    backend, _, warp_size, *_ = TARGETS[target]
    instructions = Counter(found["instructions"])
    num_tensors, num_bytes = _state_of_program(found)
    expected = num_tensors * (num_bytes // (16 * warp_size * found["num_warps"]))
    for pattern in WIDE_ACCESS[backend]:
        wide = sum(count for name, count in instructions.items() if re.match(pattern, name))
        if wide < expected:
            yield f"{wide} of {pattern}, expected {expected} for the state"
    kind, num_instructions = (found["module"], _state_dtype(found)), max(found["loops"])
    if kind not in LOOPS:
        yield f"{num_instructions} instructions a token, expected a limit for {kind} in LOOPS of aot_limits.py"
    elif num_instructions > LOOPS[kind][backend == "hip"]:
        yield f"{num_instructions} instructions a token, expected at most {LOOPS[kind][backend == 'hip']}"


def _state_dtype(found: Compiled) -> str:
    return found["signature"].get("p_state", "*fp32").removeprefix("*")


def _state_of_program(found: Compiled) -> tuple[int, int]:
    """Tensors of the state that one program holds, and bytes of each: a head, or a block of channels without heads."""
    recurrence, constexprs = RECURRENCES[found["module"]], found["constexprs"]
    shapes = recurrence.states(1, constexprs["N"] if recurrence.has_heads else constexprs["BLOCK"])
    return len(shapes), math.prod(next(iter(shapes.values()))) * (4 if _state_dtype(found) == "fp32" else 2)


def twin_faults(all_found: Sequence[Compiled]) -> list[str]:
    """Compilations in which `shift_lerp` computes a token's norm in another way for decode steps than for prompts.

    A decode step has one norm, a prompt has two: of this token, and of the one before it. What follows is the same in
    both: for each of a thread's channels one difference, in float32 or in a half type, and `NUM_MIXES` interpolations.
    If all norms are computed alike, then twice the instructions of a decode step are those of a prompt and of what
    follows, for each kind of instruction. A product and a sum that became one instruction in one of the two break that.
    """
    twins = {found["label"]: found for found in all_found if found["kernel"] == "shift_lerp_kernel"}
    reasons = []
    for label, decode in twins.items():
        prompt = twins.get(label.replace("decode", "prefill"), decode)
        if prompt is decode:
            continue
        channels = decode["constexprs"]["BLOCK"] // (32 * decode["num_warps"])
        follows = {"FADD": (0, channels), "FFMA": (channels * decode["constexprs"]["NUM_MIXES"],)}
        one, two = _arithmetic(decode), _arithmetic(prompt)
        for name in NORM_INSTRUCTIONS:
            if 2 * one[name] - two[name] not in follows.get(name, (0,)):
                reasons.append(f"{label}: {one[name]} of {name}, for prompts {two[name]}, expected one norm more there")
    return reasons


def _arithmetic(found: Compiled) -> Counter[str]:
    """Counts of instructions; an instruction for two numbers counts as two. FHADD and FHFMA are FADD and FFMA
    with an operand of 16 bits.
    """
    counts: Counter[str] = Counter()
    for name, count in found["instructions"].items():
        base = name.split(".")[0].replace("FHADD", "FADD").replace("FHFMA", "FFMA")
        if base.endswith("2") and base[:-1] in NORM_INSTRUCTIONS:
            base, count = base[:-1], 2 * count
        counts[base] += count
    return counts
