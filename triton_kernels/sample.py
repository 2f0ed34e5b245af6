"""From logits to token ids; see engine/sample.py for the definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from ..kernel_support.tensor_checks import check
from . import launch
from .probe import probed
from .sample_select import select_kernel
from .sample_shape import shape_kernel
from .specialization import Specialization, pointers

TILE = 4096
"""Ids that one program of the first kernel goes through."""
CHUNK = 2048
"""Ids that the second kernel goes through at a time where it looks for large logits; divides TILE."""
BLOCK = 512
"""Tokens of a source that it looks at together afterwards."""
CAP = 4096
"""How many tokens near the top of a row are compacted at most; with more, passes go over the whole row."""
LIST = 256
"""Entries of a slot's lists that are gone through together."""
NUM_WARPS = 8
MAX_V = 2**18
"""Masses of more tokens could overflow 64 bits."""


def sample(logits: Tensor, slot_index: Tensor, tables: Any, ops: Any) -> tuple[Tensor, Tensor]:
    """As `sample` in engine/sample.py.

    Nothing is sorted and V numbers are never written: what penalties, biases and early stops change is changed in
    `logits` itself, entry by entry, and put back in the end; masks are applied when a logit is read. The first kernel
    leaves maxima and sums of tiles; the second, one program a row, does the rest (see sample_select.py).

    Args:
        logits: [B, V] float32, contiguous.
        slot_index: [B] int32. A row with -1 gets token 0 and log-probability 0, and touches no slot.
        tables: `SlotTables`. **Updated in place.**
        ops: not used.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what
            was expected.

    Numerics: masses are exp2 in float32, as integers of 2^-44 of the largest. A draw or a cut differs from the
        definition's only where the uniform number, or the mass at a boundary, is within about 1e-6 of it.
        Tokens whose probability is below 2^-44 of the largest are never drawn. A row's bits depend on nothing but the
        row and its slot.
    Graph-safe: allocations depend on B, V and the widths of the tables; no host sync. Tables that have been replaced
        (`tables.generation`) need a new capture.
    """
    num_rows, size = logits.shape
    device = logits.device
    check("logits", logits, (num_rows, tables.vocab_size), torch.float32, device)
    check("slot_index", slot_index, (num_rows,), torch.int32, device)
    check("tables.integers", tables.integers, tables.integers.shape, torch.int64, device)
    tile, chunk, block, cap = _tiles(size)
    num_tiles = triton.cdiv(size, tile)
    widths = tables.seen_ids.shape[1], tables.bias_ids.shape[1], tables.stops.shape[1]
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float64, device=device)
    if num_rows == 0:
        return token_ids, logprobs
    saved = torch.empty(num_rows, sum(widths), dtype=torch.float32, device=device)
    sums = torch.empty(num_rows, 4, num_tiles, dtype=torch.float32, device=device)
    first = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=device)
    near_logits = torch.empty(num_rows, cap, dtype=torch.float32, device=device)
    near_ids = torch.empty(num_rows, cap, dtype=torch.int32, device=device)
    seen_generated = tables.seen_generated.view(torch.uint8)
    options = dict(num_warps=NUM_WARPS, num_stages=1, enable_fp_fusion=True)
    shape_kernel[(num_rows, num_tiles)](
        logits,
        slot_index,
        tables.integers,
        tables.floats,
        tables.seen_ids,
        tables.seen_count,
        seen_generated,
        tables.bias_ids,
        tables.biases,
        tables.stops,
        tables.mask,
        tables.sampleable,
        saved,
        sums,
        first,
        *widths,
        V=size,
        TILE=tile,
        LIST=LIST,
        **options,
    )
    select_kernel[(num_rows,)](
        logits,
        slot_index,
        tables.integers,
        tables.floats,
        tables.last_token,
        tables.seen_ids,
        tables.seen_count,
        seen_generated,
        tables.bias_ids,
        tables.stops,
        tables.mask,
        tables.sampleable,
        tables.uncounted.view(torch.uint8),
        saved,
        sums,
        first,
        near_logits,
        near_ids,
        token_ids,
        logprobs,
        *widths,
        V=size,
        NUM_TILES=num_tiles,
        TILE=tile,
        CHUNK=chunk,
        BLOCK=block,
        CAP=cap,
        LIST=LIST,
        **options,
    )
    return token_ids, logprobs


def _unsupported(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, int],
    state_dtype: torch.dtype = torch.float32,
) -> str | None:
    if sizes.get("V", 1) > MAX_V:
        return f"vocabulary of {sizes['V']} is larger than {MAX_V}"
    return launch.unsupported(device, dtype, sizes, state_dtype)


unsupported_reason = probed("sample", _unsupported)


def specializations() -> list[Specialization]:
    """What is launched for a vocabulary of 65536, and for RWKV-4's of 50277."""
    common = {
        **pointers("fp32", "logits", "seen_count", "saved", "sums"),
        **pointers("fp64", "floats"),
        **pointers("i64", "integers"),
        **pointers("i32", "slot", "seen_ids", "bias_ids", "stops", "mask", "sampleable", "first"),
        **pointers("u8", "seen_generated"),
        **dict.fromkeys(("seen_width", "bias_width", "stop_width"), "i32"),
    }
    shape = common | pointers("fp32", "biases")
    select = {
        **common,
        **pointers("fp32", "near_logits"),
        **pointers("fp64", "logprob"),
        **pointers("i64", "last_token", "token"),
        **pointers("i32", "near_ids"),
        **pointers("u8", "uncounted"),
    }
    found = []
    for size in (65536, 50277):
        tile, chunk, block, cap = _tiles(size)
        constants = dict(V=size, TILE=tile, LIST=LIST)
        sizes = constants | dict(NUM_TILES=triton.cdiv(size, tile), CHUNK=chunk, BLOCK=block, CAP=cap)
        is_probe = size == 65536
        found += [
            Specialization(f"shape, V = {size}", shape_kernel, shape, constants, NUM_WARPS, 1, is_probe),
            Specialization(f"select, V = {size}", select_kernel, select, sizes, NUM_WARPS, 1, is_probe),
        ]
    return found


def _tiles(size: int) -> tuple[int, int, int, int]:
    """TILE, CHUNK, BLOCK and CAP, no larger than the vocabulary needs."""
    most = max(32, triton.next_power_of_2(size))
    return min(TILE, most), min(CHUNK, most), min(BLOCK, most), min(CAP, most)
