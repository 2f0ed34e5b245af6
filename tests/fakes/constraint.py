"""Constraints for the fake model, served row by row: the reference for whatever serves many at once."""

from __future__ import annotations

import numpy as np
import torch

from rwkv_batch.engine.slot_tables import pack_bits


class RowByRow:
    """A `ConstraintBatch` of objects with `allowed(mask [V] bool)` and `accept(token_id)`."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def accept(self, constraints, token_ids):
        for constraint, token_id in zip(constraints, token_ids, strict=True):
            constraint.accept(token_id)

    def fill(self, constraints, masks):
        for constraint, mask in zip(constraints, masks, strict=True):
            allowed = torch.zeros(self.vocab_size, dtype=torch.bool)
            constraint.allowed(allowed)
            mask[:] = pack_bits(allowed).numpy()


class Alternating:
    """A constraint that depends on the token before: even and odd ids alternate. The end of text is not allowed."""

    batch = RowByRow(64)

    def __init__(self):
        self.last = 1

    def allowed(self, mask):
        mask[1 - self.last % 2 :: 2] = True
        mask[0] = False

    def accept(self, token_id):
        assert token_id % 2 != self.last % 2
        self.last = token_id


class Hashed:
    """A constraint that depends on all tokens: a token that is missing, comes twice or is another's changes the rest.

    About a third of the ids are allowed. After some texts the end of text is the only one.
    """

    batch = RowByRow(64)

    def __init__(self):
        self.tokens = []

    def allowed(self, mask):
        seed = int.from_bytes(bytes(self.tokens), "little") if self.tokens else 1
        draw = np.random.default_rng(seed)
        mask[:] = torch.from_numpy(draw.random(len(mask)) < 0.3)
        if draw.random() < 0.1 or not mask.any():
            mask[:] = False
            mask[0] = True

    def accept(self, token_id):
        expected = torch.zeros(self.batch.vocab_size, dtype=torch.bool)
        self.allowed(expected)
        assert expected[token_id]
        self.tokens.append(token_id)
