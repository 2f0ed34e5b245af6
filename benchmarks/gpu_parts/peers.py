"""The part `peers`: other engines for RWKV-7 on the same card, weights and lengths, each in a process of its own.

The table names peers that cannot be imported, built or run, with the reason. It also says how a decode step of each
chooses tokens: some engines take the most likely token, or choose none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from rwkv_batch.measure.table import format_lines

from ..roofline import MODELS, Sizes, decode_seconds
from .context import Context
from .device import installed
from .random_model import random_checkpoint, write
from .record import Point

ROOT = Path(__file__).parents[2]
MODULES = {
    "rwkv_batch": ("rwkv_batch", "rwkv_batch"),
    "rwkv-quant-nv": ("rwkv7_fast_v3a", "rwkv-quant-nv"),
    "flash-linear-attention": ("fla", "flash-linear-attention"),
    "rwkvserve": ("rwkvserve", "rwkvserve"),
    "rwkv": ("rwkv", "rwkv"),
    "rwkv_batch float16 state": ("rwkv_batch", "rwkv_batch"),
    "rwkv-quant-nv float32 state": ("rwkv7_fast_v3a", "rwkv-quant-nv"),
}
"""Peer → its module, and its distribution on PyPI."""
BATCHES = (1, 64, 256, 1024)
PROMPTS = ((1, 1024), (8, 1024))
BUILD_SECONDS = 240
RUN_SECONDS = 100


def run(context: Context) -> list[str]:
    models = {"tiny": Sizes(L=2, C=128, F=512, V=97)} if context.is_rehearsal else {}
    models = models or {name: MODELS[name] for name in ("0.1B", "1.5B")}
    files = {}
    for name, sizes in models.items():
        (context.folder / name).mkdir(exist_ok=True)
        path = context.folder / name / "model.pth"
        files[name] = path if path.exists() else write(random_checkpoint(sizes, context.device), path)
    there = {name: module for name, (module, _) in MODULES.items() if find_spec(module)}
    if not context.is_rehearsal and context.record.seconds_left > 0:
        _build(context, there, *next(iter(files.items())))
    for model, path in files.items():
        for peer in MODULES:
            context.record.measure(f"{model} {peer}", partial(_peer, context, models[model], path, peer, peer in there))
    return _table(context, context.record.points, models)


def _start(context: Context, sizes: Sizes, path: Path, peer: str, is_brief: bool) -> subprocess.Popen[str]:
    out = path.with_name(f"{peer}{' brief' * is_brief}.json")
    task = {
        "peer": peer,
        "model": str(path),
        "sizes": {"L": sizes.L, "C": sizes.C, "F": sizes.F, "V": sizes.V, "ranks": sizes.ranks},
        "batches": [1, 2] if context.is_rehearsal else BATCHES,
        "prompts": [[1, 16]] if context.is_rehearsal else PROMPTS,
        "steps": 1 if is_brief else 3 if context.is_rehearsal else 48,
        "device": context.device.type,
        "out": str(out),
    }
    environment = dict(os.environ) | {"MAX_JOBS": "8"}
    if context.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    command = [sys.executable, "-m", "benchmarks.gpu_parts.peer_run", json.dumps(task)]
    log = out.with_suffix(".log").open("w")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def _build(context: Context, there: dict[str, str], model: str, path: Path) -> None:
    """Runs all peers once at the same time, so that their kernels are compiled before the measurements."""
    sizes = MODELS[model]
    started = {peer: _start(context, sizes, path, peer, is_brief=True) for peer in there}
    end = monotonic() + min(BUILD_SECONDS, context.record.seconds_left / 2)
    for peer, process in started.items():
        try:
            process.wait(max(end - monotonic(), 1))
        except subprocess.TimeoutExpired:
            context.say(f"  {peer}: not built in time")
            process.kill()
            process.wait()


def _peer(context: Context, sizes: Sizes, path: Path, peer: str, is_there: bool) -> Point:
    module, distribution = MODULES[peer]
    if not is_there:
        raise LookupError(f"{distribution} is not installed: no module {module!r}")
    process = _start(context, sizes, path, peer, is_brief=False)
    end = ""
    try:
        code = process.wait(min(RUN_SECONDS, context.record.seconds_left + 20))
        end = f"ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        end = "took too long"
    finally:
        process.kill()
        process.wait()
    out = path.with_name(f"{peer}.json")
    log = out.with_suffix(".log").read_text()
    if not out.exists():
        raise RuntimeError(f"{end}: {log[-600:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"version": installed(distribution), "end": end, "log": log[-2000:] if end else ""}


def _table(context: Context, points: dict[str, Point], models: dict[str, Sizes]) -> list[str]:
    rows = []
    batches = list(dict.fromkeys(B for point in points.values() for B in point["decode"]))
    prompts = list(dict.fromkeys(shape for point in points.values() for shape in point["prefill"]))
    for model, sizes in models.items():
        limits = [f"{int(B) / decode_seconds(sizes, int(B), context.card):,.0f}" for B in batches]
        rows.append([f"{model} limit, float32 state", *limits, *[""] * len(prompts), ""])
        for peer in MODULES:
            point = points.get(f"{model} {peer}")
            if point is not None:
                decode = [_rate(point["decode"].get(B)) for B in batches]
                rows.append(
                    [f"{model} {peer}", *decode, *(_rate(point["prefill"].get(s)) for s in prompts), point["what"]]
                )
    header = ["peers: tokens/s", *(f"B={B}" for B in batches), *prompts, "decodes with"]
    return [*format_lines(header, rows), *_reasons(points)]


def _reasons(points: dict[str, Point]) -> list[str]:
    """Formats the errors of peers that ran in part."""
    lines = []
    for name, point in points.items():
        whys = dict.fromkeys(value for kind in ("decode", "prefill") for value in point[kind].values())
        lines += [f"{name}: {why[:200]}" for why in whys if isinstance(why, str)]
        lines += [f"{name}: {point['end']}"] if point["end"] else []
    return lines


def _rate(value: float | str | None) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "-"
