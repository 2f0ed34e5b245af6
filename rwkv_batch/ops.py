"""Which implementation serves which operation: chosen once, when the engine is built, and said aloud.

An op is a name, a signature and a docstring; op name = module name = function name. Its definition is the float32
reference beside the model that owns it; fast twins live in the kernel packages. A twin's module also has
`unsupported_reason(device, dtype, sizes, state_dtype) -> str | None`; where it reads a weight in a layout of its own,
`pack(weight)`; and, where an optional op may be better off with its definition, `better_left(dtype) -> str | None`.
`unsupported_reason` may compile: a compiler that fails is found here, and the op goes to the next backend. Its
`settings` takes the same arguments and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    is_fallback: bool = False
    """Kernels that should serve refuse."""


class OpTable:
    """The chosen implementations, as attributes: `ops.wkv7(...)`."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        choices: Iterable[OpChoice],
        layouts: Mapping[str, Callable[[Tensor], Any]] | None = None,
    ) -> None:
        self._functions = dict(functions)
        self._layouts = dict(layouts or {})
        self.choices = tuple(choices)

    def has_kernel(self, op: str) -> bool:
        """A backend serves the op, not its definition."""
        return any(choice.op == op and choice.backend != "reference" for choice in self.choices)

    def has_layout(self, op: str) -> bool:
        """The op's implementation reads its weights in a layout of its own."""
        return op in self._layouts

    def pack(self, op: str, weight: Tensor) -> Any:
        """A weight as the op's implementation reads it."""
        return self._layouts[op](weight) if op in self._layouts else weight

    def served_by(self, backend: str, besides: Iterable[OpSpec] = ()) -> bool:
        """Every op, but for those in `besides`, is served by this backend."""
        others = {spec.name for spec in besides}
        return all(choice.backend == backend for choice in self.choices if choice.op not in others)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self.__dict__["_functions"][name]
        except KeyError:
            raise AttributeError(f"no op {name!r} was resolved for this model") from None


def fallbacks(choices: Iterable[OpChoice]) -> list[str]:
    """A sentence for each reason for which kernels refuse, with the ops that it concerns and who serves them.

    Where Triton refuses, the sentence also says that the engine does not record steps: Triton has to serve all ops.
    """
    ops: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for choice in choices:
        if choice.is_fallback:
            ops.setdefault((choice.backend, choice.refused), []).append(choice.op)
    sentences = []
    for (backend, refused), names in ops.items():
        slow = ", which is slow" if backend == "reference" else ""
        is_unrecorded = any(reason.startswith("triton: ") for reason in refused)
        graphs = "; steps are not recorded as CUDA graphs" if is_unrecorded else ""
        sentences.append(f"{', '.join(names)}: served by the {backend} backend{slow}{graphs} ({' · '.join(refused)})")
    return sentences


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
        backend: "auto" takes the fastest that works; a named backend must serve every op, but for optional ones that it
            leaves to their definition.
        sizes: letters of the architecture (C, H, N, ...) → values, for the kernels' own checks.

    Raises:
        ConfigurationError: no backend of that name.
        BackendError: the named backend refuses an op; every reason is listed.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"got {backend!r}, expected one of {', '.join(BACKENDS)}", setting="backend")
    specs = tuple(specs)
    candidates = _AUTO.get(device.type, ("reference",)) if backend == "auto" else (backend,)
    if "triton" in candidates:
        _compile_together(specs, device)
    functions: dict[str, Callable[..., Any]] = {}
    layouts: dict[str, Callable[[Tensor], Any]] = {}
    choices: list[OpChoice] = []
    failures: list[str] = []
    for spec in specs:
        twins = []
        for name in candidates:
            twin = _twin(spec, name, device, dtype, sizes, state_dtype)
            twins.append(twin)
            if twin.function is not None:
                break
        refused = tuple(f"{twin.backend}: {twin.reason}" for twin in twins if twin.function is None)
        if twin.function is None and not (spec.optional and twin.is_left):
            failures.append(f"{spec.name}: {twin.reason}")
            continue
        served_by = twin.backend if twin.function is not None else "reference"
        is_fallback = not all(one.is_left for one in twins if one.function is None)
        choices.append(OpChoice(spec.name, served_by, refused, is_fallback))
        functions[spec.name] = twin.function or spec.reference
        if twin.layout is not None:
            layouts[spec.name] = twin.layout
    if failures:
        raise BackendError(f"backend {backend!r} cannot serve this model:\n  " + "\n  ".join(failures))
    return OpTable(functions, choices, layouts)


def _compile_together(specs: Iterable[OpSpec], device: torch.device) -> None:
    """Triton compiles what its modules will be asked about in one process, which is faster than one for each op."""
    try:
        probe = import_module(f"{_PACKAGES['triton']}.probe")
    except ImportError:
        return  # each op's module says why
    probe.prepare([spec.name for spec in specs], device)


class _Twin(NamedTuple):
    """One backend's answer for an op."""

    backend: str
    function: Callable[..., Any] | None = None
    layout: Callable[[Tensor], Any] | None = None
    reason: str = ""
    """Why there is no function."""
    is_left: bool = True
    """The backend leaves the op to its definition, and means to."""


def _twin(
    spec: OpSpec,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype,
) -> _Twin:
    if backend == "reference":
        return _Twin(backend, spec.reference)
    name = f"{_PACKAGES[backend]}.{spec.name}"
    if find_spec(_PACKAGES[backend]) is None or find_spec(name) is None:
        return _Twin(backend, reason="no such kernel")
    try:
        module = import_module(name)
    except ImportError as error:
        return _Twin(backend, reason=str(error), is_left=False)
    if reason := module.unsupported_reason(device, dtype, sizes, state_dtype):
        return _Twin(backend, reason=reason, is_left=False)
    if spec.optional and hasattr(module, "better_left") and (reason := module.better_left(dtype)):
        return _Twin(backend, reason=reason)
    return _Twin(backend, getattr(module, spec.name), getattr(module, "pack", None))
