"""What went wrong at an object store, as an error with a sentence: the address, the store's reason, and advice."""

from __future__ import annotations

from ...object_stores.failures import failure
from .storage import StorageError


def storage_error(url: str, verb: str, error: Exception) -> StorageError:
    """Returns the error of a request as a StorageError.

    Args:
        url: of the object or the folder.
        verb: what cannot be done, such as "read".
    """
    code, reason, advice = failure(url, error)
    return StorageError(url, verb, OSError(code, reason), advice)
