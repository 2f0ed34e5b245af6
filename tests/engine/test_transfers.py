"""Transfers to the device: their number in a step does not depend on the number of rows that start in it."""

from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("triton")

from fakes.constraint import Alternating
from fakes.cuda import DeviceTensor, FakeCuda, fake_cuda
from fakes.device_model import HashModelOnDevice
from fakes.model import check_bookkeeping, make_engine, outcome, run

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

MOST = 8
SETTINGS: list[dict[str, Any]] = [
    {},
    dict(temperature=0.0, logprobs=3),
    dict(top_p=0.7, presence_penalty=0.4, repetition_penalty=1.3),
    dict(min_tokens=2, stop_token_ids=[3, 4], logit_bias={4: 3.0, 9: -1.0}),
    dict(allowed_token_ids=list(range(40)), bad_token_ids=[3]),
]


def make_requests(count):
    """Requests with every kind of setting, shared prefixes, scores and constraints."""
    return [
        Request(
            row,
            [row % 2] * 10 + [row % 50, 5],
            SamplingParams(max_tokens=5, ignore_eos=True, **SETTINGS[row % len(SETTINGS)]),
            row=row,
            score_start=2 if row % 3 == 0 else None,
            next_token_ids=(3, 7) if row % 4 == 0 else (),
            new_constraint=Alternating if row % 5 < 2 else None,
        )
        for row in range(count)
    ]


class Uncounted(HashModelOnDevice):
    """The fake model, whose own transfers (it computes its rows token by token) are not counted."""

    def __init__(self, copies):
        self._copies = copies

    def forward(self, token_ids, rows, layers):
        before = list(self._copies)
        hidden = super().forward(token_ids, rows, layers)
        self._copies[:] = before
        return hidden


@contextmanager
def counted(monkeypatch):
    """The fake device, with a list of the shapes of all copies from the host to it."""
    copies = []
    copy = FakeCuda._copy_between

    def copied(self, target, source, *arguments):
        if isinstance(target, DeviceTensor):
            copies.append(tuple(source.shape))
        return copy(self, target, source, *arguments)

    monkeypatch.setattr(FakeCuda, "_copy_between", copied)
    with fake_cuda():
        yield copies


def transfers_of_steps(count, slots, monkeypatch, record_steps):
    """The copies to the device in each step, those of admission included, and the completions."""
    with counted(monkeypatch) as copies:
        model = Uncounted(copies)
        sizes = dict(max_batch_size=slots, max_batch_tokens=20 * slots)
        engine = make_engine(model, **sizes, run_ahead=True, record_steps=record_steps)
        found, steps = {}, []
        engine._runner.prepare()
        copies.clear()
        before = engine._uploader.num_transfers
        for finished in engine.run(Pulled(make_requests(count))):
            found |= {completion.key: completion for completion in finished}
            steps.append(list(copies))
            copies.clear()
        assert engine.stats.transfers - before == sum(map(len, steps)), steps
        check_bookkeeping(engine)
    return steps, found


@pytest.mark.parametrize("record_steps", [False, True])
def test_transfers_do_not_grow_with_the_rows(record_steps, monkeypatch):
    few, _ = transfers_of_steps(6, 3, monkeypatch, record_steps)
    many, found = transfers_of_steps(24, 12, monkeypatch, record_steps)
    assert max(map(len, many)) <= max(map(len, few)) + 1 <= MOST
    assert len(found) == 24
    expected = run(make_requests(24))
    assert {key: outcome(c)[0] for key, c in found.items()} == {key: outcome(c)[0] for key, c in expected.items()}
