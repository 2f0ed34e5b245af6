"""Constraints of slots: each is given exactly its own tokens, each mask is filled before its draw, and nothing else
waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes.constraint import Alternating, Hashed, RowByRow
from fakes.model import VOCAB, HashModel, check_bookkeeping, make_engine, run

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampled, Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

EVERY_WAY = pytest.mark.parametrize(
    ("run_ahead", "record_steps"), [(False, False), (False, True), (True, False), (True, True)]
)


def completed_alone(request: Request) -> list[int]:
    """The tokens of a request, computed token by token without an engine: the mask is applied to the logits."""
    model, state = HashModel(), torch.zeros(1, 1, dtype=torch.int64)
    for token_id in request.prompt_token_ids:
        state = (state * 1103515245 + token_id + 12345) % 2**31
    constraint: Any = request.new_constraint() if request.new_constraint else None
    sampler = Sampler(1, Vocabulary.plain(VOCAB), model.device, model.ops)
    plain = Request(0, request.prompt_token_ids, request.params, request.seed, request.row, request.sample)
    sampler.assign([0], [plain])
    found: list[int] = []
    while len(found) < request.params.max_tokens and (not found or found[-1]):
        logits = model.logits(state)
        if constraint is not None:
            mask = torch.zeros(VOCAB, dtype=torch.bool)
            constraint.allowed(mask)
            logits = logits.masked_fill(~mask, -1e30)
        token_ids, _ = sampler.draw(logits, torch.zeros(1, dtype=torch.int32))
        found.append(int(token_ids[0]))
        if constraint is not None:
            constraint.accept(found[-1])
        state = (state * 1103515245 + found[-1] + 12345) % 2**31
    return found


def make_requests(number: int, share: int = 3, **settings: Any) -> list[Request]:
    """Requests with shared prefixes and three samples each, of different lengths; `share` of four are constrained."""
    return [
        Request(
            (row, i),
            [row % 2] * 20 + [row],
            SamplingParams(max_tokens=2 + (row + i) % 9, **settings),
            row=row,
            sample=i,
            new_constraint=(Hashed, Alternating)[row % 2] if row % 4 < share else None,
        )
        for row in range(number)
        for i in range(3)
    ]


@EVERY_WAY
@pytest.mark.parametrize("share", [1, 4])
def test_tokens_are_those_of_a_loop_over_one_sequence(share: int, run_ahead: bool, record_steps: bool):
    requests = make_requests(9, share)
    found = run(requests, max_batch_size=5, run_ahead=run_ahead, record_steps=record_steps)
    assert {key: c.token_ids.tolist() for key, c in found.items()} == {r.key: completed_alone(r) for r in requests}
    assert {"stop", "length"} == {c.finish_reason for c in found.values()}


class Counting(RowByRow):
    """Notes each call, with the number of its constraints."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__(VOCAB)
        self.calls = calls

    def accept(self, constraints, token_ids):
        self.calls.append(("accept", len(constraints)))
        super().accept(constraints, token_ids)

    def fill(self, constraints, masks):
        self.calls.append(("fill", len(constraints)))
        super().fill(constraints, masks)


def counted(kind: type[Any], calls: list[Any]) -> type[Any]:
    """The same constraint, whose calls are noted."""
    return type("Counted", (kind,), {"batch": Counting(calls)})


def watch(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    """Notes forward passes, and reads of sampled tokens."""
    forward, read = HashModel.forward, Sampled.read
    monkeypatch.setattr(HashModel, "forward", lambda *args: calls.append("forward") or forward(*args))
    monkeypatch.setattr(Sampled, "read", lambda sampled: calls.append("book") or read(sampled))


@pytest.mark.parametrize("record_steps", [False, True])
def test_masks_are_filled_while_the_device_computes(record_steps: bool, monkeypatch: pytest.MonkeyPatch):
    """The forward pass is launched first; the draw comes before the booking of the step before."""
    calls = list[Any]()
    watch(monkeypatch, calls)
    kind = counted(Alternating, calls)
    params = SamplingParams(max_tokens=3)
    requests = [Request(row, [row + 1], params, row=row, new_constraint=kind) for row in range(4)]
    list(make_engine(run_ahead=True, record_steps=record_steps).generate(Pulled(requests)))
    fed = [("accept", 4), ("fill", 4)]
    assert calls == ["forward", fed[1], "forward", *fed, "book", "forward", *fed, "book", "book"]


def test_only_steps_that_sample_with_a_constraint_read_tokens_early(monkeypatch: pytest.MonkeyPatch):
    """A constrained row reads its long prompt while others decode: no step waits for the tokens of those."""
    calls = list[Any]()
    early = Sampled.token_ids
    watch(monkeypatch, calls)
    monkeypatch.setattr(Sampled, "read", lambda sampled: sampled)  # booking is replaced below
    monkeypatch.setattr(Sampled, "token_ids", lambda sampled: calls.append("early") or early(sampled))
    kind = counted(Alternating, calls)
    engine = make_engine(max_batch_size=2, max_batch_tokens=17, run_ahead=True)
    monkeypatch.setattr(engine.booking, "record", lambda rows, tokens: [])
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    requests = [
        Request(0, [1], params, row=0),
        Request(1, [2] * 64, SamplingParams(max_tokens=3), row=1, new_constraint=kind),
    ]
    steps = engine.run(Pulled(requests))
    for _ in range(12):
        next(steps)
    steps.close()
    later = ["early", ("accept", 1), ("fill", 1)]
    assert [call for call in calls if call != "forward"] == [("fill", 1), *later, *later]
    assert calls.index(("fill", 1)) > 3  # forward passes of the prompt come before


@EVERY_WAY
def test_a_step_has_one_call_for_all_rows_of_a_kind(run_ahead: bool, record_steps: bool):
    """Two kinds, each served by its own object, and rows without a constraint, in turn."""
    calls = list[Any](), list[Any]()
    kinds = [counted(Hashed, calls[0]), None, counted(Alternating, calls[1])]
    requests = [
        Request(row, [row + 1], SamplingParams(max_tokens=6), row=row, new_constraint=kinds[row % 3])
        for row in range(12)
    ]
    engine = make_engine(max_batch_size=12, run_ahead=run_ahead, record_steps=record_steps)
    found = {c.key: c.token_ids.tolist() for c in engine.generate(Pulled(requests))}
    assert found == {r.key: completed_alone(r) for r in requests}
    assert calls[1] == [("fill", 4), *[("accept", 4), ("fill", 4)] * 5]
    assert next(count for name, count in calls[0] if name == "fill") == 4
    assert len(calls[0]) <= 2 * engine.stats.steps


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_an_aborted_row_leaves_the_constraints_of_the_others_alone(step: int, run_ahead: bool):
    requests = make_requests(6, share=4, ignore_eos=True)
    engine = make_engine(max_batch_size=4, run_ahead=run_ahead)
    found = {}
    for number, finished in enumerate(engine.run(Pulled(requests))):
        found |= {c.key: c for c in finished}
        if number == step:
            for i in range(3):
                engine.abort((1, i))
        check_bookkeeping(engine)
    for request in requests:
        expected, completion = completed_alone(request), found[request.key]
        got = completion.token_ids.tolist()
        assert got == (expected[: len(got)] if completion.finish_reason == "abort" else expected)
    assert not engine.sampler._constraints._num_open


@pytest.mark.parametrize("run_ahead", [False, True])
def test_constraints_start_again_when_memory_runs_out(run_ahead: bool):
    class Crowded(HashModel):
        steps = 0

        def forward(self, token_ids, rows, layers):
            Crowded.steps += 1
            if Crowded.steps > 4 and rows.num_rows > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(token_ids, rows, layers)

    requests = make_requests(8)
    sizes: dict[str, Any] = dict(max_batch_size=12, max_batch_tokens=48)
    engine = make_engine(Crowded(), **sizes, run_ahead=run_ahead)
    found = {c.key: c.token_ids.tolist() for c in engine.generate(Pulled(requests))}
    assert engine.pool.num_slots == 3
    assert found == {r.key: completed_alone(r) for r in requests}
