"""How much room a folder takes, on a disk or in an object store."""

from __future__ import annotations

import os
from typing import NamedTuple

from ...object_stores.client import open_store, require_obstore
from ...object_stores.urls import is_url, split_url


class Size(NamedTuple):
    """The files below a folder, and their bytes."""

    files: int
    bytes: int


def size_below(folder: str) -> Size | None:
    """Adds up the files below a folder, without opening any. A file that goes away meanwhile does not count.

    Args:
        folder: an absolute path, or an address in an object store.

    Returns:
        None where the folder cannot be listed.
    """
    return _size_in_store(folder) if is_url(folder) else _size_on_disk(folder)


def _size_on_disk(folder: str) -> Size:
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(place, name)).st_size)
            except OSError:
                continue
    return Size(len(sizes), sum(sizes))


def _size_in_store(folder: str) -> Size | None:
    address = split_url(folder)
    try:
        store = open_store(f"{address.scheme}://{address.bucket}")
        listed = require_obstore("an object store").list(store, f"{address.key.rstrip('/')}/")
        sizes = [item["size"] for items in listed for item in items]
    except Exception:  # obstore has classes of its own for each store
        return None
    return Size(len(sizes), sum(sizes))
