"""The package at 558f3da: how its engine and its jobs are run without a model's and a sampler's cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter, thread_time
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from rwkv_batch.data.writer import Writer
from rwkv_batch.detokenizer import Detokenizer
from rwkv_batch.engine.host_copy import HostCopy

import rwkv_batch.job
import rwkv_batch.llm
from rwkv_batch.engine import engine, in_flight, sampler, slot_tables, step_input
from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.slot_tables import SlotTables, Vocabulary
from rwkv_batch.models import rows
from rwkv_batch.models.architecture import StateField
from rwkv_batch.models.model import Model
from rwkv_batch.models.placement import Placement
from rwkv_batch.ops import OpTable
from rwkv_batch.prefetch import Prefetch
from rwkv_batch.sampling_params import SamplingParams

from .cases import ALTERNATIVES, STOPS, Case, questions
from .clocks import Watched
from .device import SimulatedDevice
from .results import TOKEN_BYTES, VOCAB_SIZE, FreeResults

COPY = HostCopy
STEP = (Engine, "step")
SERVE = (rwkv_batch.job._Run, "serve")
LOAD = (rwkv_batch.job, "_load_model")
WATCHED = (
    Watched(Engine, "_admit", "admission", perf_counter),
    Watched(Detokenizer, "push", "stop strings", perf_counter),
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
"""A model of one layer with a state of 8 bytes: to reset or to copy it is the device's work."""


class FreeModel:
    """A model without weights, for an `Engine`. It computes nothing."""

    device = torch.device("cpu")
    placement = Placement(device, torch.float32, None)
    pipeline = None
    file = _FILE
    sizes = _FILE.sizes

    def __init__(self, device: SimulatedDevice) -> None:
        self._results = FreeResults(device)
        self.ops = OpTable(self._results.ops, ())

    def forward(self, token_ids: Any, rows: Any, layers: Any) -> Any:
        return self._results.forward(token_ids, rows)

    def logits(self, hidden: Any, out: Any = None) -> Any:
        return self._results.logits(hidden)

    def score(self, hidden: Any, targets: Any, rows: Any) -> Any:
        return self._results.score(hidden, None, targets)


class FreeOfCost(FreeModel, Model):
    """The bundled model, for an `LLM`. It is loaded as usual, and computes nothing."""

    def __init__(self, device: SimulatedDevice, *args: Any, **kwargs: Any) -> None:
        Model.__init__(self, *args, **kwargs)
        FreeModel.__init__(self, device)
        self.file, self.sizes = FreeModel.file, FreeModel.sizes


def new_engine(case: Case, device: SimulatedDevice, recorded: bool) -> Engine:
    return Engine(
        FreeModel(device),  # type: ignore[arg-type]
        Vocabulary.plain(VOCAB_SIZE),
        max_batch_size=case.batch_size,
        max_batch_tokens=case.max_batch_tokens,
        run_ahead=True,
        decode_graphs=recorded,
    )


def requests(case: Case, prompts: list[list[int]]) -> list[Any]:
    """A row's requests together, in the order of rows."""
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
    monitor = None
    if case.feature == "stop":
        monitor = partial(Detokenizer, TOKEN_BYTES, STOPS)
    return [
        [Request(row, prompt, params, row=row, sample=i, new_monitor=monitor) for i in range(case.n)]
        for row, prompt in enumerate(prompts)
    ]


def _scoring(row: int, text: str, texts: list[str], answer: int) -> list[Request]:
    context, *choices = ([byte + 1 for byte in one.encode()] for one in (text, *texts))
    params = SamplingParams(max_tokens=0)
    scored = [
        Request(
            row,
            context + ids[:-1],
            params,
            row=row,
            sample=1 + i,
            score_start=len(context) + 1,
            next_token_ids=(ids[-1],),
        )
        for i, ids in enumerate(choices)
    ]
    return [*scored, Request(row, context, params, row=row, next_token_ids=tuple(ids[0] for ids in choices))]


def complete(engine: Engine, items: Iterable[Any]) -> Iterator[Any]:
    return engine.generate(items)


def num_tokens(completion: Any) -> int:
    """Sampled or scored."""
    return len(completion.token_ids) + len(completion.prompt_scores)


class _Transfers:
    """Counts what would go from the host to a device: this version has no counter of its own."""

    def __init__(self) -> None:
        self.count = 0
        SlotTables._write = staticmethod(self._counted(SlotTables._write))  # type: ignore[method-assign]
        for module in (engine, in_flight, rows, sampler, slot_tables, step_input):
            module.upload = self._counted(module.upload)

    def _counted(self, function: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.count += 1
            return function(*args)

        return counted


_TRANSFERS = _Transfers()


def num_transfers(engine: Engine) -> int:
    """Returns the number of transfers from the host to a device since the process started."""
    return _TRANSFERS.count


@contextmanager
def free_jobs(device: SimulatedDevice, recorded: bool) -> Iterator[list[Engine]]:
    """Jobs load a model that costs nothing; yields the engines that they make."""
    engines: list[Engine] = []
    make = Engine.__init__

    def make_ahead(engine: Engine, *args: Any, **kwargs: Any) -> None:
        make(engine, *args, **{**kwargs, "run_ahead": True, "decode_graphs": recorded})
        engines.append(engine)

    with (
        patch.object(rwkv_batch.llm, "Model", partial(FreeOfCost, device)),
        patch.object(Engine, "__init__", make_ahead),
    ):
        yield engines
