"""Penalties against a dictionary per row, as one would write them by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.penalties import count, penalize
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.slot_tables import Integer, SlotTables, Vocabulary
from rwkv_batch.sampling_params import SamplingParams

VOCAB = 40
UNCOUNTED = torch.arange(VOCAB) % 7 == 0


class ByHand:
    def __init__(self, params, prompt):
        self.params, self.seen, self.occurrence = params, set(prompt), {}

    def apply(self, logits):
        p, out = self.params, logits.clone()
        for i in range(VOCAB):
            if p.repetition_penalty != 1 and (i in self.seen or i in self.occurrence):
                out[i] = out[i] / p.repetition_penalty if out[i] > 0 else out[i] * p.repetition_penalty
            if i in self.occurrence:
                out[i] -= p.presence_penalty + self.occurrence[i] * p.frequency_penalty
        return out

    def count(self, token_id):
        for i in self.occurrence:
            self.occurrence[i] *= self.params.penalty_decay
        skipped = self.params.top_p_order == "rwkv" and UNCOUNTED[token_id]
        self.occurrence[token_id] = self.occurrence.get(token_id, 0.0) + (0.0 if skipped else 1.0)


PARAMS = [
    SamplingParams(),
    SamplingParams(presence_penalty=0.5),
    SamplingParams(frequency_penalty=0.3, penalty_decay=0.9),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(presence_penalty=0.2, frequency_penalty=0.2, penalty_decay=0.996, top_p_order="rwkv"),
    SamplingParams(presence_penalty=-1.0, frequency_penalty=0.7, repetition_penalty=0.8),
]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(range(len(PARAMS))), st.lists(st.integers(0, VOCAB - 1))), min_size=1, max_size=6
    ),
    num_steps=st.integers(1, 90),
    seed=st.integers(0, 1000),
)
def test_penalties_equal_a_dictionary_per_row(rows, num_steps, seed):
    generator = torch.Generator().manual_seed(seed)
    tables = SlotTables(8, Vocabulary(torch.zeros(VOCAB, dtype=torch.bool), UNCOUNTED), torch.device("cpu"))
    slots = torch.randperm(8, generator=generator)[: len(rows)].tolist()
    for slot in slots:  # the history of a former sequence must have no effect
        tables.assign([slot], [Request(0, [1, 2, 3], PARAMS[3])])
    by_hand = []
    for slot, (which, prompt) in zip(slots, rows, strict=True):
        tables.assign([slot], [Request(0, prompt, PARAMS[which])])
        by_hand.append(ByHand(PARAMS[which], prompt))
    index = torch.tensor(slots)
    penalized = tables.integers[index, Integer.IS_PENALIZED].nonzero()[:, 0]
    assert penalized.tolist() == [i for i, (which, _) in enumerate(rows) if which]
    for _ in range(num_steps):
        logits = torch.randn(len(rows), VOCAB, generator=generator)
        want = torch.stack([row.apply(x) for row, x in zip(by_hand, logits, strict=True)])
        if len(penalized):
            penalize(logits, penalized, index[penalized], tables)
        torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-5)
        token_ids = torch.randint(0, VOCAB, (len(rows),), generator=generator)
        if len(penalized):
            count(token_ids[penalized], index[penalized], tables)
        for row, token_id in zip(by_hand, token_ids.tolist(), strict=True):
            row.count(token_id)
