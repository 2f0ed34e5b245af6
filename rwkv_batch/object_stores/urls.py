"""Addresses of folders in object stores, such as s3://bucket/eval."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import ConfigurationError, one_of

SCHEMES = {"s3": "Amazon S3 and stores with its interface", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
"""Scheme → the stores that it means."""
LOCAL = "file://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What stores take as the name of a bucket, and more."""
LONGEST_KEY = 900
"""Bytes of a folder's key in its bucket. Stores take keys of 1,024 bytes, and the files of a job need the rest."""


class Address(NamedTuple):
    """An object, or a folder of objects.

    Args:
        scheme: a key of `SCHEMES`.
        bucket: of S3 and Google Cloud Storage; the container of Azure.
        key: the name in the bucket.
    """

    scheme: str
    bucket: str
    key: str


def is_url(path: str) -> bool:
    """Whether a path is an address in an object store, and no path on a local disk."""
    return "://" in path and not path.startswith(LOCAL)


def lacks_slashes(path: str) -> bool:
    """Whether a path begins like an address, but without its colon or two slashes: s3:/bucket/eval, s3//bucket/eval."""
    scheme, colon, rest = path.partition(":")
    if not colon:
        scheme, colon, rest = path.partition("//")
        return bool(colon) and scheme.lower() in (*SCHEMES, "file")
    return scheme.lower() in (*SCHEMES, "file") and not rest.startswith("//")


def split_url(url: str) -> Address:
    """Returns the pieces of an address."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return Address(scheme, bucket, key)


def checked_url(url: str, setting: str, thing: str = "folder", example: str = "eval") -> str:
    """Returns the address of a folder, or of another thing, without slashes at its end.

    Args:
        setting: where the address stands, for the error.
        thing: what it is to be, with an `example` of a name, for the error.

    Raises:
        ConfigurationError: it is no address of such a thing in a bucket of a known store.
    """
    address = split_url(url.rstrip("/"))
    if "@" in address.bucket:  # the message leaves the address out: it may have a password
        raise ConfigurationError(
            "got an address with '@', expected credentials in the environment alone", setting=setting
        )
    problem = None
    if address.scheme not in SCHEMES:
        known = one_of([f"{scheme}://" for scheme in SCHEMES])
        problem = f"the scheme {address.scheme}:// is not served; expected {known}, or a {thing} on a local disk"
    elif not address.bucket or not address.key:
        problem = f"expected a {thing} in a bucket, such as {address.scheme}://bucket/{example}"
    elif not BUCKET.fullmatch(address.bucket):
        problem = "expected a bucket's name of letters, digits, '.', '-' and '_'"
    elif any(piece in ("", ".", "..") for piece in address.key.split("/")):
        problem = "expected no empty folder name and no . or .. in it"
    elif match := re.search(r"[\x00-\x1f\x7f?#\\]", address.key):
        problem = f"expected an address without {match[0]!r}"
    elif len(address.key.encode(errors="replace")) > LONGEST_KEY:
        problem = f"expected at most {LONGEST_KEY} bytes after the bucket"
    if problem:
        raise ConfigurationError(f"got {url!r}: {problem}", setting=setting)
    return url.rstrip("/")
