"""The prediction beside what was measured on an H100: the files in benchmarks/results/nvidia-h100-80gb-hbm3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_batch.roofline.cards import H100
from rwkv_batch.roofline.launches import META, Recorder
from rwkv_batch.roofline.predict import Prediction, predict
from rwkv_batch.roofline.steps import Step, record
from rwkv_batch.triton_kernels.linear import linear
from rwkv_batch.triton_kernels.mm8 import mm8
from rwkv_batch.triton_kernels.w8a8 import w8a8

from ..roofline import MODELS

FOLDER = Path(__file__).parents[1] / "results" / "nvidia-h100-80gb-hbm3"
FORMATS = {"bfloat16": None, "W8A16": "int8", "W8A8": "w8a8"}
"""The name of a weight format in int8.json → its name in a job's settings."""
PROMPTS_IN_A_STEP = {2: 0.44, 3: 0.56}
"""Prompts of 128 tokens in a step → share of the steps, in the mixed steps of profile.json: 256 rows whose completions
have 100 tokens, so that 2.56 prompts arrive in a step."""
SHAPES = {"output": (2048, 2048), "key": (8192, 2048), "value": (2048, 8192), "head": (65536, 2048)}
"""Matrices [C_out, C_in] of 1.5B whose products int8.json has."""
TOKENS = (1, 16, 64, 256, 1024, 8192)


class Compared(NamedTuple):
    """A measured time and its prediction, in seconds."""

    name: str
    measured: float
    predicted: float

    @property
    def difference(self) -> float:
        """Predicted ÷ measured, less 1."""
        return self.predicted / self.measured - 1


def steps() -> Iterator[Compared]:
    """Whole steps."""
    decode, profile, prefill, int8 = (_points(name) for name in ("decode", "profile", "prefill", "int8"))
    measured = decode["1.5B B=1"]["variants"]["float32"]["step_seconds"]
    yield Compared("decode 1.5B, B = 1", measured, _step("1.5B", 1).recorded)
    for name, quantization in FORMATS.items():
        measured = 16 / int8["engine 1.5B B=16"]["tokens_per_second"][name]
        yield Compared(f"decode 1.5B, B = 16, {name}", measured, _step("1.5B", 16, quantization=quantization).recorded)
    for model in ("1.5B", "0.1B"):
        measured = profile[f"{model} decode"]["busy_microseconds_per_step"] / 1e6
        yield Compared(f"decode {model}, B = 256, computing", measured, _step(model, 256).busy)
        measured = profile[f"{model} mixed"]["busy_microseconds_per_step"] / 1e6
        predicted = sum(
            share * _step(model, 256 - count, (128,) * count).busy for count, share in PROMPTS_IN_A_STEP.items()
        )
        yield Compared(f"mixed {model}, 256 rows, computing", measured, predicted)
    for model in ("0.1B", "1.5B", "7.2B"):
        predicted = _step(model, 0, (8192,)).unrecorded
        yield Compared(f"prompt of 8192, {model}", prefill[f"{model} 1 x 8192"]["seconds"], predicted)


def products() -> Iterator[Compared]:
    """Single products of every weight format, each with the gap after it."""
    points = _points("int8")
    for name, (N, K) in SHAPES.items():
        for M in TOKENS:
            point = points.get(f"product 1.5B {name} M={M}", {})
            for form, measured in point.get("seconds", {}).items():
                if form in FORMATS:
                    yield Compared(f"{name}, M = {M}, {form}", measured, _product(form, M, N, K))


def _points(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{part}.json").read_text())["points"]
    return found


def _step(model: str, decoding: int, prompts: tuple[int, ...] = (), quantization: str | None = None) -> Prediction:
    return predict(record(Step(MODELS[model], decoding, prompts, quantization=quantization)), H100)


def _product(form: str, M: int, N: int, K: int) -> float:
    """Seconds of a product. Each has a weight of its own, of more bytes in all than the cache holds."""
    count = 2 + int(H100.l2 / (N * K))
    recorder = Recorder()
    calls = [_call(form, M, N, K) for _ in range(count)]
    with torch.inference_mode(), recorder.recording():
        kept = [call() for call in calls]
    assert len(kept) == count
    return predict(recorder.launches, H100).recorded / count


def _call(form: str, M: int, N: int, K: int) -> Callable[[], Tensor]:
    x = torch.empty(M, K, dtype=torch.bfloat16, device=META)
    if form == "bfloat16":
        return partial(linear, x, torch.empty(N, K, dtype=x.dtype, device=META))
    levels = torch.empty(N, K, dtype=torch.int8, device=META)
    rows, columns, corrections = (torch.empty(shape, device=META) for shape in (N, K, (4, N)))
    if form == "W8A8":
        return partial(w8a8, x, levels, rows)
    return partial(mm8, x, levels, rows, columns, columns, corrections)
