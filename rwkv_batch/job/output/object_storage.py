"""The storage of a job's files in an object store: an object appears whole or not at all.

Stores of S3's interface, Google Cloud Storage and Azure, through obstore. Where the store is and who may use it comes
from the environment's usual variables, which obstore reads.
"""

from __future__ import annotations

import io
import logging
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

from ...object_stores.client import get_range, open_store, require_obstore
from ...object_stores.failures import is_final, status_of
from ...object_stores.urls import split_url
from .object_errors import storage_error
from .storage import Appender, Data, StorageError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ONE_PUT_BYTES = 32 << 20
"""A larger object is written in pieces: one that fails is sent again, and not the whole object."""
PIECE_BYTES = 16 << 20
PIECES_AT_ONCE = 4
FIRST_BYTES = 1 << 20
"""What is read when an object is opened, and then at least at once."""
TRIES = 10
"""Of a request, with waits between them that grow from `FIRST_WAIT` to `LONGEST_WAIT` and are drawn at random."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
"""Seconds."""
LINES_SECONDS = 15.0
"""Lines that are not urgent wait so long, or a twentieth of the run's time so far."""
WRITER = "writer"
"""Key of an object's metadata: a random number of the request that created the object."""
PROBE = "_probe-"
"""How names of files begin with which a store is tried out. Readers of folders of Parquet files skip such names."""


class ObjectStorage:
    """Object stores, by the addresses of their objects. Several threads may use it.

    A failed request is sent again for about two minutes. Names that this object has written are listed, listed by the
    store or not.

    Raises:
        MissingExtraError: obstore is missing.
    """

    def __init__(self) -> None:
        self._obstore = require_obstore("an object store")
        self._stores: dict[str, Any] = {}
        self._written: defaultdict[str, set[str]] = defaultdict(set)
        self._creates = self._replaces = True
        self._tries = TRIES

    def list(self, folder: str) -> list[str]:
        found = self._request("read", folder, self._obstore.list_with_delimiter)
        prefix = f"{split_url(folder).key}/".lstrip("/")
        paths = [*(item["path"] for item in found["objects"]), *found["common_prefixes"]]
        # Consoles make an empty object for the folder itself. It is listed under the folder's own path.
        names = {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
        missing = [name for name in self._written[folder] - names if self._is_there(os.path.join(folder, name))]
        return sorted([*names, *missing])

    def open(self, path: str) -> BinaryIO:
        try:
            found, first = self._read(path, 0, FIRST_BYTES)
        except StorageError as error:
            if not _is_empty(error.__cause__):
                raise
            return io.BytesIO()
        if found["size"] <= len(first):
            return io.BytesIO(first)
        return io.BufferedReader(_ObjectFile(self, path, found["size"], found["e_tag"]), FIRST_BYTES)

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        view = memoryview(data).cast("B")
        if exclusive:
            if not self._create(path, view):
                return False
        else:
            self._put(path, view)
        folder, name = os.path.split(path)
        self._written[folder].add(name)
        return True

    def replace(self, path: str, data: bytes, old: bytes) -> bool:
        for wait in self._waits():
            try:
                found, tags = self._request("read", path, content_and_tags)
                if found != old:
                    return found == data  # a request that reported a failure may have written it
                mode = {"mode": tags} if self._replaces and tags else {}
                self._call("written", path, self._obstore.put, data, use_multipart=False, **mode)
                return True
            except FileNotFoundError:
                return False
            except StorageError:  # the object cannot be read, after many tries
                raise
            except Exception as error:
                if _is_taken(error) and wait is not None:
                    continue  # what is there now says who has written it
                if status_of(error) == 501 or isinstance(error, NotImplementedError):
                    self._replaces = False
                elif is_final(error):
                    raise storage_error(path, "written", error) from error
                self._wait(wait, "written", path, error)
        raise AssertionError("the last try raises")

    def remove(self, path: str) -> None:
        folder, name = os.path.split(path)
        self._written[folder].discard(name)
        with suppress(FileNotFoundError):
            self._request("removed", path, self._obstore.delete)

    def move(self, path: str, target: str) -> None:
        """Copies an object and removes it: no store has a move in one step. A kill between leaves both."""
        if split_url(path)[:2] == split_url(target)[:2]:
            self._request("moved", path, self._obstore.copy, split_url(target).key)
        else:
            with self.open(path) as file:
                self.atomic_write(target, file.read())
        self.remove(path)

    def appender(self, path: str) -> Appender:
        return NumberedObjects(self, path)

    def sweep(self) -> int:
        """Nothing is left over: what was not written whole is no object."""
        return 0

    def reach(self, folder: str) -> None:
        """Lists a folder with few tries, so that a wrong address or missing rights are told at once.

        Raises:
            StorageError: the folder cannot be listed.
        """
        self._tries, tries = 2, self._tries
        try:
            self.list(folder)
        finally:
            self._tries = tries

    def probe(self, folder: str) -> bool:
        """Writes a file twice into a folder under the condition that it is not there, and removes it.

        Returns:
            False where the store does not honour the condition. `atomic_write` looks first whether a file is there from
            then on: of two processes that create it at the same moment, each may be told that it did.

        Raises:
            StorageError: the store cannot be written to.
        """
        path = os.path.join(folder, f"{PROBE}{os.urandom(8).hex()}")
        try:
            self._create(path, b"first")
            self._creates = self._creates and not self._create(path, b"second")
        finally:
            self.remove(path)
        if not self._creates:
            logger.warning(
                "%s: this store does not create an object under the condition that it is not there (If-None-Match); "
                "the job goes on, but start one process at a time on it: of two that start at the same moment, "
                "neither may be refused",
                folder,
            )
        return self._creates

    def _put(self, path: str, data: memoryview) -> None:
        is_large = len(data) > ONE_PUT_BYTES
        pieces: dict[str, Any] = {"chunk_size": PIECE_BYTES, "max_concurrency": PIECES_AT_ONCE} if is_large else {}
        self._request("written", path, self._obstore.put, data, use_multipart=is_large, **pieces)

    def _create(self, path: str, data: Data) -> bool:
        """Writes an object that is not there. Returns False where it is there.

        A request that failed, or that the network repeats, may have written the object before the store says that it is
        there. The object's metadata tell who has written it.
        """
        writer = os.urandom(16).hex()
        named: dict[str, Any] = {"mode": "create", "use_multipart": False, "attributes": {WRITER: writer}}
        for wait in self._waits():
            try:
                if not self._creates:
                    return self._create_unconditionally(path, data)
                self._call("written", path, self._obstore.put, data, **named)
                return True
            except Exception as error:
                if _is_taken(error):
                    with suppress(FileNotFoundError):
                        return self._writer_of(path) == writer
                elif status_of(error) == 501 or isinstance(error, NotImplementedError):
                    self._creates = False
                elif is_final(error):
                    raise storage_error(path, "written", error) from error
                self._wait(wait, "written", path, error)
        raise AssertionError("the last try raises")

    def _writer_of(self, path: str) -> str | None:
        """Returns who created an object, or None if that was no request of `_create`."""

        def get(store: Any, key: str) -> str | None:
            found: str | None = self._obstore.get(store, key).attributes.get(WRITER)
            return found

        return self._request("read", path, get)

    def _create_unconditionally(self, path: str, data: Data) -> bool:
        if self._is_there(path):
            return False
        self._put(path, memoryview(data).cast("B"))
        return True

    def _read(self, path: str, start: int, stop: int, e_tag: str | None = None) -> tuple[Any, bytes]:
        """Returns what the store says about an object, and bytes of it. Fewer come only from its end.

        Args:
            e_tag: of the version that is read; an object that was replaced is refused.
        """
        return self._request("read", path, get_range, start, stop, e_tag)

    def _is_there(self, path: str) -> bool:
        try:
            self._request("read", path, self._obstore.head)
        except FileNotFoundError:
            return False
        return True

    def _request(self, verb: str, path: str, act: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Makes a request, again where it fails in passing.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: everything else.
        """
        for wait in self._waits():
            try:
                return self._call(verb, path, act, *arguments, **options)
            except FileNotFoundError as error:
                if verb == "written" or "NoSuchBucket" in str(error):
                    raise storage_error(path, verb, error) from error
                raise FileNotFoundError(2, "no such object", path) from error
            except Exception as error:
                if is_final(error):
                    raise storage_error(path, verb, error) from error
                self._wait(wait, verb, path, error)
        raise AssertionError("the last try raises")

    def _call(self, verb: str, path: str, act: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Makes a request. Every change of a store goes through here."""
        address = split_url(path)
        return act(self._store(address.scheme, address.bucket), address.key, *arguments, **options)

    def _store(self, scheme: str, bucket: str) -> Any:
        """Returns the client of a bucket."""
        url = f"{scheme}://{bucket}"
        if url not in self._stores:
            self._stores[url] = open_store(url)
        return self._stores[url]

    def _waits(self) -> Iterator[float | None]:
        """Yields the longest wait after each try, in seconds; None after the last one."""
        yield from (min(FIRST_WAIT * 2**index, LONGEST_WAIT) for index in range(self._tries - 1))
        yield None

    def _wait(self, longest: float | None, verb: str, path: str, error: Exception) -> None:
        """Waits before the next try, or raises where this was the last one."""
        told = storage_error(path, verb, error)
        if longest is None:
            raise told from error
        logger.info("%s; it is tried again", told)
        time.sleep(random.uniform(longest / 2, longest))


class _ObjectFile(io.RawIOBase):
    """A version of an object, of which ranges are read.

    Args:
        storage: reads.
        size: in bytes.
        e_tag: names the version.
    """

    def __init__(self, storage: ObjectStorage, path: str, size: int, e_tag: str | None) -> None:
        self._storage, self._path, self._size, self._e_tag = storage, path, size, e_tag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"got a position of {start + offset}, expected one from 0")
        self._position = start + offset
        return self._position

    def readinto(self, target: Any) -> int:
        data = self._up_to(self._position + len(target))
        target[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._up_to(self._size)

    def _up_to(self, stop: int) -> bytes:
        """Reads from the position to `stop`, or to the end of the object."""
        stop = min(stop, self._size)
        if stop <= self._position:
            return b""
        _, data = self._storage._read(self._path, self._position, stop, self._e_tag)
        self._position += len(data)
        return data


class NumberedObjects:
    """Lines that are appended to a file on a disk, as objects: log.jsonl becomes log.RUN.000000.jsonl, and so on.

    Args:
        storage: writes the objects.
        path: of the file.
    """

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage = storage
        stem, self._extension = os.path.splitext(path)
        self._stem = f"{stem}.{time.time_ns():x}{os.urandom(4).hex()}"
        self._pending: list[bytes] = []
        self._count = 0
        self._started = self._written_at = time.monotonic()

    def __call__(self, line: str, *, is_urgent: bool) -> None:
        """Appends a line.

        Args:
            is_urgent: it is written before this returns, with all lines before it. Other lines may wait for some time,
                which grows with the run so that the number of objects does not.
        """
        self._pending.append(line.encode(errors="backslashreplace"))
        now = time.monotonic()
        if not is_urgent and now - self._written_at < max(LINES_SECONDS, (now - self._started) / 20):
            return
        self._storage.atomic_write(f"{self._stem}.{self._count:06d}{self._extension}", b"".join(self._pending))
        self._pending.clear()
        self._count += 1
        self._written_at = now


def _is_empty(error: BaseException | None) -> bool:
    """Whether the first bytes of an object were asked for, and it has none."""
    return isinstance(error, Exception) and (status_of(error) == 416 or "object was only 0 bytes long" in str(error))


def content_and_tags(store: Any, key: str) -> tuple[bytes, dict[str, str]]:
    """Returns an object's content, and what names its version in a condition of a PUT."""
    import obstore

    answer = obstore.get(store, key)
    meta: Mapping[str, Any] = answer.meta
    return bytes(answer.bytes()), {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def _is_taken(error: Exception) -> bool:
    """Whether a store says that the condition of a PUT is not met, or that another request writes at the moment."""
    return type(error).__name__ in ("AlreadyExistsError", "PreconditionError") or status_of(error) in (409, 412)
