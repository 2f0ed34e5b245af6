"""Compares values of `admission_delay_ms` on a simulated GPU with the step times that benchmarks.roofline predicts.

    python -m benchmarks.admission [--model 1.5B] [--slots 256] [--delays 0,10,20,30,50,100]

The engine is the real one, and records steps. Its model computes nothing; the clock is simulated, so that the host's
work takes no time. A step takes the time that benchmarks.roofline predicts for its rows and chunks on an H100, with
float32 states and `batch_invariant`. Padding counts: all tokens beside one for each row are chunks as long as the
longest. Prompts have 100 tokens. Completions have 50 to 150 tokens, at random.

    tokens/s      sampled tokens per second of the simulated clock
    with prompts  share of the steps that read prompt chunks
    in use        share of the slots that were in use, on average over time
    slot waits    milliseconds from when a slot is free until its next sequence starts, on average: the cost in time to
                  first token, where requests wait for slots
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.measure.table import format_table
from rwkv_batch.roofline.cards import H100
from rwkv_batch.roofline.predict import predict
from rwkv_batch.roofline.steps import Step, record
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.transfer import HostCopy

from .host_parts.device import SimulatedDevice
from .host_parts.driver import FreeModel
from .host_parts.results import VOCAB_SIZE
from .roofline import MODELS

PROMPT, SHORTEST, LONGEST = 100, 50, 150
PROMPT_TOKENS_OF_A_STEP = 4096
StepSeconds = Callable[[int, tuple[int, ...]], float]
"""Seconds of a step, from the number of its rows of one token and the lengths of its prompt chunks."""


class Result(NamedTuple):
    """The figures of one delay."""

    tokens_per_second: float
    share_with_prompts: float
    share_in_use: float
    wait_ms: float
    share_unrecorded: float


class Clock:
    """A simulated clock, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TimedModel(FreeModel):
    """A model that computes nothing, with the step times of a model on a card."""

    def __init__(self, device: SimulatedDevice, step_seconds: StepSeconds) -> None:
        super().__init__(device)
        self._device, self._step_seconds = device, step_seconds
        self.engine: Any = None
        self.with_prompts = 0
        self.seconds = self.slot_seconds = 0.0

    def forward(self, token_ids: Any, rows: Any, layers: Any) -> Any:
        lengths = rows.cu_seqlens[1:] - rows.cu_seqlens[:-1]
        chunks = _chunks(len(token_ids) - rows.num_rows, int(lengths[rows.slot_index >= 0].max()))
        seconds = self._step_seconds(max(rows.num_rows - len(chunks), 0), chunks)
        self.with_prompts += bool(chunks)
        self._device.step_seconds = seconds
        self.seconds += seconds
        self.slot_seconds += seconds * self.engine.scheduler.num_running
        return super().forward(token_ids, rows, layers)


def _chunks(num_tokens: int, longest: int) -> tuple[int, ...]:
    """The lengths of the prompt chunks of a step with this many tokens beside one for each row."""
    if num_tokens <= 0:
        return ()
    rest = num_tokens % longest
    return (longest,) * (num_tokens // longest) + (rest,) * bool(rest)


def predicted_seconds(model: str, decoding: int, prompts: tuple[int, ...]) -> float:
    """The predicted seconds of a step of a job on an H100."""
    return predict(record(Step(MODELS[model], decoding, prompts, batch_invariant=True)), H100).recorded


def simulate(
    step_seconds: StepSeconds, slots: int, delay_ms: float, waves: int, share_with_logprobs: float = 0.0
) -> Result:
    """Serves `waves` × `slots` requests."""
    clock = Clock()
    device = SimulatedDevice(0.0, clock.read, clock.sleep)
    model = TimedModel(device, step_seconds)
    engine = model.engine = Engine(
        model,  # type: ignore[arg-type]
        Vocabulary.plain(VOCAB_SIZE),
        EngineLimits(slots, slots + PROMPT_TOKENS_OF_A_STEP, 0, delay_ms / 1000),
        prefix_sharing=False,
        run_ahead=True,
        record_steps=True,
    )
    draw = random.Random(0)
    requests = [
        Request(
            row,
            draw.choices(range(1, VOCAB_SIZE), k=PROMPT),
            SamplingParams(
                max_tokens=draw.randint(SHORTEST, LONGEST),
                ignore_eos=True,
                logprobs=5 if draw.random() < share_with_logprobs else None,
            ),
            row=row,
        )
        for row in range(waves * slots)
    ]
    with device.delays(HostCopy), patch("rwkv_batch.engine.admission.perf_counter", clock.read):
        tokens = sum(len(completion.token_ids) for completion in engine.generate(Pulled(requests)))
    stats = engine.stats
    idle = slots * model.seconds - model.slot_seconds
    return Result(
        tokens / device.wall_seconds,
        model.with_prompts / stats.steps,
        model.slot_seconds / (slots * model.seconds),
        1000 * idle / len(requests),
        1 - stats.recorded_steps / stats.steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.admission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, default="1.5B")
    parser.add_argument("--slots", type=int, default=256, metavar="N", help="(256)")
    parser.add_argument("--waves", type=int, default=12, metavar="N", help="requests of each slot (12)")
    parser.add_argument("--delays", default="0,10,20,30,50,100", metavar="MS,…", help="(0,10,20,30,50,100)")
    options = parser.parse_args()
    rows = []
    # The recorder of launches patches the engine: it runs in a process of its own.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:

        @cache
        def step_seconds(decoding: int, prompts: tuple[int, ...]) -> float:
            return pool.submit(predicted_seconds, options.model, decoding, prompts).result()

        decode = 1000 * step_seconds(options.slots, ())
        print(f"predicted: RWKV-7 {options.model} on an H100, {options.slots} slots, a decode step {decode:.2f} ms")
        for delay in map(float, options.delays.split(",")):
            found = simulate(step_seconds, options.slots, delay, options.waves)
            rows.append(
                [
                    f"{delay:g} ms",
                    f"{found.tokens_per_second:,.0f}",
                    f"{found.share_with_prompts:.1%}",
                    f"{found.share_in_use:.1%}",
                    f"{found.wait_ms:.1f}",
                ]
            )
    print(format_table(["delay", "tokens/s", "with prompts", "in use", "slot waits, ms"], rows))


if __name__ == "__main__":
    main()
