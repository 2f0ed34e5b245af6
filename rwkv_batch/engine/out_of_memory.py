"""Which errors say that memory is used up."""

from __future__ import annotations

import re

import torch

_TEXT = re.compile(r"out of memory|out_of_memory|can't allocate memory|alloc_failed", re.IGNORECASE)
"""In the messages of torch's allocators, the CUDA runtime and driver, cuBLAS, and Triton's loader of kernels."""


def reason_of_out_of_memory(error: BaseException, handled: BaseException | None = None) -> str | None:
    """The line that says so, if the error or one that it followed is about memory that is used up.

    torch has a class of its own for the caching allocator of a device only. While a step is recorded, the end of the
    recording raises another error after the first.

    Args:
        handled: what was being handled already when the work began: neither it nor what it followed counts.
    """
    found: BaseException | None = error
    while found is not None and found is not handled:
        first_line = str(found).partition("\n")[0]
        if isinstance(found, (torch.OutOfMemoryError, MemoryError)) or _TEXT.search(str(found)):
            return first_line or type(found).__name__
        found = found.__cause__ or found.__context__
    return None
