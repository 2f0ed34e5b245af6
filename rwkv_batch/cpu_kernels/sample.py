"""From logits to token ids for rows of the slot tables; see `sample` in engine/sample.py for the definition."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .call import INT, address, kernels, pointers
from .call import unsupported as unsupported_reason

__all__ = ["sample", "unsupported_reason"]


NUM_INTEGERS, NUM_FLOATS = 16, 8
"""Columns of the tables; see engine/slot_tables.py."""


class Sample(ctypes.Structure):
    """`Sample` of csrc/sample.cpp."""

    _fields_ = (
        *((name, INT) for name in ("num_rows", "vocab", "num_slots")),
        *pointers("logits", "slot_index", "integers", "floats", "last_token"),
        *((name, INT) for name in ("seen_width", "bias_width", "stop_width")),
        *pointers("seen_ids", "seen_count", "seen_generated", "bias_ids", "biases", "stops", "mask"),
        *pointers("unsampleable_ids"),
        ("num_unsampleable", INT),
        *pointers("uncounted", "token_ids", "logprobs"),
    )


def sample(logits: Tensor, slot_index: Tensor, tables: Any, ops: Any) -> tuple[Tensor, Tensor]:
    """As `sample` in engine/sample.py, in one pass over each row and some passes over parts of it.

    Penalties, biases and bans change entries of `logits`, which are restored in the end; a row with a mask is copied. A
    row's results depend on the row and its slot only.

    Args:
        logits: [B, V] float32, contiguous.
        slot_index: [B] int32. A row with -1 gets token 0 and log-probability 0, and touches no slot.
        tables: `SlotTables`. **Updated in place.**
        ops: not used.

    Raises:
        ValueError: a shape, dtype or stride differs; or a slot does not exist, has no room for one more
            seen token, or lists ids that are not in the vocabulary.

    Numerics: masses are float32, their sums float64. A draw or a cut differs from the definition's only where the
        uniform number is within about 1e-6 of a boundary.
    """
    num_rows, vocab = len(logits), tables.vocab_size
    token_ids = torch.empty(num_rows, dtype=torch.int64, device="cpu")
    logprobs = torch.empty(num_rows, dtype=torch.float64, device="cpu")
    slots = tables.num_slots + 1
    seen, biases, stops = tables.seen_ids.shape[1], tables.bias_ids.shape[1], tables.stops.shape[1]
    arguments = Sample(
        num_rows=num_rows,
        vocab=vocab,
        num_slots=tables.num_slots,
        logits=address("logits", logits, (num_rows, vocab), torch.float32),
        slot_index=address("slot_index", slot_index, (num_rows,), torch.int32),
        integers=address("tables.integers", tables.integers, (slots, NUM_INTEGERS), torch.int64),
        floats=address("tables.floats", tables.floats, (slots, NUM_FLOATS), torch.float64),
        last_token=address("tables.last_token", tables.last_token, (slots,), torch.int64),
        seen_width=seen,
        bias_width=biases,
        stop_width=stops,
        seen_ids=address("tables.seen_ids", tables.seen_ids, (slots, seen), torch.int32),
        seen_count=address("tables.seen_count", tables.seen_count, (slots, seen), torch.float32),
        seen_generated=address("tables.seen_generated", tables.seen_generated, (slots, seen), torch.bool),
        bias_ids=address("tables.bias_ids", tables.bias_ids, (slots, biases), torch.int32),
        biases=address("tables.biases", tables.biases, (slots, biases), torch.float32),
        stops=address("tables.stops", tables.stops, (slots, stops), torch.int32),
        mask=address("tables.mask", tables.mask, (slots, -(-vocab // 32)), torch.int32),
        unsampleable_ids=tables.unsampleable_ids.data_ptr(),
        num_unsampleable=len(tables.unsampleable_ids),
        uncounted=address("tables.uncounted", tables.uncounted, (vocab,), torch.bool),
        token_ids=token_ids.data_ptr(),
        logprobs=logprobs.data_ptr(),
    )
    bad = kernels().sample_tokens(ctypes.byref(arguments))
    if bad >= 0:
        raise ValueError(
            f"slot_index[{bad}]: got slot {int(slot_index[bad])}, expected one of {tables.num_slots} with fewer than "
            f"{seen} seen ids (SlotTables.reserve_seen makes room), all its ids below {vocab}"
        )
    return token_ids, logprobs
