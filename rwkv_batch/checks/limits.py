"""How far a result may be from what is right: one table for each measure."""

from __future__ import annotations

TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-3, "float16": 1e-3}
"""Largest error of one operation, relative to the largest magnitude of the right result, by the dtype computed in."""

MM8_TOLERANCES = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 5e-4}
"""Norm of the error of a product of the 8-bit form, relative to the norm of the product of the matrix it stands for."""
