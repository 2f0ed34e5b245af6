"""Model files in object stores, by address, and their copies on this machine.

An address has a folder below `models` in the cache folder, with a copy of each version that was fetched: a folder with
the files, and a record beside it with their sizes and SHA-256. A copy without a record is not whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...checksum import sha256_of
from ...errors import CheckpointError
from ...kernel_support.cache import one_at_a_time, private_folder
from ...object_stores.failures import failure
from ...object_stores.urls import checked_url, is_url, split_url
from .bucket import FILES_OF_A_FOLDER, TRIES, Contents, ModelBucket, StoredFile, is_out_of_reach
from .hub import SCHEME as HUB

logger = logging.getLogger(__name__)

TRIES_WITH_A_COPY = 2
"""Of the first request, where there is a copy that serves without the store."""


def is_remote(path: str | Path) -> bool:
    """Whether this is an address in an object store. Addresses of the Hugging Face hub are none."""
    return is_url(str(path)) and not str(path).startswith(HUB)


def download(address: str, setting: str = "model") -> Path:
    """Returns the path of a copy of an object, or of a folder in Hugging Face layout. Fetches it where there is none.

    Of several processes that start together, one fetches. Where the store is out of reach, the copy that was fetched
    last serves, with a warning.

    Args:
        setting: what has named the address, for errors.

    Raises:
        ConfigurationError: the address is malformed.
        MissingExtraError: the package obstore is missing.
        CheckpointError: no such object, no right to read it, no connection, or no room for it.
    """
    address = checked_url(address, setting, "file or folder", "model.pth")
    try:
        copies = _Copies(address, private_folder("models"))
        return copies.path_of(_fetched(address, copies))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{address}: there is neither such an object nor a folder with {', '.join(FILES_OF_A_FOLDER)}; "
            "check the address",
            setting=setting,
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{address}: cannot be kept in the cache folder ({error}); make room, or name another folder in "
            "XDG_CACHE_HOME",
            setting=setting,
        ) from error
    except _StoreError as error:
        raise CheckpointError(f"{address}: {error}", setting=setting) from error


class _StoreError(Exception):
    """The store refuses, or does not answer."""


def _fetched(address: str, copies: _Copies) -> dict[str, Any]:
    """Returns the record of a whole copy of the version that is in the store."""
    try:
        contents = ModelBucket(address, TRIES_WITH_A_COPY if copies.records() else TRIES).contents()
    except Exception as error:
        if isinstance(error, (FileNotFoundError, ImportError)):
            raise
        kept = copies.latest() if is_out_of_reach(error) else None
        if kept is None:
            raise _cannot_be_fetched(address, error) from error
        reason = failure(address, error).reason
        logger.warning("%s: the store is out of reach (%s); %s is used", address, reason, copies.path_of(kept))
        return kept
    record = copies.whole(contents)
    if record is not None:
        return record
    with one_at_a_time(copies.folder / "lock", f"fetches {address}", math.inf):
        record = copies.whole(contents)  # another process has fetched it meanwhile
        if record is not None:
            return record
        try:
            return copies.fetch(contents, ModelBucket(address))
        except OSError:
            raise
        except Exception as error:
            raise _cannot_be_fetched(address, error) from error


def _cannot_be_fetched(address: str, error: Exception) -> _StoreError:
    _, reason, advice = failure(address, error)
    return _StoreError(f"cannot be fetched: {reason}; {advice}, or name a file that you have downloaded")


class _Copies:
    """The copies of one address.

    Args:
        root: a folder of this user alone.
    """

    def __init__(self, address: str, root: Path) -> None:
        self._address = address
        self.folder = root / f"{split_url(address).key.rsplit('/', 1)[-1][:40]}-{_short(address)}"
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def path_of(self, record: dict[str, Any]) -> Path:
        """The path of a copy: of its folder, or of its only file."""
        folder = self.folder / record["copy"]
        return folder if record["is_folder"] else folder / next(iter(record["files"]))

    def records(self) -> list[Path]:
        """The files of all records, the latest first."""
        return sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def latest(self) -> dict[str, Any] | None:
        """Returns the record of the whole copy that was fetched last."""
        return next((record for path in self.records() if (record := self._whole(path.stem)) is not None), None)

    def whole(self, contents: Contents) -> dict[str, Any] | None:
        """Returns the record of the copy of this version, if it is whole."""
        return self._whole(_version(contents))

    def _whole(self, name: str) -> dict[str, Any] | None:
        """Returns the record of a copy, if its files are those that were fetched.

        A file is read only where it has another time than it was left with.
        """
        try:
            record: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
            fault = next(filter(None, (self._fault(name, *item) for item in record["files"].items())), None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = str(error)
        if fault is not None:
            logger.warning("%s: the copy %s is damaged (%s)", self._address, self.folder / name, fault)
            return None
        return record

    def _fault(self, name: str, file: str, expected: dict[str, Any]) -> str | None:
        path = self.folder / name / file
        found = path.stat()
        if found.st_size != expected["size"]:
            return f"{file} has {found.st_size:,} bytes, expected {expected['size']:,}"
        if found.st_mtime_ns != expected["modified_ns"]:
            with path.open("rb") as opened:
                if (checksum := sha256_of(opened)) != expected["sha256"]:
                    return f"{file} has SHA-256 {checksum}, expected {expected['sha256']}"
            with suppress(OSError):  # so that it is not read again
                os.utime(path, ns=(expected["modified_ns"], expected["modified_ns"]))
        return None

    def fetch(self, contents: Contents, bucket: ModelBucket) -> dict[str, Any]:
        """Fetches this version. The caller holds the lock. The copy appears whole, its record after it.

        Raises:
            OSError: there is no room, or the folder cannot be written to.
            Exception: of obstore, or RuntimeError: the store has sent another number of bytes than it had told.
        """
        for left_over in self.folder.glob("*.tmp"):  # of processes that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        name = _version(contents)
        total = sum(file.size for file in contents.files)
        free = shutil.disk_usage(self.folder).free
        if free < total:
            raise OSError(f"{self.folder} has room for {free:,} bytes, expected {total:,}")
        logger.info("%s: fetching %s bytes into %s", self._address, f"{total:,}", self.folder / name)
        temporary = self.folder / f"{name}.{uuid.uuid4().hex}.tmp"
        temporary.mkdir(mode=0o700)
        try:
            files = {file.name: self._written(file, bucket, temporary / file.name) for file in contents.files}
            shutil.rmtree(self.folder / name, ignore_errors=True)  # a copy that is not whole
            temporary.rename(self.folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        record = {"address": self._address, "copy": name, "is_folder": contents.is_folder, "files": files}
        half = self.folder / f"{name}.json.{uuid.uuid4().hex}"
        half.write_text(json.dumps(record, indent=1))
        half.replace(self.folder / f"{name}.json")
        return record

    def _written(self, file: StoredFile, bucket: ModelBucket, path: Path) -> dict[str, Any]:
        """Writes an object's bytes to a file durably. Returns its entry in the record."""
        digest, size = hashlib.sha256(), 0
        with path.open("xb") as opened:
            for piece in bucket.pieces(file):
                opened.write(piece)
                digest.update(piece)
                size += len(piece)
            opened.flush()
            os.fsync(opened.fileno())
        if size != file.size:
            raise RuntimeError(f"the store has sent {size:,} bytes of {file.name}, expected {file.size:,}")
        modified = path.stat().st_mtime_ns
        return {"size": size, "e_tag": file.e_tag, "sha256": digest.hexdigest(), "modified_ns": modified}


def _version(contents: Contents) -> str:
    """A name for what is in the store now: another one where an object is replaced."""
    return _short(json.dumps([(file.name, file.size, file.e_tag) for file in contents.files]))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
