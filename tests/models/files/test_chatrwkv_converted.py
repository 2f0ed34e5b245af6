"""Files that the `rwkv` package has converted for a strategy: what it changed is undone, or known to be changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_checkpoint, write_checkpoint
from matrix_reader import matrix_reader
from mm8_reference import definition
from running import Session
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.files import checkpoint as checkpoint_module
from rwkv_batch.models.files.checkpoint import Checkpoint, open_checkpoint
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.mm8 import Mm8Weight, quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear
from rwkv_batch.models.matrices.quantization import weight_format

VERSIONS = ("4", "5.0", "5.1", "5.2", "6.0")
STRATEGIES = {
    "float": "cpu fp32",
    "int8": "cpu fp32i8",
    "mixed": "cpu fp16i8 *1 -> cpu bf16 *1 -> cpu fp32",
}
RESCALE_EVERY = 1

_CONVERT = """
import sys
from rwkv.model import RWKV
for source, destination, strategy in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    try:
        RWKV(source, strategy, verbose=False, convert_and_save_and_exit=destination)
    except SystemExit:
        pass
"""


class Converted:
    """Checkpoints of every version, and what the `rwkv` package makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arguments = []
        for version in VERSIONS:
            write_checkpoint(self.original(version), folder / f"{version}.pth")
            for kind, strategy in STRATEGIES.items():
                arguments += [str(folder / f"{version}.pth"), str(self.path(version, kind)), strategy]
        environment = os.environ | {
            "RWKV_JIT_ON": "0",
            "RWKV_RESCALE_LAYER": str(RESCALE_EVERY),
            "OMP_NUM_THREADS": "1",
        }
        subprocess.run([sys.executable, "-c", _CONVERT, *arguments], check=True, env=environment, capture_output=True)

    def original(self, version: str) -> dict[str, Tensor]:
        tensors = make_checkpoint(version, n_layer=3, n_embd=128, n_ffn=192, vocab=50)
        if version == "6.0":
            generator = torch.Generator().manual_seed(1)
            for i in range(3):
                tensors[f"blocks.{i}.att.time_state"] = torch.randn(2, 64, 64, generator=generator)
        return tensors

    def path(self, version: str, kind: str) -> Path:
        return self.folder / f"{version}-{kind}.pth"

    def open(self, version: str, kind: str) -> Checkpoint:
        return open_checkpoint(self.path(version, kind))

    def raw(self, version: str, kind: str) -> dict[str, Any]:
        return torch.load(self.path(version, kind), weights_only=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("converted"))


def as_used(version: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The canonical tensors that a converted file should give back."""
    expected = dict(tensors)
    weight, bias = (expected.pop(f"blocks.0.ln0.{kind}") for kind in ("weight", "bias"))
    embedding = expected["emb.weight"]
    expected["emb.weight"] = F.layer_norm(embedding, (embedding.shape[1],), weight, bias)
    if version in ("5.0", "5.1"):
        for name in [name for name in tensors if "time_first" in name]:
            expected[name.replace("time_first", "time_faaaa")] = torch.exp(expected.pop(name))
    return expected


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_shapes_are_canonical(converted: Converted, version: str, kind: str) -> None:
    checkpoint = converted.open(version, kind)
    expected = as_used(version, converted.original(version))
    assert checkpoint.format == "converted"
    assert checkpoint.embedding_is_normalized
    assert checkpoint.names == expected.keys()
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        assert checkpoint.shape(name) == shape, name
        assert checkpoint.tensor(name).shape == shape, name


@pytest.mark.parametrize("version", VERSIONS)
def test_float_values_are_canonical(converted: Converted, version: str) -> None:
    checkpoint = converted.open(version, "float")
    for name, tensor in as_used(version, converted.original(version)).items():
        got = checkpoint.tensor(name)
        assert got.dtype == torch.float32
        if "time_decay" in name and version != "6.0":
            assert_close(name, torch.exp(got), torch.exp(tensor), torch.float32)
        else:
            assert torch.equal(got, tensor), name


def test_matrices_are_divided_in_the_file(converted: Converted) -> None:
    """Otherwise the tests above would not see whether the division is undone."""
    original, raw = converted.original("4"), converted.raw("4", "float")
    name = "blocks.2.att.output.weight"
    assert torch.equal(raw[name].t() * 4, original[name])


@pytest.mark.parametrize("version", VERSIONS)
def test_quantising_equals_the_rwkv_package(converted: Converted, version: str) -> None:
    """Bit for bit: both shapes of matrix, every layer, with and without division by a power of two."""
    original = converted.original(version)
    checkpoint = converted.open(version, "int8")
    assert {"head.weight", "blocks.1.ffn.key.weight", "blocks.1.ffn.value.weight"} <= checkpoint.quantized.keys()
    for name in checkpoint.quantized:
        theirs, ours = checkpoint.mm8(name), quantize_mm8(original[name])
        assert theirs is not None
        assert checkpoint.dtype(name) == torch.uint8
        for field in ("q", "mx", "rx", "my", "ry"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), (name, field)
        assert checkpoint.tensor(name).dtype == torch.float32


@pytest.mark.parametrize("version", VERSIONS)
def test_mixed_strategies(converted: Converted, version: str) -> None:
    """Layer 0 in 8 bits with float16 metadata, layer 1 in bfloat16, layer 2 and the head in float32."""
    checkpoint, original = converted.open(version, "mixed"), converted.original(version)
    raw = converted.raw(version, "mixed")
    name = "blocks.{}.ffn.value.weight"
    q, *vectors = (raw[name.format(0) + suffix] for suffix in ("", "_mx", "_rx", "_my", "_ry"))
    assert vectors[0].dtype == torch.float16
    expected = definition(Mm8Weight(q, *(vector.reshape(-1) for vector in vectors)))
    assert_close("layer 0", checkpoint.tensor(name.format(0)), expected, torch.float32)
    assert checkpoint.dtype(name.format(1)) == torch.bfloat16
    assert torch.equal(checkpoint.tensor(name.format(1)), original[name.format(1)].bfloat16())
    assert torch.equal(checkpoint.tensor(name.format(2)), original[name.format(2)])
    assert torch.equal(checkpoint.tensor("head.weight"), original["head.weight"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_converted_file_runs_as_the_original_does(converted: Converted, version: str, kind: str) -> None:
    """The strategy is that of the conversion. 8-bit matrices are not quantized again."""
    ids, strategy = [3, 14, 15, 9, 26], STRATEGIES[kind]
    original = converted.folder / f"{version}.pth"
    want = Session(original, strategy=strategy).feed({0: ids})[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "quantize_mm8", None)
        got = Session(converted.path(version, kind), strategy=strategy).feed({0: ids})[0]
    assert_close("logits", got, want, "bfloat16" if kind == "mixed" else "float32", 10)


def test_weight_formats_take_the_8_bit_form_of_the_file(converted: Converted) -> None:
    checkpoint, name = converted.open("6.0", "int8"), "blocks.2.ffn.value.weight"
    stored = checkpoint.mm8(name)
    assert stored is not None
    packed = weight_format("int8").load(matrix_reader(checkpoint), name)
    dense = weight_format(None).load(matrix_reader(checkpoint, torch.bfloat16), name, scale=0.5)
    assert isinstance(packed, Mm8Linear)
    assert isinstance(dense, DenseLinear)
    assert torch.equal(packed.weight.t().int() + 128, stored.q.int())
    assert_close("dense", dense.weight, definition(stored) / 2, torch.bfloat16)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "too old": (lambda raw: raw.update(_version="0.6"), "_version '0.6'"),
    "no version": (lambda raw: raw.pop("_version"), "_version None"),
    "no rescale": (lambda raw: raw.pop("_rescale_layer"), "_rescale_layer None"),
    "no ry": (lambda raw: raw.pop("head.weight_ry"), "head.weight_ry are missing"),
    "short mx": (lambda raw: raw.update({"head.weight_mx": raw["head.weight_mx"][:-1]}), r"head\.weight: mx"),
    "other objects": (lambda raw: raw.update(extra="text"), "'extra' is a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(converted: Converted, case: str, tmp_path: Path) -> None:
    damage, message = REFUSED[case]
    raw = converted.raw("4", "int8")
    damage(raw)
    torch.save(raw, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.pth")


def test_extreme_decays_survive(tmp_path: Path) -> None:
    """A decay that float32 rounds to 0 or 1 gives back a value that rounds to the same."""
    factors = torch.tensor([0.0, 1e-38, 0.5, 1 - 2**-24, 1.0]).reshape(-1, 1, 1)
    entries = {
        "blocks.0.att.time_decay": factors,
        "blocks.0.att.ln_x.weight": torch.ones(5),
        "_strategy": "cpu fp32",
        "_version": "0.7",
        "_rescale_layer": 0,
    }
    torch.save(entries, tmp_path / "model.pth")
    decay = open_checkpoint(tmp_path / "model.pth").tensor("blocks.0.att.time_decay")
    assert decay.shape == (5,)
    assert_close("decay", torch.exp(-torch.exp(decay)), factors.flatten(), torch.float32)
