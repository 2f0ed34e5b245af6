"""A reader of a checkpoint's matrices whose ops are all served by their definitions."""

from __future__ import annotations

import torch

from rwkv_batch.models.files.checkpoint import Checkpoint
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.product import LINEAR
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS, weight_format
from rwkv_batch.models.matrices.weight_format import MatrixReader
from rwkv_batch.ops import OpTable

CPU = torch.device("cpu")


def matrix_reader(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> MatrixReader:
    specs = [LINEAR, *(spec for name in QUANTIZATIONS for spec in weight_format(name).ops(CPU))]
    ops = OpTable.of(**{spec.name: spec.definition for spec in specs})
    return MatrixReader(checkpoint, dtype, CPU, ops, DenseLinear)
