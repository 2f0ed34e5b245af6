"""Names and numbers that C++, CUDA and Triton sources repeat: each copy equals the one list it was copied from."""

from __future__ import annotations

import ctypes
import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rwkv_batch import cpu_kernels, cuda_kernels
from rwkv_batch.cpu_kernels import call, products, sample, text
from rwkv_batch.cuda_kernels import launch
from rwkv_batch.engine import slot_tables
from rwkv_batch.engine.slot_tables import NUM_FLOATS, NUM_INTEGERS, Float, Integer

CPU_SOURCES = Path(cpu_kernels.__file__).with_name("csrc")
CUDA_SOURCES = Path(cuda_kernels.__file__).with_name("csrc")

Fields = list[tuple[str, type]]


def code(path: Path) -> str:
    """A source without comments."""
    return re.sub(r"//.*", "", path.read_text())


def enumerators(path: Path) -> list[dict[str, int]]:
    """The numbers of each enum of a source, by name."""
    found = []
    for body in re.findall(r"\benum (?:\w+ )?\{(.*?)\}", code(path), re.DOTALL):
        numbers: dict[str, int] = {}
        following = 0
        for entry in filter(None, (part.strip() for part in body.split(","))):
            name, _, value = (part.strip() for part in entry.partition("="))
            numbers[name] = following = int(value) if value else following
            following += 1
        found.append(numbers)
    return found


def test_columns_in_cpp():
    floats, integers = enumerators(CPU_SOURCES / "sample.cpp")
    assert (sample.NUM_FLOATS, sample.NUM_INTEGERS) == (NUM_FLOATS, NUM_INTEGERS)
    assert floats == {column.name: column.value for column in Float} | {"NUM_FLOATS": NUM_FLOATS}
    assert integers == {column.name: column.value for column in Integer} | {"NUM_INTEGERS": NUM_INTEGERS}


def test_activations_in_cpp():
    (numbers,) = enumerators(CPU_SOURCES / "product.h")
    assert numbers == {(name or "linear").upper(): number for name, number in products.ACTIVATIONS.items()}


def test_columns_in_triton():
    pytest.importorskip("triton")
    from triton.language import constexpr

    from rwkv_batch.triton_kernels import sample_row

    wanted = {column.name: column.value for column in (*Float, *Integer)}
    wanted |= {"NUM_FLOATS": NUM_FLOATS, "NUM_INTEGERS": NUM_INTEGERS}
    numbers = {name: value.value for name, value in vars(sample_row).items() if isinstance(value, constexpr)}
    others = {"MIN_TEMPERATURE", "LOG2E", "NONE"}
    assert {name: value for name, value in numbers.items() if name not in others} == wanted


def test_columns_fit_the_tables():
    tables = slot_tables.SlotTables(1, slot_tables.Vocabulary.plain(2), torch.device("cpu"))
    assert (tables.floats.shape[1], tables.integers.shape[1]) == (NUM_FLOATS, NUM_INTEGERS)
    assert max(Float) < NUM_FLOATS
    assert Integer.STREAM + slot_tables.STREAM_WORDS <= NUM_INTEGERS


def members(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Name and type of each member of a struct, in order; pointers have a type that ends in `*`."""
    found = re.search(rf"\bstruct {name} \{{(.*?)\n\}};", source, re.DOTALL)
    assert found, name
    for declaration in filter(None, (part.strip() for part in found[1].split(";"))):
        kind, rest = re.match(r"((?:const )?\w+)\b(.*)", declaration, re.DOTALL).groups()
        for declarator in rest.split(","):
            member = declarator.strip()
            yield member.lstrip("* "), kind.removeprefix("const ") + "*" * member.count("*")


C_TYPES = {"int64_t": ctypes.c_int64, "i64": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float}


def fields_in_source(path: Path, name: str, nested: Mapping[str, type]) -> Fields:
    types = {**C_TYPES, **nested}
    source = code(path)
    return [(member, ctypes.c_void_p if kind.endswith("*") else types[kind]) for member, kind in members(source, name)]


NAMES_IN_CPP = {call.RowsStruct: "Rows", text.TableStruct: "TokenTable"}
"""Structs inside others, whose names differ; all others have one name."""
NESTED: dict[str, type] = {name: struct for struct, name in NAMES_IN_CPP.items()}


def members_of(package: ModuleType, kind: type) -> list[Any]:
    """Lists the subclasses of `ctypes.Structure`, or the objects of another class, in the modules of a package."""
    names = [f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
    found = [value for name in names for value in vars(import_module(name)).values()]
    is_class = kind is ctypes.Structure
    return [
        *dict.fromkeys(
            x for x in found if (isinstance(x, type) and issubclass(x, kind) if is_class else isinstance(x, kind))
        )
    ]


CPP_STRUCTS = {
    NAMES_IN_CPP.get(struct, struct.__name__): struct for struct in members_of(cpu_kernels, ctypes.Structure)
}
"""Name of a struct in C++ → the struct that Python fills."""
IN_ARRAYS = {"Product", "Call"}
"""Structs of arrays that others point to."""
CUDA_KERNELS = members_of(cuda_kernels, launch.Kernel)


@pytest.mark.parametrize("name", CPP_STRUCTS)
def test_structs_in_cpp(name):
    declaration = re.compile(rf"\bstruct {name} \{{")
    (path,) = (path for path in sorted(CPU_SOURCES.iterdir()) if declaration.search(code(path)))
    assert list(CPP_STRUCTS[name]._fields_) == fields_in_source(path, name, NESTED)


def test_every_struct_that_python_fills_is_compared():
    """Every struct to which an extern "C" function takes a pointer has a counterpart in Python."""
    pointer = re.compile(r"\(const (?!void)(\w+)\*(?: p\b|\)p\))")
    taken = {name for path in CPU_SOURCES.glob("*.cpp") for name in pointer.findall(code(path))}
    assert taken == CPP_STRUCTS.keys() - NESTED.keys() - IN_ARRAYS


def test_every_source_in_cuda_is_compared():
    assert {kernel.name for kernel in CUDA_KERNELS} == {path.stem for path in CUDA_SOURCES.glob("*.cu")}


@pytest.mark.parametrize("kernel", CUDA_KERNELS, ids=lambda kernel: kernel.name)
def test_structs_in_cuda(kernel):
    path = CUDA_SOURCES / f"{kernel.name}.cu"
    if "struct Params {" not in path.read_text():
        path = CUDA_SOURCES / f"{kernel.name.partition('_')[0]}.h"
    assert kernel.fields == flat_fields(path)


def flat_fields(path: Path) -> Fields:
    """The members of `Params`, with the members of `Rows` in the place of `rows`."""
    rows = fields_in_source(CUDA_SOURCES / "heads.h", "Rows", {})
    found: Fields = []
    for name, kind in fields_in_source(path, "Params", {"Rows": ctypes.Structure}):
        found += rows if kind is ctypes.Structure else [(name, kind)]
    return found
