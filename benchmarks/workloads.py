"""What the engine is measured on: a random checkpoint of a published size, and points of decoding and prefill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_batch.measure.workloads import RaggedWorkload, ScoreWorkload, Workload
from tests.checkpoints import HEAD_GAIN, make_checkpoint, write_checkpoint

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
    """Sizes of a RWKV-7 checkpoint and of what is run on it.

    Args:
        ranks: of the low-rank products w, a, v and g.
    """

    n_layer: int
    n_embd: int
    n_ffn: int
    ranks: tuple[int, int, int, int]
    decode_steps: int
    prompt_len: int

    def workload(self, point: Point) -> Workload:
        """A decode step is the same with every state, so prompts have one token; prefill samples one token a row."""
        if point.kind == "decode":
            return Workload(point.batch_size, 1, self.decode_steps)
        if point.kind == "ragged":
            return RaggedWorkload(2 * point.batch_size, max(self.prompt_len // 8, 1), 2 * self.decode_steps)
        if point.kind == "score":
            return ScoreWorkload(point.batch_size, self.prompt_len, 0)
        return Workload(point.batch_size, self.prompt_len, 1)


FULL = Scale(n_layer=12, n_embd=768, n_ffn=3072, ranks=(64, 64, 32, 128), decode_steps=16, prompt_len=512)
"""The published RWKV-7 0.1B."""
MEDIUM = Scale(n_layer=24, n_embd=1024, n_ffn=4096, ranks=(64, 64, 32, 128), decode_steps=16, prompt_len=512)
"""The published RWKV-7 0.4B."""
QUICK = Scale(n_layer=2, n_embd=128, n_ffn=512, ranks=(16, 16, 8, 16), decode_steps=4, prompt_len=16)
"""For rehearsals; its figures mean nothing."""


def checkpoint(scale: Scale, folder: Path, version: str = "7.0") -> Path:
    """A random bfloat16 .pth with tokens of the World vocabulary, written if `folder` does not hold it yet."""
    name = f"rwkv{'7' if version == '7.0' else version}-{scale.n_layer}x{scale.n_embd}"
    path = folder / f"{name}.pth"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.pth")
        write_checkpoint(_tensors(scale, version), unfinished)
        unfinished.rename(path)
    return path


def _tensors(scale: Scale, version: str) -> dict[str, torch.Tensor]:
    # 5 and 6, with a gate in the time mix, are published with a narrower channel mix.
    n_ffn = scale.n_ffn if version[0] in "47" else scale.n_embd * 7 // 2
    tensors = make_checkpoint(
        version, n_layer=scale.n_layer, n_embd=scale.n_embd, n_ffn=n_ffn, vocab=VOCAB_SIZE, dtype=torch.bfloat16
    )
    tensors["head.weight"] *= LOGIT_STD / HEAD_GAIN
    generator = torch.Generator().manual_seed(0)
    for letter, rank in zip("wavg", scale.ranks, strict=True):
        for i in range(scale.n_layer):
            down, up = (f"blocks.{i}.att.{letter}{half}" for half in (1, 2))
            if down in tensors:
                tensors[down] = (torch.randn(scale.n_embd, rank, generator=generator) / scale.n_embd**0.5).bfloat16()
                tensors[up] = (torch.randn(rank, scale.n_embd, generator=generator) / rank**0.5).bfloat16()
    return tensors
