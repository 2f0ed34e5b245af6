"""Every kernel module keeps the contract of `kernel_module.py`."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from versions import VARIANTS, VERSIONS

from rwkv_batch import ops
from rwkv_batch.checks.target import specs
from rwkv_batch.kernel_module import OptionalMembers
from rwkv_batch.kernel_support.unsupported import UnsupportedReason

PACKAGE = Path(ops.__file__).parent
MODULES = [
    (backend, path.stem)
    for backend in ops._PACKAGES
    for path in sorted((PACKAGE / f"{backend}_kernels").glob("*.py"))
    if path.stem in specs()
]
FACTS = ("rows_independent", "writes_into", "has_epilogue", "defers_writes")


@pytest.fixture(params=MODULES, ids=".".join)
def served(request: pytest.FixtureRequest) -> tuple[str, str, ModuleType]:
    backend, op = request.param
    if backend == "triton":
        pytest.importorskip("triton")
    return backend, op, import_module(f"{ops._PACKAGES[backend]}.{op}")


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def test_each_backend_has_modules() -> None:
    counts = {backend: sum(one == backend for one, _ in MODULES) for backend in ops._PACKAGES}
    assert min(counts.values()) >= 6, counts


def test_a_kernel_is_called_like_its_definition(served: tuple[str, str, ModuleType]) -> None:
    _, op, module = served
    wanted, found = parameters(specs()[op].definition), parameters(getattr(module, op))
    begun = found[: len(wanted)]
    assert [(p.name, p.kind, p.default) for p in begun] == [(p.name, p.kind, p.default) for p in wanted]
    assert all(p.default is not p.empty for p in found[len(wanted) :])


def test_members(served: tuple[str, str, ModuleType]) -> None:
    backend, op, module = served
    assert isinstance(module.unsupported_reason, UnsupportedReason)
    if backend in ("triton", "cuda"):
        assert module.specializations()
    facts = [name for name, value in vars(module).items() if isinstance(value, bool) and name.islower()]
    assert set(facts) <= set(FACTS)
    assert all(getattr(module, name) is True for name in facts)
    names = [p.name for p in parameters(getattr(module, op))]
    assert ("into" in names) == getattr(module, "writes_into", False)
    added = set(names) - {p.name for p in parameters(specs()[op].definition)}
    assert ({"activation", "gate", "out", "dtype"} <= added) == getattr(module, "has_epilogue", False)
    assert ("ring" in names) == getattr(module, "defers_writes", False)


def test_optional_members(served: tuple[str, str, ModuleType]) -> None:
    *_, op, module = served
    for name in ("pack", "prefers_definition"):
        if (function := getattr(module, name, None)) is not None:
            wanted = parameters(getattr(OptionalMembers, name))[1:]
            assert len(parameters(function)) == len(wanted), name
    prefers_definition = getattr(module, "prefers_definition", lambda dtype: None)
    assert isinstance(prefers_definition(torch.bfloat16), str | None)
    if hasattr(module, "prefers_definition"):
        assert specs()[op].optional


def test_only_optional_members_are_looked_up() -> None:
    """`Implementation.of` and `resolve` ask for no member that the contract does not name."""
    named = {name for name in vars(OptionalMembers) if not name.startswith("_")} | set(OptionalMembers.__annotations__)
    assert named == {"pack", "prefers_definition", *FACTS}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_variant_names_the_packages_that_have_its_kernels(version: str) -> None:
    """`Variant.kernels` says which kernels must be there, so that a kernel that got lost is noticed."""
    variant = VARIANTS[version]
    needed = {op.name for op in variant.architecture.ops if not op.optional}
    found = {backend for backend in ops._PACKAGES if {(backend, op) for op in needed} <= {*MODULES}}
    assert variant.kernels == found
