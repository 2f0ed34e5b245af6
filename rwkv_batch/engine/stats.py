"""Counters of the engine: steps, tokens, slots in use, and the seconds of each phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scheduler import StepPlan

NUM_BUCKETS = 20


class Occupancy:
    """The share of slots in use: its mean, and its course over time in buckets of equally many steps.

    There are at most 2 × NUM_BUCKETS buckets. When more would be needed, each two neighbors are merged.

    Attributes:
        steps_per_bucket: a power of two; the last bucket may have fewer.
    """

    def __init__(self) -> None:
        self.steps_per_bucket = 1
        self._sums: list[float] = []
        self._num_steps = 0
        self._total = 0.0
        self._means: list[float] | None = None  # of the buckets, where this is of several engines

    def add(self, share: float) -> None:
        """Counts one step."""
        if self._num_steps == 2 * NUM_BUCKETS * self.steps_per_bucket:
            joined = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
            self._sums, self.steps_per_bucket = joined, 2 * self.steps_per_bucket
        # The bucket exists already if an exception, such as Ctrl-C, has come between its append and the step's count.
        if self._num_steps == len(self._sums) * self.steps_per_bucket:
            self._sums.append(0.0)
        self._sums[-1] += share
        self._num_steps += 1
        self._total += share

    @property
    def mean(self) -> float:
        """Over all steps; 0 before the first one."""
        return self._total / self._num_steps if self._num_steps else 0.0

    @property
    def course(self) -> list[float]:
        """The mean of each bucket, in order."""
        if self._means is not None:
            return self._means
        width, last = self.steps_per_bucket, (self._num_steps - 1) % self.steps_per_bucket + 1
        return [total / width for total in self._sums[:-1]] + [total / last for total in self._sums[-1:]]

    @classmethod
    def of_all(cls, several: Sequence[Occupancy]) -> Occupancy:
        """The occupancy of several engines together, each of which counts as many slots: the mean over their steps.

        A bucket has the mean of those engines that have got so far.
        """
        found = cls()
        found.steps_per_bucket = width = max((one.steps_per_bucket for one in several), default=1)
        found._num_steps, found._total = sum(one._num_steps for one in several), sum(one._total for one in several)
        sums: dict[int, list[float]] = {}
        for one in several:
            ratio = width // one.steps_per_bucket
            for start in range(0, len(one._sums), ratio):
                steps = min(width, one._num_steps - start * one.steps_per_bucket)
                sums.setdefault(start // ratio, []).append(sum(one._sums[start : start + ratio]) / steps)
        found._means = [sum(means) / len(means) for means in sums.values()]
        return found

    def describe(self) -> dict[str, Any]:
        """The numbers that a report shows."""
        course = [round(share, 4) for share in self.course]
        return {"mean": round(self.mean, 4), "steps_per_bucket": self.steps_per_bucket, "course": course}


@dataclass
class EngineStats:
    """Counters since the engine was built. Times are in seconds of the host's clock."""

    max_batch_size: int
    max_batch_tokens: int
    running: int = 0
    """Slots in use."""
    steps: int = 0
    row_steps: int = 0
    """Sum of the rows of all steps."""
    recorded_steps: int = 0
    """Steps that were replayed from recordings; without a CUDA device, steps that ran the code that is recorded."""
    unrecorded_steps: Counter[str] = field(default_factory=Counter)
    """Of an engine that records steps: the number of steps that were not recorded, by the reason."""
    transfers: int = 0
    """Transfers from the host to the device, those of admission included."""
    step_tokens: int = 0
    """Sum of the tokens of all steps: prompt tokens, and one for each row that decodes."""
    requested_tokens: int = 0
    """Prompt tokens of all requests that have started, shared prefixes counted for each request."""
    prompt_tokens: int = 0
    """Prompt tokens computed, a shared prefix counted once."""
    completion_tokens: int = 0
    read_seconds: float = 0.0
    """Reading rows, on the thread that reads ahead."""
    encode_seconds: float = 0.0
    """Making requests of rows: texts become token ids, on the thread that reads ahead."""
    input_seconds: float = 0.0
    """Waiting for requests while no sequence runs."""
    admit_seconds: float = 0.0
    """Giving free slots to waiting sequences: `input_seconds`, finding shared prefixes, setting states and settings."""
    prompt_seconds: float = 0.0
    """Forward time spent on prompts: each forward pass's time × the share of prompt tokens among its tokens."""
    schedule_seconds: float = 0.0
    """Planning, and building the step's tensors."""
    model_seconds: float = 0.0
    """Forward pass, logits and scores."""
    sample_seconds: float = 0.0
    mask_seconds: float = 0.0
    """Advancing constraints by the sampled tokens, and filling and sending the masks of their next tokens."""
    wait_seconds: float = 0.0
    """Waiting for sampled tokens to arrive on the host."""
    commit_seconds: float = 0.0
    """Booking: appending tokens, matching stop strings, finishing sequences."""
    prompt_share: float = 0.0
    """Share of prompt tokens among the latest step's tokens."""
    occupancy: Occupancy = field(default_factory=Occupancy)

    @classmethod
    def of_all(cls, several: Sequence[EngineStats]) -> EngineStats:
        """The counters of several engines together: sums, also of seconds, and means of shares."""
        found = cls(0, 0)
        for one in fields(cls):
            if one.name not in ("occupancy", "unrecorded_steps"):
                setattr(found, one.name, sum(getattr(stats, one.name) for stats in several))
        found.unrecorded_steps = sum((stats.unrecorded_steps for stats in several), Counter())
        found.prompt_share /= max(len(several), 1)
        found.occupancy = Occupancy.of_all([stats.occupancy for stats in several])
        return found

    def count(self, plan: StepPlan, slots_in_use: int) -> None:
        """Counts one step's rows and tokens."""
        prompt_tokens = plan.num_prompt_tokens
        self.running = slots_in_use
        self.steps += 1
        self.row_steps += plan.num_sequences
        self.prompt_tokens += prompt_tokens
        self.step_tokens += prompt_tokens + len(plan.decoding)
        self.prompt_share = prompt_tokens / (prompt_tokens + len(plan.decoding))
        self.occupancy.add(slots_in_use / self.max_batch_size)

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase by its name, such as "model". No two phases of one thread overlap."""
        phases = (one.name for one in fields(self) if one.name.endswith("_seconds") and one.name != "prompt_seconds")
        found = {name.removesuffix("_seconds"): getattr(self, name) for name in phases}
        return {**found, "admit": self.admit_seconds - self.input_seconds}

    @contextmanager
    def timed_forward(self) -> Iterator[None]:
        """Times the forward pass inside the `with` block. `count` must be called for its step before the block ends.

        Where the model's call returns when the pass is done, the block is that call. Where it only enqueues work, the
        block is the whole step of the host, which in the long run takes as long as the device's.
        """
        start = perf_counter()
        yield
        self.prompt_seconds += self.prompt_share * (perf_counter() - start)

    @property
    def saved_seconds(self) -> float:
        """Estimated time saved by sharing prefixes: prompt tokens not computed × the measured seconds of a token."""
        saved = max(self.requested_tokens - self.prompt_tokens, 0)
        return saved * self.prompt_seconds / self.prompt_tokens if saved and self.prompt_tokens else 0.0


class Clock:
    """A stopwatch that is running from its creation on."""

    def __init__(self) -> None:
        self._last = perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or since the creation."""
        now = perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
