"""A fake model, and an engine over it.

The model's logits are a hash of all tokens that its slot has seen, in order. A token that is missing, comes twice, or
reaches a wrong slot therefore changes the completion.
"""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from fakes.stand_in import StandIn

from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.models.architecture import StateField
from rwkv_batch.models.blocks import TAKE_ROWS
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.rows import RecordedRows
from rwkv_batch.models.scoring import SCORE
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

VOCAB = 64


def next_hash(state, token_ids):
    """The hash after one more token in each state."""
    return (state * 1103515245 + token_ids[:, None] + 12345) % (2**31)


@torch.library.custom_op("rwkv_batch_tests::advance_recorded", mutates_args={"states", "hidden"})
def advance_recorded(
    token_ids: torch.Tensor,
    slot_index: torch.Tensor,
    cu_seqlens: torch.Tensor,
    states: torch.Tensor,
    hidden: torch.Tensor,
) -> None:
    """A recorded step as a kernel computes it: from device tensors only. Padding changes no state."""
    ends = cu_seqlens.tolist()
    hidden.fill_(-7)
    for slot, start, end in zip(slot_index.tolist(), ends, ends[1:], strict=False):
        if slot >= 0:
            for token in range(start, end):
                states[slot] = next_hash(states[slot : slot + 1], token_ids[token : token + 1])[0]
                hidden[token] = states[slot]


class HashModel(StandIn):
    """A model whose state is a running hash of the tokens. Its logits are pseudo-random numbers from that hash."""

    device = torch.device("cpu")
    ops = resolve((*Sampler.OPS, SCORE, TAKE_ROWS), "auto", device, torch.float32, {})
    placement = Placement(device, torch.float32, None)
    pipeline = None
    sizes = MappingProxyType({"L": 1, "V": VOCAB, "C": 1, "A": 1, "F": 1})
    file: Any = SimpleNamespace(
        sizes=sizes,
        state_fields=lambda placement, dtype: (StateField("hash", (1,), torch.int64),),
        initial_states=lambda init_state: {},
    )

    def forward(self, token_ids, rows, layers):
        if isinstance(rows, RecordedRows):
            hidden = torch.empty(len(token_ids), 1, dtype=torch.int64, device=token_ids.device)
            advance_recorded(token_ids, rows.slot_index, rows.cu_seqlens, layers[0].hash, hidden)
            return hidden
        hidden = torch.zeros(len(token_ids), 1, dtype=torch.int64, device=token_ids.device)

        def advance(tokens, state):
            state[:] = next_hash(state, token_ids[tokens])
            hidden[tokens] = state

        rows.scan((layers[0].hash,), advance)
        return hidden

    def score(self, hidden, targets, rows):
        logits = self.logits(hidden)[rows]
        own = logits.gather(1, targets[:, None])[:, 0].double()
        return own - logits.double().logsumexp(1), logits.argmax(1) == targets

    def logits(self, hidden, out=None):
        mixed = (hidden * 2654435761 + torch.arange(VOCAB, device=hidden.device) * 40503 * (hidden % 1009 + 1)) % 65521
        logits = mixed.float() / 65521 * 6
        return logits if out is None else out.copy_(logits)


def make_engine(
    model=None, max_batch_size=4, max_batch_tokens=16, prefix_host_bytes=0, state_write_interval=1, **settings
):
    """An engine over the fake model, with the other arguments of `Engine`."""
    limits = EngineLimits(max_batch_size, max_batch_tokens, prefix_host_bytes, 0.0, state_write_interval)
    return Engine(model or HashModel(), Vocabulary.plain(VOCAB), limits, **settings)


def run(requests, model=None, **settings):
    """Serves requests, and returns the completions by key. Asserts that each comes once, and that no slot leaks."""
    engine = make_engine(model, **settings)
    completions = {}
    for completion in engine.generate(Pulled(requests)):
        check_bookkeeping(engine)
        assert completion.key not in completions
        completions[completion.key] = completion
    check_bookkeeping(engine)
    assert engine.pool.num_free == engine.pool.num_slots
    return completions


def check_bookkeeping(engine):
    """Asserts that the engine's counters are right: slots, waiting requests, snapshots and their reservations."""
    engine.check_integrity()
    waiting, running = list(engine.scheduler.waiting), engine.scheduler.running
    prefixes = [sequence.prefix for sequence in running if sequence.prefix is not None]
    below = [child for prefix in prefixes for child in prefix.children]
    assert engine.admission.num_waiting == sum(map(count_requests, [*(sequence.node for sequence in waiting), *below]))
    assert engine.snapshots.num_reserved == len(prefixes)
    wanted = Counter(sequence.parent for sequence in waiting if sequence.parent is not None)
    assert {prefix: kept.num_waiting for prefix, kept in engine.snapshots._kept.items()} == wanted


def count_requests(node):
    """Number of requests at and below a node of the prefix trie."""
    if isinstance(node, Request):
        return 1
    return (node.request is not None) + sum(map(count_requests, node.children))


def outcome(completion):
    """The parts of a completion that must not depend on the rest of the batch, its order or its size."""
    return (
        completion.token_ids.tolist(),
        completion.token_logprobs.tolist(),
        completion.finish_reason,
        completion.stop_reason,
        [entry.logprob for scores in (completion.prompt_scores, completion.next_scores) for entry in scores or ()],
        [entry.top_ids for entry in completion.logprobs or ()],
    )


PARAMS = [
    SamplingParams(max_tokens=6),
    SamplingParams(max_tokens=9, temperature=0.0),
    SamplingParams(max_tokens=5, top_p=0.7, presence_penalty=0.4, penalty_decay=0.9),
    SamplingParams(max_tokens=7, top_k=3, logprobs=2),
    SamplingParams(max_tokens=12, min_tokens=6, stop_token_ids=[7, 9, 11]),
    SamplingParams(max_tokens=4, logit_bias={3: 5.0}, bad_token_ids=[1, 2], repetition_penalty=1.3),
    SamplingParams(max_tokens=0),
    SamplingParams(max_tokens=8, allowed_token_ids=[4, 5, 6], top_p=0.5, top_p_order="rwkv", temperature=1.4),
]
