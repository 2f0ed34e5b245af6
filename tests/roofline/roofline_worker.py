"""Predicts steps from recorded launches, and prints counts as JSON.

A process of its own: launches of interpreted kernels are not recorded.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch

from benchmarks.roofline import MODELS, Sizes
from benchmarks.roofline_parts.command import launches_of_a_layer
from benchmarks.roofline_parts.needed import necessary_bytes
from rwkv_batch.roofline.accesses import accesses
from rwkv_batch.roofline.cards import H100
from rwkv_batch.roofline.predict import predict
from rwkv_batch.roofline.steps import Step, record
from rwkv_batch.triton_kernels.linear import linear_kernel

SMALL = Sizes(L=3, C=768, F=3072)
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


def main() -> None:
    pointers = frozenset(("p_x", "p_weight", "p_y"))
    found = {
        has_sum: accesses(linear_kernel, pointers, frozenset((("p_gate", None), ("ADD", has_sum))))
        for has_sum in (False, True)
    }
    added = {str(key): [sorted(each.loaded), sorted(each.stored)] for key, each in found.items()}
    print(json.dumps({"steps": {name: counts(step) for name, step in STEPS.items()}, "linear": added}))


if __name__ == "__main__":
    main()
