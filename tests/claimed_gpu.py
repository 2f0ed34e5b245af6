"""A GPU that is not there: torch claims it, and Triton compiles for it; nothing can be launched.

`claim()` is for processes of their own. A test that stays in its process patches what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

CAPABILITY = (9, 0)
SHARED_BYTES = 227 << 10
FREE_BYTES = 70 << 30

ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda device=None: CAPABILITY,
    "get_device_properties": lambda device=None: SimpleNamespace(
        shared_memory_per_block=48 << 10, shared_memory_per_block_optin=SHARED_BYTES
    ),
    "mem_get_info": lambda device=None: (FREE_BYTES, 80 << 30),
}


@contextmanager
def no_guard(index: int) -> Iterator[None]:
    """Stands in for `torch.cuda.device`, and does nothing."""
    yield


def claim() -> None:
    """Makes torch say that there is one GPU, of compute capability 9.0, with 70 GiB free."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.device = no_guard  # type: ignore[assignment,misc]
    torch.version.cuda = "13.0"
