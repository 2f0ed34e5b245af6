"""Recorded steps: what is recorded, when, and that results do not depend on it."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes.cuda import fake_cuda
from fakes.device_model import HashModelOnDevice
from fakes.model import VOCAB, make_engine, outcome, run

from rwkv_batch.engine import slot_tables
from rwkv_batch.engine.recordings import Recording
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.step_runner import MANY, SCORES
from rwkv_batch.sampling_params import SamplingParams

pytest.importorskip("triton")


def long(row: int, length: int = 5, **params: Any) -> Request:
    return Request(row, [row + 1] * length, SamplingParams(max_tokens=6, ignore_eos=True, **params), row=row)


@pytest.fixture
def captured(monkeypatch):
    """How often each kind of recording was captured on the device."""
    found = list[str]()
    capture = Recording.capture

    def counted(recording, *args):
        found.append(recording._run.func.__name__)
        return capture(recording, *args)

    monkeypatch.setattr(Recording, "capture", counted)
    return found


def test_everything_is_recorded_before_the_first_step(captured):
    """Also after the sampler's tables have been made; and nothing later, whatever the rows ask for."""
    kinds: list[dict[str, Any]] = [{}, dict(logprobs=2), dict(presence_penalty=0.4), dict(logprobs=9, top_k=3)]
    with fake_cuda():
        engine = make_engine(HashModelOnDevice(), max_batch_size=3, max_batch_tokens=12)
        steps = engine.run(Pulled([long(row, 3 + 5 * (row % 3), **kinds[row % 4]) for row in range(9)]))
        assert not captured
        next(steps)
        before = list(captured)
        list(steps)
        list(engine.run(Pulled([long(1)])))
    assert captured == before
    assert {name: captured.count(name) for name in captured} == {"_run_forward": 5, "_run_draw": 3, "_run_top": 2}
    assert engine.stats.recorded_steps == engine.stats.steps


def test_a_table_that_grows_records_draws_only(captured, monkeypatch):
    """A draw that was recorded before would read the old tables."""
    monkeypatch.setattr(slot_tables, "_WIDTHS", {})
    requests = [long(0), long(1), long(2, logit_bias=dict.fromkeys(range(12), 0.5))]
    with fake_cuda():
        engine = make_engine(HashModelOnDevice(), max_batch_size=1, max_batch_tokens=12)
        found = {completion.key: completion.token_ids.tolist() for completion in engine.generate(Pulled(requests))}
    assert captured.count("_run_forward") == 2 and captured.count("_run_draw") == 2
    assert found == {key: completion.token_ids.tolist() for key, completion in run(requests).items()}


def test_an_engine_that_runs_out_of_memory_while_it_records_records_for_half_the_slots(captured, monkeypatch):
    capture = Recording.capture

    def refuse(recording, *args):
        if len(captured) == 3:
            captured.append("refused")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        capture(recording, *args)

    monkeypatch.setattr(Recording, "capture", refuse)
    requests = [long(row) for row in range(6)]
    with fake_cuda():
        engine = make_engine(HashModelOnDevice(), max_batch_size=4, max_batch_tokens=12)
        found = {completion.key: completion.token_ids.tolist() for completion in engine.generate(Pulled(requests))}
    assert engine.stats.max_batch_size == 2 and engine.stats.recorded_steps == engine.stats.steps
    assert captured[4:].count("_run_forward") == 4
    assert found == {key: completion.token_ids.tolist() for key, completion in run(requests).items()}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(0, [1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True), score_start=1), SCORES),
        (Request(0, [1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True), next_token_ids=(4,)), SCORES),
        (Request(0, [1, 2, 3], SamplingParams(max_tokens=1, logprobs=21)), MANY),
    ],
    ids=["prompt", "next tokens", "many"],
)
def test_steps_that_are_not_recorded_are_counted_by_their_reason(request_, reason):
    engine = make_engine(record_steps=True)
    list(engine.generate(Pulled([request_])))
    assert engine.stats.unrecorded_steps == {reason: 1}
    assert engine.stats.recorded_steps == engine.stats.steps - 1


@pytest.mark.parametrize("run_ahead", [False, True])
def test_completions_are_those_of_steps_that_are_not_recorded(run_ahead):
    draw = np.random.default_rng(5)
    kinds: list[dict[str, Any]] = [{}, dict(logprobs=3), dict(logprobs=0), dict(repetition_penalty=1.4), dict(top_k=2)]
    requests = [
        Request(
            row,
            draw.integers(1, VOCAB, draw.integers(1, 30)).tolist(),
            SamplingParams(max_tokens=int(draw.integers(0, 9)), **kinds[row % 5]),
            row=row,
        )
        for row in range(40)
    ]
    settings = dict(max_batch_size=20, max_batch_tokens=40, run_ahead=run_ahead)
    found, expected = (run(requests, **settings, record_steps=graphs) for graphs in (True, False))
    assert {key: outcome(c) for key, c in found.items()} == {key: outcome(c) for key, c in expected.items()}


def test_a_step_is_warmed_up_and_recorded_on_the_same_stream(monkeypatch):
    """Libraries allocate when they first run on a stream. Other threads must not end a recording."""
    calls, streams = list[Any](), list[Any]()
    stream: Any = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: calls.append("wait"))

    @contextmanager
    def entered(name, given):
        streams.append(given)
        calls.append(name)
        yield
        streams.pop()

    def graph(recorded, *, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("memory", "thread_local")
        return entered("graph", stream)

    monkeypatch.setattr(torch.cuda, "stream", lambda given: entered("stream", given))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: calls.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    recording = Recording(lambda: calls.append(("run", *streams)))
    recording.capture(stream, "memory")
    recording.launch()
    assert calls == ["wait", "stream", ("run", stream), "graph", ("run", stream, stream), "wait", "replay"]
