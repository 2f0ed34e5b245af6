"""Checks of what happens to logits."""

from __future__ import annotations

import torch

from .outcome import Checks, poisoned
from .target import Target

LOGPROB_ERROR = 2e-6


def check_log_normalizer(target: Target) -> Checks:
    checks = Checks()
    torch.manual_seed(0)
    for size in (97, 65536):
        function = target.op("log_normalizer", torch.float32, V=size)
        logits = 3 * torch.randn(5, size, device=target.device)
        with poisoned():
            found = function(logits)
        checks.near(f"V={size}", found, torch.logsumexp(logits.double(), 1), LOGPROB_ERROR)
    return checks
