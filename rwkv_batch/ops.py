"""The choice of an implementation for each op: made once, when the engine is built, and logged.

An op is a name, a signature and a docstring. Its definition is a plain PyTorch function, in the module of the model or
the sampler that owns the op. Kernels are other implementations, in a package for each backend: `kernel_module.py` says
what a module with kernels has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .errors import BackendError, ConfigurationError
from .kernel_module import KernelModule

if TYPE_CHECKING:
    from .engine.logprobs import top_tokens as _top_tokens
    from .engine.sample import sample as _sample
    from .engine.selection import select as _select
    from .models.blocks import layer_norm as _layer_norm
    from .models.blocks import shift_lerp as _shift_lerp
    from .models.blocks import take_rows as _take_rows
    from .models.matrices.low_rank import low_rank as _low_rank
    from .models.matrices.projection import project as _project
    from .models.rwkv4 import wkv4 as _wkv4
    from .models.rwkv5 import wkv5 as _wkv5
    from .models.rwkv6 import ddlerp as _ddlerp
    from .models.rwkv6 import wkv6 as _wkv6
    from .models.rwkv7 import deep_embed as _deep_embed
    from .models.rwkv7 import wkv7 as _wkv7
    from .models.scoring import log_normalizer as _log_normalizer
    from .models.scoring import score as _score

BACKENDS = ("auto", "triton", "cuda", "cpu", "reference")
_PACKAGES = {"triton": "rwkv_batch.triton_kernels", "cuda": "rwkv_batch.cuda_kernels", "cpu": "rwkv_batch.cpu_kernels"}
_AUTO = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}
_RECURRENCES = ("wkv4", "wkv5", "wkv6", "wkv7")
_AUTO_RECURRENCES = {"cuda": ("cuda", "triton", "reference")}
"""As `_AUTO`, for the recurrences."""
_CUDA_FIRST = "triton: the cuda kernel has one barrier a token, and triton's more than twenty"
_RECORDABLE_BACKENDS = ("triton",)
"""Backends whose kernels can be recorded as CUDA graphs: they neither wait for the device nor read host memory."""
_RECORDABLE_CUDA = _RECURRENCES
"""Ops of the cuda backend that can be recorded too; the choice of the op loads its kernel."""


@dataclass(frozen=True)
class OpSpec:
    """An op and its definition.

    Args:
        definition: a plain PyTorch function; every implementation has its parameters and results.
        optional: a backend may have no kernel for the op: the definition consists of matrix products or of other ops.
        is_recorded: a step that is recorded as a CUDA graph calls the op, whose definition cannot be recorded.
        definition_only: the reason why no kernel can serve this model's op, if so; for optional ops only.
    """

    name: str
    definition: Callable[..., Any]
    optional: bool = False
    is_recorded: bool = True
    definition_only: str | None = None


@dataclass(frozen=True)
class Implementation:
    """The function that serves an op: its definition, or a kernel.

    Args:
        function: has the parameters and the results of the definition.
        pack, rows_independent, writes_into, has_epilogue, defers_writes: as in `kernel_module.OptionalMembers`.
    """

    function: Callable[..., Any]
    pack: Callable[[Tensor], Any] | None = None
    rows_independent: bool = False
    writes_into: bool = False
    has_epilogue: bool = False
    defers_writes: bool = False

    def packed(self, weight: Tensor) -> Any:
        """A weight as `function` takes it: packed, or as it is."""
        return weight if self.pack is None else self.pack(weight)

    @classmethod
    def of(cls, op: str, module: KernelModule) -> Implementation:
        """The kernel of a module."""
        return cls(
            getattr(module, op),
            getattr(module, "pack", None),
            getattr(module, "rows_independent", False),
            getattr(module, "writes_into", False),
            getattr(module, "has_epilogue", False),
            getattr(module, "defers_writes", False),
        )


@dataclass(frozen=True)
class OpChoice:
    """The backend that serves an op, and the reasons why the backends before it do not.

    Args:
        is_fallback: a kernel for the op exists and refuses; a slower implementation serves.
        is_recorded: as in `OpSpec`.
    """

    op: str
    backend: str
    refused: tuple[str, ...]
    is_fallback: bool = False
    is_recorded: bool = True

    @property
    def can_be_recorded(self) -> bool:
        """Whether steps that call the op can be recorded as CUDA graphs."""
        return not self.is_recorded or _is_recordable(self.op, self.backend)


class OpTable:
    """The chosen implementations, as attributes: `ops.wkv7(...)`.

    Args:
        implementations: of each op, by its name.
        choices: how they were chosen; empty for a table that was not made by `resolve`.
    """

    def __init__(self, implementations: Mapping[str, Implementation], choices: Iterable[OpChoice] = ()) -> None:
        self.implementations = dict(implementations)
        self.choices = tuple(choices)

    @classmethod
    def of(cls, **functions: Callable[..., Any]) -> OpTable:
        """A table of these functions, which take weights as tensors."""
        return cls({name: Implementation(function) for name, function in functions.items()})

    def has_kernel(self, op: str) -> bool:
        """Whether a kernel serves the op, and not its definition."""
        return any(choice.op == op and choice.backend != "reference" for choice in self.choices)

    def packs(self, op: str) -> bool:
        """Whether the op takes packed weights."""
        return self.implementations[op].pack is not None

    def pack(self, op: str, weight: Tensor) -> Any:
        """A weight as the op takes it: packed, or as it is."""
        return self.implementations[op].packed(weight)

    @property
    def can_be_recorded(self) -> bool:
        """Whether steps can be recorded as CUDA graphs."""
        return all(choice.can_be_recorded for choice in self.choices)

    if TYPE_CHECKING:  # for editors and mypy: an op is called like its definition
        take_rows = staticmethod(_take_rows)
        layer_norm = staticmethod(_layer_norm)
        shift_lerp = staticmethod(_shift_lerp)
        low_rank = staticmethod(_low_rank)
        project = staticmethod(_project)
        ddlerp = staticmethod(_ddlerp)
        deep_embed = staticmethod(_deep_embed)
        wkv4 = staticmethod(_wkv4)
        wkv5 = staticmethod(_wkv5)
        wkv6 = staticmethod(_wkv6)
        wkv7 = staticmethod(_wkv7)
        score = staticmethod(_score)
        log_normalizer = staticmethod(_log_normalizer)
        sample = staticmethod(_sample)
        select = staticmethod(_select)
        top_tokens = staticmethod(_top_tokens)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self.__dict__["implementations"][name].function
        except KeyError:
            raise AttributeError(f"no op {name!r} was resolved for this model") from None


def _is_recordable(op: str, backend: str) -> bool:
    return backend in _RECORDABLE_BACKENDS or (backend == "cuda" and op in _RECORDABLE_CUDA)


def backend_order(op: str, device: str) -> tuple[str, ...]:
    """The backends that "auto" asks for an op, the fastest first."""
    orders = _AUTO_RECURRENCES if op in _RECURRENCES and device in _AUTO_RECURRENCES else _AUTO
    return orders.get(device, ("reference",))


def fallbacks(choices: Iterable[OpChoice]) -> list[str]:
    """One sentence for each reason why kernels refuse, with the ops concerned and the backend that serves them.

    The sentence also says where the engine therefore does not record steps.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[OpChoice]] = {}
    for choice in choices:
        if choice.is_fallback:
            groups.setdefault((choice.backend, choice.refused), []).append(choice)
    sentences = []
    for (backend, refused), group in groups.items():
        slow = ", which is slow" if backend == "reference" else ""
        could_be_recorded = any(
            _is_recordable(choice.op, reason.partition(": ")[0]) for choice in group for reason in refused
        )
        is_unrecorded = could_be_recorded and not all(choice.can_be_recorded for choice in group)
        graphs = "; steps are not recorded as CUDA graphs" if is_unrecorded else ""
        names = ", ".join(choice.op for choice in group)
        sentences.append(f"{names}: served by the {backend} backend{slow}{graphs} ({' · '.join(refused)})")
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
    """Chooses an implementation for each op.

    Args:
        backend: "auto" takes the fastest that works. A named backend must serve every op, except optional ones that
            it has no kernel for, or that are faster by their definition.
        sizes: letters of the architecture (C, H, N, ...) → values, for the kernels' own checks.

    Raises:
        ConfigurationError: no backend of that name.
        BackendError: the named backend refuses an op; every reason is listed.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(f"got {backend!r}, expected one of {', '.join(BACKENDS)}", setting="backend")
    specs, target = tuple(specs), _Target(device, dtype, sizes, state_dtype)
    candidates = {
        spec.name: backend_order(spec.name, device.type) if backend == "auto" else (backend,) for spec in specs
    }
    if any("triton" in order for order in candidates.values()):
        _compile_together(specs, device)
    implementations: dict[str, Implementation] = {}
    choices: list[OpChoice] = []
    failures: list[str] = []
    for spec in specs:
        offers = _offers(spec, candidates[spec.name], target)
        serving = _serving(spec, offers)
        if serving is None:
            failures.append(f"{spec.name}: {offers[-1].reason}")
        else:
            implementations[spec.name] = serving.implementation or Implementation(spec.definition)
            choices.append(_choice(spec, offers, serving, candidates[spec.name]))
    if failures:
        raise BackendError(f"backend {backend!r} cannot serve this model:\n  " + "\n  ".join(failures))
    return OpTable(implementations, choices)


def _compile_together(specs: Iterable[OpSpec], device: torch.device) -> None:
    """Compiles Triton's kernels of all ops in one process, which is faster than a process for each op."""
    try:
        probe = import_module(f"{_PACKAGES['triton']}.probe")
    except ImportError:
        return  # the module of each op gives the reason
    probe.prepare([spec.name for spec in specs if spec.definition_only is None], device)


class _Target(NamedTuple):
    """The arguments of `unsupported_reason`."""

    device: torch.device
    dtype: torch.dtype
    sizes: Mapping[str, int]
    state_dtype: torch.dtype


class _Offer(NamedTuple):
    """A backend's answer for an op."""

    backend: str
    verdict: Literal["serves", "missing", "refuses", "declines"]
    """`missing`: the backend has no kernel. `refuses`: its kernel cannot serve. `declines`: the definition should."""
    reason: str = ""
    """The reason why the backend does not serve the op."""
    implementation: Implementation | None = None
    """The kernel that serves; None for the definition."""


def _offers(spec: OpSpec, candidates: Sequence[str], target: _Target) -> list[_Offer]:
    """The backends' answers, up to the first one that serves."""
    offers: list[_Offer] = []
    for backend in candidates:
        offers.append(_offer(spec, backend, target))
        if offers[-1].verdict == "serves":
            break
    return offers


def _offer(spec: OpSpec, backend: str, target: _Target) -> _Offer:
    """Asks one backend if it serves the op, and if not, why."""
    if backend == "reference":
        return _Offer(backend, "serves")
    name = f"{_PACKAGES[backend]}.{spec.name}"
    if find_spec(_PACKAGES[backend]) is None or find_spec(name) is None:
        return _Offer(backend, "missing", "no such kernel")
    if spec.definition_only is not None:
        return _Offer(backend, "declines", spec.definition_only)
    try:
        module = cast(KernelModule, import_module(name))
    except ImportError as error:
        return _Offer(backend, "refuses", str(error))
    if reason := module.unsupported_reason(*target):
        return _Offer(backend, "refuses", reason)
    prefers_definition = getattr(module, "prefers_definition", None)
    if spec.optional and prefers_definition is not None and (reason := prefers_definition(target.dtype)):
        return _Offer(backend, "declines", reason)
    return _Offer(backend, "serves", implementation=Implementation.of(spec.name, module))


def _serving(spec: OpSpec, offers: Sequence[_Offer]) -> _Offer | None:
    """The offer to take: the last one, or the definition where the last backend declines an optional op."""
    last = offers[-1]
    if last.verdict == "serves":
        return last
    is_declined = spec.optional and last.verdict in ("missing", "declines")
    return _Offer("reference", "serves") if is_declined else None


def _choice(spec: OpSpec, offers: Sequence[_Offer], serving: _Offer, candidates: Sequence[str]) -> OpChoice:
    refused = tuple(f"{offer.backend}: {offer.reason}" for offer in offers if offer.verdict != "serves")
    if serving.backend == "cuda" and "triton" in candidates[len(offers) :]:
        refused = (*refused, _CUDA_FIRST)
    is_fallback = any(offer.verdict == "refuses" for offer in offers)
    return OpChoice(spec.name, serving.backend, refused, is_fallback, spec.is_recorded)
