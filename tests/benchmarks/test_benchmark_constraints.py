"""The benchmark of constraints: its schemas have the values that it makes, and it rehearses."""

from __future__ import annotations

import json
import sys

import jsonschema
import pytest

from benchmarks import constraints
from benchmarks.schema_shapes import Maker

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")


def test_values_satisfy_their_schemas():
    shapes = list(Maker(seed=1).schemas(240))
    assert len({json.dumps(shape.schema) for shape in shapes}) > 200
    for shape in shapes:
        jsonschema.Draft202012Validator.check_schema(shape.schema)
        for _ in range(3):
            jsonschema.Draft202012Validator(shape.schema).validate(shape.value())


def test_it_rehearses(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--engines", "rwkv_batch", "llguidance", "--schemas", "8", "--texts", "1", "--rows", "4"]
    monkeypatch.setattr(constraints, "STEPS", 4)
    monkeypatch.setattr(sys, "argv", ["constraints", *arguments, "--out", str(out)])
    constraints.main()
    result = json.loads(out.read_text())
    own = result["schemas"]["rwkv_batch"]
    assert (own["refused"], own["wrong_accepts"], own["wrong_rejects"]) == (0, 0, 0)
    assert all(value > 0 for row in result["masks_ms"].values() for value in row.values())
    assert "maxLength 2000" in capsys.readouterr().out
