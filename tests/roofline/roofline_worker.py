"""Predicts steps from recorded launches, and prints counts as JSON.

A process of its own: launches of interpreted kernels are not recorded.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.roofline import MODELS, Sizes
from benchmarks.roofline_parts.command import launches_of_a_layer
from benchmarks.roofline_parts.needed import necessary_bytes
from rwkv_batch.commands import estimate_devices as devices
from rwkv_batch.commands.estimate_devices import Requests
from rwkv_batch.commands.estimate_time import Work
from rwkv_batch.job.load import load_job
from rwkv_batch.model_summary import DEMO_MODEL
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.roofline.accesses import accesses
from rwkv_batch.roofline.cards import CARDS, H100
from rwkv_batch.roofline.predict import predict
from rwkv_batch.roofline.steps import Step, StoredShapes, record
from rwkv_batch.triton_kernels.linear import linear_kernel

DEMO_SIZES = Sizes(L=3, C=192, F=768, V=257)
SMALL = Sizes(L=3, C=768, F=3072)
ALL_SCORED = Step(SMALL, 0, (512,) * 4, scored=512)
STEPS = {
    "1.5B 256": Step(MODELS["1.5B"], 256),
    "1.5B 256 batch_invariant": Step(MODELS["1.5B"], 256, batch_invariant=True),
    "1.5B 1024": Step(MODELS["1.5B"], 1024),
    "7.2B 256": Step(MODELS["7.2B"], 256),
    "7.2B 1024": Step(MODELS["7.2B"], 1024),
    "small float16": Step(SMALL, 16, state_dtype=torch.float16),
    "small w8a8": Step(SMALL, 16, quantization="w8a8"),
    "small int8": Step(SMALL, 16, quantization="int8"),
    "small mixed": Step(SMALL, 14, (128, 128)),
    "small prompt": Step(SMALL, 0, (512,)),
    "small, unscored": Step(SMALL, 0, (512,) * 4),
    "small, 3 scored": replace(ALL_SCORED, scored=3),
    "small, all scored": ALL_SCORED,
}


def counts(step: Step) -> dict[str, Any]:
    """Counts of one step, and its predicted microseconds."""
    launches = record(step)
    assert isinstance(step.sizes, Sizes)
    found = predict(launches, H100)
    return {
        "step": len(launches),
        "layers": [launches_of_a_layer(found, layer) for layer in range(step.sizes.L)],
        "kernels": Counter(launch.name for launch in launches),
        "memory": found.memory_bytes,
        "necessary": necessary_bytes(step.sizes, step.num_rows),
        "microseconds": 1e6 * found.recorded,
        "pool": sum(piece.num_bytes for launch in launches for piece in launch.reads if piece.is_pool),
    }


def estimates() -> dict[str, Any]:
    """Predictions of whole jobs, as the command `estimate` makes them."""
    rows, count = 1024, 100 * 1024
    long = Requests(Work(64 * count, count, [256]), count)
    times = devices._times(Step(MODELS["1.5B"], rows, batch_invariant=True), long, rows + 4096, H100)
    file = ModelFile.open(open_checkpoint(DEMO_MODEL))
    job = load_job({"model": {"path": "demo"}, "input": {"path": "x"}, "output": {"path": "y"}})
    few = Requests(Work(500, 10, [8]), 10)
    many = Requests(Work(64 * 10**6, 10**6, [256]), 10**6)
    scored = Requests(Work(100 * 10**6, 0, []), 10**6, scored=1)
    jobs = {"few": few, "many": many, "scored": scored}
    found = {name: devices.predicted("h100", file, job, one) for name, one in jobs.items()}
    shapes = StoredShapes.of(file.checkpoint)
    return {
        "rate": 256 * count / times.seconds(long.work, rows),
        "demo": {name: (one.slots, one.seconds) for name, one in found.items()},
        "small card": devices.predicted("tiny", file, job, few).problem,
        "launches": [len(record(Step(of, 4))) for of in (shapes, DEMO_SIZES)],
    }


def main() -> None:
    pointers = frozenset(("p_x", "p_weight", "p_y"))
    found = {
        has_sum: accesses(linear_kernel, pointers, frozenset((("p_gate", None), ("ADD", has_sum))))
        for has_sum in (False, True)
    }
    added = {str(key): [sorted(each.loaded), sorted(each.stored)] for key, each in found.items()}
    steps = {name: counts(step) for name, step in STEPS.items()}
    with patch.dict(CARDS, tiny=replace(H100, memory=1e8)):
        print(json.dumps({"steps": steps, "linear": added, "estimates": estimates()}))


if __name__ == "__main__":
    main()
