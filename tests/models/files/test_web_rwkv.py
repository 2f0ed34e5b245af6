"""Files in web-rwkv's layout: each equals the .pth that it was converted from, or is refused.

The rules of the public converter are written down here by hand, apart from those that undo them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from running import Session
from safetensors.torch import save_file
from torch import Tensor
from versions import VERSIONS, with_matrix_state

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.architecture import identify
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.files.convert import convert
from rwkv_batch.models.files.state_file import load_state_file

SIZES = {"n_layer": 2, "n_embd": 128, "n_ffn": 192, "vocab": 50}
TRANSPOSED = ("time_mix_w1", "time_mix_w2", "time_decay_w1", "time_decay_w2", "time_state")
TRANSPOSED_V7 = ("w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2")


def write_st(tensors: dict[str, Tensor], path: Path) -> Path:
    """Write a file as web-rwkv's converter does."""
    has_gate = any("gate.weight" in name for name in tensors)
    has_shares = any("time_maa" in name for name in tensors)
    converted = {}
    for name, tensor in tensors.items():
        if has_gate and not has_shares and tensor.dim() == 1 and name.endswith(("time_decay", "time_faaaa")):
            tensor = tensor.unsqueeze(1).repeat(1, tensors["emb.weight"].shape[1] // len(tensor))
        name = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix")
        tensor = tensor.half()
        if name.endswith(tuple("." + word for word in TRANSPOSED + TRANSPOSED_V7)):
            tensor = tensor.transpose(-2, -1)
        converted[name] = tensor.contiguous()
    save_file(converted, path, {"format": "pt"})
    return path


def with_states(version: str) -> dict[str, Tensor]:
    """A float16 checkpoint, with tuned states where web-rwkv runs a version that has them: it runs no v5.0."""
    tensors = make_checkpoint(version, **SIZES, dtype=torch.float16)
    if version in with_matrix_state() and version != "5.0":
        generator = torch.Generator().manual_seed(1)
        for i in range(SIZES["n_layer"]):
            tensors[f"blocks.{i}.att.time_state"] = torch.randn(2, 64, 64, generator=generator).half()
    return tensors


@pytest.mark.parametrize("suffix", [".st", ".safetensors", ".SAFETENSORS", ".bin"])
@pytest.mark.parametrize("version", VERSIONS)
def test_tensors_equal_those_of_the_source(version: str, suffix: str, tmp_path: Path) -> None:
    expected = with_states(version)
    checkpoint = open_checkpoint(write_st(expected, tmp_path / f"model{suffix}"))
    identify(checkpoint)
    assert checkpoint.names == expected.keys()
    for name, tensor in expected.items():
        got = checkpoint.tensor(name)
        if version == "5.1" and name.endswith(("time_decay", "time_faaaa")):
            tensor = tensor[:, None].expand(-1, 64)
        assert torch.equal(got, tensor), name


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_those_of_the_source(version: str, tmp_path: Path) -> None:
    tensors = with_states(version)
    paths = write_checkpoint(tensors, tmp_path / "model.pth"), write_st(tensors, tmp_path / "model.st")
    want, got = (Session(path, strategy="cpu fp32").feed({0: [3, 14, 15, 9, 26]})[0] for path in paths)
    assert torch.equal(got, want)


def test_a_wrapper_may_put_a_prefix_in_front(tmp_path: Path) -> None:
    expected = with_states("6.0")
    path = write_st({f"module.{name}": tensor for name, tensor in expected.items()}, tmp_path / "model.st")
    assert open_checkpoint(path).names == expected.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_converting_gives_the_source(version: str, tmp_path: Path) -> None:
    source = write_st(with_states(version), tmp_path / "model.st")
    again = open_checkpoint(convert(source, tmp_path / "model.safetensors"))
    assert again.format == "safetensors"
    for name in open_checkpoint(source).names:
        assert torch.equal(again.tensor(name), open_checkpoint(source).tensor(name)), name


def test_square_low_rank_matrices_are_told_apart_by_the_suffix(tmp_path: Path) -> None:
    tensors = make_checkpoint("7.0", n_layer=2, n_embd=32, n_ffn=64, head_size=32, vocab=10)
    for i in range(2):
        for letter in "wavg":
            for half in (1, 2):
                tensors[f"blocks.{i}.att.{letter}{half}"] = torch.randn(32, 32)
    checkpoint = open_checkpoint(write_st(tensors, tmp_path / "model.st"))
    assert torch.equal(checkpoint.tensor("blocks.1.att.w1"), tensors["blocks.1.att.w1"].half())
    with pytest.raises(CheckpointError, match=r"all low-rank matrices are square.*\*\.st"):
        open_checkpoint(write_checkpoint(tensors, tmp_path / "model.safetensors"))
    converted = convert(write_checkpoint(tensors, tmp_path / "model.pth"), tmp_path / "converted.safetensors")
    assert torch.equal(open_checkpoint(converted).tensor("blocks.1.att.w1"), tensors["blocks.1.att.w1"])


# States

SHAPES = {"att.time_state": (2, 4, 4)}


def _states(dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"blocks.{i}.att.time_state": torch.randn(2, 4, 4).to(dtype) for i in range(3)}


def test_states_equal_those_of_the_source(tmp_path: Path) -> None:
    states = _states(torch.bfloat16)
    loaded = load_state_file(write_st(states, tmp_path / "state.st"), 3, SHAPES)
    for name, state in states.items():
        assert torch.equal(loaded[name], state.half())


Write = Callable[[dict[str, Tensor], Path], Path]


@pytest.mark.parametrize(
    ("suffix", "dtype", "write"),
    [(".safetensors", torch.float16, write_st), (".st", torch.float32, save_file)],
    ids=["float16 in .safetensors", "float32 in .st"],
)
def test_states_of_unknown_orientation_are_refused(
    suffix: str, dtype: torch.dtype, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / f"state{suffix}"
    write(_states(dtype), path)
    with pytest.raises(CheckpointError, match=r"nothing tells whether these states.*name it \*\.st"):
        load_state_file(path, 3, SHAPES)
