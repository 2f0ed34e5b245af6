"""Files with an initial state: what loads, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from torch import Tensor

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.files.state_file import load_state_file

MATRIX = torch.zeros(2, 2)
SHAPES = {"att.time_state": (2, 4, 4)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_state_file(suffix: str, tmp_path: Path) -> None:
    states = {f"blocks.{i}.att.time_state": torch.randn(2, 4, 4).to(torch.bfloat16) for i in range(3)}
    loaded = load_state_file(write_checkpoint(states, tmp_path / f"state{suffix}"), 3, SHAPES)
    assert loaded.keys() == states.keys()
    assert all(torch.equal(loaded[name], state) for name, state in states.items())


@pytest.mark.parametrize(
    ("states", "found"),
    [
        ({"blocks.0.att.time_state": torch.zeros(2, 4, 5)}, r"blocks.0.att.time_state \[2, 4, 5\] torch.float32"),
        ({"blocks.0.att.time_state": torch.zeros(4, 4)}, r"blocks.0.att.time_state \[4, 4\] torch.float32"),
        ({"blocks.0.att.time_state": torch.zeros(2, 4, 4).byte()}, r"blocks.0.att.time_state \[2, 4, 4\] torch.uint8"),
        ({"blocks.1.att.time_state": torch.zeros(2, 4, 4)}, "blocks.0.att.time_state missing"),
        ({"blocks.0.att.time_state": torch.zeros(2, 4, 4), "emb.weight": MATRIX}, "emb.weight"),
        ({f"blocks.{i}.att.time_state": torch.zeros(2, 4, 4) for i in (0, 1)}, "blocks.1.att.time_state"),
    ],
)
def test_state_file_refusals(states: dict[str, Tensor], found: str, tmp_path: Path) -> None:
    expected = rf"found {found}, expected blocks.N.att.time_state of shape \[2, 4, 4\].* each of 1 layers"
    with pytest.raises(CheckpointError, match=expected):
        load_state_file(write_checkpoint(states, tmp_path / "state.pth"), 1, SHAPES)
