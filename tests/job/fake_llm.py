"""Stands in for `rwkv_batch.llm`: completions are hashes of what they must depend on, and come back out of order."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from fakes.stand_in import StandIn

from rwkv_batch.engine.stats import EngineStats
from rwkv_batch.errors import CapacityError, CheckpointError, RowError
from rwkv_batch.prefetch import Prefetch
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from rwkv_batch.settings import EngineSettings, ModelSettings

SLOTS = 8
VOCAB_SIZE = 1000


@dataclass
class Request(StandIn):
    prompt_token_ids: Any
    sample: int


@dataclass
class TokenScores(StandIn):
    """The part of the engine's `TokenScores` that a job reads when it writes scores."""

    logprobs: Any
    is_greedy: Any

    def __len__(self) -> int:
        return len(self.logprobs)


@dataclass
class Completion(StandIn):
    """The part of the engine's `Completion` that a job reads when it writes results."""

    request: Request
    token_ids: Any
    token_logprobs: Any
    finish_reason: str = "length"
    stop_reason: str | int | None = None
    text_tokens: int = 0
    text_bytes: int | None = None
    scores: TokenScores | None = None
    prompt_scores: None = None
    next_scores: None = None


@dataclass
class Scoring(StandIn):
    """The part of the `Scoring` of `rwkv_batch.requests` that a job reads when it writes scores."""

    context: Any
    continuations: list[Any]

    def parts_of_continuations(self, completions: list[Completion]) -> list[list[Any]]:
        return [[completion.scores] for completion in completions]


class Tokenizer:
    name = "fake"
    fingerprint = "fake-tokenizer"
    token_bytes = (None, *(bytes([byte]) for byte in range(256)), *(b"%02x" % byte for byte in range(256)))
    """A byte as it is, 1 + byte; and in hexadecimal, 257 + byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@dataclass
class Summary:
    tokenizer: Tokenizer | None
    fingerprint: str
    dtype: str
    seed: int
    memory_plan: str = "8 slots of 1 KiB"
    constraint_timeout: float = 10.0
    path: str = ""
    known_fingerprint: str | None = None

    @cached_property
    def constraints(self) -> Any:
        from rwkv_batch.text.constraint_compiler import ConstraintCompiler

        tokens = self.tokenizer and self.tokenizer.token_bytes
        return tokens and ConstraintCompiler(tokens, VOCAB_SIZE, timeout=self.constraint_timeout)

    @property
    def memory(self) -> Any:
        return SimpleNamespace(max_batch_size=SLOTS, max_batch_tokens=16)

    @property
    def file(self) -> Any:
        return SimpleNamespace(sizes={"V": VOCAB_SIZE}, checkpoint=SimpleNamespace(path=self.path))

    def describe(self) -> dict[str, Any]:
        return {"model": "fake", "dtype": self.dtype, "backends": [{"op": "wkv7", "backend": "cpu", "not_used": []}]}


@dataclass
class Stats(EngineStats):
    max_batch_size: int = SLOTS
    max_batch_tokens: int = 16

    def seconds(self) -> dict[str, float]:
        return {"model": self.steps / 1000}


def inspect_model(model: ModelSettings, engine: EngineSettings, *, apart: bool = False) -> Summary:
    path = str(model.model)
    if path == "broken":
        raise CheckpointError("broken: is no checkpoint")
    if path == "huge":
        raise CapacityError("huge: needs 900 GiB, the device has 1 GiB")
    resolved = "float32" if model.dtype == "auto" else model.dtype
    fingerprint = hashlib.sha256(f"{path} {model.init_state}".encode()).hexdigest()
    return Summary(
        None if model.tokenizer is None else Tokenizer(),
        fingerprint,
        resolved,
        engine.seed,
        constraint_timeout=engine.constraint_timeout,
        path=path,
    )


def hold() -> None:
    print("held", flush=True)
    while not os.path.exists(os.environ.get("FAKE_RELEASE", "")):
        time.sleep(0.005)


class LLM:
    """Finishes rows in a random order, a bounded number of them in flight.

    FAKE_DELAY is the time a row takes in seconds; a prompt "explode" makes the engine fail, "crash" kills its
    process, and "hang" stops it. After FAKE_HOLD_AFTER rows
    it prints "held" and waits until the file FAKE_RELEASE exists, for ever where none is named.
    """

    loaded = 0
    tokenizer: Tokenizer | None
    serving: Serving

    @classmethod
    def from_summary(cls, summary: Summary, *, max_prompt_tokens: int | None = None) -> LLM:
        cls.loaded += 1
        llm = cls()
        llm.tokenizer = summary.tokenizer
        llm.serving = Serving(llm, summary.seed, max_prompt_tokens)
        return llm

    def __init__(self) -> None:
        self.counts = Stats()

    def stats(self) -> Stats:
        return self.counts

    def describe(self) -> dict[str, Any]:
        return inspect_model(ModelSettings(), EngineSettings()).describe()


class Call:
    """A call of the engine."""

    def __init__(self, lists: Iterator[list[RowInFlight | ErrorRow]]) -> None:
        self._lists = lists
        self.is_cancelled = False

    def __iter__(self) -> Call:
        return self

    def __next__(self) -> list[RowInFlight | ErrorRow]:
        if self.is_cancelled:
            raise StopIteration
        return next(self._lists)

    def cancel(self) -> None:
        self.is_cancelled = True

    def close(self) -> None:
        self._lists.close()  # type: ignore[attr-defined]


class Serving:
    def __init__(self, llm: LLM, seed: int, max_prompt_tokens: int | None) -> None:
        self._tokenizer = llm.tokenizer
        self._counts = llm.counts
        self._seed = seed
        self._max_prompt_tokens = max_prompt_tokens

    def run(self, batches: Iterable[list[GenerateRow | ScoreRow | ErrorRow]], *, stop_at_error: bool = False) -> Call:
        return Call(self._lists(batches, stop_at_error))

    def _lists(
        self, batches: Iterable[list[GenerateRow | ScoreRow | ErrorRow]], stop_at_error: bool
    ) -> Iterator[list[RowInFlight | ErrorRow]]:
        delay = float(os.environ.get("FAKE_DELAY", 0))
        hold_after = int(os.environ.get("FAKE_HOLD_AFTER", -1))
        running: list[RowInFlight | ErrorRow] = []
        source = Prefetch(batches, SLOTS)
        is_ended = False
        try:
            while True:
                while not is_ended and len(running) < SLOTS:
                    if not (rows := source.take(1, wait=not running)):
                        break
                    built = self._built(rows[0])
                    running.append(built)
                    is_ended = stop_at_error and isinstance(built, ErrorRow)
                self._counts.running = len(running)
                if not running:
                    return
                if self._counts.steps == hold_after:
                    hold()
                self._counts.steps += 1
                self._counts.step_tokens += 4
                self._counts.occupancy.add(len(running) / SLOTS)
                built = running.pop(random.randrange(len(running)))
                if delay:
                    time.sleep(delay)
                yield [self._finished(built)]
        finally:
            source.close()

    def _built(self, row: GenerateRow | ScoreRow | ErrorRow) -> RowInFlight | ErrorRow:
        if isinstance(row, ErrorRow):
            return row
        try:
            prompt = row.context if isinstance(row, ScoreRow) else row.prompt
            token_ids = self._token_ids(prompt)
            if self._max_prompt_tokens is not None and len(token_ids) > self._max_prompt_tokens:
                limit = f"more than input.max_prompt_tokens ({self._max_prompt_tokens})"
                raise RowError("prompt_too_long", f"the prompt has {len(token_ids)} tokens, {limit}")
        except RowError as error:
            return ErrorRow.of(row, error, None if error.code == "prompt_too_long" else 0)
        ids = np.array(token_ids, np.int32)
        if isinstance(row, GenerateRow):
            requests: list[Any] = [Request(ids, sample) for sample in range(row.params.n)]
            return RowInFlight(row, requests, prompt if isinstance(prompt, str) else None)
        requests = [Request(ids, 1 + index) for index in range(len(row.continuations))]
        return RowInFlight(row, requests, scoring=Scoring(ids, []))

    def _token_ids(self, prompt: Any) -> list[int]:
        token_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else [int(item) for item in prompt]
        for token_id in token_ids:
            if not 0 <= token_id < VOCAB_SIZE:
                raise RowError("token_out_of_range", f"id {token_id}, expected 0 to {VOCAB_SIZE - 1}")
        return token_ids

    def _finished(self, row: RowInFlight | ErrorRow) -> RowInFlight | ErrorRow:
        if isinstance(row, ErrorRow):
            return row
        if row.scoring is not None:
            assert isinstance(row.row, ScoreRow)
            assert isinstance(row.row, ScoreRow)
            for index, continuation in enumerate(row.row.continuations):
                row.completions.append(self._scored(row, row.requests[index], continuation))
            row.scoring.continuations.extend(completion.token_ids for completion in row.completions)
            return row
        self._complete(row)
        return row

    def _complete(self, row: RowInFlight) -> None:
        if row.prompt == "explode":
            raise RuntimeError("the engine exploded")
        if row.prompt == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if row.prompt == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        assert isinstance(row.row, GenerateRow)
        assert isinstance(row.row, GenerateRow)
        row.completions += [self._sampled(row.row, request) for request in row.requests]
        num_tokens = len(row.requests[0].prompt_token_ids)
        self._counts.prompt_tokens += num_tokens
        self._counts.requested_tokens += num_tokens * len(row.requests)
        self._counts.prompt_seconds += num_tokens  # of task generate each prompt token takes a second
        self._counts.completion_tokens += sum(len(completion.token_ids) for completion in row.completions)

    def _sampled(self, row: GenerateRow, request: Any) -> Completion:
        seed = self._seed if row.params.seed is None else row.params.seed
        prompt = row.prompt if isinstance(row.prompt, str) else list(map(int, row.prompt))
        text = f"{prompt} {row.row} {request.sample} {seed} {row.params.temperature} {row.params.max_tokens}"
        digest = hashlib.sha256(text.encode()).digest()
        count = min(row.params.max_tokens, 1 + digest[0] % 8)
        is_stopped = count < row.params.max_tokens
        return Completion(
            request,
            np.array([257 + byte for byte in digest[:count]], np.int32),
            np.array([-byte / 16 for byte in digest[:count]]),
            finish_reason="stop" if is_stopped else "length",
            stop_reason=0 if is_stopped else None,
            text_tokens=count,
        )

    def _scored(self, row: RowInFlight, request: Any, continuation: Any) -> Completion:
        assert isinstance(row.row, ScoreRow)
        assert isinstance(row.row, ScoreRow)
        digest = hashlib.sha256(f"{row.row.context}|{continuation}".encode()).digest()
        ids = np.array([1 + byte for byte in digest[:3]], np.int32)
        scores = TokenScores(np.array([-byte / 16 for byte in digest[:3]]), np.full(3, digest[0] % 2 == 0))
        return Completion(request, ids, np.zeros(0), scores=scores)
