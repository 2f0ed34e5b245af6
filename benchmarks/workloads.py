"""The input of CPU benchmarks: a random checkpoint of a published size, and points of decoding and prefill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_batch.measure.workloads import RaggedWorkload, ScoreWorkload, Workload
from rwkv_batch.models.architecture import version_named
from rwkv_batch.models.random_weights import complete_sizes, random_tensors

VOCAB_SIZE = 65536
LOGIT_STD = 4.0
"""A top_p of 0.85 then keeps some 100 tokens: more than most texts need, far fewer than flat logits would."""


class Point(NamedTuple):
    """One thing to measure, in tokens/s."""

    kind: str
    """ "decode": sampled tokens, one for each row and step; "prefill": prompt tokens; "ragged": both, of many lengths;
    "score": prompt tokens whose log-probabilities are asked for."""
    batch_size: int

    def __str__(self) -> str:
        return f"{self.kind} B={self.batch_size}"


@dataclass(frozen=True)
class Scale:
    """Sizes of a checkpoint and of the input that it is run on.

    Args:
        sizes: letter → size, where a published RWKV-7 differs from the rule for its width.
    """

    n_layer: int
    n_embd: int
    decode_steps: int
    prompt_len: int
    sizes: Mapping[str, int] = field(default_factory=dict)

    def workload(self, point: Point) -> Workload:
        """A decode step is the same with every state, so prompts have one token; prefill samples one token a row."""
        if point.kind == "decode":
            return Workload(point.batch_size, 1, self.decode_steps)
        if point.kind == "ragged":
            return RaggedWorkload(2 * point.batch_size, max(self.prompt_len // 8, 1), 2 * self.decode_steps)
        if point.kind == "score":
            return ScoreWorkload(point.batch_size, self.prompt_len, 0)
        return Workload(point.batch_size, self.prompt_len, 1)


FULL = Scale(n_layer=12, n_embd=768, decode_steps=16, prompt_len=512)
"""The published RWKV-7 0.1B."""
MEDIUM = Scale(n_layer=24, n_embd=1024, decode_steps=16, prompt_len=512, sizes={"Rg": 128})
"""The published RWKV-7 0.4B."""
QUICK = Scale(n_layer=2, n_embd=128, decode_steps=4, prompt_len=16)
"""For rehearsals; its figures mean nothing."""


def checkpoint(scale: Scale, folder: Path, version: str = "rwkv7") -> Path:
    """A random bfloat16 .pth with tokens of the World vocabulary, written if `folder` does not hold it yet.

    Args:
        version: the `name` of an `Architecture`.
    """
    path = folder / f"{version}-{scale.n_layer}x{scale.n_embd}.pth"
    if not path.exists():
        architecture = version_named(version)
        sizes = complete_sizes(architecture, L=scale.n_layer, C=scale.n_embd, V=VOCAB_SIZE, **scale.sizes)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.pth")
        torch.save(random_tensors(architecture, sizes, dtype=torch.bfloat16, logit_std=LOGIT_STD), unfinished)
        unfinished.rename(path)
    return path
