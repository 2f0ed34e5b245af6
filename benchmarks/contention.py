"""Measures decoding on a CPU that other programs use too: how much of its speed is left.

    python -m benchmarks.contention --out benchmarks/results/NAME.json
    python -m benchmarks.contention --against COMMIT        # also the engine of another commit
    python -m benchmarks.contention --llama peers/bin/python    # also llama.cpp, in an environment that has it

Runs from the repository root. Contenders are processes that load a random RWKV-7 of 0.1B parameters once, and decode in
interleaved rounds under each load. A contender waits while another one runs.

    quiet     no other program
    equal     one program that computes without end, at the same priority
    lower     the same at a lower priority (nice 10)
    quota     a control group whose processes get 1.5 cores; where control groups (version 2) can be written

The engine runs with as many threads as there are cores, and with one. A share is the rate with all threads divided by
the better of both, in the same round and under the same load.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rwkv_batch.measure.bench import positive_int, positive_ints
from rwkv_batch.measure.table import format_table
from rwkv_batch.measure.variants import Variant, variants
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY
from rwkv_batch.threads import usable_cores

from .host_parts.contender import checked_out
from .peer_process import ROOT, PeerFailed, PeerProcess
from .peer_workers.protocol import Task
from .timing import machine
from .workloads import FULL, QUICK, VOCAB_SIZE, Scale, checkpoint

LOADS = ("quiet", "equal", "lower", "quota")
LOWER_NICE = 10
SHORT_STEPS = 32
"""The largest batch size whose measurements have more steps."""
QUOTA_CORES, QUOTA_PERIOD_US = 1.5, 100_000
CONTROL_GROUPS = Path("/sys/fs/cgroup")
ALL, ONE, BEFORE, LLAMA = "all threads", "one thread", "other commit", "llama.cpp"
LLAMA_FORMS = {"bfloat16+w8a8": "Q8_0", "bfloat16": "BF16", "float32": "F32"}
"""Variant of the engine → llama.cpp's form that is nearest to it."""

Cell = tuple[str, str, int]
"""Load, variant, batch size."""


@dataclass
class Result:
    """Rates in tokens/s: cell → contender → one figure a round."""

    rates: dict[Cell, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, cell: Cell, contender: str, rate: float) -> None:
        """Adds the figure of a round."""
        self.rates.setdefault(cell, {}).setdefault(contender, []).append(rate)

    def shares(self, cell: Cell) -> list[float]:
        """The rate with all threads divided by the better of both numbers of threads, round by round."""
        found = self.rates[cell]
        return [every / max(every, one) for every, one in zip(found[ALL], found[ONE], strict=True)]

    def ratios(self, cell: Cell, base: str) -> list[float]:
        """The rate with all threads divided by that of another contender, round by round; empty without it."""
        found = self.rates[cell]
        return [every / other for every, other in zip(found[ALL], found.get(base, []), strict=False)]

    def rows(self, contenders: Sequence[str]) -> list[list[str]]:
        """The table: medians of the rounds."""
        return [
            [
                load,
                variant,
                str(batch_size),
                *(f"{median(found[name]):.0f}" if name in found else "" for name in contenders),
                f"{median(self.shares((load, variant, batch_size))):.2f}",
                *(
                    f"{median(ratios):.2f}" if (ratios := self.ratios((load, variant, batch_size), name)) else ""
                    for name in contenders
                    if name in (BEFORE, LLAMA)
                ),
            ]
            for (load, variant, batch_size), found in self.rates.items()
        ]


class Loads:
    """The other program, and the control group of the contenders."""

    def __init__(self, processes: Sequence[int]) -> None:
        command = [sys.executable, "-c", "while True: pass"]
        self._busy = {
            "equal": subprocess.Popen(command),
            "lower": subprocess.Popen(command, preexec_fn=lambda: os.nice(LOWER_NICE)),
        }
        for process in self._busy.values():
            process.send_signal(signal.SIGSTOP)
        self._group = _control_group(processes)

    @property
    def missing(self) -> str | None:
        """The reason why there is no quota, if so."""
        return None if self._group else f"quota: {CONTROL_GROUPS} holds no control groups that this user may write"

    @contextmanager
    def applied(self, load: str) -> Iterator[None]:
        """Context in which a load applies."""
        if load in self._busy:
            self._busy[load].send_signal(signal.SIGCONT)
        elif load == "quota" and self._group:
            (self._group / "cpu.max").write_text(f"{int(QUOTA_CORES * QUOTA_PERIOD_US)} {QUOTA_PERIOD_US}")
        try:
            yield
        finally:
            if load in self._busy:
                self._busy[load].send_signal(signal.SIGSTOP)
            elif load == "quota" and self._group:
                (self._group / "cpu.max").write_text("max")

    def close(self) -> None:
        """Ends the other programs. The control group stays as long as processes are in it."""
        for process in self._busy.values():
            process.kill()
            process.wait()


def _control_group(processes: Sequence[int]) -> Path | None:
    """A new control group with these processes; None where there can be none."""
    group = CONTROL_GROUPS / f"rwkv_batch-{os.getpid()}"
    try:
        if "cpu" not in (CONTROL_GROUPS / "cgroup.controllers").read_text().split():
            return None
        (CONTROL_GROUPS / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        for process in processes:
            (group / "cgroup.procs").write_text(str(process))
    except OSError:
        return None
    return group


def measure(
    contenders: dict[str, dict[str, PeerProcess]],
    loads: Loads,
    options: argparse.Namespace,
    scale: Scale,
) -> Result:
    """Runs the rounds. The order of the contenders turns round after each round.

    Args:
        contenders: variant → name → process.
    """
    result = Result()
    chosen = [load for load in options.loads if load != "quota" or loads.missing is None]
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for load in chosen:
            with loads.applied(load):
                for variant, processes in contenders.items():
                    for batch_size in options.batch_sizes:
                        for name in list(processes)[:: -1 if number % 2 else 1]:
                            rate = _rate(processes[name], batch_size, _steps(batch_size, scale))
                            result.add((load, variant, batch_size), name, rate)
    return result


def _steps(batch_size: int, scale: Scale) -> int:
    """Steps of a measurement: more of small batches, so that a start costs little of it."""
    return scale.decode_steps * max(1, SHORT_STEPS // batch_size)


def _rate(process: PeerProcess, batch_size: int, num_tokens: int) -> float:
    question = {"ask": "rate", "batch_size": batch_size, "prompt_len": 1, "num_tokens": num_tokens}
    answer = process.ask(question)
    if "error" in answer:
        raise PeerFailed(answer["error"])
    return batch_size * num_tokens / answer["seconds"]


def main() -> int:
    options = _options()
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = (options.cache or Path(temporary)).resolve()
        path = checkpoint(scale, folder)
        before = stack.enter_context(checked_out(options.against)) if options.against else None
        try:
            contenders = {
                str(variant): {
                    name: stack.enter_context(_started(name, variant, path, folder, options, before))
                    for name in (ALL, ONE, *[BEFORE] * bool(before), *[LLAMA] * bool(options.llama))
                }
                for variant in options.variants
            }
            loads = Loads([process.pid for processes in contenders.values() for process in processes.values()])
            stack.callback(loads.close)
            result = measure(contenders, loads, options, scale)
        except PeerFailed as error:
            print(f"benchmarks.contention: {error}", file=sys.stderr)
            return 1
        _print(result, loads, options)
    return 0


@contextmanager
def _started(
    name: str, variant: Variant, path: Path, folder: Path, options: argparse.Namespace, before: Path | None
) -> Iterator[PeerProcess]:
    """The process of a contender."""
    is_llama = name == LLAMA
    task = Task(
        model=str(path),
        vocabulary=str(WORLD_VOCABULARY),
        form=LLAMA_FORMS[str(variant)] if is_llama else str(variant),
        folder=str(folder),
        threads=1 if name == ONE else options.threads,
        vocab_size=VOCAB_SIZE,
        batch_size=max(options.batch_sizes),
        row_tokens=_steps(min(options.batch_sizes), FULL) + 1,
    )
    python = options.llama if is_llama else sys.executable
    root = before if name == BEFORE and before else ROOT
    log = folder / f"{name}-{variant}.log".replace(" ", "-")
    process = PeerProcess("llama" if is_llama else "ours", python, task, log, root)
    try:
        yield process
    finally:
        process.close()


def _print(result: Result, loads: Loads, options: argparse.Namespace) -> None:
    about: dict[str, Any] = machine() | {"threads": options.threads, "rounds": options.rounds}
    if options.against:
        about["other_commit"] = options.against
    names = list(next(iter(result.rates.values())))
    ratios = [f"/ {name}" for name in names if name in (BEFORE, LLAMA)]
    print("\n".join(f"{name}: {' '.join(v) if isinstance(v, list) else v}" for name, v in about.items()))
    if "quota" in options.loads and loads.missing:
        print(loads.missing)
    print(format_table(["load", "variant", "B", *names, "share", *ratios], result.rows(names)))
    if options.out:
        rates = [
            {"load": load, "variant": variant, "batch_size": size, "rates": found}
            for (load, variant, size), found in result.rates.items()
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": about, "cells": rates}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contention", description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", type=variants, default=variants("float32,bfloat16+w8a8"), metavar="NAME,…")
    parser.add_argument("--batch-sizes", type=positive_ints, default=[8, 32, 128], metavar="N,N,…")
    parser.add_argument("--loads", type=lambda text: text.split(","), default=list(LOADS), metavar="NAME,…")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N")
    parser.add_argument("--threads", type=positive_int, default=usable_cores(), metavar="N", help="default: the cores")
    parser.add_argument("--against", metavar="COMMIT", help="also measure the engine of this commit")
    parser.add_argument("--llama", metavar="PYTHON", help="also measure llama.cpp, with this interpreter")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the random checkpoint there")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rates as JSON")
    parser.add_argument("--quick", action="store_true", help="rehearse with a tiny model; its figures mean nothing")
    options = parser.parse_args()
    unknown = [load for load in options.loads if load not in LOADS]
    if unknown:
        parser.error(f"--loads: got {unknown[0]!r}, expected some of {', '.join(LOADS)}")
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    sys.exit(main())
