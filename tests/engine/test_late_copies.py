"""Whole engines on the fake CUDA device, whose copies run as late as they may: the results equal those of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.cuda import DEVICE, fake_cuda
from fakes.device_model import HashModelOnDevice
from fakes.model import VOCAB, HashModel
from fakes.streams import POISON, Event, Hazard, Stream
from running import Session
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.engine import slot_tables
from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.recordings import Recordings
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import SlotTables, Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.state_pool import StatePool, pool_parts
from rwkv_batch.engine.step_input import PackedStep
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.transfer import HostCopy, Uploader

pytest.importorskip("triton")


PARAMS = [
    SamplingParams(max_tokens=6, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=0.0),
    SamplingParams(max_tokens=5, top_p=0.7, presence_penalty=0.4, penalty_decay=0.9),
    SamplingParams(max_tokens=3, top_k=3, logprobs=2),
    SamplingParams(max_tokens=8, min_tokens=6, stop_token_ids=[7, 9, 11]),
    SamplingParams(max_tokens=4, logit_bias=dict.fromkeys(range(12), 0.5), repetition_penalty=1.3),
    SamplingParams(max_tokens=0),
    SamplingParams(max_tokens=8, allowed_token_ids=[4, 5, 6], top_p=0.5, top_p_order="rwkv", temperature=1.4),
]


def make_requests() -> list[Request]:
    """Prompts with a common header and several samples each; some are scored."""
    draw = np.random.default_rng(3)
    header = draw.integers(1, VOCAB, 20).tolist()
    prompts = [header + draw.integers(1, VOCAB, 12).tolist() for _ in PARAMS]
    return [
        Request(
            (row, sample),
            prompts[row],
            params,
            row=row,
            sample=sample,
            score_start=1 if row % 3 == 2 else None,
            next_token_ids=(3, 7) if row % 4 == 2 else (),
        )
        for row, params in enumerate(PARAMS)
        for sample in range(2)
    ]


def make_engine(model: Any, max_batch_size: int = 2) -> Engine:
    vocabulary = Vocabulary.plain(VOCAB)
    return Engine(model, vocabulary, EngineLimits(max_batch_size, 16, prefix_host_bytes=1 << 10))


def serve(engine: Engine, requests: list[Request]) -> dict[Any, tuple[list[int], list[float]]]:
    """Key of a request → its tokens, and all its log-probabilities."""
    found = {}
    for completion in engine.generate(Pulled(requests)):
        alternatives = [value for entry in completion.logprobs or () for value in entry.top_logprobs]
        parts = (completion.prompt_scores, completion.next_scores)
        scores = [entry.logprob for part in parts for entry in part or ()]
        found[completion.key] = completion.token_ids.tolist(), [*completion.token_logprobs, *alternatives, *scores]
    engine.check_integrity()
    return found


def test_results_are_those_of_an_engine_without_a_queue():
    plain = serve(make_engine(HashModel()), make_requests())
    with fake_cuda() as cuda:
        engine = make_engine(HashModelOnDevice())
        cuda.queues.waits.clear()
        got = serve(engine, make_requests())
    assert {key: token_ids for key, (token_ids, _) in got.items()} == {key: value[0] for key, value in plain.items()}
    for key, (_, logprobs) in got.items():
        assert logprobs == pytest.approx(plain[key][1], abs=1e-5), key
    assert engine.snapshots.peak_on_host > 0
    assert sum(graph.num_replays for graph in cuda.graphs) > 20
    assert not cuda.queues.waits, "\n".join(cuda.queues.waits)


def test_a_recorded_draw_does_not_outlive_its_tables(monkeypatch):
    monkeypatch.setattr(slot_tables, "_WIDTHS", {})
    requests = [Request(row, [row], PARAMS[which], row=row) for row, which in enumerate((0, 5))]
    with fake_cuda():
        serve(make_engine(HashModelOnDevice(), max_batch_size=1), requests)  # the second request needs a wider table
    monkeypatch.setattr(
        SlotTables, "generation", property(lambda tables: 0, lambda tables, number: None), raising=False
    )
    with pytest.raises(Hazard, match="memory that has been given back"), fake_cuda():
        serve(make_engine(HashModelOnDevice(), max_batch_size=1), requests)


def decode_unread(model: Any) -> list[list[int]]:
    """Six decode steps of two slots. Their tokens are read after the last step was launched."""
    pool = StatePool(pool_parts(model.file, model.placement), 3)
    sampler = Sampler(3, Vocabulary.plain(VOCAB), model.device, model.ops)
    slots = pool.allocate(3)
    pool.fill(torch.tensor(slots).to(model.device))
    sampler.assign(slots, [Request(slot, [1], SamplingParams(), row=slot) for slot in slots])
    logits = torch.zeros(3, VOCAB, device=model.device)
    recordings = Recordings(model, pool, sampler, Uploader(model.device), logits, 3)
    steps = []
    for i in range(6):
        decoding = np.array([i % 3, (i + 1) % 3])
        both = np.arange(2)
        step = PackedStep(decoding, both * 0 + 1, both * 0 + i, both + 1, both[:0], both, both[:0], [])
        steps.append(recordings.launch_draw(step, recordings.launch_forward(step)))
    return [step.sampled.read().token_ids.tolist() for step in steps]


def test_many_steps_may_be_launched_before_the_first_is_read(monkeypatch):
    expected = decode_unread(HashModel())
    with fake_cuda():
        assert decode_unread(HashModelOnDevice()) == expected
    monkeypatch.setattr(Event, "synchronize", lambda event: None)
    with pytest.raises(Hazard, match="host memory has changed before its copy"), fake_cuda():
        decode_unread(HashModelOnDevice())


def test_a_copy_has_not_arrived_before_its_event(monkeypatch):
    with fake_cuda():
        tensor = torch.arange(3, device=DEVICE)
        copies = [HostCopy(tensor) for _ in range(2)]
        tensor.fill_(5)
        assert copies[0].read().tolist() == [0, 1, 2]
        monkeypatch.setattr(Event, "synchronize", lambda event: None)
        assert HostCopy(tensor).read().tolist() == [POISON] * 3


def feed(path: Path, **settings: Any) -> list[Tensor]:
    session = Session(path, num_slots=2, backend="reference", **settings)
    return [session.feed({1: [5, 9, 3], 0: [7]})[1].cpu(), session.feed({1: [4], 0: [8]})[0].cpu()]


def test_streamed_layers_arrive_before_they_run(checkpoint_file):
    path = checkpoint_file("7.0", n_layer=4)
    expected = feed(path)
    with fake_cuda():
        got = feed(path, strategy="cuda fp32 *0+")
    for logits, right in zip(got, expected, strict=True):
        assert_close("logits", logits, right, "float32", 10.0)


@pytest.mark.parametrize(
    ("heedless", "message"),
    [
        (0, "stream 0 reads what another stream may not have written"),
        (1, "stream 1 writes over what another stream may still read"),
    ],
    ids=["the layer runs too early", "the next one arrives too early"],
)
def test_a_layer_that_does_not_wait_is_a_hazard(heedless, message, checkpoint_file, monkeypatch):
    wait = Stream.wait_event
    monkeypatch.setattr(Stream, "wait_event", lambda stream, event: stream.index == heedless or wait(stream, event))
    with pytest.raises(Hazard, match=message), fake_cuda():
        feed(checkpoint_file("7.0", n_layer=4), strategy="cuda fp32 *0+")


SPLIT = ("cuda fp32 *1 -> cpu fp32", "cpu fp32 *1 -> cuda fp32")


@pytest.mark.parametrize("strategy", SPLIT)
def test_slots_in_host_memory_are_filled_after_their_indices_have_arrived(strategy, checkpoint_file):
    path = checkpoint_file("7.0", n_layer=2)
    expected = feed(path)
    with fake_cuda():
        got = feed(path, strategy=strategy)
    for logits, right in zip(got, expected, strict=True):
        assert_close("logits", logits, right, "float32", 10.0)


def serve_split(path: Path, **settings: Any) -> dict[Any, tuple[list[int], list[float]]]:
    model = Session(path, num_slots=1, backend="reference", **settings).model
    ops = (*Sampler.OPS, *model.file.ops)
    model.ops = resolve(ops, "reference", model.device, torch.float32, model.sizes)
    requests = [one for one in make_requests() if one.score_start is None and not one.next_token_ids]
    return serve(make_engine(model), requests)


@pytest.mark.parametrize("strategy", SPLIT)
def test_an_engine_with_layers_on_the_device_and_on_the_host_gives_the_same_tokens(strategy, checkpoint_file):
    path = checkpoint_file("7.0", n_layer=2, vocab=VOCAB)
    expected = serve_split(path)
    with fake_cuda():
        got = serve_split(path, strategy=strategy)
    for key, (token_ids, logprobs) in expected.items():
        assert got[key][0] == token_ids
        assert got[key][1] == pytest.approx(logprobs, abs=1e-3)
