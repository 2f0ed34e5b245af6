"""The predicted time of a job on GPUs that are not here, from the roofline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..dtypes import torch_dtype
from ..engine.sizing import MemoryPlan, plan_memory
from ..errors import CapacityError
from ..job.config import JobConfig
from ..models.model import ModelFile
from ..models.placement import Placement
from ..roofline.cards import CARDS, Card
from ..roofline.jobs import mixed_seconds
from ..roofline.predict import predict
from ..roofline.steps import Step, StoredShapes, record
from .estimate_time import StepTimes, Work

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Predicted:
    """The prediction for one card.

    Args:
        slots: sequences that run at a time.
        times: None where the model does not fit into the card's memory.
        seconds: of the whole work on one such card.
        problem: why there are no times.
    """

    card: Card
    slots: int = 0
    times: StepTimes | None = None
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Requests:
    """What the prediction takes from a job's requests.

    Args:
        work: of the whole job.
        count: of the requests, those of shared prefixes not counted.
        scored: mean tokens of a request that are scored; 0 for a job that generates.
    """

    work: Work
    count: int
    scored: int = 0

    @property
    def prompt(self) -> int:
        """Mean prompt tokens that a request computes, one at least."""
        return max(1, round(self.work.computed_tokens / max(self.count, 1)))


def predicted(name: str, file: ModelFile, job: JobConfig, requests: Requests) -> Predicted:
    """Predicts the time of a job on one card.

    Args:
        name: of `CARDS`.
        file: the job's model, whose weights are not read.
    """
    card = CARDS[name]
    try:
        plan = _plan(file, job, card)
    except CapacityError:
        return Predicted(card, problem="the model does not fit")
    shapes = StoredShapes.of(file.checkpoint)
    state_dtype = torch_dtype(job.engine.state_dtype)
    step = Step(shapes, 1, (), state_dtype, job.engine.batch_invariant, job.model.quantization)
    slots = max(1, min(plan.max_batch_size, requests.count))
    times = _times(replace(step, decoding=slots), requests, plan.max_batch_tokens, card)
    return Predicted(card, slots, times, times.seconds(requests.work, slots))


def _plan(file: ModelFile, job: JobConfig, card: Card) -> MemoryPlan:
    """The memory plan of a card whose memory is free."""
    engine = job.engine
    return plan_memory(
        file,
        Placement(torch.device("cuda"), DTYPE, job.model.quantization, torch_dtype(engine.state_dtype)),
        None if engine.max_batch_size == "auto" else engine.max_batch_size,
        None if engine.max_batch_tokens == "auto" else engine.max_batch_tokens,
        engine.memory_share,
        available=int(card.memory),
    )


def _times(full: Step, requests: Requests, most_tokens: int, card: Card) -> StepTimes:
    """The times of the job's steps: of those that sample, and what a prompt token adds.

    Prompts come one by one as slots get free, if a step has room for that; else steps are full of prompt tokens.

    Args:
        full: a step in which all slots sample.
        most_tokens: of a step.
    """
    slots, work = full.decoding, requests.work
    if not work.num_sequences:
        return StepTimes(_of_full_steps(full, requests, most_tokens, card), {})
    levels = {1, max(1, slots // 4), slots}
    decode = {rows: predict(record(replace(full, decoding=rows)), card).recorded for rows in levels}
    starting = slots / max(work.mean_length, 1.0)
    is_steady = work.num_sequences > 2 * slots and starting * requests.prompt <= most_tokens - slots
    if not is_steady:
        return StepTimes(_of_full_steps(full, requests, most_tokens, card), decode)
    more = mixed_seconds(full, requests.prompt, starting, card) - decode[slots]
    return StepTimes(max(more, 0.0) / (starting * requests.prompt), decode)


def _of_full_steps(full: Step, requests: Requests, most_tokens: int, card: Card) -> float:
    """Seconds of a prompt token in steps that hold as many prompts as they may."""
    length = min(requests.prompt, most_tokens)
    count = max(1, min(most_tokens // length, full.decoding, requests.count))
    step = replace(full, decoding=0, prompts=(length,) * count, scored=min(requests.scored, length))
    return predict(record(step), card).unrecorded / (length * count)
