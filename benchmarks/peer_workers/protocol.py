"""The protocol of workers: one JSON object a line, questions on stdin, answers on stdout.

The first line is the task; the answer describes the worker. Every further line asks for a point, and the answer is a
rate or an error. The end of stdin ends the worker. Output of libraries goes to stderr.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Task:
    """The model that a worker loads, and its limits.

    Args:
        model: a random .pth checkpoint, bfloat16.
        vocabulary: the World vocabulary file.
        form: number format of the weights, in the engine's own words.
        folder: keeps files that a worker makes of the checkpoint.
        batch_size: the largest number of sequences of a point.
        row_tokens: the largest number of tokens of a row, prompt and completion together.
    """

    model: str
    vocabulary: str
    form: str
    folder: str
    threads: int
    vocab_size: int
    batch_size: int
    row_tokens: int


class Peer:
    """An engine that has loaded the model."""

    version: str
    what: str
    """How the engine chooses tokens."""
    has_batches: bool = True

    def complete(self, prompts: list[list[int]], num_tokens: int) -> None:
        """Completes every prompt with exactly `num_tokens` tokens."""
        raise NotImplementedError

    def logprobs(self, prompt: list[int], candidates: list[int]) -> list[float]:
        """Returns the log-probability of each candidate as the next token."""
        raise NotImplementedError


def prompts(batch_size: int, length: int, vocab_size: int) -> list[list[int]]:
    """Draws random ids of tokens that have bytes, the same for every engine."""
    draw = random.Random(0)
    last = min(vocab_size, 65530)
    return [draw.choices(range(1, last), k=length) for _ in range(batch_size)]


def serve(make: Callable[[Task], Peer]) -> None:
    """Answers questions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    task = Task(**json.loads(sys.stdin.readline()))
    peer = make(task)
    answer({"version": peer.version, "what": peer.what})
    for line in sys.stdin:
        try:
            answer(_answer(peer, task, json.loads(line)))
        except Exception as error:  # another point may work
            answer({"error": f"{type(error).__name__}: {error}"})


def _answer(peer: Peer, task: Task, question: dict[str, Any]) -> dict[str, Any]:
    if question["ask"] == "logprobs":
        return {"logprobs": peer.logprobs(question["prompt"], question["candidates"])}
    rows, length, num_tokens = question["batch_size"], question["prompt_len"], question["num_tokens"]
    if rows > 1 and not peer.has_batches:
        raise ValueError("runs one sequence at a time")
    given = prompts(rows, length, task.vocab_size)
    # A first run prepares products of these shapes. For long prompts one row is enough.
    peer.complete(given if length == 1 else given[:1], min(num_tokens, WARM_UP_STEPS))
    start = perf_counter()
    peer.complete(given, num_tokens)
    return {"seconds": perf_counter() - start}


def log_softmax(logits: Sequence[float], candidates: Sequence[int]) -> list[float]:
    """Returns the log-probabilities of the candidates, in float64 over all logits."""
    import numpy

    values = numpy.asarray(logits, dtype=numpy.float64)
    top = values.max()
    normalizer = top + numpy.log(numpy.exp(values - top).sum())
    return [float(values[i] - normalizer) for i in candidates]
