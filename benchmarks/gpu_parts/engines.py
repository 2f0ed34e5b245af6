"""Engines with random models, and clocks around their steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.state_pool import StateLayout
from rwkv_batch.measure.bench import difference
from rwkv_batch.models.files.checkpoint import Checkpoint
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import Placement
from rwkv_batch.ops import OpTable, backend_order, resolve
from rwkv_batch.sampling_params import SamplingParams

from .context import Context

BACKEND = "auto"
PARAMS = SamplingParams(temperature=1.0, top_p=0.85, ignore_eos=True)


def load(
    context: Context,
    checkpoint: Checkpoint,
    dtype: str = "bfloat16",
    state_dtype: str = "float32",
    backend: str = BACKEND,
    device: torch.device | None = None,
    batch_invariant: bool = False,
    quantization: str | None = None,
) -> Model:
    """Loads a model, by default on the part's device. Another backend serves ops that `smoke` found broken."""
    file = ModelFile.open(checkpoint)
    device = device or context.device
    placement = Placement(device, DTYPES[dtype], quantization, DTYPES[state_dtype])
    specs = tuple(dict.fromkeys((*file.ops_at(placement.head), *Sampler.OPS)))
    chosen = {spec.name: usable_backend(context, spec.name, backend, dtype, state_dtype) for spec in specs}
    tables = []
    for name in dict.fromkeys(chosen.values()):
        own = [spec for spec in specs if chosen[spec.name] == name]
        tables.append(resolve(own, name, device, placement.dtype, file.sizes, placement.state_dtype))
    return Model(file, placement, joined(tables), batch_invariant=batch_invariant)


def joined(tables: Sequence[OpTable]) -> OpTable:
    """Joins tables of different ops."""
    served = {choice.op: table for table in tables for choice in table.choices}
    return OpTable(
        {name: table.implementations[name] for name, table in served.items()},
        [choice for table in tables for choice in table.choices],
    )


def usable_backend(context: Context, op: str, backend: str, dtype: str, state_dtype: str) -> str:
    """Returns the backend for an op: the given one, or with "auto" the first one that `smoke` did not find broken."""
    if backend != BACKEND:
        return backend
    faults = []
    for name in backend_order(op, "cuda"):
        if name not in context.backends:
            continue
        has_kernel = find_spec(f"rwkv_batch.{name}_kernels.{op}") is not None
        if name == "cuda" and not has_kernel:
            continue
        if why := context.broken(op, name, dtype, state_dtype):
            faults.append(why)
            continue
        has_smoke = context.smoke and not context.is_rehearsal  # which tries one op
        if has_smoke and has_kernel and not context.reached(op, name):
            context.record.note(op, "smoke has no result for it, so nothing says that it works")
        if faults:
            context.record.note(f"{op} served by {name}", "; ".join(faults))
        return name
    context.record.note(f"{op} served by reference", "; ".join(faults))
    return "reference"


def other_backends(model: Model) -> dict[str, str]:
    """Returns op → backend, for the ops that the first backend of "auto" does not serve."""
    return {
        choice.op: choice.backend
        for choice in model.ops.choices
        if choice.backend != backend_order(choice.op, "cuda")[0]
    }


def engine_backend(context: Context) -> str:
    """Returns the backend of whole engines. Rehearsals take the definitions, because Triton's interpreter is slow."""
    return "reference" if context.is_rehearsal else BACKEND


def with_state(model: Model, state_dtype: str) -> Model:
    """Returns a model with the same weights and states of another dtype."""
    other = copy.copy(model)
    other.placement = replace(model.placement, state_dtype=DTYPES[state_dtype])
    return other


def serve(model: Model, num_slots: int, prompt_tokens: int = 0) -> Engine:
    """Makes an engine that runs as on a GPU: it records decode steps, and launches a step before it reads the last.

    Args:
        prompt_tokens: tokens of a step besides one for each slot.
    """
    if model.device.type == "cuda":
        return make_engine(model, num_slots, prompt_tokens, run_ahead=None, record_steps=None)
    can_record = model.ops.can_be_recorded
    return make_engine(model, num_slots, prompt_tokens, run_ahead=True, record_steps=can_record)


def make_engine(
    model: Model, num_slots: int, prompt_tokens: int, run_ahead: bool | None, record_steps: bool | None
) -> Engine:
    """Makes an engine without shared prefixes, whose step has `prompt_tokens` tokens besides one for each slot."""
    return Engine(
        model,
        Vocabulary.plain(model.sizes["V"]),
        EngineLimits(num_slots, num_slots + prompt_tokens),
        prefix_sharing=False,
        run_ahead=run_ahead,
        record_steps=record_steps,
    )


def slot_bytes(model: Model) -> int:
    """Estimates the bytes of one sequence: state, logits, logits of recorded steps, activations."""
    layout = StateLayout(model.file.state_fields(model.placement), model.sizes["L"])
    return layout.record_bytes + 3 * 4 * model.sizes["V"] + 40 * 2 * model.sizes["C"]


def requests(prompts: Sequence[Sequence[int]], max_tokens: int, params: SamplingParams = PARAMS) -> list[Request]:
    """Makes one request for each prompt."""
    params = replace(params, max_tokens=max_tokens)
    return [Request(i, list(prompt), params, row=i) for i, prompt in enumerate(prompts)]


def random_prompts(model: Model, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Draws prompts of uniform token ids, without the end of text."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, model.sizes["V"], (length,), generator=generator).tolist() for length in lengths]


@dataclass
class Steps:
    """Times and rows of the steps of a run.

    Args:
        ends: host time at the end of each step.
        rows: rows of each step.
        marks: device events before and after each replay of a recorded step.
    """

    ends: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)


@contextmanager
def watched(
    engine: Engine, before: Callable[[int], None] = lambda _: None, after: Callable[[int], None] = lambda _: None
) -> Iterator[Steps]:
    """Records the end of each step of an engine.

    Args:
        before, after: functions called around each step with its number, from 0.
    """
    steps, step = Steps(), engine.step

    def noted() -> None:
        number = len(steps.ends)
        before(number)
        try:
            step()
        finally:
            after(number)
        steps.ends.append(perf_counter())
        steps.rows.append(engine.stats.running)

    with patch.object(engine, "step", noted):
        yield steps


@contextmanager
def marked_replays(steps: Steps, is_on: Callable[[], bool]) -> Iterator[None]:
    """Puts device events around the replays of recorded steps while `is_on()`."""
    replay = torch.cuda.CUDAGraph.replay

    def marked(graph: torch.cuda.CUDAGraph) -> None:
        if not is_on():
            replay(graph)
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        replay(graph)
        pair[1].record()
        steps.marks.append(pair)

    with patch.object(torch.cuda.CUDAGraph, "replay", marked):
        yield


WARM_STEPS = 6
"""Decode steps before those that are timed. The first one is recorded."""


def decode(engine: Engine, num_steps: int, marked_steps: int) -> dict[str, Any]:
    """Decodes with all slots: steps timed by the host's clock, then steps with events around the replays.

    Returns:
        Mean and median seconds of a step, seconds of the replay alone, host seconds by phase, memory.
    """
    B, is_cuda = engine.pool.num_slots, engine.model.device.type == "cuda"
    first = 1 + (WARM_STEPS if is_cuda else 1)
    last = first + num_steps
    total = last + marked_steps + 1
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    counted: list[Any] = []

    def before(number: int) -> None:
        if number in (first, last):
            counted.append(replace(engine.stats))

    prompts = random_prompts(engine.model, [1] * B)
    start = perf_counter()
    with watched(engine, before) as steps:

        def is_marked() -> bool:
            return last < len(steps.ends) < last + marked_steps

        with marked_replays(steps, is_marked):
            for _ in engine.generate(Pulled(requests(prompts, total))):
                pass
    if min(steps.rows[first:last]) < B:
        raise MemoryError(f"the engine went on with {min(steps.rows[first:last])} of {B} rows")
    window = steps.ends[first - 1 : last]
    host = difference(counted[1], counted[0])
    busy = host.schedule_seconds + host.model_seconds + host.sample_seconds + host.commit_seconds
    found: dict[str, Any] = {
        "B": B,
        "steps": num_steps,
        "step_seconds": (window[-1] - window[0]) / num_steps,
        "median_step_seconds": median(b - a for a, b in pairwise(window)),
        "tokens_per_second": B * num_steps / (window[-1] - window[0]),
        "host_seconds": busy / num_steps,
        "host_wait_seconds": host.wait_seconds / num_steps,
        "admission_and_first_step_seconds": steps.ends[0] - start,
        "first_recorded_step_seconds": steps.ends[1] - steps.ends[0],
    }
    if steps.marks:
        torch.cuda.synchronize()
        replays = [a.elapsed_time(b) / 1000 for a, b in steps.marks]
        between = [a[1].elapsed_time(b[0]) / 1000 for a, b in pairwise(steps.marks)]
        found["replay_seconds"] = median(replays)
        found["between_replays_seconds"] = median(between)
        found["outside_share"] = 1 - found["replay_seconds"] / found["step_seconds"]
    if is_cuda:
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
        found["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return found
