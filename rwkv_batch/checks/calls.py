"""Calls of the recurrences with random numbers in the ranges of trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..models.blocks import Norm
from ..models.rows import Rows
from ..models.rwkv4 import wkv4
from ..models.rwkv5 import Head5, wkv5
from ..models.rwkv6 import wkv6
from ..models.rwkv7 import Head7, wkv7

EPS = 64e-5
Vector = Callable[[float, float], Tensor]
"""Called as vector(mean, spread): draws a float32 vector [A] from a normal distribution."""


@dataclass(frozen=True)
class Recurrence:
    """How the calls of one recurrence are drawn. Checks, tests and benchmarks of kernels read `RECURRENCES`.

    Args:
        definition: the op's definition.
        vectors: names of the inputs with one vector for each token, [M, A].
        parameters: called as parameters(vector, heads, size, missing), where `missing` are the vectors that the variant
            lacks. Returns the other arguments but states and rows, float32.
        states: called as states(heads, size). Returns the states' names with their shapes for one slot.
        variants: name → the vectors that the variant lacks, which are None. A name begins with the op's.
        fresh: states that are not zero in a fresh sequence.
        positive: states whose numbers are positive.
        has_heads: vectors are split into heads; otherwise heads and size matter only as their product A.
        has_half_state: the states may be float16.
    """

    definition: Callable[..., Tensor]
    vectors: tuple[str, ...]
    parameters: Callable[[Vector, int, int, tuple[str, ...]], dict[str, Any]]
    states: Callable[[int, int], dict[str, tuple[int, ...]]]
    variants: Mapping[str, tuple[str, ...]]
    fresh: Mapping[str, float] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    has_heads: bool = True
    has_half_state: bool = True


def _norm(vector: Vector) -> Norm:
    return Norm(vector(1, 0.2), vector(0, 0.2))


def _parameters_4(vector: Vector, heads: int, size: int, missing: tuple[str, ...]) -> dict[str, Any]:
    return {"decay": -torch.exp(vector(-1, 1)), "bonus": vector(0, 1)}


def _parameters_5(vector: Vector, heads: int, size: int, missing: tuple[str, ...]) -> dict[str, Any]:
    norm, decay = _norm(vector), torch.exp(-torch.exp(vector(-1, 1)))
    return {"head": Head5(decay.view(heads, size), vector(0, 1).view(heads, size), norm, EPS)}


def _parameters_6(vector: Vector, heads: int, size: int, missing: tuple[str, ...]) -> dict[str, Any]:
    norm, decay = _norm(vector), vector(-1, 1)
    return {"head": Head5(decay.view(heads, size), vector(0, 1).view(heads, size), norm, EPS)}


def _parameters_7(vector: Vector, heads: int, size: int, missing: tuple[str, ...]) -> dict[str, Any]:
    norm = _norm(vector)
    v0 = None if "v_gate" in missing else vector(0, 1)
    r_k = vector(0, 0.3).view(heads, size)
    return {"head": Head7(vector(-2, 1), vector(0, 1), v0, vector(0.8, 0.2), vector(1, 0.2), r_k, norm, EPS)}


def _matrix_state(heads: int, size: int) -> dict[str, tuple[int, ...]]:
    return {"state": (heads, size, size)}


RECURRENCES: dict[str, Recurrence] = {
    "wkv4": Recurrence(
        wkv4,
        ("r", "k", "v"),
        _parameters_4,
        lambda heads, size: dict.fromkeys(("aa", "bb", "pp"), (heads * size,)),
        {"wkv4": ()},
        fresh={"pp": -1e30},
        positive=("bb",),
        has_heads=False,
        has_half_state=False,
    ),
    "wkv5": Recurrence(wkv5, ("r", "k", "v", "g"), _parameters_5, _matrix_state, {"wkv5": (), "wkv5-no-gate": ("g",)}),
    "wkv6": Recurrence(wkv6, ("r", "k", "v", "g", "w"), _parameters_6, _matrix_state, {"wkv6": ()}),
    "wkv7": Recurrence(
        wkv7,
        ("r", "w", "k", "v", "a", "g", "v_first", "v_gate"),
        _parameters_7,
        _matrix_state,
        {"wkv7": (), "wkv7-first-layer": ("v_first", "v_gate")},
    ),
}
"""Op → how its calls are drawn. A recurrence with a kernel has an entry."""
VARIANTS = tuple(variant for recurrence in RECURRENCES.values() for variant in recurrence.variants)


def op_of(variant: str) -> str:
    """The op of a variant such as "wkv5-no-gate"."""
    return variant.partition("-")[0]


def state_dtypes(variant: str) -> tuple[torch.dtype, ...]:
    """The dtypes that the states of a variant may have."""
    return (torch.float32, torch.float16) if RECURRENCES[op_of(variant)].has_half_state else (torch.float32,)


@dataclass(frozen=True)
class Call:
    """One call of a recurrence.

    Args:
        vectors: inputs [M, A].
        parameters: inputs that are the same for all tokens.
        pools: state → [P + 2, 2, ...]. The op gets the second layer of all slots but the first and the last.
    """

    variant: str
    vectors: dict[str, Tensor | None]
    parameters: dict[str, Any]
    pools: dict[str, Tensor]
    rows: Rows

    @property
    def op(self) -> str:
        return op_of(self.variant)

    @property
    def live_tokens(self) -> Tensor:
        """[M] bool: tokens of rows that are not padding."""
        slots = torch.tensor(self.rows.slots)
        return (slots >= 0).repeat_interleave(torch.tensor(self.rows.lengths)).to(self.rows.device)

    @property
    def live_slots(self) -> list[int]:
        """Indices in the pools of the slots that are not padding."""
        return [slot + 1 for slot in self.rows.slots if slot >= 0]

    def run(self, function: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and the pools that the call leaves; this object's pools do not change."""
        pools = {name: pool.clone() for name, pool in self.pools.items()}
        states = {name: pool[1:-1, 1] for name, pool in pools.items()}
        return function(**self.vectors, **self.parameters, **states, rows=self.rows), pools

    def on_host(self) -> Call:
        """The same call in host memory, for the definition: in float64, or in float32 where states are float16.

        Stochastic rounding of a float16 state is defined by the bits of float32 numbers.
        """
        is_half = any(pool.dtype == torch.float16 for pool in self.pools.values())
        dtype = torch.float32 if is_half else torch.float64
        return replace(
            self,
            vectors={name: None if x is None else x.to("cpu", dtype) for name, x in self.vectors.items()},
            parameters={name: _on_host(x, dtype) for name, x in self.parameters.items()},
            pools={name: pool.to("cpu", pool.dtype if is_half else dtype) for name, pool in self.pools.items()},
            rows=Rows(self.rows.slots, self.rows.lengths, torch.device("cpu"), self.rows.positions),
        )

    def pick(self, row: int, start: int, end: int, slot: int, pools: dict[str, Tensor] | None = None) -> Call:
        """Tokens start:end of one row alone, in a slot with the state that the row's slot has in `pools`."""
        first = sum(self.rows.lengths[:row])
        own = {name: pool.clone() for name, pool in (pools or self.pools).items()}
        for pool in own.values():
            pool[slot + 1] = pool[self.rows.slots[row] + 1]
        rows = Rows((slot,), (end - start,), self.rows.device, (int(self.rows.positions[row]) + start,))
        part = slice(first + start, first + end)
        vectors = {name: None if x is None else x[part].contiguous() for name, x in self.vectors.items()}
        return replace(self, vectors=vectors, pools=own, rows=rows)


def make_call(
    variant: str,
    slots: Sequence[int],
    lengths: Sequence[int],
    heads: int,
    size: int,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    device: torch.device,
) -> Call:
    """A call whose pools have two slots more than its rows need; row i has 3 + 10 i tokens behind it."""
    rows = Rows(tuple(slots), tuple(lengths), device, tuple(3 + 10 * i for i in range(len(slots))))
    vectors = make_vectors(variant, rows.num_tokens, heads * size, dtype, device)
    num_slots = max(*slots, 0) + 3

    def pool(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(num_slots + 2, 2, *shape, device=device).to(dtype)

    pools = make_states(variant, heads, size, pool, state_dtype)
    for name, value in RECURRENCES[op_of(variant)].fresh.items():
        pools[name][1 + max(slots[0], 0)] = value
    return Call(variant, vectors, make_parameters(variant, heads, size, device), pools, rows)


def make_vectors(
    variant: str, num_tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor | None]:
    """A recurrence's inputs [num_tokens, width]; None for an input that the variant lacks."""
    recurrence = RECURRENCES[op_of(variant)]
    vectors: dict[str, Tensor | None] = {
        name: torch.randn(num_tokens, width, device=device).to(dtype) for name in recurrence.vectors
    }
    return vectors | dict.fromkeys(recurrence.variants[variant])


def make_parameters(variant: str, heads: int, size: int, device: torch.device) -> dict[str, Any]:
    """A recurrence's other arguments, float32."""

    def vector(mean: float, spread: float) -> Tensor:
        return mean + spread * torch.randn(heads * size, device=device)

    recurrence = RECURRENCES[op_of(variant)]
    return recurrence.parameters(vector, heads, size, recurrence.variants[variant])


def make_states(
    variant: str, heads: int, size: int, pool: Callable[[tuple[int, ...], torch.dtype], Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """A recurrence's states by name.

    Args:
        pool: called as pool(shape, dtype): draws the states of all slots, each of this shape.
        dtype: of the states, where the recurrence leaves a choice.
    """
    recurrence = RECURRENCES[op_of(variant)]
    dtype = dtype if recurrence.has_half_state else torch.float32
    pools = {name: pool(shape, dtype) for name, shape in recurrence.states(heads, size).items()}
    return {name: x.abs() + 0.1 if name in recurrence.positive else x for name, x in pools.items()}


def _on_host(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, tuple):
        return type(x)(*(_on_host(field, dtype) for field in x))
    return x.to("cpu", dtype) if isinstance(x, Tensor) else x
