"""Weight formats: the registry needs no torch, memory is what a format says, and a new format is one module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from matrix_reader import CPU, matrix_reader
from running import Session

from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.matrices import quantization
from rwkv_batch.models.matrices.product import Linear
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS, weight_format
from rwkv_batch.models.matrices.weight_format import MatrixReader, WeightFormat


def test_names_are_known_without_torch() -> None:
    module = "rwkv_batch.models.matrices.quantization"
    code = f"import sys, {module} as m; print(m.QUANTIZATIONS); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(QUANTIZATIONS))
    assert {"int8", "w8a8"} <= {*QUANTIZATIONS}


SCALES_OF_ROWS = {None: False, "int8": True, "w8a8": True}
"""Weight format → whether its matrices have scales of rows or columns, which `bytes_per_weight` does not count."""


@pytest.mark.parametrize("name", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("matrix", ["blocks.0.ffn.key.weight", "blocks.0.ffn.value.weight"])
def test_memory_is_bytes_per_weight_and_scales(name: str | None, matrix: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(make_checkpoint("7.0", n_layer=1), tmp_path / "model.pth"))
    c_out, c_in = checkpoint.shape(matrix)
    linear = weight_format(name).load(matrix_reader(checkpoint), matrix)
    counted = c_out * c_in * weight_format(name).bytes_per_weight(matrix, torch.float32, CPU)
    assert counted <= linear.nbytes <= counted + 4 * (5 * c_out + 2 * c_in)
    if name in SCALES_OF_ROWS:
        assert (linear.nbytes > counted) == SCALES_OF_ROWS[name]


class Negated(WeightFormat):
    """Dense matrices with the opposite sign: a format that is easily told from the others."""

    def bytes_per_weight(self, name: str, dtype: torch.dtype, device: torch.device) -> int:
        return dtype.itemsize

    def load(self, reader: MatrixReader, name: str, scale: float = 1.0) -> Linear:
        return reader.make_dense(reader.kept(-reader.dense(name, scale)))


def test_a_new_format_is_one_module_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make_checkpoint("7.0")
    path = write_checkpoint(tensors, tmp_path / "model.pth")
    negated = {name: -value if value.dim() == 2 and is_large(name) else value for name, value in tensors.items()}
    expected = Session(write_checkpoint(negated, tmp_path / "negated.pth")).feed({0: [3, 1, 4]})[0]
    monkeypatch.setitem(sys.modules, "rwkv_batch.models.matrices.negated", SimpleNamespace(FORMAT=Negated()))
    monkeypatch.setitem(quantization._MODULES, "negated", "negated")
    assert torch.equal(Session(path, quantization="negated").feed({0: [3, 1, 4]})[0], expected)


def is_large(name: str) -> bool:
    """The name is that of a matrix which a weight format may store."""
    return name.endswith(".weight") and "emb" not in name
