"""Converts a RWKV-7 checkpoint to a GGUF file for llama.cpp, with the same weights and the World vocabulary.

    python -m benchmarks.gguf_file MODEL.pth VOCABULARY.txt OUT.gguf --form F32|F16|BF16

Needs the packages torch and gguf. llama.cpp's own quantizer makes smaller formats from the F32 file.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FORMS = ("F32", "F16", "BF16")
PAIRS = ("w", "a", "v", "g")
LERPS = "rwkvag"
MIX_MATRICES = {
    "receptance": "att.receptance",
    "key": "att.key",
    "value": "att.value",
    "output": "att.output",
}
_FLOAT32_PARTS = ("_norm", "time_mix_ln", "lerp", "time_mix_w1", "time_mix_w2")
"""Parts of the names of tensors that stay float32: llama.cpp uses them elementwise or in full precision."""


class Sizes(NamedTuple):
    """Sizes of a checkpoint: layers, width, channel-mix width, vocabulary, head size, ranks of the low-rank pairs."""

    L: int
    C: int
    F: int
    V: int
    N: int
    ranks: dict[str, int]


def sizes_of(checkpoint: dict[str, Tensor]) -> Sizes:
    """Reads the sizes from the tensors.

    Raises:
        ValueError: not a RWKV-7 checkpoint, or fewer than two layers.
    """
    if "blocks.1.att.r_k" not in checkpoint:
        raise ValueError("expected a RWKV-7 checkpoint of two layers or more: there is no blocks.1.att.r_k")
    V, C = checkpoint["emb.weight"].shape
    return Sizes(
        L=1 + max(int(name.split(".")[1]) for name in checkpoint if name.startswith("blocks.")),
        C=C,
        F=checkpoint["blocks.0.ffn.key.weight"].shape[0],
        V=V,
        N=checkpoint["blocks.0.att.r_k"].shape[1],
        ranks={letter: checkpoint[f"blocks.1.att.{letter}1"].shape[1] for letter in PAIRS},
    )


def tensors(checkpoint: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors under llama.cpp's names. Every matrix is [C_out, C_in], also the factors of low-rank pairs."""
    yield "token_embd.weight", checkpoint["emb.weight"]
    yield "output.weight", checkpoint["head.weight"]
    yield from _norm(checkpoint, "token_embd_norm", "blocks.0.ln0")
    yield from _norm(checkpoint, "output_norm", "ln_out")
    for layer in range(sizes_of(checkpoint).L):
        yield from _block(checkpoint, f"blocks.{layer}.", f"blk.{layer}.")


def _block(checkpoint: dict[str, Tensor], source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    att, mix = f"{source}att.", f"{target}time_mix_"
    yield from _norm(checkpoint, f"{target}attn_norm", f"{source}ln1")
    yield from _norm(checkpoint, f"{target}attn_norm_2", f"{source}ln2")
    yield from _norm(checkpoint, f"{mix}ln", f"{att}ln_x")
    for name, stored in MIX_MATRICES.items():
        yield f"{mix}{name}.weight", checkpoint[f"{source}{stored}.weight"]
    lerps = [checkpoint[f"{att}x_{letter}"].reshape(1, 1, -1) for letter in LERPS]
    yield f"{mix}lerp_fused.weight", torch.stack(lerps)
    for letter in PAIRS:
        # The first layer has no residual of values. llama.cpp expects tensors of these names and never reads them.
        stored = letter if f"{att}{letter}1" in checkpoint else "a"
        if letter != "g":
            yield f"{mix}{letter}0.weight", checkpoint[f"{att}{stored}0"].flatten()
        for half in "12":
            yield f"{mix}{letter}{half}.weight", checkpoint[f"{att}{stored}{half}"].t()
    for name in ("k_k", "k_a", "r_k"):
        yield f"{mix}{name}.weight", checkpoint[f"{att}{name}"].flatten()
    yield f"{target}channel_mix_lerp_k.weight", checkpoint[f"{source}ffn.x_k"].reshape(1, 1, -1)
    for name in ("key", "value"):
        yield f"{target}channel_mix_{name}.weight", checkpoint[f"{source}ffn.{name}.weight"]


def _norm(checkpoint: dict[str, Tensor], target: str, source: str) -> Iterator[tuple[str, Tensor]]:
    for part in ("weight", "bias"):
        yield f"{target}.{part}", checkpoint[f"{source}.{part}"]


def keeps_float32(name: str, tensor: Tensor) -> bool:
    """True for vectors, and for the few matrices that llama.cpp expects in float32."""
    return tensor.dim() == 1 or any(part in name for part in _FLOAT32_PARTS)


def vocabulary(path: Path, size: int) -> list[bytes]:
    """Lists one text for each id: token 0, tokens with llama.cpp's escapes, and fillers up to the vocabulary size."""
    entries = [b"<s>"]
    for line in path.read_text(encoding="utf-8").splitlines():
        token = ast.literal_eval(line[line.index(" ") : line.rindex(" ")].strip())
        data = token.encode() if isinstance(token, str) else token
        entries.append(repr(data)[2:-1].encode())
    return [*entries, *(b"[PAD%d]" % i for i in range(len(entries), size))][:size]


def write(model: Path, vocabulary_file: Path, out: Path, form: str) -> None:
    """Writes the GGUF file in one of `FORMS`.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: another form, or a checkpoint that is not RWKV-7.
    """
    import gguf

    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
    checkpoint = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
    sizes = sizes_of(checkpoint)
    unfinished = out.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(sizes.C)
    writer.add_block_count(sizes.L)
    writer.add_feed_forward_length(sizes.F)
    writer.add_head_count(0)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(sizes.N)
    writer.add_decay_lora_rank(sizes.ranks["w"])
    writer.add_iclr_lora_rank(sizes.ranks["a"])
    writer.add_value_residual_mix_lora_rank(sizes.ranks["v"])
    writer.add_gate_lora_rank(sizes.ranks["g"])
    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[form]])
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(vocabulary(vocabulary_file, sizes.V))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    stored = gguf.GGMLQuantizationType[form]
    for name, tensor in tensors(checkpoint):
        values = tensor.float().contiguous().numpy()
        if keeps_float32(name, tensor):
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gguf_file", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL.pth")
    parser.add_argument("vocabulary", type=Path, metavar="VOCABULARY.txt", help="in RWKV's format")
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--form", choices=FORMS, default="F32", help="dtype of the matrices (F32)")
    options = parser.parse_args()
    write(options.model, options.vocabulary, options.out, options.form)


if __name__ == "__main__":
    main()
