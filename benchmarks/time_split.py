"""Time of a decode step by part. The clocks are patched into the library, which has no hooks."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from statistics import median_low
from time import perf_counter
from typing import Any
from unittest.mock import patch

from rwkv_batch import LLM
from rwkv_batch.cpu_kernels.call import RecordedCall, kernels
from rwkv_batch.cpu_kernels.products import Products
from rwkv_batch.cpu_kernels.recording import Recording
from rwkv_batch.engine.engine import Engine
from rwkv_batch.measure.bench import Measurement, difference, measure, warm_up
from rwkv_batch.measure.variants import Variant
from rwkv_batch.measure.workloads import Workload
from rwkv_batch.models.matrices.linear import LinearGroup
from rwkv_batch.models.matrices.low_rank import LOW_RANK
from rwkv_batch.models.matrices.product import LINEAR, Linear
from rwkv_batch.models.matrices.projection import PROJECT
from rwkv_batch.models.model import Model
from rwkv_batch.ops import Implementation, OpTable
from rwkv_batch.text.stop_strings import StopMatcher

STOP = "\n\nUser:"

Split = dict[str, float]
"""Part of a step → milliseconds."""


class _Clocks:
    """Time inside some functions. Calls from a timed function to another one count for the outer function."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._is_running = False

    def around(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """Wraps a function with a clock. `name` maps the arguments of a call to the part that the time counts for."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._is_running:
                return function(*args, **kwargs)
            self._is_running = True
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name(*args)] += perf_counter() - start
                self._is_running = False

        return timed


def split_step(engine: Engine, workload: Workload, repeats: int) -> Split:
    """Returns the milliseconds of a decode step by part, from the run whose total is the median of `repeats`."""
    runs = [_split_once(engine, workload) for _ in range(repeats)]
    return next(run for run in runs if sum(run.values()) == median_low(sum(run.values()) for run in runs))


def split_text(checkpoint: Path, workload: Workload, variant: Variant) -> Split:
    """Returns the milliseconds of a step by phase, for a run through `LLM` whose sequences have a stop string."""
    llm = LLM(
        checkpoint,
        tokenizer="world",
        device="cpu",
        max_batch_size=workload.num_prompts,
        **variant.settings,
    )
    prompts = workload.prompts(llm.summary.file.sizes["V"])
    llm.generate(prompts, replace(workload.params, max_tokens=2))
    before, clocks = replace(llm.stats()), _Clocks()
    start = perf_counter()
    # With a stop string every token is decoded at once.
    with patch.object(StopMatcher, "push", clocks.around(StopMatcher.push, lambda *_: "stop strings")):
        llm.generate(prompts, replace(workload.params, stop=STOP))
    seconds = perf_counter() - start
    run = Measurement(len(prompts), seconds, difference(llm.stats(), before))
    parts = run.phase_seconds | {"stop strings": clocks.seconds["stop strings"], "between steps": run.rest_seconds}
    parts["commit"] -= parts["stop strings"]
    return _per_step(parts, run)


def own_python(split: Split) -> str:
    """Formats the share of a step that the engine's own Python takes."""
    own, total = split["schedule"] + split["commit"], sum(split.values())
    return f"{own:.2f} of {total:.1f} ms a step, {own / total:.2%}"


def split_rows(splits: Sequence[Split]) -> list[list[str]]:
    """Makes one table row for each part, with milliseconds and share of each split. All splits have the same parts."""
    totals = [sum(split.values()) for split in splits]
    rows = [
        [part, *(f"{split[part]:.2f} {split[part] / total:6.1%}" for split, total in zip(splits, totals, strict=True))]
        for part in splits[0]
    ]
    return [*rows, ["total", *(f"{total:.2f} {1:6.1%}" for total in totals)]]


def _split_once(engine: Engine, workload: Workload) -> Split:
    warm_up(engine)
    with _clocks_in(engine.model) as clocks:
        run = measure(engine, workload)
    ops = [f"op {name}" for name in _timed_ops(engine.model)]
    inside = {part: clocks.seconds[part] for part in ("matrix products", "head", *ops)}
    parts = {
        **inside,
        "rest of the model": run.phase_seconds["model"] - sum(inside.values()),
        **{phase: seconds for phase, seconds in run.phase_seconds.items() if phase != "model"},
        "between steps": run.rest_seconds,
    }
    return _per_step(parts, run)


@contextmanager
def _clocks_in(model: Model) -> Iterator[_Clocks]:
    """Yields patches that put clocks around the model's head, its other matrix products and its ops."""
    clocks = _Clocks()

    def op(name: str) -> Callable[..., Any]:
        return clocks.around(getattr(model.ops, name), lambda *_: f"op {name}")

    timed = {name: Implementation(op(name)) for name in _timed_ops(model)}
    implementations = model.ops.implementations | timed
    with ExitStack() as stack:
        for kind in _kinds_of(Linear) | _kinds_of(LinearGroup):
            timed_call = clocks.around(kind.__call__, lambda *_: "matrix products")
            stack.enter_context(patch.object(kind, "__call__", timed_call))
        stack.enter_context(patch.object(model, "ops", OpTable(implementations, model.ops.choices)))
        stack.enter_context(patch.object(model, "logits", clocks.around(model.logits, lambda *_: "head")))
        stack.enter_context(patch.object(Recording, "replay", partialmethod(_replay, clocks, model)))
        yield clocks


def _replay(recording: Recording, clocks: _Clocks, model: Model) -> None:
    """Replays a recorded step call by call, with a clock for each."""
    calls = recording._calls
    kernels()  # sets the number of threads
    for call in calls:
        start = perf_counter()
        call.function(ctypes.byref(call.params))
        part = "head" if call is calls[-1] else _part(call, model)
        clocks.seconds[part] += perf_counter() - start


def _part(call: RecordedCall, model: Model) -> str:
    """The part of a step that a call belongs to. A low-rank pair has fewer numbers between its factors than x has."""
    if isinstance(call.params, Products):
        first = call.others[0][0]
        return "op low_rank" if min(first.inputs, first.outputs) < model.sizes["C"] else "matrix products"
    name = call.function.__name__.rpartition("_")[0]
    return next((f"op {op}" for op in _timed_ops(model) if name.startswith(op[:4])), "rest of the model")


def _kinds_of(base: Any) -> set[Any]:
    """Lists a class and its subclasses, as far as each defines `__call__` itself."""
    below = set[Any]().union(*map(_kinds_of, base.__subclasses__()))
    return below | {base} if "__call__" in vars(base) else below


def _timed_ops(model: Model) -> list[str]:
    """Lists the ops that get clocks: all but the large products, whose matrices have clocks of their own.

    `project` without a kernel consists of large products and `low_rank`, and with one it does the work of `low_rank`.
    """
    other = LOW_RANK if model.ops.has_kernel(PROJECT.name) else PROJECT
    return [spec.name for spec in model.file.architecture.ops if spec not in (LINEAR, other)]


def _per_step(parts: dict[str, float], run: Measurement) -> Split:
    return {part: 1000 * seconds / run.stats.steps for part, seconds in parts.items()}
