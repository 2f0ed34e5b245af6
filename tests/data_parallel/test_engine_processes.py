"""What each process is told to load, the messages of rows, and the counters of several engines together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_batch.data_parallel import worker
from rwkv_batch.data_parallel.engine_processes import _starts
from rwkv_batch.data_parallel.messages import Rows, Start, packed_rows, unpacked_rows
from rwkv_batch.engine.stats import EngineStats, Occupancy
from rwkv_batch.errors import CapacityError
from rwkv_batch.message_process import pickled, sendable
from rwkv_batch.model_summary import inspect_model
from rwkv_batch.models.placement import Placement
from rwkv_batch.rows import GenerateRow, ScoreRow
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.settings import EngineSettings, ModelSettings


def summary_of(num_engines: int, **settings):
    return inspect_model(ModelSettings("demo"), EngineSettings(device="cpu", data_parallel=num_engines, **settings))


def test_processes_on_a_CPU_load_what_was_planned_for_each():
    summary = summary_of(3)
    starts = _starts(summary, 77)
    assert [start.cuda_index for start in starts] == [None] * 3
    assert len(set(starts)) == 1 and starts[0].num_processes == 3 and starts[0].max_prompt_tokens == 77
    engine = starts[0].engine
    assert engine.data_parallel == 1
    plan = summary.memory
    assert (engine.max_batch_size, engine.max_batch_tokens) == (plan.max_batch_size, plan.max_batch_tokens)


def test_processes_on_GPUs_have_one_each_and_size_themselves():
    on_gpus = replace(summary_of(3), placement=Placement(torch.device("cuda", 0), torch.float16, None))
    starts = _starts(on_gpus, None)
    assert [start.cuda_index for start in starts] == [0, 1, 2]
    assert all(start.engine.max_batch_size is None for start in starts)
    assert str(on_gpus).startswith("demo, rwkv7 1.6M, 3 engines on cuda:0 to cuda:2 float16, ")


@pytest.mark.parametrize("index", [None, 3])
def test_a_process_takes_its_GPU_and_its_share_of_the_cores_before_it_loads(monkeypatch, index):
    done: list[Any] = []
    monkeypatch.setattr(worker, "share_cores", lambda count: done.append(("cores", count)))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("device", device)))
    monkeypatch.setattr("rwkv_batch.model_summary.inspect_model", lambda *settings: done.append("inspect"))
    monkeypatch.setattr("rwkv_batch.llm.LLM.from_summary", lambda *given, **options: done.append("load"))
    worker._load(Start(ModelSettings(), EngineSettings(), None, index, 4))
    assert done == [("cores", 4), *([("device", 3)] if index else []), "inspect", "load"]


def test_rows_arrive_as_they_were_sent_and_share_their_parameters():
    params, others = SamplingParams(n=2), SamplingParams(top_k=3)
    batches: list[list[Any]] = [
        [GenerateRow("a", 5, "text", params), GenerateRow("b", 6, [1, 2], params)],
        [GenerateRow("c", 7, {"prompt": "x"}, params), GenerateRow("d", 8, "", others)],
        [GenerateRow("e", 9, "y", others)],
        [ScoreRow("f", 1, "c", ["d", "e"], True, 2, 3, "p", None, 1), ScoreRow("g", 2, "", ["t"], chunk_tokens=4)],
        [GenerateRow("h", 10, "z", others)],
    ]
    sent: Any = None
    received: Any = None
    sizes = []
    for batch in batches:
        numbers = [100 + i for i in range(len(batch))]
        packed, sent = packed_rows(numbers, batch, sent)
        sizes.append(len(pickled(packed)))
        rows, received = unpacked_rows(Rows(0, type(batch[0]), packed), received)
        assert rows == [replace(row, key=number) for row, number in zip(batch, numbers, strict=True)]
    assert sizes[2] < 100, "parameters are sent once"
    assert max(map(len, packed)) == len(fields(GenerateRow))


def test_an_error_that_cannot_be_pickled_becomes_its_words():
    class Local(Exception):
        pass

    found = sendable(Local("words"))
    assert (type(found), str(found)) == (RuntimeError, "Local: words")
    error = CapacityError("too small", setting="device")
    assert sendable(error) is error


def test_counters_of_several_engines_are_sums():
    several = []
    for number in (1, 2):
        stats = EngineStats(4 * number, 10)
        stats.steps, stats.model_seconds, stats.prompt_share = number, 0.5 * number, 0.25 * number
        several.append(stats)
    found = EngineStats.of_all(several)
    assert (found.max_batch_size, found.max_batch_tokens, found.steps) == (12, 20, 3)
    assert (found.model_seconds, found.prompt_share) == (1.5, 0.375)
    assert EngineStats.of_all([]).steps == 0


@pytest.mark.parametrize("steps", [(3, 5), (40, 41), (7, 100), (170, 90), (0, 4), (0, 0)])
def test_the_occupancy_of_several_engines_is_their_mean(steps):
    draw = np.random.default_rng(1)
    shares = [draw.random(count) for count in steps]
    several = []
    for one in shares:
        several.append(Occupancy())
        for share in one:
            several[-1].add(share)
    found = Occupancy.of_all(several)
    width = max(one.steps_per_bucket for one in several)
    assert found.steps_per_bucket == width
    assert found.mean == pytest.approx(np.concatenate(shares).mean() if sum(steps) else 0)
    course = [
        np.mean([one[start : start + width].mean() for one in shares if len(one) > start])
        for start in range(0, max(steps), width)
    ]
    assert found.course == pytest.approx(course)
