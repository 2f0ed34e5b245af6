"""What is said of models and of files with an initial state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_batch import cli
from rwkv_batch.commands import inspect_model
from rwkv_batch.engine import sizing


def inspected(capsys: pytest.CaptureFixture[str], path: object) -> Any:
    assert cli.main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, "demo")
    layers, width, heads, size = 3, 192, 3, 64
    assert (found["version"], found["dtype"], found["tokenizer"]) == ("rwkv7", "bfloat16", "bytes")
    assert found["state_bytes"] == layers * (heads * size * size * 4 + 2 * width * 2)
    assert found["sizes"]["n_layer"] == layers and found["chat"].startswith("rwkv")
    assert cli.main(["inspect", "demo"]) == 0
    assert "1,597,056 parameters" in capsys.readouterr().out


def test_slots_are_those_of_the_memory_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On GPUs so small that the number depends on the memory: none fits on the smallest."""
    monkeypatch.setattr(inspect_model, "MEMORIES", (1, 2, 3))
    monkeypatch.setattr(sizing, "_SLOT_LIMIT", {"cuda": 10_000})
    slots = inspected(capsys, "demo")["slots"]
    for counts in slots.values():
        none, fewer, more = counts.values()
        assert (none, fewer > 0, more > fewer) == (0, True, True)


def test_a_state_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "poet.pth"
    torch.save({f"blocks.{layer}.att.time_state": torch.zeros(3, 64, 64) for layer in range(4)}, path)
    found = inspected(capsys, path)
    assert (found["kind"], found["layers"]) == ("state", 4)
    assert found["tensors"] == {"att.time_state": {"shape": [3, 64, 64], "dtype": "float32"}}
    assert cli.main(["inspect", str(path)]) == 0
    assert "att.time_state [3, 64, 64] float32" in capsys.readouterr().out


def test_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    for name in (path, tmp_path / "missing.pth", tmp_path):
        assert cli.main(["inspect", str(name)]) == 2
        assert str(name) in capsys.readouterr().err
