"""Small ragged batches for the recurrences, and what must come out: float64, one token at a time.

Cases have what trips kernels over: shuffled slots of a larger pool that other layers share, a padding row in the
middle, rows of different lengths, and states that are not symmetric, as no shape can tell a transposed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_batch.checks.calls import make_parameters, make_vectors
from rwkv_batch.models.rows import Rows

CPU = torch.device("cpu")
BACKENDS = ("triton", "cuda", "cpu")

Function = Callable[..., Tensor]
Vectors = dict[str, Tensor]


def every_pair(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> list[Any]:
    """All triples, as parameters of a test; the gate runs those in which each two values meet at least once.

    The others have the marker `soak`: `make kernels` runs them.

    Args:
        third: not longer than the other two.
    """
    return [
        pytest.param(a, b, c, marks=[] if (i + j) % len(third) == k else [pytest.mark.soak])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        for k, c in enumerate(third)
    ]


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Args:
        arguments: all but the states and `rows`.
        pools: state argument → [1 + P + 1, 2, ...]; the op gets the second layer of all slots but the outer two, which
            catch what is written to slot -1 and past the end.
    """

    variant: str
    arguments: dict[str, Any]
    pools: dict[str, Tensor]
    rows: Rows

    @property
    def op(self) -> str:
        return self.variant.split("-")[0]

    @property
    def tokens(self) -> Tensor:
        """[M] int64: the packed tokens of rows that are not padding."""
        slots = torch.tensor(self.rows.slots)
        return (slots[self.rows.token_rows.long().cpu()] >= 0).nonzero()[:, 0]

    @property
    def states(self) -> Vectors:
        return {name: pool[1:-1, 1] for name, pool in self.pools.items()}

    def copy(self) -> Case:
        """The same with pools of its own."""
        return replace(self, pools={name: pool.clone() for name, pool in self.pools.items()})

    def to(self, device: str) -> Case:
        def move(x: Any) -> Any:
            if isinstance(x, tuple):
                return type(x)(*(move(field) for field in x))
            return x.to(device) if isinstance(x, Tensor) else x

        arguments = {name: move(x) for name, x in self.arguments.items()}
        pools = {name: pool.to(device) for name, pool in self.pools.items()}
        rows = Rows(self.rows.slots, self.rows.lengths, torch.device(device), self.rows.positions)
        return Case(self.variant, arguments, pools, rows)

    def pick(self, i: int, start: int, end: int, slot: int | None = None) -> Case:
        """Tokens start:end of row i alone, in its slot or another, which then holds the same state."""
        first = int(self.rows.cu_seqlens[i]) + start
        picked = self.copy()
        slot = self.rows.slots[i] if slot is None else slot
        for state in picked.states.values():
            state[slot] = state[self.rows.slots[i]]
        arguments = {
            name: x[first : first + end - start].contiguous() if is_per_token(x, self) else x
            for name, x in self.arguments.items()
        }
        rows = Rows((slot,), (end - start,), self.rows.device, (self.rows.positions[i] + start,))
        return replace(picked, arguments=arguments, rows=rows)


def is_per_token(x: Any, case: Case) -> bool:
    return isinstance(x, Tensor) and x.dim() == 2 and len(x) == case.rows.num_tokens


def make_case(
    variant: str,
    slots: Sequence[int] = (4, 1, -1, 6),
    lengths: Sequence[int] = (1, 4, 2, 3),
    num_heads: int = 2,
    size: int = 16,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Case:
    """Random tensors in the ranges of trained models; v4's have a width of num_heads * size + 3."""
    positions = tuple(3 + 10 * i for i in range(len(slots)))
    rows = Rows(tuple(slots), tuple(lengths), device, positions)
    width = num_heads * size + (3 if variant == "wkv4" else 0)

    def pool(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(10, 2, *shape).to(device, dtype)

    heads = (1, width) if variant == "wkv4" else (num_heads, size)
    inputs = make_vectors(variant, rows.num_tokens, width, dtype, device) | make_parameters(variant, *heads, device)
    if variant == "wkv4":
        pools = {"aa": pool(width), "bb": pool(width).abs() + 0.1, "pp": pool(width)}
        pools["pp"][5] = -1e30  # slot 4 is that of a fresh sequence
    else:
        pools = {"state": pool(num_heads, size, size, dtype=state_dtype)}
    return Case(variant, inputs, pools, rows)


def run(function: Function, case: Case) -> tuple[Tensor, Case]:
    """Calls an op on a copy of the case. Elements of the output that it does not write are NaN.

    Returns:
        The output, and the copy with the states that the op has left.
    """
    after = case.copy()
    with patch("torch.empty_like", lambda x: torch.full_like(x, torch.nan)):
        out = function(**after.arguments, **after.states, rows=after.rows)
    return out, after


def expected(case: Case) -> tuple[Tensor, Vectors]:
    """The expected result of `run`, output and states, in float64; padding rows give zero, states are not rounded."""
    parameters = {name: in_float64(x) for name, x in case.arguments.items()}
    states = {name: state.cpu().double() for name, state in case.states.items()}
    per_token = [name for name, x in case.arguments.items() if is_per_token(x, case)]
    advance = {"wkv4": token_4, "wkv5": token_5, "wkv6": token_5, "wkv7": token_7}[case.op]
    out = torch.zeros(case.rows.num_tokens, parameters["r"].shape[1], dtype=torch.float64)
    starts = case.rows.cu_seqlens.tolist()
    for i, slot in enumerate(case.rows.slots):
        for t in range(starts[i], starts[i + 1]) if slot >= 0 else ():
            token = {name: parameters[name][t] for name in per_token}
            own = {name: state[slot] for name, state in states.items()}
            out[t], new = advance(parameters | token, own)
            for name, x in new.items():
                states[name][slot] = x
    return out, states


def in_float64(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.cpu().double()
    if isinstance(x, tuple):
        return type(x)(*(in_float64(field) for field in x))
    return x


def token_4(x: Any, s: Vectors) -> tuple[Tensor, Vectors]:
    """Sums of e^k v and e^k over the past, each older by one decay a token; kept divided by e^pp."""
    a, b = s["aa"] * torch.exp(s["pp"]), s["bb"] * torch.exp(s["pp"])
    now, boosted = torch.exp(x["k"]), torch.exp(x["bonus"] + x["k"])
    y = (a + boosted * x["v"]) / (b + boosted)
    a, b = a * torch.exp(x["decay"]) + now * x["v"], b * torch.exp(x["decay"]) + now
    pp = torch.maximum(s["pp"] + x["decay"], x["k"])
    return torch.sigmoid(x["r"]) * y, {"aa": a / torch.exp(pp), "bb": b / torch.exp(pp), "pp": pp}


def token_5(x: Any, s: Vectors) -> tuple[Tensor, Vectors]:
    """v5, and v6 where there is a `w`."""
    head, state = x["head"], s["state"]
    r, k, v = (x[name].view(head.bonus.shape) for name in "rkv")
    decay = torch.exp(-torch.exp(head.decay + x["w"].view_as(k))) if "w" in x else head.decay
    present = torch.einsum("hk,hv->hkv", k, v)
    y = torch.einsum("hk,hkv->hv", r, state + head.bonus[:, :, None] * present)
    y = head_norm(y, head)
    return y if x["g"] is None else y * F.silu(x["g"]), {"state": decay[:, :, None] * state + present}


def token_7(x: Any, s: Vectors) -> tuple[Tensor, Vectors]:
    head, state = x["head"], s["state"]
    v, rate = x["v"], torch.sigmoid(head.a0 + x["a"])
    if x["v_first"] is not None:
        v = v + (x["v_first"] - v) * torch.sigmoid(head.v0 + x["v_gate"])
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(head.w0 + x["w"]))
    removal, k = x["k"] * head.k_k, x["k"] * (1 + (rate - 1) * head.k_a)
    r, v, rate, decay, removal, k = (y.view(head.r_k.shape) for y in (x["r"], v, rate, decay, removal, k))
    removal = removal / removal.norm(dim=1, keepdim=True)
    removed = torch.einsum("hk,hkv->hv", removal, state)
    state = decay[:, :, None] * state + torch.einsum("hk,hv->hkv", k, v)
    state = state - torch.einsum("hk,hv->hkv", removal * rate, removed)
    own = (r * k * head.r_k).sum(1, keepdim=True) * v
    return (head_norm(torch.einsum("hk,hkv->hv", r, state), head) + own.flatten()) * x["g"], {"state": state}


def head_norm(y: Tensor, head: Any) -> Tensor:
    """[H, V] → [A]."""
    centred = y - y.mean(1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + head.eps)
    return normed.flatten() * head.norm.weight + head.norm.bias
