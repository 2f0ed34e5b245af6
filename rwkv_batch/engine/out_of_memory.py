"""Recognizes errors that mean "out of memory"."""

from __future__ import annotations

import re

import torch

_TEXT = re.compile(r"out of memory|out_of_memory|can't allocate memory|alloc_failed", re.IGNORECASE)
"""Matches the messages of torch's allocators, the CUDA runtime and driver, cuBLAS, and Triton's kernel loader."""


def reason_of_out_of_memory(error: BaseException, handled: BaseException | None = None) -> str | None:
    """The first line of an error that means "out of memory"; None if the error means something else.

    Only torch's caching allocator of a device has a class for this error. The CPU allocator and the libraries raise a
    RuntimeError, which is recognized by its message. The errors that `error` was raised from are searched too: when
    memory runs out while a step is recorded, the end of the recording raises another error.

    Args:
        handled: an error that was being handled when the work began; the search ends before it.
    """
    found: BaseException | None = error
    while found is not None and found is not handled:
        first_line = str(found).partition("\n")[0]
        if isinstance(found, (torch.OutOfMemoryError, MemoryError)) or _TEXT.search(str(found)):
            return first_line or type(found).__name__
        found = found.__cause__ or found.__context__
    return None
