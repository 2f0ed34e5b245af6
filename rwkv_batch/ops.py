"""Which implementation serves which operation: chosen once, when the engine is built, and said aloud.

An op is a name, a signature and a docstring; op name = module name = function name. Its definition is the float32
reference beside the model that owns it; fast twins live in the kernel packages. A twin's module also has
`unsupported_reason(device, dtype, sizes, state_dtype) -> str | None`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from .errors import BackendError, ConfigurationError

BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
_PACKAGES = {"triton": "rwkv_batch.triton_kernels", "cuda": "rwkv_batch.cuda_kernels", "cpu": "rwkv_batch.cpu_kernels"}
_AUTO = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}


@dataclass(frozen=True)
class OpSpec:
    """An operation and its definition.

    Args:
        optional: the definition is made of matrix products, or of other ops; a backend may leave the op to it.
    """

    name: str
    reference: Callable[..., Any]
    optional: bool = False


@dataclass(frozen=True)
class OpChoice:
    """Which backend serves an op, and why the ones before it do not."""

    op: str
    backend: str
    refused: tuple[str, ...]


class OpTable:
    """The chosen implementations, as attributes: `ops.wkv7(...)`."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], choices: Iterable[OpChoice]) -> None:
        self._functions = dict(functions)
        self.choices = tuple(choices)

    def served_by(self, backend: str, besides: Iterable[OpSpec] = ()) -> bool:
        """Every op, but for those in `besides`, is served by this backend."""
        others = {spec.name for spec in besides}
        return all(choice.backend == backend for choice in self.choices if choice.op not in others)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self.__dict__["_functions"][name]
        except KeyError:
            raise AttributeError(f"no op {name!r} was resolved for this model") from None


def fallbacks(choices: Iterable[OpChoice]) -> str | None:
    """One sentence about ops whose kernels refuse, so that the definition serves; None if there are none."""
    found = []
    for choice in choices:
        reasons = [reason for reason in choice.refused if not reason.endswith(_NOT_WRITTEN)]
        if choice.backend == "reference" and reasons:
            found.append(f"{choice.op} ({' · '.join(reasons)})")
    return f"served by the reference backend, which is slow: {', '.join(found)}" if found else None


def format_choices(choices: Iterable[OpChoice]) -> str:
    """The choices as a table."""
    lines = [f"{'op':<14} {'backend':<10} not used"]
    lines += [f"{c.op:<14} {c.backend:<10} {' · '.join(c.refused)}".rstrip() for c in choices]
    return "\n".join(lines)


def resolve(
    specs: Iterable[OpSpec],
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> OpTable:
    """Choose an implementation for each op.

    Args:
        backend: "auto" takes the fastest that works; a named backend must serve every op, but for optional ones of
            which it has no twin.
        sizes: letters of the architecture (C, H, N, ...) → values, for the kernels' own checks.

    Raises:
        ConfigurationError: no backend of that name.
        BackendError: the named backend refuses an op; every reason is listed.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"engine.backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    candidates = _AUTO.get(device.type, ("reference",)) if backend == "auto" else (backend,)
    functions: dict[str, Callable[..., Any]] = {}
    choices: list[OpChoice] = []
    failures: list[str] = []
    for spec in specs:
        refused: list[str] = []
        for name in candidates:
            function, reason = _implementation(spec, name, device, dtype, sizes, state_dtype)
            if function is not None:
                functions[spec.name] = function
                choices.append(OpChoice(spec.name, name, tuple(refused)))
                break
            refused.append(f"{name}: {reason}")
        else:
            if spec.optional and reason == _NOT_WRITTEN:
                functions[spec.name] = spec.reference
                choices.append(OpChoice(spec.name, "reference", tuple(refused)))
            else:
                failures.append(f"{spec.name}: {reason}")
    if failures:
        raise BackendError(f"backend {backend!r} cannot serve this model:\n  " + "\n  ".join(failures))
    return OpTable(functions, choices)


_NOT_WRITTEN = "no such kernel"


def _implementation(
    spec: OpSpec,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype,
) -> tuple[Callable[..., Any] | None, str]:
    if backend == "reference":
        return spec.reference, ""
    name = f"{_PACKAGES[backend]}.{spec.name}"
    if find_spec(_PACKAGES[backend]) is None or find_spec(name) is None:
        return None, _NOT_WRITTEN
    try:
        module = import_module(name)
    except ImportError as error:
        return None, str(error)
    reason = module.unsupported_reason(device, dtype, sizes, state_dtype)
    return (None, reason) if reason else (getattr(module, spec.name), "")
