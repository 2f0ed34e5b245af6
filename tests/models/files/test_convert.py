"""`convert`: one aligned .safetensors file that gives the same tensors back, 8-bit on request, or no file at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from running import Session
from safetensors import safe_open
from torch import Tensor
from versions import VERSIONS

from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.models.files import checkpoint as checkpoint_module
from rwkv_batch.models.files.canonical import MM8_MARK
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.files.convert import convert
from rwkv_batch.models.matrices.mm8 import quantize_mm8

SIZES: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_ffn": 96, "vocab": 33}
LOOKED_UP = ("emb.weight", "s_emb.weight", "s_emb_x.weight")


def written(tensors: dict[str, Tensor], folder: Path) -> Path:
    return write_checkpoint(tensors, folder / "source.pth")


@pytest.mark.parametrize("version", VERSIONS)
def test_plain(version: str, tmp_path: Path) -> None:
    tensors = make_checkpoint(version, **SIZES, dtype=torch.bfloat16)
    path = convert(written(tensors, tmp_path), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.names == tensors.keys()
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "source.pth"]


@pytest.mark.parametrize("version", VERSIONS)
def test_8_bit(version: str, tmp_path: Path) -> None:
    tensors = make_checkpoint(version, **SIZES)
    checkpoint = open_checkpoint(convert(written(tensors, tmp_path), tmp_path / "model.safetensors", "int8"))
    assert checkpoint.names == tensors.keys()
    for name, tensor in tensors.items():
        is_matrix = name.endswith(".weight") and tensor.dim() == 2 and not name.endswith(LOOKED_UP)
        stored = checkpoint.mm8(name)
        assert (stored is not None) == is_matrix, name
        assert checkpoint.shape(name) == tuple(tensor.shape)
        if stored is None:
            assert torch.equal(checkpoint.tensor(name), tensor)
            continue
        expected = quantize_mm8(tensor)
        for field in ("q", "mx", "rx", "my", "ry"):
            assert torch.equal(getattr(stored, field), getattr(expected, field)), (name, field)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_8_bit_file_loads_without_quantising_and_gives_the_same_bits(version, tmp_path, monkeypatch) -> None:
    source = written(make_checkpoint(version, **SIZES), tmp_path)
    want = Session(source, quantization="int8").feed({0: [3, 14, 15]})[0]
    path = convert(source, tmp_path / "model.safetensors", "int8")
    monkeypatch.setattr(checkpoint_module, "quantize_mm8", None)
    assert torch.equal(Session(path, quantization="int8").feed({0: [3, 14, 15]})[0], want)


def test_an_8_bit_file_is_kept_as_it_is(tmp_path: Path) -> None:
    first = convert(
        written(make_checkpoint("7.0de", **SIZES), tmp_path), tmp_path / "first.safetensors", quantization="int8"
    )
    for quantization in (None, "int8"):
        second = convert(first, tmp_path / "second.safetensors", quantization)
        assert second.read_bytes() == first.read_bytes()


def test_what_the_source_says_besides_tensors_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(make_checkpoint("6.0", **SIZES), tmp_path)
    read = checkpoint_module.open_checkpoint(source)
    changed = checkpoint_module.Checkpoint(
        read.dense, read.files, embedding_is_normalized=True, ln_x_eps=1e-5, path=read.path, format=read.format
    )
    monkeypatch.setattr("rwkv_batch.models.files.convert.open_checkpoint", lambda _: changed)
    checkpoint = open_checkpoint(convert(source, tmp_path / "model.safetensors"))
    assert checkpoint.embedding_is_normalized
    assert checkpoint.ln_x_eps == 1e-5


def test_the_file_is_a_proper_safetensors_file_with_aligned_tensors(tmp_path: Path) -> None:
    """Odd sizes, so that a byte matrix in front would push what follows off its alignment."""
    tensors = {
        "a.weight": torch.randn(3, 5).to(torch.bfloat16),
        "b.weight": torch.randn(7, 8).to(torch.bfloat16),
        "blocks.0.att.time_decay": torch.randn(3),
        "emb.weight": torch.randn(3, 3).to(torch.bfloat16),
    }
    path = convert(written(tensors, tmp_path), tmp_path / "model.safetensors", "int8")
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert torch.equal(file.get_tensor("emb.weight"), tensors["emb.weight"])
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert start % 64 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            itemsize = {"F32": 4, "BF16": 2, "U8": 1}[entry["dtype"]]
            assert entry["data_offsets"][0] % itemsize == 0, name


def test_8_bit_without_its_parts_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = convert(written(make_checkpoint("4", **SIZES), tmp_path), tmp_path / "model.safetensors", "int8")
    tensors = load_file(path)
    del tensors["head.weight_mx"]
    save_file(tensors, path, MM8_MARK)
    with pytest.raises(CheckpointError, match=r"head\.weight is not a matrix in 8-bit form"):
        open_checkpoint(path)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    tensors = make_checkpoint("4", **SIZES)
    tensors["head.weight"][0, 0] = torch.nan
    source, destination = written(tensors, tmp_path), tmp_path / "model.safetensors"
    destination.write_text("old")
    with pytest.raises(CheckpointError, match=r"head\.weight can't be quantized"):
        convert(source, destination, "int8")
    assert destination.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "source.pth"]


@pytest.mark.parametrize(
    ("destination", "quantization", "message"),
    [
        ("model.pth", None, "ends in .safetensors"),
        ("model.safetensors", "int4", "'int4'"),
        ("nowhere/model.safetensors", None, "nowhere is not a folder"),
        ("source.safetensors", None, "is the source itself"),
    ],
)
def test_refusals(destination: str, quantization: str | None, message: str, tmp_path: Path) -> None:
    source = write_checkpoint(make_checkpoint("4", **SIZES), tmp_path / "source.safetensors")
    before = source.read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        convert(source, tmp_path / destination, quantization)
    assert source.read_bytes() == before
