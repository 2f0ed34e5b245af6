"""Deferred state writes of RWKV-7: to the bit what a recurrence gives that writes its states at every token."""

from __future__ import annotations

import random

import pytest
import torch
from kernels.conftest import Backend
from kernels.kernel_cases import Case, Function, make_case
from torch import Tensor

from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.models.rows import Rows

NUM_SLOTS = 8


class Both:
    """One random stream of steps, with states that are written at every token and with deferred writes.

    Args:
        interval: tokens of a sequence from one write to the next.

    Attributes:
        decoded: slot → tokens that its sequence has decoded, all in the state that is written at every token.
        ring: NaN where nothing was written, so that an update that is read too early makes an output NaN.
    """

    def __init__(self, case: Case, function: Function, interval: int, device: torch.device) -> None:
        self._case, self._function, self._interval, self._device = case.to(str(device)), function, interval, device
        self._random = random.Random(1)
        self.decoded: dict[int, int] = {}
        self._position: dict[int, int] = {}
        self.written = self._case.copy().states["state"]
        self.deferred = self._case.copy().states["state"]
        _, heads, size, _ = self.written.shape
        block = torch.full((NUM_SLOTS, 2, interval - 1, heads, 5, size), torch.nan, device=device)
        self.ring = block[:, 1]

    def step(self) -> None:
        """Runs a step of some slots: each decodes, or takes in a new sequence with a prompt."""
        slots = self._random.sample((1, 3, 4), 2)
        starts = [slot for slot in slots if slot not in self.decoded or self._random.random() < 0.1]
        for slot in starts:
            self._start(slot)
        lengths = [self._random.randint(1, 2) if slot in starts else 1 for slot in slots]
        pending = [-1 if slot in starts else self._pending(slot) for slot in slots]
        positions = [self._position[slot] for slot in slots]
        rows = [Rows((*slots, -1), (*lengths, 1), self._device, (*positions, 0), (*p, 2)) for p in (pending, [-1] * 2)]
        inputs = self._inputs(rows[0].num_tokens)
        before = self.deferred.clone(), self.ring.clone()
        got = self._function(**inputs, state=self.deferred, rows=rows[0], ring=self.ring)
        wanted = self._function(**inputs, state=self.written, rows=rows[1])
        assert torch.equal(got[:-1], wanted[:-1])
        for slot, length, entry in zip(slots, lengths, pending, strict=True):
            self._position[slot] += length
            self.decoded[slot] += slot not in starts
            expected = self.written if entry < 0 else before[0]
            assert torch.equal(self.deferred[slot], expected[slot])
            before[1][slot] = self.ring[slot] if entry >= 0 else before[1][slot]
        others = [slot for slot in range(NUM_SLOTS) if slot not in slots]
        assert torch.equal(self.deferred[others], before[0][others])
        assert torch.equal(self.ring.nan_to_num(7), before[1].nan_to_num(7))

    def _start(self, slot: int) -> None:
        fresh = torch.randn_like(self.written[slot], dtype=torch.float32)
        self.written[slot], self.deferred[slot] = fresh, fresh
        self.decoded[slot], self._position[slot] = 0, self._random.randint(0, 5)

    def _pending(self, slot: int) -> int:
        pending = self.decoded[slot] % self._interval
        return ~pending if pending == self._interval - 1 else pending

    def _inputs(self, num_tokens: int) -> dict[str, Tensor]:
        """The case's parameters with random tokens."""
        names = [name for name, x in self._case.arguments.items() if isinstance(x, Tensor) and x.dim() == 2]
        width, dtype = self._case.arguments["r"].shape[1], self._case.arguments["r"].dtype
        drawn = {name: torch.randn(num_tokens, width).to(self._device, dtype) for name in names}
        return self._case.arguments | drawn


CASES = [(2, 16, "float16", "wkv7"), (3, 16, "float32", "wkv7-first-layer"), (4, 16, "float16", "wkv7")]
CASES += [(4, 64, "float32", "wkv7")]


@pytest.mark.parametrize(
    ("name", "interval", "size", "state_dtype", "variant"),
    [
        pytest.param(name, *case, marks=[pytest.mark.soak] if name == "triton" and case != CASES[0] else [])
        for name in ("triton", "cuda")
        for case in CASES
    ],
)
def test_no_bit_differs(
    name: str, interval: int, size: int, state_dtype: str, variant: str, request: pytest.FixtureRequest
) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        request.getfixturevalue("cuda_on_cpu")
    dtype = DTYPES[state_dtype]
    function, device = Backend(name).serve("wkv7", torch.float32, dtype, size)
    both = Both(make_case(variant, size=size, num_heads=1, state_dtype=dtype), function, interval, device)
    for _ in range(6 if name == "triton" else 16):
        both.step()
    assert max(both.decoded.values()) >= interval  # a ring was applied, and its state written


@pytest.mark.usefixtures("cuda_on_cpu")
def test_a_ring_of_another_shape_is_refused() -> None:
    from rwkv_batch.cuda_kernels.wkv7 import wkv7

    case = make_case("wkv7", (2,), (1,))
    for shape, words in (
        ((8, 4, 2, 5, 16), "ring: got 4 updates for each slot, expected 1 to 3"),
        ((8, 1, 2, 4, 16), r"ring: got torch.float32 .* expected torch.float32 \[P, 1, 2, 5, 16\]"),
    ):
        with pytest.raises(ValueError, match=words):
            wkv7(**case.arguments, **case.states, rows=case.rows, ring=torch.zeros(shape))
    odd = torch.zeros(8 * 160 + 1)[1:].view(8, 1, 2, 5, 16)
    with pytest.raises(ValueError, match="expected multiples of 16 and 4"):
        wkv7(**case.arguments, **case.states, rows=case.rows, ring=odd)
