"""A fake model: its logits are a function of the tokens a slot has seen, so that any mix-up of slots shows."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import torch

from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.models.architecture import StateField
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.rows import DecodeRows
from rwkv_batch.models.scoring import SCORE
from rwkv_batch.ops import resolve

VOCAB = 64


def following(state, token_ids):
    return (state * 1103515245 + token_ids[:, None] + 12345) % (2**31)


class HashModel:
    """State: a running hash of the tokens. Logits: pseudo-random numbers drawn from that hash."""

    device = torch.device("cpu")
    ops = resolve((*Sampler.OPS, SCORE), "auto", device, torch.float32, {})
    placement = Placement(device, torch.float32, None)
    pipeline = None
    sizes = MappingProxyType({"L": 1, "V": VOCAB})
    file = SimpleNamespace(
        sizes=sizes,
        state_fields=lambda placement, dtype: (StateField("hash", (1,), torch.int64),),
        initial_states=lambda init_state: {},
    )

    def forward(self, token_ids, rows, layers):
        if isinstance(rows, DecodeRows):
            return self.decode(token_ids, rows, layers[0].hash)
        hidden = torch.zeros(len(token_ids), 1, dtype=torch.int64, device=token_ids.device)

        def advance(tokens, state):
            state[:] = following(state, token_ids[tokens])
            hidden[tokens] = state

        rows.scan((layers[0].hash,), advance)
        return hidden

    def decode(self, token_ids, rows, states):
        """As a kernel would: from the device's tensors alone, past rows that are padding, in shapes that stay."""
        owned = rows.slot_index[:, None] == torch.arange(len(states), device=states.device)  # [B, P]
        hidden = following(states[rows.slot_index.clamp(min=0).long()], token_ids)
        states.copy_(torch.where(owned.any(0)[:, None], (owned[:, :, None] * hidden[:, None]).sum(0), states))
        return torch.where(rows.slot_index[:, None] >= 0, hidden, -7)

    def score(self, hidden, targets, rows):
        logits = self.logits(hidden)[rows]
        own = logits.gather(1, targets[:, None])[:, 0].double()
        return own - logits.double().logsumexp(1), logits.argmax(1) == targets

    def logits(self, hidden, out=None):
        mixed = (hidden * 2654435761 + torch.arange(VOCAB, device=hidden.device) * 40503 * (hidden % 1009 + 1)) % 65521
        logits = mixed.float() / 65521 * 6
        return logits if out is None else out.copy_(logits)
