"""Layer norm, token shift and interpolations of every kernel package, against float64 and the definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from kernels.shift_cases import WIDTH, Shift, decode, garbage_in_new_tensors, live_tokens, ragged
from tolerances import assert_close

from rwkv_batch.models import blocks
from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.rows import Rows, padding_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("nearest_bfloat16")


def serve(backend: Any, dtype: torch.dtype = torch.float32) -> tuple[Callable[..., Any], torch.device]:
    """The backend's function, called with NaN in new tensors so that elements not written show; and its device."""
    function, device = backend.serve("shift_lerp", dtype)

    def call(*args: Any, **kwargs: Any) -> Any:
        with garbage_in_new_tensors():
            return function(*args, **kwargs)

    return call, device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_rows", [ragged, decode])
@pytest.mark.parametrize("keep_parts", [False, True])
def test_shift_lerp(backend, make_rows, dtype, keep_parts):
    call, device = serve(backend, dtype)
    rows = make_rows(device)
    case, live = Shift(rows.num_tokens, dtype, device=device), live_tokens(rows)
    pools = case.pool.clone(), case.pool.clone()
    got = call(*case.arguments(pools[0]), rows, keep_parts=keep_parts)
    reference = blocks.shift_lerp(*case.arguments(pools[1]), rows, keep_parts)
    x, norm, mix, shift = case.double()
    exact = blocks.shift_lerp(x, norm, mix, shift, rows, True)
    for name, mine, theirs, right in zip(("normed", "delta", "mixed"), got, reference, exact, strict=True):
        if name != "mixed" and not keep_parts:
            assert mine is None
            continue
        assert not mine[..., live, :].isnan().any()
        assert_close(f"{name} against float64", mine[..., live, :], right[..., live, :], dtype, 2.0)
        assert_close(f"{name} against the reference", mine[..., live, :], theirs[..., live, :], dtype)
    assert_close("shift", pools[0][:, 1], shift, dtype)
    untouched = torch.tensor([slot not in rows.slots for slot in range(7)])
    assert torch.equal(pools[0][untouched], case.pool[untouched])
    assert torch.equal(pools[0][:, ::2], case.pool[:, ::2])


@pytest.mark.parametrize(("width", "num_mixes"), [(64, 1), (300, 2), (300, 3), (64, 5), (33, 2), (1100, 1)])
def test_shift_lerp_of_any_size(backend, width, num_mixes):
    call, device = serve(backend)
    rows = ragged(device)
    case, live = Shift(rows.num_tokens, torch.float32, width, num_mixes, device), live_tokens(rows)
    pools = case.pool.clone(), case.pool.clone()
    got = call(*case.arguments(pools[0]), rows)[2]
    expected = blocks.shift_lerp(*case.arguments(pools[1]), rows)[2]
    assert_close("mixed", got[:, live], expected[:, live], torch.float32)
    assert_close("pool", *pools, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shift_lerp_does_not_depend_on_company_or_cuts(backend, dtype):
    """The last row alone, in another slot, in two calls, of which the second is a decode step."""
    call, device = serve(backend, dtype)
    rows = ragged(device)
    case = Shift(rows.num_tokens, dtype, device=device)
    whole, alone = case.pool.clone(), case.pool.clone()
    expected = call(*case.arguments(whole), rows)[2][:, 6:]
    alone[1, 1] = case.pool[3, 1]
    parts = [
        call(*case.arguments(alone, tokens), Rows((1,), (tokens.stop - tokens.start,), device))[2]
        for tokens in (slice(6, 9), slice(9, 10))
    ]
    assert torch.equal(torch.cat(parts, 1), expected)
    assert torch.equal(alone[1, 1], whole[3, 1])


def test_shift_lerp_of_rows_that_a_graph_reads(backend):
    call, device = serve(backend, torch.bfloat16)
    case = Shift(3, torch.bfloat16, device=device)
    rows = padding_rows(3, device)
    rows.slot_index.copy_(torch.tensor([6, -1, 2]))
    pools = case.pool.clone(), case.pool.clone()
    got = call(*case.arguments(pools[0]), rows)[2]
    expected = call(*case.arguments(pools[1]), Rows((6, -1, 2), (1, 1, 1), device))[2]
    live = torch.tensor([True, False, True])
    assert torch.equal(got[:, live], expected[:, live])
    assert torch.equal(*pools)


def test_shift_lerp_of_nothing(backend):
    call, device = serve(backend, torch.bfloat16)
    case = Shift(0, torch.bfloat16, device=device)
    pool = case.pool.clone()
    z, d, mixed = call(*case.arguments(pool), Rows((), (), device), keep_parts=True)
    assert z.shape == d.shape == (0, WIDTH)
    assert mixed.shape == (6, 0, WIDTH)
    assert torch.equal(pool, case.pool)


zeros = partial(torch.zeros, dtype=torch.float32)


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", {"x": zeros(10, 81)}),
        ("x", {"x": zeros(9, WIDTH)}),
        ("x", {"x": zeros(10, 2 * WIDTH)[:, ::2]}),
        ("norm.bias", {"norm": Norm(zeros(WIDTH), zeros(WIDTH + 1))}),
        ("norm.weight", {"norm": Norm(zeros(WIDTH).half(), zeros(WIDTH))}),
        ("mix", {"mix": zeros(2, WIDTH, device="meta")}),
        ("shift", {"shift": zeros(7, WIDTH).bfloat16()}),
        ("shift", {"shift": zeros(7, 2 * WIDTH)[:, ::2]}),
        ("shift", {"shift": zeros(7, WIDTH, device="meta")}),
    ],
)
def test_shift_lerp_refuses(backend, name, change):
    function, device = backend.serve("shift_lerp")
    if backend.package.endswith("cpu_kernels") and any(_is_meta(value) for value in change.values()):
        pytest.skip("where a tensor is, its kernels do not look")
    case = Shift(10, torch.float32, device=device)
    moved = {key: _moved(value, device) for key, value in change.items()}
    arguments = dict(zip(("x", "norm", "mix", "shift"), case.arguments(case.pool), strict=True)) | moved
    before = case.pool.clone()
    with pytest.raises(ValueError, match=f"^{name if 'x' not in change else '(x|shift|norm.weight)'}: got"):
        function(**arguments, rows=ragged(device))
    assert torch.equal(case.pool, before)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Norm):
        return Norm(*(_moved(vector, device) for vector in value))
    return value if _is_meta(value) else value.to(device)


def _is_meta(value: Any) -> bool:
    return not isinstance(value, Norm) and value.device.type == "meta"
