"""Calls of the recurrences with random numbers in the ranges of trained models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.blocks import Norm
from ..models.rows import Rows
from ..models.rwkv4 import wkv4
from ..models.rwkv5 import Head5, wkv5
from ..models.rwkv6 import wkv6
from ..models.rwkv7 import Head7, wkv7

VARIANTS = ("wkv4", "wkv5", "wkv5-no-gate", "wkv6", "wkv7", "wkv7-first-layer")
DEFINITIONS: dict[str, Callable[..., Tensor]] = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}
EPS = 64e-5
VECTORS = {
    "wkv4": ("r", "k", "v"),
    "wkv5": ("r", "k", "v", "g"),
    "wkv6": ("r", "k", "v", "g", "w"),
    "wkv7": ("r", "w", "k", "v", "a", "g", "v_first", "v_gate"),
}
"""Op → its inputs of one vector for each token."""


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
        return self.variant.split("-")[0]

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
    op = variant.split("-")[0]
    rows = Rows(tuple(slots), tuple(lengths), device, tuple(3 + 10 * i for i in range(len(slots))))
    vectors = make_vectors(variant, rows.num_tokens, heads * size, dtype, device)
    num_slots = max(*slots, 0) + 3

    def pool(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(num_slots + 2, 2, *shape, device=device).to(dtype)

    if op == "wkv4":
        pools = {"aa": pool(heads * size), "bb": pool(heads * size).abs() + 0.1, "pp": pool(heads * size)}
        pools["pp"][1 + max(slots[0], 0)] = -1e30  # a fresh sequence
    else:
        pools = {"state": pool(heads, size, size, dtype=state_dtype)}
    return Call(variant, vectors, make_parameters(variant, heads, size, device), pools, rows)


def make_vectors(
    variant: str, num_tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor | None]:
    """A recurrence's inputs [num_tokens, width]; None for an input that the variant lacks."""
    names = VECTORS[variant.split("-")[0]]
    vectors: dict[str, Tensor | None] = {
        name: torch.randn(num_tokens, width, device=device).to(dtype) for name in names
    }
    missing = {"wkv7-first-layer": ("v_first", "v_gate"), "wkv5-no-gate": ("g",)}.get(variant, ())
    return vectors | dict.fromkeys(missing)


def make_parameters(variant: str, heads: int, size: int, device: torch.device) -> dict[str, Any]:
    """A recurrence's other arguments, float32."""

    def vector(mean: float = 0.0, spread: float = 1.0) -> Tensor:
        return mean + spread * torch.randn(heads * size, device=device)

    if variant == "wkv4":
        return {"decay": -torch.exp(vector(-1)), "bonus": vector()}
    norm = Norm(vector(1, 0.2), vector(0, 0.2))
    if variant.startswith("wkv7"):
        v0 = None if variant == "wkv7-first-layer" else vector()
        r_k = vector(0, 0.3).view(heads, size)
        head7 = Head7(vector(-2), vector(), v0, vector(0.8, 0.2), vector(1, 0.2), r_k, norm, EPS)
        return {"head": head7}
    decay = vector(-1) if variant == "wkv6" else torch.exp(-torch.exp(vector(-1)))
    return {"head": Head5(decay.view(heads, size), vector().view(heads, size), norm, EPS)}


def _on_host(x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, tuple):
        return type(x)(*(_on_host(field, dtype) for field in x))
    return x.to("cpu", dtype) if isinstance(x, Tensor) else x
