"""The table of float16 states on long texts: its measures, and a rehearsal."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import state_quality
from benchmarks.state_quality import Scored, table, to_nearest


def test_figures_are_of_each_range_of_positions():
    found = {
        "float32": Scored([[1.0, 3.0, 5.0]], [[7, 8, 9]]),
        "float16": Scored([[2.0, 4.0, 8.0]], [[7, 0, 9]]),
    }
    base, other = table("m", found, (0, 2, 3))
    assert base == {
        "model": "m",
        "states": "float32",
        "bits 0-2": 2.0,
        "same 0-2": 1.0,
        "bits 2-3": 5.0,
        "same 2-3": 1.0,
    }
    assert [*other.values()][1:] == ["float16", 3.0, 0.5, 8.0, 1.0]


def test_to_nearest_gives_what_float16_holds():
    x = torch.tensor([1 + 2.0**-12, 1 + 2.0**-10, 7e4])
    assert to_nearest(x, torch.tensor([0])).tolist() == [1, 1 + 2.0**-10, torch.inf]


def test_it_rehearses(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(state_quality, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    out = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["state_quality", "--texts", "1", "--length", "48", "--out", str(out)])
    state_quality.main()
    lines = json.loads(out.read_text())["table"]
    assert [line["states"] for line in lines] == [*state_quality.STATES]
    assert len({line["bits 0-48"] for line in lines}) == 3, "states are rounded in three ways"
    assert all(line["bits 0-48"] == pytest.approx(lines[0]["bits 0-48"], abs=0.01) for line in lines)
    assert "| demo | float16, to nearest | " in capsys.readouterr().out
