"""Stands in for `rwkv_batch.llm`: completions are hashes of what they must depend on, and come back out of order."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rwkv_batch.engine.occupancy import Occupancy
from rwkv_batch.errors import CapacityError, CheckpointError, RowError
from rwkv_batch.outputs import CompletionOutput, RequestOutput, ScoreOutput

SLOTS = 8
VOCAB_SIZE = 1000


@dataclass(frozen=True)
class GenerateRow:
    key: Any
    row: int
    prompt: Any
    params: Any


@dataclass(frozen=True)
class ScoreRow:
    key: Any
    row: int
    context: Any
    continuations: Any
    add_bos_token: bool = False


class Tokenizer:
    name = "fake"
    fingerprint = "fake-tokenizer"
    token_bytes = (None, *(bytes([byte]) for byte in range(256)))

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@dataclass
class Summary:
    tokenizer: Tokenizer | None
    fingerprint: str
    dtype: str
    memory_plan: str = "8 slots of 1 KiB"

    @property
    def file(self) -> Any:
        return SimpleNamespace(sizes={"V": VOCAB_SIZE})

    def describe(self) -> dict[str, Any]:
        return {"model": "fake", "dtype": self.dtype, "backends": [{"op": "wkv7", "backend": "cpu", "not_used": []}]}


@dataclass
class Stats:
    max_batch_size: int = SLOTS
    max_batch_tokens: int = 16
    running: int = 0
    steps: int = 0
    step_tokens: int = 0
    requested_tokens: int = 0
    prompt_tokens: int = 0
    saved_seconds: float = 0.0
    completion_tokens: int = 0
    occupancy: Any = field(default_factory=Occupancy)


def inspect_model(
    model: str, *, tokenizer: str | None = "auto", dtype: str = "auto", init_state: str | None = None, **_: Any
) -> Summary:
    if model == "broken":
        raise CheckpointError("broken: is no checkpoint")
    if model == "huge":
        raise CapacityError("huge: needs 900 GiB, the device has 1 GiB")
    resolved = "float32" if dtype == "auto" else dtype
    fingerprint = hashlib.sha256(f"{model} {init_state}".encode()).hexdigest()
    return Summary(None if tokenizer is None else Tokenizer(), fingerprint, resolved)


def hold() -> None:
    print("held", flush=True)
    while not os.path.exists(os.environ.get("FAKE_RELEASE", "")):
        time.sleep(0.005)


class LLM:
    """Finishes rows in a random order, a bounded number of them in flight.

    FAKE_DELAY is the time a row takes in seconds; a prompt "explode" makes the engine fail. After FAKE_HOLD_AFTER rows
    it prints "held" and waits until the file FAKE_RELEASE exists, for ever where none is named.
    """

    loaded = 0

    def __init__(self, model: str = "demo", seed: int = 0, tokenizer: str | None = "auto", **_: Any) -> None:
        LLM.loaded += 1
        self._seed = seed
        self._stats = Stats()
        self.tokenizer = None if tokenizer is None else Tokenizer()

    def stats(self) -> Stats:
        return self._stats

    def describe(self) -> dict[str, Any]:
        return inspect_model("demo").describe()

    def serve(self, rows: Iterable[GenerateRow]) -> Iterator[tuple[Any, RequestOutput]]:
        return self._serve(rows, self._generate)

    def serve_scores(self, rows: Iterable[ScoreRow]) -> Iterator[tuple[Any, list[ScoreOutput]]]:
        return self._serve(rows, self._score)

    def _serve(self, rows: Iterable[Any], finish: Any) -> Iterator[tuple[Any, Any]]:
        delay = float(os.environ.get("FAKE_DELAY", 0))
        hold_after = int(os.environ.get("FAKE_HOLD_AFTER", -1))
        source, running = iter(rows), []
        while True:
            while len(running) < SLOTS and (row := next(source, None)) is not None:
                running.append(row)
            self._stats.running = len(running)
            if not running:
                return
            if self._stats.steps == hold_after:
                hold()
            self._stats.steps += 1
            self._stats.step_tokens += 4
            self._stats.occupancy.add(len(running) / SLOTS)
            row = running.pop(random.randrange(len(running)))
            if delay:
                time.sleep(delay)
            yield row.key, finish(row)

    def _generate(self, row: GenerateRow) -> RequestOutput:
        if row.prompt == "explode":
            raise RuntimeError("the engine exploded")
        try:
            token_ids = self._token_ids(row.prompt)
        except RowError as error:
            return RequestOutput(None, [], None, [], error.code, error.message)
        seed = self._seed if row.params.seed is None else row.params.seed
        outputs = [self._sample(row, sample, seed) for sample in range(row.params.n)]
        self._stats.prompt_tokens += len(token_ids)
        self._stats.requested_tokens += len(token_ids) * row.params.n
        self._stats.saved_seconds += len(token_ids) * (row.params.n - 1)
        self._stats.completion_tokens += sum(len(output.token_ids) for output in outputs)
        random.shuffle(outputs)
        return RequestOutput(None, token_ids, None, outputs)

    def _token_ids(self, prompt: Any) -> list[int]:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        for token_id in token_ids:
            if not 0 <= token_id < VOCAB_SIZE:
                raise RowError("token_out_of_range", f"id {token_id}, expected 0 to {VOCAB_SIZE - 1}")
        return token_ids

    def _sample(self, row: GenerateRow, sample: int, seed: int) -> CompletionOutput:
        text = f"{row.prompt} {row.row} {sample} {seed} {row.params.temperature} {row.params.max_tokens}"
        digest = hashlib.sha256(text.encode()).digest()
        count = min(row.params.max_tokens, 1 + digest[0] % 8)
        token_ids = [1 + byte for byte in digest[:count]]
        logprobs = [-byte / 16 for byte in digest[:count]]
        stopped = count < row.params.max_tokens
        return CompletionOutput(
            index=sample,
            text=digest.hex()[: 2 * count],
            token_ids=token_ids,
            cumulative_logprob=sum(logprobs),
            logprobs=None,
            finish_reason="stop" if stopped else "length",
            stop_reason=0 if stopped else None,
            token_logprobs=logprobs,
        )

    def _score(self, row: ScoreRow) -> list[ScoreOutput]:
        outputs = []
        for continuation in row.continuations:
            digest = hashlib.sha256(f"{row.context}|{continuation}".encode()).digest()
            logprobs = [-byte / 16 for byte in digest[:3]]
            token_ids = [1 + byte for byte in digest[:3]]
            outputs.append(ScoreOutput(sum(logprobs), digest[0] % 2 == 0, logprobs, 3, token_ids))
        return outputs
