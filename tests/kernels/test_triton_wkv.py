"""The recurrences of every kernel package against float64, and what they promise: each row for itself, to the bit."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
import triton
import triton.language as tl
from kernels.kernel_cases import BACKENDS, every_pair, expected, make_case, run
from tolerances import assert_close

from rwkv_batch.checks.calls import EPS, RECURRENCES, VARIANTS, op_of, state_dtypes
from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.rounding import round_stochastically
from rwkv_batch.models.rows import Rows
from rwkv_batch.models.rwkv5 import Head5
from rwkv_batch.triton_kernels.launch import is_interpreted
from rwkv_batch.triton_kernels.recurrence import round_stochastically as round_in_kernel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LATER = [variant for variant in VARIANTS if torch.float16 in state_dtypes(variant)]
"""Variants whose state can be float16."""
FACTOR = 4.0
"""Factor on the limit of one op: errors add up over tokens, and the group norm may divide by a small number."""


def assert_matches(function, case, dtype):
    """Output and states equal float64, and nothing else of the pools has changed."""
    out, after = run(function, case)
    right_out, right_states = expected(case)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert_close("output", out[case.tokens], right_out[case.tokens], dtype, FACTOR)
    live = [slot for slot in case.rows.slots if slot >= 0]
    for name, state in after.states.items():
        assert_close(name, state[live], right_states[name][live], torch.float32, FACTOR)
        state[live] = case.states[name][live]
        assert torch.equal(after.pools[name], case.pools[name]), f"{name}: other slots or layers changed"


@pytest.mark.parametrize(
    ("backend", "variant", "dtype"), every_pair(BACKENDS, VARIANTS, [*DTYPES]), indirect=["backend"]
)
def test_ragged_rows_equal_float64(backend, variant, dtype):
    function, device = backend.serve(op_of(variant), DTYPES[dtype])
    assert_matches(function, make_case(variant, dtype=DTYPES[dtype], device=device), DTYPES[dtype])


@pytest.mark.parametrize(
    ("backend", "variant", "size"), every_pair(BACKENDS, VARIANTS, [32, 64, 128]), indirect=["backend"]
)
def test_head_sizes(backend, variant, size):
    """v4 has no heads, but with this a width of several blocks."""
    function, device = backend.serve(op_of(variant), size=size)
    assert_matches(function, make_case(variant, (2, 0), (1, 2), 2, size, device=device), torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_token_in_each_row(backend, variant):
    function, device = backend.serve(op_of(variant))
    assert_matches(function, make_case(variant, (5, -1, 0, 7, 2), (1,) * 5, device=device), torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch(backend, variant):
    function, device = backend.serve(op_of(variant))
    assert_matches(function, make_case(variant, (), (), device=device), torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_equals_float64(variant):
    assert_matches(RECURRENCES[op_of(variant)].definition, make_case(variant), torch.float32)


STATES = [(variant, "float32") for variant in VARIANTS] + [(variant, "float16") for variant in LATER]


@pytest.mark.parametrize(("variant", "state_dtype"), STATES)
def test_a_row_does_not_depend_on_the_others(backend, variant, state_dtype):
    """A row gives the same bits alone, in another slot, and in two calls."""
    function, device = backend.serve(op_of(variant), state_dtype=DTYPES[state_dtype])
    case = make_case(variant, (3, -1, 5), (2, 1, 4), state_dtype=DTYPES[state_dtype], device=device)
    out, after = run(function, case)
    first, after_first = run(function, case.pick(2, 0, 3))
    second, after_both = run(function, replace(case.pick(2, 3, 4), pools=after_first.pools))
    alone, elsewhere = run(function, case.pick(2, 0, 4, slot=1))
    assert torch.equal(torch.cat((first, second)), out[3:])
    assert torch.equal(alone, out[3:])
    for name, state in after.states.items():
        assert torch.equal(after_both.states[name][5], state[5])
        assert torch.equal(elsewhere.states[name][1], state[5])


@pytest.mark.parametrize("variant", LATER)
def test_a_float16_state_is_rounded_as_the_reference_does(backend, variant):
    """All but few numbers are the same: rounding up or down may turn on a difference that float32 leaves."""
    function, device = backend.serve(op_of(variant), state_dtype=torch.float16)
    case = make_case(variant, state_dtype=torch.float16, device=device)
    out, after = run(function, case)
    right_out, right = run(RECURRENCES[op_of(variant)].definition, case.to("cpu"))
    assert_close("output", out[case.tokens], right_out[case.tokens], torch.float32, 100)
    for name, want in right.states.items():
        got = after.states[name].cpu()
        assert (got != want).double().mean() < 2e-3
        assert_close(name, got, want, torch.float16, 2)


def test_a_quiet_channel_of_a_float16_state_forgets(backend):
    """A state that keeps 1 - 2^-12 of itself each token: rounding to nearest would keep all of it."""
    function, device = backend.serve("wkv5", state_dtype=torch.float16)
    size, length = 16, 60
    ones = torch.ones(1, size, device=device)
    head = Head5(ones * (1 - 2.0**-12), ones, Norm(ones[0], ones[0]), EPS)
    silent = torch.zeros(length, size, device=device)
    state = torch.ones(1, 1, size, size, dtype=torch.float16, device=device)
    function(silent, silent, silent, None, head, state, Rows((0,), (length,), device))
    assert state.float().mean().item() == pytest.approx((1 - 2.0**-12) ** length, abs=1e-3)


@triton.jit
def rounding_kernel(p_x, p_position, p_out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    head = tl.program_id(0)
    element = (head * ROWS + row[:, None]) * COLUMNS + column[None, :]
    rounded = round_in_kernel(tl.load(p_x + element), tl.load(p_position), head, row, column)
    tl.store(p_out + element, rounded)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_rounding_is_the_reference_s_to_the_bit():
    if not is_interpreted() and not torch.cuda.is_available():
        pytest.skip("no GPU, and not in the interpreter")
    device = "cpu" if is_interpreted() else "cuda"
    x, nans = numbers_to_round(3)
    for position in (0, 1, 12345, 2**31 - 1):
        out = torch.empty_like(x, device=device)
        given = torch.tensor([position], dtype=torch.int32, device=device)
        rounding_kernel[(3,)](x.to(device), given, out, 64, 64)
        right = round_stochastically(x[None], torch.tensor([position]))[0]
        assert_same_bits(out.cpu(), right, nans)


@pytest.mark.filterwarnings("ignore:.* encountered in")
def test_a_kernel_rounds_each_number_as_the_reference_does_to_the_bit(backend):
    """A state of every magnitude, whose channels shrink and grow: one product, which leaves no choice of the sum."""
    function, device = backend.serve("wkv5", state_dtype=torch.float16)
    heads, size = 3, 64
    ones = torch.ones(heads, size, device=device)
    decay = torch.linspace(0.3, 1.6, heads * size, device=device).view(heads, size)
    head = Head5(decay, ones, Norm(ones.flatten(), ones.flatten()), EPS)
    state = torch.randn(2, heads, size, size) * torch.exp2(torch.arange(2 * heads * size * size) % 44 - 26).view(
        2, heads, size, size
    )
    state[:, :, :, :5] = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504, -65504])
    state = state.half().to(device)
    silent, positions = torch.zeros(2, heads * size, device=device), torch.tensor([7, 2**31 - 2])
    right = round_stochastically((state.float() * decay[..., None]).cpu(), positions)
    function(silent, silent, silent, None, head, state, Rows((1, 0), (1, 1), device, positions.flip(0).tolist()))
    found = state.float().cpu()
    assert torch.equal(found.nan_to_num(1, -2, -3), right.nan_to_num(1, -2, -3))
    assert right.isinf().sum() > 4 * heads * size


def numbers_to_round(num_heads):
    """[H, 64, 64]: numbers of all magnitudes and the edges of float16's range; and which of them are NaN."""
    smallest, smallest_normal = 2.0**-24, 2.0**-14
    edges = [
        0,
        2.0**-149,
        smallest / 2,
        smallest,
        smallest_normal,
        smallest_normal - 2.0**-38,
        65504,
        65504.004,
        65519,
        65520,
        65536,
        7e4,
        3e38,
        torch.inf,
    ]
    x = torch.randn(num_heads * 4096) * torch.exp2(torch.arange(num_heads * 4096) % 80 - 50)
    x[: 2 * len(edges)] = torch.tensor(edges + [-edge for edge in edges])
    x[100:104] = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    x = x.view(num_heads, 64, 64)
    return x, x.isnan()


def assert_same_bits(found, right, nans):
    """The bits are the same, but for NaN, which has many."""
    assert torch.equal(found.isnan(), nans)
    assert torch.equal(right.isnan(), nans)
    found, right = (one.masked_fill(nans, 0) for one in (found, right))
    assert torch.equal(found.view(torch.int32), right.view(torch.int32))
    assert torch.equal(right.half().float().view(torch.int32), right.view(torch.int32))


WRONG = {
    "v: got torch.float64": lambda given: given.double(),
    "v: got .* expected a contiguous": lambda given: given[:, :-1],
    "s: got torch.bfloat16": lambda given: given.bfloat16(),
}
"""Message → changes the second vector, which it calls v, or the first state, which it calls s."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_vector_or_state_is_refused(backend, variant, message):
    function, device = backend.serve(op_of(variant))
    case = make_case(variant, device=device)
    arguments = case.arguments | case.states
    name = RECURRENCES[case.op].vectors[1] if message[0] == "v" else next(iter(case.states))
    with pytest.raises(ValueError, match=name + message[1:]):
        function(**arguments | {name: WRONG[message](arguments[name])}, rows=case.rows)


WRONG_HEAD = {
    "k: got torch.float64": lambda a: {"k": a["k"].double()},
    "v: got .* expected a contiguous": lambda a: {"v": a["v"][:, :-1]},
    "r: got .* expected a contiguous": lambda a: {"r": a["r"].T.contiguous().T},
    "state: got .* whose slots are contiguous": lambda a: {"state": a["state"].transpose(2, 3)},
    "state: got torch.bfloat16": lambda a: {"state": a["state"].bfloat16()},
    "head.norm.weight: got .* \\[3\\]": lambda a: {
        "head": a["head"]._replace(norm=Norm(torch.ones(3), a["head"].norm.bias))
    },
}


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if op_of(variant) in ("wkv5", "wkv6", "wkv7")])
@pytest.mark.parametrize("message", WRONG_HEAD)
def test_wrong_tensors_are_refused(backend, variant, message):
    function, device = backend.serve(op_of(variant))
    case = make_case(variant, device=device)
    arguments = case.arguments | case.states
    with pytest.raises(ValueError, match=message):
        function(**arguments | WRONG_HEAD[message](arguments), rows=case.rows)


WRONG_4 = {
    "v: got torch.float64": lambda a: {"v": a["v"].double()},
    "k: got torch.bfloat16": lambda a: {"k": a["k"].bfloat16()},
    "decay: got .* expected a contiguous": lambda a: {"decay": a["decay"][:-1]},
    "pp: got torch.float16": lambda a: {"pp": a["pp"].half()},
}


@pytest.mark.parametrize("message", WRONG_4)
def test_wrong_tensors_of_v4_are_refused(backend, message):
    function, device = backend.serve("wkv4")
    case = make_case("wkv4", device=device)
    arguments = case.arguments | case.states
    with pytest.raises(ValueError, match=message):
        function(**arguments | WRONG_4[message](arguments), rows=case.rows)


@pytest.mark.parametrize(
    ("op", "device", "dtype", "size", "state_dtype", "reason"),
    [
        ("wkv7", "xpu", torch.float32, 64, torch.float32, "runs on a CUDA or ROCm device, not on xpu"),
        ("wkv4", "xpu", torch.float32, 64, torch.float32, "runs on a CUDA or ROCm device, not on xpu"),
        ("wkv7", "cpu", torch.float64, 64, torch.float32, "no kernel for torch.float64"),
        ("wkv6", "cpu", torch.float32, 64, torch.bfloat16, "no kernel for a state of torch.bfloat16"),
        ("wkv5", "cpu", torch.float32, 48, torch.float32, "head size 48 is not a power of two from 16 to 128"),
        ("wkv7", "cpu", torch.float32, 256, torch.float32, "head size 256 is not a power of two from 16 to 128"),
        ("wkv4", "cpu", torch.float32, 48, torch.float32, None),
    ],
)
def test_what_triton_cannot_serve_it_says(op, device, dtype, size, state_dtype, reason):
    if not is_interpreted() and device == "cpu":
        pytest.skip("not in the interpreter")
    module = import_module(f"rwkv_batch.triton_kernels.{op}")
    assert module.unsupported_reason(torch.device(device), dtype, {"N": size}, state_dtype) == reason
