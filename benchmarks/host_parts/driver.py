"""The driver of the present package: runs its engine and its jobs without the cost of a model and a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter, thread_time
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import rwkv_batch.job.serve
import rwkv_batch.job.shard_run
from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.step_runner import StepRunner
from rwkv_batch.job.output.writer import Writer
from rwkv_batch.models.architecture import StateField
from rwkv_batch.models.blocks import take_rows
from rwkv_batch.models.model import Model
from rwkv_batch.models.placement import Placement
from rwkv_batch.ops import OpTable
from rwkv_batch.prefetch import Prefetch
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.text.stop_strings import StopMatcher, StopStrings
from rwkv_batch.transfer import HostCopy

from . import structured
from .cases import ALTERNATIVES, STOPS, Case, questions
from .clocks import Watched
from .device import SimulatedDevice
from .results import TOKEN_BYTES, VOCAB_SIZE, FreeResults

try:
    from rwkv_batch import load_engine as loading
except ImportError:  # a commit in which the module of `LLM` loads the model
    from rwkv_batch import llm as loading  # type: ignore[no-redef]

COPY = HostCopy
STEP = (Engine, "step")
LAUNCH = (StepRunner, "run")
SERVE = (rwkv_batch.job.shard_run.ShardRun, "serve")
LOAD = (rwkv_batch.job.serve, "_load_model")
WATCHED = (
    Watched(Engine, "_admit", "admission", perf_counter),
    Watched(StopMatcher, "push", "stop strings", perf_counter),
)
WATCHED_OF_JOB = (
    *WATCHED,
    Watched(Writer, "add", "handing rows to the writer", perf_counter),
    Watched(Prefetch, "_run", "thread: reading, tokenizing", thread_time),
    Watched(Writer, "_run", "thread: writing", thread_time),
)
FORWARD = (Model, "forward")

_FILE = SimpleNamespace(
    sizes=MappingProxyType({"L": 1, "V": VOCAB_SIZE}),
    state_fields=lambda placement, dtype: (StateField("nothing", (1,), torch.int64),),
    initial_states=lambda init_state: {},
)
"""A model file of one layer with a state of 8 bytes. To reset or copy states is the device's work."""


class FreeModel:
    """A model without weights, for an `Engine`."""

    device = torch.device("cpu")
    placement = Placement(device, torch.float32, None)
    pipeline = None
    file: Any = _FILE
    sizes = _FILE.sizes

    def __init__(self, device: SimulatedDevice, case: Case | None = None) -> None:
        self._results = FreeResults(device)
        if case is not None and case.share_constrained:
            self._results = FreeResults(device, structured.VOCAB_SIZE, structured.texts())
            self.sizes = MappingProxyType({**self.sizes, "V": structured.VOCAB_SIZE})
        self.ops = OpTable.of(take_rows=take_rows, **self._results.ops)

    def forward(self, token_ids: Any, rows: Any, layers: Any) -> Any:
        return self._results.forward(token_ids, rows)

    def logits(self, hidden: Any, out: Any = None) -> Any:
        return self._results.logits(hidden)

    def score(self, hidden: Any, targets: Any, rows: Any) -> Any:
        return self._results.score(hidden, None, targets)


class FreeOfCost(FreeModel, Model):  # type: ignore[misc]
    """The bundled model for an `LLM`: loaded as usual, but its step computes nothing."""

    def __init__(self, device: SimulatedDevice, *args: Any, **kwargs: Any) -> None:
        Model.__init__(self, *args, **kwargs)
        FreeModel.__init__(self, device)
        self.file, self.sizes = FreeModel.file, FreeModel.sizes


def new_engine(case: Case, device: SimulatedDevice, recorded: bool) -> Engine:
    model = FreeModel(device, case)
    engine = Engine(
        model,  # type: ignore[arg-type]
        Vocabulary.plain(model.sizes["V"]),
        EngineLimits(case.batch_size, case.max_batch_tokens),
        run_ahead=True,
        record_steps=recorded,
        new_stop_matcher=partial(StopMatcher, TOKEN_BYTES),
    )
    if recorded:
        replay(engine, device, case.share_constrained == 0)
    return engine


def replay(engine: Engine, device: SimulatedDevice, are_draws_constant: bool) -> None:
    """Makes recordings replay nothing. Draws that depend on the slot are computed in each step."""
    recordings: Any = engine._runner._recordings
    recordings.record_all()
    parts = [*recordings._tops.values(), *(recordings._draws.values() if are_draws_constant else ())]
    for part in parts:
        part._captured = SimpleNamespace(replay=int), part.launch()
    for part in recordings._forwards.values():
        part._captured = SimpleNamespace(replay=device.launch), None


def requests(case: Case, prompts: list[list[int]]) -> list[Any]:
    """Makes the requests of each row, in the order of rows."""
    if case.is_score:
        return [_scoring(row, *question) for row, question in enumerate(questions(case.requests))]
    params = SamplingParams(
        max_tokens=case.length,
        temperature=1.0,
        top_p=0.85,
        ignore_eos=True,
        logprobs=ALTERNATIVES if case.feature == "logprobs" else None,
        **case.penalties,
    )
    stops = StopStrings(STOPS) if case.feature == "stop" else None
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    period = round(1 / case.share_constrained) if case.share_constrained else 0
    return [
        [
            Request(
                row,
                prompt,
                params,
                row=row,
                sample=i,
                stop_strings=stops,
                new_constraint=structured.constraint() if period and row % period == 0 else None,
            )
            for i in range(case.n)
        ]
        for row, prompt in enumerate(arrays)
    ]


def _scoring(row: int, text: str, texts: list[str], answer: int) -> list[Request]:
    context, *choices = (np.frombuffer(one.encode(), np.uint8).astype(np.int32) + 1 for one in (text, *texts))
    params = SamplingParams(max_tokens=0)
    scored = []
    for i, ids in enumerate(choices):
        prompt, last = np.concatenate((context, ids[:-1])), (int(ids[-1]),)
        start = len(context) + 1
        scored.append(Request(row, prompt, params, row=row, sample=1 + i, score_start=start, next_token_ids=last))
    firsts = tuple(int(ids[0]) for ids in choices)
    return [*scored, Request(row, context, params, row=row, next_token_ids=firsts)]


def complete(engine: Engine, items: Iterable[Any]) -> Iterator[Any]:
    return engine.generate(Pulled(items))


def num_tokens(completion: Any) -> int:
    """Counts the sampled or scored tokens of a completion."""
    return sum(map(len, (completion.token_ids, completion.prompt_scores or (), completion.next_scores or ())))


def num_transfers(engine: Engine) -> int:
    """Counts the transfers from the host to the device since the engine was made."""
    return engine._uploader.num_transfers


@contextmanager
def free_jobs(device: SimulatedDevice, recorded: bool) -> Iterator[list[Engine]]:
    """Makes jobs load a model that costs nothing; yields the list of the engines that they make."""
    engines: list[Engine] = []
    make = Engine.__init__

    def make_ahead(engine: Engine, *args: Any, **kwargs: Any) -> None:
        make(engine, *args, **{**kwargs, "run_ahead": True, "record_steps": recorded})
        engines.append(engine)

    with (
        patch.object(loading, "Model", partial(FreeOfCost, device)),
        patch.object(Engine, "__init__", make_ahead),
    ):
        yield engines
