"""Process that measures one version of the package: questions on stdin, answers on stdout, one JSON object a line.

`contender.Contender` starts the process and defines the questions.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

import rwkv_batch
from rwkv_batch import run

from .cases import ENGINE_PROMPT_TOKENS, STOP, STOPS, Case, prompt, questions
from .clocks import Clocks, Watched
from .device import SimulatedDevice
from .results import VOCAB_SIZE

Answer = dict[str, Any]
PHASES = ("schedule", "model", "mask", "sample", "wait", "commit")
"""Phases of a step that `EngineStats` times, as far as the version has them."""
_CLOCKS = {"wall": perf_counter, "processor": process_time, "thread": thread_time}


class Measurer:
    """Runs measurements with one driver.

    Args:
        recorded: decode steps take the code path of steps that are recorded as CUDA graphs.
    """

    def __init__(self, driver: Any, step_seconds: float, recorded: bool) -> None:
        self._driver = driver
        self._device = SimulatedDevice(step_seconds)
        self._recorded = recorded

    def engine(self, case: Case, watch: bool) -> Answer:
        """Measures the engine alone. All requests exist beforehand."""
        driver, device = self._driver, self._device
        engine = driver.new_engine(case, device, self._recorded)
        draw = random.Random(0)
        prompts = [draw.choices(range(1, VOCAB_SIZE), k=ENGINE_PROMPT_TOKENS) for _ in range(case.rows)]
        items = driver.requests(case, prompts)
        clocks = Clocks()
        with device.delays(driver.COPY), clocks.watching([*_step(driver), *(driver.WATCHED if watch else ())]):
            for _ in driver.complete(engine, driver.requests(case.warm_up(), prompts[: case.batch_size])):
                pass
            device.reset()
            transfers = Transfers(device, driver, [engine])
            clocks.seconds.clear()
            gc.collect()
            before = _numbers(engine.stats)
            started = {name: clock() for name, clock in _CLOCKS.items()}
            made = [driver.num_tokens(completion) for completion in driver.complete(engine, items)]
            spent = {name: clock() - started[name] for name, clock in _CLOCKS.items()}
        expected = len(prompts) * case.n * case.length or _scored_tokens(case)
        if sum(made) != expected:
            raise RuntimeError(f"{case.name}: the engine made {sum(made)} tokens, expected {expected}")
        counted = {name: value - before.get(name, 0) for name, value in _numbers(engine.stats).items()}
        return self._answer(case, spent, expected, counted, clocks, transfers)

    def job(self, case: Case, watch: bool) -> Answer:
        """Measures a whole job, from Parquet to Parquet, after its model is loaded."""
        driver, device = self._driver, self._device
        clocks = Clocks()
        whole = [_watched(driver.SERVE, name, clock) for name, clock in _CLOCKS.items()]
        loading = [_watched(driver.LOAD, f"loading, {name}", clock) for name, clock in _CLOCKS.items()]
        with tempfile.TemporaryDirectory() as scratch:
            path = _write_job(Path(scratch), case)
            device.reset()
            gc.collect()
            with (
                driver.free_jobs(device, self._recorded) as engines,
                device.delays(driver.COPY),
                clocks.watching([*_step(driver), *whole, *loading, *(driver.WATCHED_OF_JOB if watch else ())]),
            ):
                transfers = Transfers(device, driver, engines)
                code = run.main([str(path)])
            parts = [pq.read_table(part) for part in Path(scratch, "out").glob("*.parquet")]
        column = "num_tokens" if case.is_score else "completion_tokens"
        tokens = sum(_sum(part[column]) for part in parts)
        rows = sum(part["status"].to_pylist().count("ok") for part in parts)
        expected = _scored_tokens(case) if case.is_score else case.requests * case.length
        if (code, rows, tokens) != (0, case.rows * case.n, expected):
            raise RuntimeError(
                f"{case.name}: the job ended with {code} and wrote {rows} rows with {tokens} tokens, "
                f"expected 0, {case.rows * case.n} and {expected}"
            )
        spent = {name: clocks.seconds.pop(name) - clocks.seconds.pop(f"loading, {name}") for name in _CLOCKS}
        return self._answer(case, spent, expected, _numbers(engines[-1].stats), clocks, transfers)

    def _answer(
        self,
        case: Case,
        spent: dict[str, float],
        tokens: int,
        counted: dict[str, float],
        clocks: Clocks,
        transfers: Transfers,
    ) -> Answer:
        steps = self._device.num_steps
        in_steps, launching = clocks.seconds.pop("in steps"), clocks.seconds.pop("launching", None)
        parts = {name: counted[f"{name}_seconds"] for name in PHASES if counted.get(f"{name}_seconds")}
        threads = {name: value for name, value in clocks.seconds.items() if name.startswith("thread")}
        parts |= {name: value for name, value in clocks.seconds.items() if name not in threads}
        if "stop strings" in clocks.seconds and "commit" in parts:
            parts["commit"] -= clocks.seconds["stop strings"]
        parts["rest"] = spent["wall"] - sum(parts.values())
        return {
            "tokens_per_second": tokens / spent["wall"],
            "tokens_per_processor_second": tokens / spent["processor"],
            "rows_per_second": case.rows / spent["wall"],
            "steps": steps,
            "used_share": self._device.used_share,
            "main_thread_ms": 1000 * spent["thread"] / steps,
            "in_steps_ms": 1000 * in_steps / steps,
            "launch_ms": None if launching is None else 1000 * launching / steps,
            "all_threads_ms": 1000 * spent["processor"] / steps,
            "transfers": transfers.mean,
            "most_transfers": transfers.most,
            "split_ms": {name: 1000 * value / steps for name, value in (parts | threads).items()},
        }


class Transfers:
    """Counts the arrays transferred to the device for each step.

    Args:
        engines: the last engine of the list counts; it may be added later.
    """

    def __init__(self, device: SimulatedDevice, driver: Any, engines: Sequence[Any]) -> None:
        self._driver, self._engines = driver, engines
        self._counts: list[int] = []
        device.on_launch = self._add

    def _add(self) -> None:
        self._counts.append(self._driver.num_transfers(self._engines[-1]))

    @property
    def mean(self) -> float:
        """Transfers of a step, on average over all steps but the first."""
        return (self._counts[-1] - self._counts[0]) / max(len(self._counts) - 1, 1)

    @property
    def most(self) -> int:
        return max(map(int.__sub__, self._counts[1:], self._counts), default=0)


def _step(driver: Any) -> list[Watched]:
    """The functions that are always watched; a version may have no function that only launches."""
    launch = getattr(driver, "LAUNCH", None)
    found = [_watched(driver.STEP, "in steps", thread_time)]
    return found if launch is None else [*found, _watched(launch, "launching", thread_time)]


def _watched(function: tuple[Any, str], part: str, clock: Callable[[], float]) -> Watched:
    owner, name = function
    return Watched(owner, name, part, clock)


def _numbers(stats: Any) -> dict[str, float]:
    """Returns the counters of an engine."""
    return {name: value for name, value in vars(stats).items() if isinstance(value, (int, float))}


def _scored_tokens(case: Case) -> int:
    """Counts the tokens of the choices; a token is a byte."""
    return sum(len(choice.encode()) for one in questions(case.requests) for choice in one.choices)


def _sum(column: Any) -> int:
    """Adds up all numbers in a column, which may hold lists."""
    values = column.combine_chunks()
    return sum((values.flatten() if pa.types.is_list(values.type) else values).to_pylist())


def _write_job(folder: Path, case: Case) -> Path:
    """Writes a job file, and its input beside it. The output goes to the folder `out`."""
    settings: dict[str, Any] = {
        "model": {"path": "demo"},
        "engine": {
            "device": "cpu",
            "max_batch_size": case.batch_size,
            "max_batch_tokens": case.max_batch_tokens,
        },
        "input": {"path": str(folder / "rows.parquet")},
        "output": {"path": str(folder / "out")},
    }
    if case.is_score:
        asked = list(questions(case.requests))
        names = ("context", "choices", "answer")
        rows = pa.table({name: [getattr(one, name) for one in asked] for name in names})
        settings["task"] = "score"
        settings["input"]["columns"] = {name: name for name in names}
        settings["output"]["input_columns"] = ["choices", "answer"]
    else:
        rows = pa.table({"prompt": [prompt(row) for row in range(case.rows)]})
        stops = STOPS if case.feature == "stop" else STOP
        settings["sampling"] = {
            "max_tokens": case.length,
            "temperature": 1.0,
            "top_p": 0.85,
            "ignore_eos": True,
            "stop": list(stops),
            "n": case.n,
            **case.penalties,
        }
        settings["output"]["logprobs"] = case.feature == "logprobs"
    pq.write_table(rows, folder / "rows.parquet")
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def main(arguments: Sequence[str]) -> None:
    """Answers questions until stdin ends.

    Args:
        arguments: the driver's module, the folder that the package must come from, and a JSON object with `step_ms`,
            `recorded` and `threads`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    name, root, options = arguments[0], Path(arguments[1]), json.loads(arguments[2])
    found = Path(str(rwkv_batch.__file__)).resolve().parent.parent
    if found != root.resolve():
        raise RuntimeError(f"rwkv_batch was imported from {found}, expected {root}")
    torch.set_num_threads(options["threads"])
    driver = import_module(f".{name}", __package__)
    measurer = Measurer(driver, options["step_ms"] / 1000, options["recorded"])

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"python": sys.version.split()[0], "torch": torch.__version__, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            case = Case(**question["case"])
            say(getattr(measurer, question["part"])(case, question["watch"]))
        except Exception:
            say({"error": traceback.format_exc()})
