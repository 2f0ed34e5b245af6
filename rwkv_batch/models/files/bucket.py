"""The objects of a model in an object store: which ones there are, and their bytes."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any, NamedTuple, TypeVar

from ...object_stores.client import bare, get_range, open_store, require_obstore
from ...object_stores.failures import failure, is_final, status_of
from ...object_stores.urls import split_url

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FILES_OF_A_FOLDER = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""The files of a model in Hugging Face layout, by name."""
PIECE_BYTES = 32 << 20
PIECES_AT_ONCE = 8
TRIES = 6
"""Of a request, with waits between them that double, from `FIRST_WAIT`, and are drawn at random."""
FIRST_WAIT = 0.5
"""Seconds."""


class StoredFile(NamedTuple):
    """A version of an object.

    Args:
        key: in the bucket.
        name: of the file.
        size: in bytes.
        e_tag: the store's name of this version. None where a store has none.
    """

    key: str
    name: str
    size: int
    e_tag: str | None


class Contents(NamedTuple):
    """What an address stands for.

    Args:
        is_folder: the address is that of a folder, and of no object.
        files: in the order of their names.
    """

    is_folder: bool
    files: list[StoredFile]


class ModelBucket:
    """Reads the objects of one address. A request that fails in passing is made again.

    Errors are those of obstore; a missing object is a FileNotFoundError.

    Args:
        address: of an object or a folder, as `checked_url` returns it.
        tries: of each request.

    Raises:
        MissingExtraError: obstore is missing.
    """

    def __init__(self, address: str, tries: int = TRIES) -> None:
        self._obstore = require_obstore("a model in an object store")
        self._address = address
        self._tries = tries
        self._key = split_url(address).key
        self._store = open_store(address.removesuffix(f"/{self._key}"))

    def contents(self) -> Contents:
        """Looks up what the address stands for. A folder counts only with the files of a model.

        Raises:
            FileNotFoundError: there is no such object, and no such file in a folder of this name.
        """
        with suppress(FileNotFoundError):
            found = self._retried(lambda: self._obstore.head(self._store, self._key))
            if found["size"]:  # an empty object of this name may stand for the folder
                return Contents(is_folder=False, files=[_stored_file(found)])
        listed = self._retried(lambda: self._obstore.list_with_delimiter(self._store, self._key))["objects"]
        files = sorted((_stored_file(item) for item in listed), key=lambda file: file.name)
        files = [file for file in files if any(fnmatch(file.name, pattern) for pattern in FILES_OF_A_FOLDER)]
        if not files:
            raise FileNotFoundError(self._address)
        return Contents(is_folder=True, files=files)

    def pieces(self, file: StoredFile) -> Iterator[bytes]:
        """Yields the bytes of one version of an object. Several pieces are fetched at the same time."""
        pending: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
            for start in range(0, file.size, PIECE_BYTES):
                pending.append(pool.submit(self._piece, file, start, min(start + PIECE_BYTES, file.size)))
                if len(pending) == PIECES_AT_ONCE:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _piece(self, file: StoredFile, start: int, stop: int) -> bytes:
        return self._retried(lambda: get_range(self._store, file.key, start, stop, file.e_tag)[1])

    def _retried(self, act: Callable[[], Result]) -> Result:
        for left in reversed(range(self._tries)):
            try:
                return act()
            except Exception as error:
                if is_final(error) or not left:
                    raise
                logger.info("%s: %s; it is tried again", self._address, failure(self._address, error).reason)
                longest = FIRST_WAIT * 2 ** (self._tries - 1 - left)
                time.sleep(random.uniform(longest / 2, longest))
        raise AssertionError("the last try raises")


def is_out_of_reach(error: Exception) -> bool:
    """Whether a request failed without an answer about the object: the network, or a store that is not well."""
    if isinstance(error, (FileNotFoundError, ValueError, TypeError)):
        return False
    status = status_of(error)
    return status is None or status in (408, 429) or status >= 500


def _stored_file(item: Any) -> StoredFile:
    key = item["path"]
    e_tag = bare(item["e_tag"])
    return StoredFile(key, key.rsplit("/", 1)[-1], item["size"], f'"{e_tag}"' if e_tag else None)
