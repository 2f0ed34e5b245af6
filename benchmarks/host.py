"""What everything but the model costs: a job of short completions with a model that costs nothing.

    python -m benchmarks.host

runs from the repository root. The engine alone: constant logits on a vocabulary of 256, sampled with temperature 1 and
top_p 0.85. The whole job: Parquet in, Parquet out, text with a stop string, the bundled model's tokenizer (bytes) and
state, whose forward pass is replaced by constants. Its time is divided among its parts; the threads that read and
tokenise, and that write, are counted by the processor time they take. All of it but the sampler is set beside a decode
step of a random RWKV-7 of 0.1B parameters at the same number of rows, measured in the same run unless it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

import rwkv_batch.job
import rwkv_batch.llm
from rwkv_batch.bench import BenchModel, Workload, format_table, measure, positive_int, warm_up
from rwkv_batch.config import load_job
from rwkv_batch.data.plan import Shard
from rwkv_batch.data.stopping import StopSignals
from rwkv_batch.data.writer import Writer
from rwkv_batch.detokenizer import Detokenizer
from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.prefetch import Prefetch

from .free_model import VOCAB_SIZE, FreeModel, FreeOfCost
from .timing import machine, spread
from .workloads import FULL, QUICK, checkpoint

STOP = "\n\nUser:"
PROMPT = "Question {}: why is the sky blue?"
NOT_HOST = ("model", "sample")
"""Parts of a step that are not the host's work."""

Split = dict[str, float]
"""Part of a job → milliseconds of a step."""


def engine_rate(rows: int, requests: int, length: int) -> tuple[float, float]:
    """Completion tokens of the engine alone: per second, and per second of processor time (on a busy machine)."""
    engine = Engine(
        FreeModel(),  # type: ignore[arg-type]
        Vocabulary.plain(VOCAB_SIZE),
        max_batch_size=rows,
        max_batch_tokens=2 * rows,
    )
    warm_up(engine)
    started = process_time()
    run = measure(engine, Workload(requests, 16, length))
    return run.stats.completion_tokens / run.seconds, run.stats.completion_tokens / (process_time() - started)


class _Clocks:
    """Seconds spent in some functions: on the main thread by the clock, on others by the processor time they took."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def patched(self, owner: Any, name: str, part: str, clock: Callable[[], float]) -> Any:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += clock() - start

        return patch.object(owner, name, timed)


@contextmanager
def _watched_job() -> Iterator[tuple[_Clocks, list[Any]]]:
    """Clocks in the parts of a job, and the models that it loads, which cost nothing."""
    clocks, loaded = _Clocks(), []
    load = rwkv_batch.job._load_model

    def timed_load(job: Any) -> Any:
        start, started = perf_counter(), process_time()
        loaded.append(load(job))
        clocks.seconds["serving"] -= perf_counter() - start
        clocks.seconds["processor"] -= process_time() - started
        return loaded[-1]

    with ExitStack() as stack:
        stack.enter_context(patch.object(rwkv_batch.llm, "Model", FreeOfCost))
        stack.enter_context(patch.object(rwkv_batch.job, "_load_model", timed_load))
        for owner, name, part, clock in (
            (rwkv_batch.job._Run, "serve", "serving", perf_counter),
            (rwkv_batch.job._Run, "serve", "processor", process_time),
            (Engine, "_admit", "admission", perf_counter),
            (Detokenizer, "push", "detokenising, stop strings", perf_counter),
            (Writer, "add", "handing rows to the writer", perf_counter),
            (Prefetch, "_run", "thread: reading, tokenising", thread_time),
            (Writer, "_run", "thread: writing", thread_time),
        ):
            stack.enter_context(clocks.patched(owner, name, part, clock))
        yield clocks, loaded


def run_job(folder: Path, rows: int, requests: int, length: int) -> tuple[tuple[float, float], Split]:
    """The same two rates of a whole job, once its model is loaded, and milliseconds of a step by part."""
    pq.write_table(pa.table({"prompt": [PROMPT.format(i) for i in range(requests)]}), folder / "prompts.parquet")
    job = {
        "model": {"path": "demo"},
        "engine": {"device": "cpu", "max_batch_size": rows},
        "input": {"path": str(folder / "prompts.parquet")},
        "sampling": {"max_tokens": length, "temperature": 1.0, "top_p": 0.85, "ignore_eos": True, "stop": [STOP]},
        "output": {"path": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    with _watched_job() as (clocks, loaded), StopSignals() as stop:
        outcome = rwkv_batch.job.run_job(load_job(str(folder / "job.yaml")), Shard(), stop)
    stats = loaded[0].stats()
    if (outcome.rows, outcome.errors, stats.completion_tokens) != (requests, 0, requests * length):
        raise RuntimeError(f"the job made {outcome} and {stats.completion_tokens} tokens")
    seconds = clocks.seconds
    total, processor = seconds.pop("serving"), seconds.pop("processor")
    parts = {name: getattr(stats, f"{name}_seconds") for name in ("schedule", "model", "sample", "wait", "commit")}
    parts["commit"] -= seconds["detokenising, stop strings"]
    threads = {name: seconds.pop(name) for name in list(seconds) if name.startswith("thread")}
    parts |= seconds
    parts["results, between steps"] = total - sum(parts.values())
    rates = stats.completion_tokens / total, stats.completion_tokens / processor
    return rates, {name: 1000 * value / stats.steps for name, value in (parts | threads).items()}


def model_step(path: Path, rows: int) -> float:
    """Milliseconds of a decode step of a real model, with its sampler."""
    engine = BenchModel(path, [rows], device="cpu").engine(rows)
    warm_up(engine)
    run = measure(engine, Workload(rows, 1, 6))
    return 1000 * (run.stats.model_seconds + run.stats.sample_seconds) / run.stats.steps


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    alone: list[tuple[float, float]] = []
    jobs: list[tuple[tuple[float, float], Split]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            alone.append(engine_rate(options.batch_size, options.requests, options.length))
            folder = Path(scratch, f"job-{number}")
            folder.mkdir()
            jobs.append(run_job(folder, options.batch_size, options.requests, options.length))
        step = options.step_ms
        if step is None:
            path = checkpoint(QUICK if options.quick else FULL, options.cache or Path(scratch))
            step = model_step(path, options.batch_size)
    split = {part: median(one[part] for _, one in jobs) for part in jobs[0][1]}
    host = sum(value for part, value in split.items() if part not in NOT_HOST)
    print(f"B={options.batch_size}, {options.requests:,} completions of {options.length} tokens, a free model")
    for name, rates in (("engine alone", alone), ("whole job", [rate for rate, _ in jobs])):
        by_clock, by_processor = zip(*rates, strict=True)
        print(f"{name}: {spread(by_clock)} completion tokens/s, {spread(by_processor)} per second of processor time")
    print()
    rows = [[part, f"{value:.3f}", f"{value / (step + host):.2%}"] for part, value in split.items()]
    print(format_table(["part of the job", "ms a step", "beside the model"], rows))
    print(
        f"\nall but {' and '.join(NOT_HOST)}, threads included: {host:.2f} ms a step; beside {step:.1f} ms of a model's"
    )
    print(f"step with its sampler: {host / (step + host):.1%} of the time, if nothing ran at the same time")
    if options.out:
        result = {"machine": machine(), "batch_size": options.batch_size, "engine_tokens_per_second": alone}
        result |= {"job_tokens_per_second": [rate for rate, _ in jobs], "milliseconds": split, "model_step_ms": step}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=positive_int, default=256)
    parser.add_argument("--requests", type=positive_int, default=4096)
    parser.add_argument("--length", type=positive_int, default=16, help="tokens of a completion")
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--step-ms", type=float, help="of the model, sampler included; measured without it")
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="folder for the 0.1B checkpoint; a temporary one without it")
    parser.add_argument("--quick", action="store_true", help="a tiny model's step: rehearses")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    return parser


if __name__ == "__main__":
    main()
