"""A short measured run: rows of the job served by its engine on this machine, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from time import perf_counter
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..job.prepare import Prepared, named_as_in_jobs
from ..rows import ErrorRow, GenerateRow, ScoreRow
from .estimate_time import StepTimes

ROUNDS = 3
ROUND_SECONDS = 2.0
FEWEST_TOKENS, MOST_TOKENS = 4, 64
"""Tokens of each sequence in a round that measures sampling."""
KEPT_TOKENS = 4
"""Prompt tokens of each sequence in these rounds: the time of a step does not depend on what was read before."""
MOST_PROMPT_TOKENS = 1024
"""A longer prompt is read from this many tokens before its end: the time of a token does not depend on the length."""
BATCH_ROWS = 64
GROWTH = 4


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        rounds: the times of the steps in each round.
        slots: sequences that ran at a time.
        load_seconds: for loading the model.
        seconds: for everything else.
        prompt_tokens, completion_tokens: that were computed meanwhile.
    """

    rounds: Sequence[StepTimes]
    slots: int
    load_seconds: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int


def measure(prepared: Prepared, rows: Sequence[GenerateRow | ScoreRow], slots: int) -> Measured:
    """Loads the job's model and serves some of its rows, for about half a minute at most.

    Prompts and sampling are timed apart: rows of which one token is sampled, and rows with prompts of a few tokens in
    all slots. Steps with fewer sequences are measured once, with a quarter of them and with one.

    Args:
        rows: of the job; at least one.
        slots: sequences that run at a time in the job.

    Raises:
        ConfigurationError: no row can be served.
        CheckpointError, CapacityError: as `LLM` does.
    """
    from ..llm import LLM

    start = perf_counter()
    with named_as_in_jobs():
        llm = LLM.from_summary(prepared.model, max_prompt_tokens=prepared.job.input.max_prompt_tokens)
    loaded = perf_counter()
    with closing(llm):
        runs = _Runs(llm, rows)
        rounds = list(_rounds(runs, slots, is_score=prepared.job.task == "score"))
    seconds, total = perf_counter() - loaded, runs.total
    return Measured(rounds, slots, loaded - start, seconds, total.prompt_tokens, total.completion_tokens)


class _Round(NamedTuple):
    """Rows that were served: seconds, prompt tokens that were computed, and tokens that were sampled."""

    seconds: float
    prompt_tokens: int
    completion_tokens: int

    def plus(self, other: _Round) -> _Round:
        """Both together."""
        return _Round(
            self.seconds + other.seconds,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class _Runs:
    """Runs of a loaded model over rows of a job.

    Args:
        rows: of the job; they are served again and again.

    Attributes:
        num_rows: the number of these rows.
        total: of everything that was served.
    """

    def __init__(self, llm: Any, rows: Sequence[GenerateRow | ScoreRow]) -> None:
        self.num_rows = len(rows)
        self._llm = llm
        self._rows = cycle(rows)
        self._key = 0
        self.total = _Round(0.0, 0, 0)

    def serve(self, count: int, tokens: int | None, kept: int = MOST_PROMPT_TOKENS) -> _Round:
        """Serves so many rows.

        Args:
            tokens: to sample of each row; None for rows that are scored.
            kept: the most tokens of a prompt, from its end.
        """
        before = replace(self._llm.stats())
        rows = [self._prepared(row, tokens, kept) for row in islice(self._rows, count)]
        start = perf_counter()
        with closing(self._llm.serving.run(_batches(rows))) as served:
            failed = sum(isinstance(row, ErrorRow) for finished in served for row in finished)
        seconds, after = perf_counter() - start, self._llm.stats()
        if failed == count:
            raise ConfigurationError(f"--measure: got {count} rows of the job, of which none could be served")
        found = _Round(
            seconds, after.prompt_tokens - before.prompt_tokens, after.completion_tokens - before.completion_tokens
        )
        self.total = self.total.plus(found)
        return found

    def _prepared(self, row: GenerateRow | ScoreRow, tokens: int | None, kept: int) -> GenerateRow | ScoreRow:
        self._key += 1
        if tokens is None or isinstance(row, ScoreRow):
            return replace(row, key=self._key)
        params = row.params
        is_free = params.json_schema is None and params.regex is None and params.grammar is None
        params = replace(
            params,
            n=1,
            max_tokens=tokens,
            min_tokens=tokens if is_free else 0,
            truncate_prompt_tokens=kept,
        )
        return replace(row, key=self._key, params=params)


def _batches(rows: Sequence[GenerateRow | ScoreRow]) -> Iterator[Sequence[GenerateRow | ScoreRow]]:
    return (rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS))


def _rounds(runs: _Runs, slots: int, is_score: bool) -> Iterator[StepTimes]:
    """Yields the times that each round has measured."""
    tokens = None if is_score else 1
    runs.serve(1, tokens)  # what is compiled or allocated once
    count = _fitting(lambda count: runs.serve(count, tokens), 1, runs.num_rows)
    levels = [] if is_score else sorted({1, max(1, slots // 4), slots})
    sizes = {rows: _fitting(partial(runs.serve, rows, kept=KEPT_TOKENS), FEWEST_TOKENS, MOST_TOKENS) for rows in levels}
    fewer: dict[int, float] = {}
    for number in range(ROUNDS):
        prompt_token = _prompt_token(_repeated(partial(runs.serve, count, tokens)))
        measured = levels if not number else levels[-1:]
        found = {
            rows: _step(_repeated(partial(runs.serve, rows, sizes[rows], KEPT_TOKENS)), rows, prompt_token)
            for rows in measured
        }
        fewer = fewer or found
        most = found.get(slots, 0.0)  # a step with fewer sequences takes no longer
        yield StepTimes(prompt_token, {rows: min(seconds, most) for rows, seconds in (fewer | found).items()})


def _fitting(serve: Callable[[int], _Round], fewest: int, most: int) -> int:
    """A size of which one run takes at most about ROUND_SECONDS."""
    size = min(fewest, most)
    while True:
        seconds = serve(size).seconds
        if size == most or seconds >= ROUND_SECONDS / GROWTH:
            return max(fewest, min(most, int(size * ROUND_SECONDS / seconds)))
        size = min(size * GROWTH, most)


def _repeated(serve: Callable[[], _Round]) -> _Round:
    """Runs for ROUND_SECONDS, and once at least."""
    total = serve()
    while total.seconds < ROUND_SECONDS:
        total = total.plus(serve())
    return total


def _prompt_token(found: _Round) -> float:
    return found.seconds / max(found.prompt_tokens, 1)


def _step(found: _Round, rows: int, prompt_token: float) -> float:
    """Seconds of a step in which so many sequences sample a token each; without those of their prompts."""
    sampling = max(found.seconds - found.prompt_tokens * prompt_token, found.seconds / 2)
    return sampling * rows / max(found.completion_tokens, 1)
