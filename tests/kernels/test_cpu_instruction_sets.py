"""The native CPU kernels for each instruction set: run on this processor or in an emulator, compiled and disassembled.

`cpu_check.cpp` compares the kernels with plain loops. `make kernels` runs it for every instruction set of x86 that this
processor has, and for those of ARM in QEMU; `make test` for AVX2.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from rwkv_batch.cpu_kernels import build

PROGRAM = Path(__file__).with_name("cpu_check.cpp")
SOURCES = [build.SOURCES / f"{name}.cpp" for name in ("linear", "mm8", "w8a8", "parallel")]
ROUNDS = 5
CROSS = "aarch64-linux-gnu-"
FLOAT, HALF, BRAIN, BYTE = (rf"(AsFloat|Dense)<{name}\b" for name in ("float", "f16", "bf16", "signed char"))
PAIRS, INT8, INT16 = r"(Bf16Pairs|Dense<bf16)\b", r"Int8\b", r"Int16(ByInt8)?\b"
"""Expressions that functions of a kind of weight have in their names."""


class Target(NamedTuple):
    """An instruction set."""

    flags: str
    needs: str
    """Features of /proc/cpuinfo of processors that have it, or for ARM a processor that QEMU emulates."""
    instructions: dict[str, str]
    """Of inner loops: which functions → the instruction, with a register of the vectors' width."""


AVX_512 = "avx512f avx512bw avx512cd avx512dq avx512vl"
X86 = {
    "SSE2": Target("-march=x86-64", "", {FLOAT: "mulps", INT8: "pmaddwd|pmuludq|pmulhw"}),
    "AVX2": Target(
        "-march=x86-64-v3",
        "avx2 fma f16c",
        {FLOAT: r"vfmadd\S+ .*ymm", HALF: "vcvtph2ps .*ymm", BRAIN: "vfmadd.* .*ymm", INT16: "vpmaddwd .*ymm"},
    ),
    "AVX-VNNI": Target(
        "-march=x86-64-v3 -mavxvnni", "avx2 fma f16c avx_vnni", {INT8: "vpdpbusd .*ymm", INT16: "vpdpwssd .*ymm"}
    ),
    "AVX-512": Target(
        "-march=x86-64-v4",
        AVX_512,
        {FLOAT: r"vfmadd\S+ .*zmm", HALF: "vcvtph2ps .*zmm", BRAIN: r"vfmadd\S+ .*zmm", INT16: "vpmaddwd .*zmm"},
    ),
    "AVX-512 with VNNI": Target(
        "-march=x86-64-v4 -mavx512vnni",
        f"{AVX_512} avx512_vnni",
        {INT8: "vpdpbusd .*zmm", INT16: "vpdpwssd .*zmm", BYTE: "vpmovsxbd .*zmm"},
    ),
    "AVX-512 with VNNI and bfloat16": Target(
        "-march=x86-64-v4 -mavx512vnni -mavx512bf16",
        f"{AVX_512} avx512_vnni avx512_bf16",
        {PAIRS: "vdpbf16ps .*zmm", INT8: "vpdpbusd .*zmm"},
    ),
    "AMX": Target(
        "-march=sapphirerapids",
        f"{AVX_512} avx512_vnni avx512_bf16 avx512_fp16 amx_tile",
        {PAIRS: "vdpbf16ps .*zmm", INT8: "vpdpbusd .*zmm", INT16: "vpdpwssd .*zmm"},
    ),
}
ARM = {
    "ARMv8.0": Target(
        "-march=armv8-a",
        "cortex-a53",
        {FLOAT: r"fmla .*\.4s", HALF: "fcvtl", BYTE: "scvtf", INT8: r"smlal2 .*\.4s", INT16: r"smlal2 .*\.4s"},
    ),
    "dot product": Target("-march=armv8.2-a+dotprod", "cortex-a76", {INT8: "sdot", INT16: "smlal2"}),
    "i8mm and bfloat16": Target("-march=armv8.6-a", "max", {PAIRS: "bfdot", INT8: "sdot"}),
}
OTHER_COMPILERS = ("g++-11", "clang++", "clang++-16")
IN_GATE = ("AVX2",)
"""Run by `make test`. Other tests run the native library, and `test_cpu_products.py` emulates further processors."""


def of_gate(names: tuple[str, ...], chosen: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.soak]) for name in names]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def lacks(target: Target) -> set[str]:
    """What this processor lacks for a target of x86."""
    return {*target.needs.split()} - {*build._processor().split()}


def compiled(compiler: str, flags: str, sources: list[Path], out: Path) -> Path:
    every = build.FLAGS.replace(build.NATIVE, flags).split()
    command = [tool(compiler), *every, "-I", str(build.SOURCES), *map(str, sources), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def assert_right(*command: str) -> None:
    done = subprocess.run([*command, str(ROUNDS)], capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("name", of_gate(tuple(X86), IN_GATE))
def test_kernels_of_x86(name: str, tmp_path: Path) -> None:
    target = X86[name]
    if "x86_64" not in build._key():
        pytest.skip("needs a processor of x86")
    if missing := lacks(target):
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    assert_right(str(compiled("g++", target.flags, [PROGRAM, *SOURCES], tmp_path / "check")))


@pytest.mark.soak
@pytest.mark.parametrize("name", ARM)
def test_kernels_of_arm(name: str, tmp_path: Path) -> None:
    target = ARM[name]
    emulator = tool("qemu-aarch64")
    program = compiled(f"{CROSS}g++", f"{target.flags} -static", [PROGRAM, *SOURCES], tmp_path / "check")
    assert_right(emulator, "-cpu", target.needs, str(program))


def instructions(path: Path, prefix: str) -> dict[str, Counter[str]]:
    """Function → how often each instruction occurs in it, with its operands."""
    command = [tool(f"{prefix}objdump"), "-d", "-C", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            counts = functions.setdefault(header[1], Counter())
        elif "\t" in line:
            counts[" ".join(line.split("\t", 1)[1].split())] += 1
    return functions


@pytest.mark.soak
@pytest.mark.parametrize(("prefix", "name"), [("", name) for name in X86] + [(CROSS, name) for name in ARM])
def test_inner_loops_have_the_instruction(prefix: str, name: str, tmp_path: Path) -> None:
    target = (ARM if prefix else X86)[name]
    found: dict[str, Counter[str]] = {}
    for source in SOURCES[:3]:
        found |= instructions(compiled(f"{prefix}g++", f"{target.flags} -c", [source], tmp_path / "object.o"), prefix)
    for kind, instruction in target.instructions.items():
        times = sum(
            count
            for function, counts in found.items()
            if re.search(kind, function)
            for text, count in counts.items()
            if re.match(rf"({{vex}} )?({instruction})", text)
        )
        assert times >= 8, f"{instruction} in functions with {kind}"


@pytest.mark.soak
@pytest.mark.parametrize("compiler", OTHER_COMPILERS)
@pytest.mark.parametrize("machine", ["this", "aarch64"])
def test_other_compilers(compiler: str, machine: str, tmp_path: Path) -> None:
    """Compiles every source, links the library, and runs the program."""
    every = sorted(build.SOURCES.glob("*.cpp"))
    if machine == "this":
        compiled(compiler, f"{build.NATIVE} -shared", every, tmp_path / "library.so")
        assert_right(str(compiled(compiler, build.NATIVE, [PROGRAM, *SOURCES], tmp_path / "check")))
        return
    if "clang" not in compiler:
        pytest.skip("compiles for one machine")
    emulator, flags = tool("qemu-aarch64"), "--target=aarch64-linux-gnu -march=armv8.6-a"
    tool(f"{CROSS}g++")
    compiled(compiler, f"{flags} -shared", every, tmp_path / "library.so")
    program = compiled(compiler, f"{flags} -static", [PROGRAM, *SOURCES], tmp_path / "check")
    assert_right(emulator, "-cpu", "max", str(program))
