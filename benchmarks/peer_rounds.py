"""Interleaved rounds of contenders, each a process of its own, one at a time; their rates and failures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from . import probes
from .peer_process import PeerFailed, PeerProcess
from .timing import Rates
from .workloads import Point, Scale

CHECK_PROMPT = [0, *range(300, 330)]
CHECK_CANDIDATES = list(range(1, 60000, 1000))
"""Tokens whose log-probabilities after `CHECK_PROMPT` are compared: all contenders must compute the same model."""


@dataclass(frozen=True)
class Contender:
    """One engine with one form of weights.

    Args:
        module: the worker, a module of `benchmarks.peer_workers`.
        form: number format of the weights, in the engine's own words.
        python: the interpreter that has the engine.
    """

    engine: str
    module: str
    form: str
    python: str
    points: list[Point]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form}"


@dataclass
class Round:
    """Rates of one round, and the probes before it."""

    peaks: probes.Peaks
    rates: dict[str, dict[Point, float]] = field(default_factory=dict)


@dataclass
class Run:
    """All contenders, and all results so far."""

    contenders: list[Contender]
    scale: Scale
    rounds: list[Round] = field(default_factory=list)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    """Contender → its version, and how it chooses tokens."""
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Contender, or contender and point → the reason why there is no figure."""

    @property
    def rates(self) -> Rates:
        """Contender → point → rates. Contenders without rates, and rounds in which a point failed, are left out."""
        found: Rates = {}
        for contender in self.contenders:
            for point in contender.points:
                values = [r.rates[contender.name].get(point) for r in self.rounds if contender.name in r.rates]
                if rates := [value for value in values if value is not None]:
                    found.setdefault(contender.name, {})[point] = rates
        return found


def run_rounds(
    run: Run, start: Callable[[Contender], PeerProcess], count: int, finished: Callable[[Round], None]
) -> None:
    """Measures every contender once in each round. The order of the contenders turns round after each round.

    Args:
        start: starts the process of a contender; raises PeerFailed.
        finished: called after every round.
    """
    for number in range(count):
        one = Round(probes.peaks())
        run.rounds.append(one)
        _say(f"round {number + 1} of {count}: {probes.say(one.peaks)}")
        for contender in run.contenders[:: -1 if number % 2 else 1]:
            if contender.name in run.failures:
                continue
            try:
                one.rates[contender.name] = _measure(run, contender, start)
            except PeerFailed as error:
                run.failures[contender.name] = str(error)
                _say(f"  {contender.name}: {error}")
        finished(one)


def _measure(run: Run, contender: Contender, start: Callable[[Contender], PeerProcess]) -> dict[Point, float]:
    rates: dict[Point, float] = {}
    process = start(contender)
    try:
        run.about[contender.name] = process.about
        if contender.name not in run.logprobs:
            check = {"ask": "logprobs", "prompt": CHECK_PROMPT, "candidates": CHECK_CANDIDATES}
            answer = process.ask(check)
            if "error" in answer:
                raise PeerFailed(answer["error"])
            run.logprobs[contender.name] = answer["logprobs"]
        for point in contender.points:
            workload = run.scale.workload(point)
            rows, length, num_tokens = workload.num_prompts, workload.input_len, workload.output_len
            question = {"ask": "rate", "batch_size": rows, "prompt_len": length, "num_tokens": num_tokens}
            answer = process.ask(question)
            if "error" in answer:
                run.failures[f"{contender.name}, {point}"] = answer["error"]
                continue
            counted = num_tokens if point.kind == "decode" else length
            rates[point] = rows * counted / answer["seconds"]
        _say(f"  {contender.name}: " + ", ".join(f"{point} {rate:.0f}" for point, rate in rates.items()))
    finally:
        process.close()
    return rates


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
