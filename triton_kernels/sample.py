"""From logits to token ids; see engine/sample.py for the definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check
from . import launch
from .probe import probed
from .sample_select import select_kernel
from .sample_shape import shape_kernel
from .specialization import Specialization, pointers

TILE = 4096
"""Ids of a program of the first kernel."""
CHUNK = 2048
"""Ids that the second kernel reads at a time to collect large logits; divides TILE."""
BLOCK = 512
"""Tokens of a source that the second kernel reads at a time; see sample_cut.py."""
CAP = 4096
"""Tokens near a row's largest logit that are collected at most; with more, passes read the whole row."""
LIST = 256
"""Entries of a slot's lists that are read at a time."""
NUM_WARPS = 8
OPTIONS: dict[str, Any] = {"num_warps": NUM_WARPS, "num_stages": 1, "enable_fp_fusion": True}
MAX_V = 2**18
"""Vocabulary size up to which the sum of masses fits into 64 bits."""


def sample(logits: Tensor, slot_index: Tensor, tables: Any, ops: Any) -> tuple[Tensor, Tensor]:
    """As `sample` in engine/sample.py.

    Nothing is sorted, and no copy of the logits is written. Penalties, biases and early stops change entries of
    `logits`, which are restored in the end; masks are applied when a logit is read. The first kernel computes maxima
    and sums of tiles (sample_shape.py); the second, one program a row, filters and draws (sample_select.py).

    Args:
        logits: [B, V] float32, contiguous.
        slot_index: [B] int32. A row with -1 gets token 0 and log-probability 0, and touches no slot.
        tables: `SlotTables`. **Updated in place.**
        ops: not used.

    Returns:
        Token ids [B] int64, and their log-probabilities [B] float64 before penalties and filters.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what
            was expected.

    Numerics: masses are exp2 in float32, as integers in units of 2^-44 of the largest. A draw or a cut differs from the
        definition's only where the uniform number is within about 1e-6 of a boundary. A token whose probability is
        below 2^-44 of the largest is never drawn. A row's bits depend on the row and its slot only.
    Graph-safe: allocations depend on B, V and the widths of the tables; no host sync. Tables that have been replaced
        (`tables.generation`) need a new capture.
    """
    num_rows, device = len(logits), logits.device
    check("logits", logits, (num_rows, tables.vocab_size), torch.float32, device)
    check("slot_index", slot_index, (num_rows,), torch.int32, device)
    check("tables.integers", tables.integers, tables.integers.shape, torch.int64, device)
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float64, device=device)
    if num_rows:
        sizes = _Sizes.of(tables.vocab_size)
        lists = _Lists.of(tables)
        buffers = _Buffers.of(num_rows, sum(lists.widths), sizes, device)
        _shape(logits, slot_index, tables, lists, buffers, sizes)
        _select(logits, slot_index, tables, lists, buffers, sizes, (token_ids, logprobs))
    return token_ids, logprobs


class _Sizes(NamedTuple):
    """Constants of the kernels, no larger than the vocabulary needs."""

    V: int
    NUM_TILES: int
    TILE: int
    CHUNK: int
    BLOCK: int
    CAP: int

    @classmethod
    def of(cls, size: int) -> _Sizes:
        most = max(32, launch.power_of_two(size))
        tile = min(TILE, most)
        return cls(size, launch.ceil_div(size, tile), tile, min(CHUNK, most), min(BLOCK, most), min(CAP, most))


class _Lists(NamedTuple):
    """The slots' lists that change logits."""

    seen: tuple[Tensor, Tensor, Tensor]
    """Ids, counts, and whether each was generated."""
    widths: tuple[int, int, int]
    """Entries that there is room for: seen ids, biases, stops."""

    @classmethod
    def of(cls, tables: Any) -> _Lists:
        seen = tables.seen_ids, tables.seen_count, tables.seen_generated.view(torch.uint8)
        return cls(seen, (tables.seen_ids.shape[1], tables.bias_ids.shape[1], tables.stops.shape[1]))


class _Buffers(NamedTuple):
    """Memory that the first kernel fills for the second, and the second's own."""

    saved: Tensor
    """[B, entries of the slot's lists] float32: logits before they were changed."""
    sums: Tensor
    """[B, 4, tiles] float32: of each tile the largest logit and the mass, as given and as changed."""
    first: Tensor
    """[B, tiles] int32: the first id with the largest changed logit."""
    near_logits: Tensor
    near_ids: Tensor
    """[B, CAP] float32 and int32: the tokens near a row's largest logit."""

    @classmethod
    def of(cls, num_rows: int, num_entries: int, sizes: _Sizes, device: torch.device) -> _Buffers:
        return cls(
            torch.empty(num_rows, num_entries, dtype=torch.float32, device=device),
            torch.empty(num_rows, 4, sizes.NUM_TILES, dtype=torch.float32, device=device),
            torch.empty(num_rows, sizes.NUM_TILES, dtype=torch.int32, device=device),
            torch.empty(num_rows, sizes.CAP, dtype=torch.float32, device=device),
            torch.empty(num_rows, sizes.CAP, dtype=torch.int32, device=device),
        )


def _shape(logits: Tensor, slot_index: Tensor, tables: Any, lists: _Lists, buffers: _Buffers, sizes: _Sizes) -> None:
    """Launches the first kernel."""
    given = logits, slot_index, tables.integers, tables.floats, *lists.seen
    shaping = tables.bias_ids, tables.biases, tables.stops, tables.mask, tables.sampleable
    arguments = *given, *shaping, buffers.saved, buffers.sums, buffers.first, *lists.widths
    constants = {"V": sizes.V, "TILE": sizes.TILE, "LIST": LIST, **OPTIONS}
    launch.start_kernel(shape_kernel, (len(logits), sizes.NUM_TILES), arguments, constants)


def _select(
    logits: Tensor,
    slot_index: Tensor,
    tables: Any,
    lists: _Lists,
    buffers: _Buffers,
    sizes: _Sizes,
    results: tuple[Tensor, Tensor],
) -> None:
    """Launches the second kernel."""
    given = logits, slot_index, tables.integers, tables.floats, tables.last_token, *lists.seen
    shaping = tables.bias_ids, tables.stops, tables.mask, tables.sampleable, tables.uncounted.view(torch.uint8)
    arguments = *given, *shaping, *buffers, *results, *lists.widths
    launch.start_kernel(select_kernel, (len(logits),), arguments, {**sizes._asdict(), "LIST": LIST, **OPTIONS})


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
    """The compilations for a vocabulary of 65536, and for RWKV-4's of 50277."""
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
        sizes = _Sizes.of(size)
        constants = dict(V=size, TILE=sizes.TILE, LIST=LIST)
        selecting = {**sizes._asdict(), "LIST": LIST}
        is_probe = size == 65536
        found += [
            Specialization(f"shape, V = {size}", shape_kernel, shape, constants, NUM_WARPS, 1, is_probe),
            Specialization(f"select, V = {size}", select_kernel, select, selecting, NUM_WARPS, 1, is_probe),
        ]
    return found
