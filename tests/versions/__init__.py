"""The variants of RWKV that tests run over, found in the modules of this folder.

A module describes one file of `rwkv_batch/models` and lists its variants in `VARIANTS`. To add a version, add a module.
The float64 references are here and not in the library: a definition must not check itself.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from rwkv_batch.models.matrix_state import MatrixStateArchitecture

from .variant import AdvanceToken, Variant

_MODULES = sorted(info.name for info in pkgutil.iter_modules(__path__))
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for module in _MODULES
    for variant in getattr(import_module(f"{__name__}.{module}"), "VARIANTS", ())
}
VERSIONS = tuple(VARIANTS)


def in_package() -> tuple[str, ...]:
    """The variants that the `rwkv` package knows."""
    return tuple(name for name, variant in VARIANTS.items() if variant.package is not None)


def served_by(kernels: str) -> tuple[str, ...]:
    """The variants whose recurrence has a kernel in a package: "triton", "cuda" or "cpu"."""
    return tuple(name for name, variant in VARIANTS.items() if kernels in variant.kernels)


def ops_without_kernels() -> set[str]:
    """The ops that only variants without kernels have."""
    served, others = (
        {op.name for variant in VARIANTS.values() if bool(variant.kernels) == kind for op in variant.architecture.ops}
        for kind in (True, False)
    )
    return others - served


def token_in_float64(op: str) -> AdvanceToken:
    """The definition of a recurrence in float64, for the tests of its kernels."""
    return {name: f for variant in VARIANTS.values() for name, f in variant.token_in_float64.items()}[op]


def with_matrix_state() -> tuple[str, ...]:
    """The variants that keep one matrix for each head."""
    return tuple(
        name for name, variant in VARIANTS.items() if issubclass(variant.architecture, MatrixStateArchitecture)
    )
