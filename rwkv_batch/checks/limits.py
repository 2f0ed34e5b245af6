"""Limits of errors: one table for each measure."""

from __future__ import annotations

import torch

from ..dtypes import dtype_name

TOLERANCES = {"float32": 1e-5, "bfloat16": 6e-3, "float16": 1e-3}
"""Largest error of one operation, relative to the largest magnitude of the right result, by the dtype computed in."""

MM8_TOLERANCES = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 5e-4}
"""Norm of the error of a product in 8-bit form, relative to the norm of the product with the decoded matrix."""

SEVERAL_ROUNDINGS = 2.0
"""Factor for results with several roundings, one after the other or summed over many tokens."""

HALF_STATE_TOLERANCE = 2e-3
"""Norm of the error of a float16 state after several tokens, and of its output, relative to the norm of the right one.
The definition rounds with the same random bits; float32 errors may still round a number to the other neighbor."""

HALF_STATE_STEP_TOLERANCE = 1.5e-4
"""Norm of the error of a float16 state after one token, relative to the norm of the right one. Numbers that differ by
1e-6 before they are rounded give 2.5e-5; rounding to nearest gives 3.6e-4, and other random bits give 4.1e-4."""

LOGPROB_ERROR = 3e-4
"""Largest error of a log-probability whose logits come from a matrix product."""

NORMALIZER_ERROR = 2e-6
"""Largest error of the logarithm of a sum of exponentials, and of a log-probability of given logits."""

MODEL_LOGPROB_ERROR = {"float32": 2e-4, "bfloat16": 0.1, "float16": 2e-2}
"""Largest error of a log-probability of the demo model, by the dtype of the activations."""

OTHER_DRAWS = 1
"""Random draws of a comparison that may differ: a uniform number may lie so near a boundary between two tokens that the
last bit of an exponential decides. Greedy draws must all be equal."""

LIKELIER = 1e-3
"""The most likely token is compared where its log-probability exceeds the second's by more than this."""


def tolerance(dtype: torch.dtype) -> float:
    """The tolerance of one operation in a dtype."""
    return TOLERANCES[dtype_name(dtype)]


def mm8_tolerance(dtype: torch.dtype) -> float:
    """The tolerance of a product in 8-bit form with inputs of a dtype."""
    return MM8_TOLERANCES[dtype_name(dtype)]
