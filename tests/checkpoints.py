"""Small random checkpoints of every RWKV version, with the names, shapes and key order of the published .pth files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

VERSIONS = ("4", "5.0", "5.1", "5.2", "6.0", "7.0", "7.0de")

HEAD_GAIN = 2.5
"""Standard deviation of the logits: the rows of `head.weight` have this norm, and `ln_out` feeds them unit variance."""


class _Maker:
    """Draws the tensors of one checkpoint in the order of the file, from one generator."""

    def __init__(
        self, version: str, n_layer: int, n_embd: int, n_att: int, n_ffn: int, head_size: int, seed: int
    ) -> None:
        self.version, self.n_layer, self.n_embd, self.n_att, self.n_ffn = version, n_layer, n_embd, n_att, n_ffn
        self.head_size, self.n_head = head_size, n_att // head_size
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def normal(self, name: str, *shape: int, mean: float = 0.0, std: float = 1.0) -> None:
        self.tensors[name] = mean + std * torch.randn(*shape, generator=self.generator)

    def uniform(self, name: str, *shape: int) -> None:
        self.tensors[name] = torch.rand(*shape, generator=self.generator)

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """A weight [C_out, C_in] that keeps the variance of its input, times `gain` squared."""
        self.normal(name, n_out, n_in, std=gain / n_in**0.5)

    def low_rank(self, name: str, n_in: int, rank: int, n_out: int, suffix: str = "", gain: float = 0.5) -> None:
        """A pair [C_in, R], [R, C_out], applied from the right as it is stored."""
        self.normal(f"{name}{suffix}1", n_in, rank, std=1 / n_in**0.5)
        self.normal(f"{name}{suffix}2", rank, n_out, std=gain / rank**0.5)

    def norm(self, name: str, width: int) -> None:
        self.normal(f"{name}.weight", width, mean=1.0, std=0.1)
        self.normal(f"{name}.bias", width, std=0.1)

    def mixes(self, prefix: str, letters: str) -> None:
        for letter in letters:
            self.uniform(f"{prefix}{letter}", 1, 1, self.n_embd)

    def time_mix_4(self, att: str) -> None:
        self.normal(f"{att}time_decay", self.n_att)
        self.normal(f"{att}time_first", self.n_att)
        self.mixes(f"{att}time_mix_", "kvr")

    def time_mix_5(self, att: str) -> None:
        self.mixes(f"{att}time_mix_", "kvr" if self.version == "5.0" else "kvrg")
        per_head = (self.n_head, self.head_size) if self.version == "5.2" else (self.n_head,)
        self.normal(f"{att}time_decay", *per_head)
        bonus = "time_faaaa" if self.version == "5.2" else "time_first"
        self.normal(f"{att}{bonus}", *per_head, std=0.5)

    def time_mix_6(self, att: str) -> None:
        self.mixes(f"{att}time_maa_", "xwkvrg")
        self.normal(f"{att}time_maa_w1", self.n_embd, 5 * 32, std=1 / self.n_embd**0.5)
        self.normal(f"{att}time_maa_w2", 5, 32, self.n_embd, std=0.1)
        self.normal(f"{att}time_decay", 1, 1, self.n_att)
        self.low_rank(f"{att}time_decay", self.n_embd, 48, self.n_att, suffix="_w")
        self.normal(f"{att}time_faaaa", self.n_head, self.head_size, std=0.5)

    def time_mix_7(self, att: str, is_first_layer: bool) -> None:
        self.mixes(f"{att}x_", "rwkvag")
        for letter, rank in (("w", 32), ("a", 24), ("v", 16), ("g", 40)):
            if letter == "v" and is_first_layer:
                continue
            if letter != "g":
                self.normal(f"{att}{letter}0", 1, 1, self.n_embd)
            self.low_rank(f"{att}{letter}", self.n_embd, rank, self.n_embd, gain=1.0)
        self.normal(f"{att}k_k", 1, 1, self.n_embd, mean=0.7, std=0.1)
        self.normal(f"{att}k_a", 1, 1, self.n_embd, mean=1.0, std=0.1)
        self.normal(f"{att}r_k", self.n_head, self.head_size, std=0.3)

    def projections(self, att: str) -> None:
        names = ["receptance", "key", "value", "output"]
        if self.version in ("5.1", "5.2", "6.0"):
            names.append("gate")
        for name in names:
            n_out, n_in = (self.n_embd, self.n_att) if name == "output" else (self.n_att, self.n_embd)
            self.matrix(f"{att}{name}.weight", n_out, n_in)
        if self.version != "4":
            self.norm(f"{att}ln_x", self.n_att)

    def channel_mix(self, ffn: str, vocab: int) -> None:
        if self.version.startswith("7"):
            self.mixes(f"{ffn}x_", "k")
        else:
            self.mixes(f"{ffn}time_maa_" if self.version == "6.0" else f"{ffn}time_mix_", "kr")
        self.matrix(f"{ffn}key.weight", self.n_ffn, self.n_embd)
        if not self.version.startswith("7"):
            self.matrix(f"{ffn}receptance.weight", self.n_embd, self.n_embd)
        self.matrix(f"{ffn}value.weight", self.n_embd, self.n_ffn, gain=0.5)
        if self.version == "7.0de":
            self.deep_embed(ffn, vocab)

    def deep_embed(self, ffn: str, vocab: int, rank: int = 32) -> None:
        self.normal(f"{ffn}s_emb.weight", vocab, rank * rank, std=0.3 / rank**0.5)
        self.matrix(f"{ffn}s_emb_x.weight", rank * rank, self.n_embd, gain=0.3 / rank**0.5)
        self.matrix(f"{ffn}s1", self.n_embd, rank)
        self.matrix(f"{ffn}s2", rank, self.n_ffn)
        self.normal(f"{ffn}s0", 1, 1, self.n_ffn, mean=1.0, std=0.1)

    def block(self, layer: int, vocab: int) -> None:
        block, att = f"blocks.{layer}.", f"blocks.{layer}.att."
        self.norm(f"{block}ln1", self.n_embd)
        self.norm(f"{block}ln2", self.n_embd)
        if layer == 0:
            self.norm(f"{block}ln0", self.n_embd)
        if self.version.startswith("7"):
            self.time_mix_7(att, is_first_layer=layer == 0)
        else:
            {"4": self.time_mix_4, "5": self.time_mix_5, "6": self.time_mix_6}[self.version[0]](att)
        self.projections(att)
        self.channel_mix(f"{block}ffn.", vocab)


def make_checkpoint(
    version: str,
    *,
    n_layer: int = 3,
    n_embd: int = 128,
    n_att: int | None = None,
    n_ffn: int = 256,
    head_size: int = 64,
    vocab: int = 97,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return a random checkpoint of one of `VERSIONS`; logits have a standard deviation of about `HEAD_GAIN`.

    Args:
        n_att: width of the time mix, n_embd where None; v7 knows no other, and the `rwkv` package runs no other
            (v4 token by token excepted).
        dtype: of all tensors. The same seed draws the same values for every dtype.
    """
    n_att = n_embd if n_att is None else n_att
    if version not in VERSIONS or n_att % head_size or (version.startswith("7") and n_att != n_embd):
        raise ValueError(
            f"no such checkpoint: version {version!r}, n_embd {n_embd}, n_att {n_att}, head_size {head_size}"
        )
    maker = _Maker(version, n_layer, n_embd, n_att, n_ffn, head_size, seed)
    maker.normal("emb.weight", vocab, n_embd)
    for layer in range(n_layer):
        maker.block(layer, vocab)
    maker.norm("ln_out", n_embd)
    maker.matrix("head.weight", vocab, n_embd, gain=HEAD_GAIN)
    return {name: tensor.to(dtype) for name, tensor in maker.tensors.items()}


def write_checkpoint(tensors: dict[str, Tensor], path: str | Path) -> Path:
    """Write `tensors` as .pth or .safetensors, by the ending of `path`."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        raise ValueError(f"cannot tell the format of {path}: expected .pth or .safetensors")
    return path
