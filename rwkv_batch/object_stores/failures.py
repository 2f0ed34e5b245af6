"""What went wrong at an object store: an error number, the store's reason in a line, and advice."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from .urls import split_url

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or the identity of this machine",
}
"""Scheme → where credentials come from."""
PLACES = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT and the network",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
}
"""Scheme → the variables that say where the store is."""
DENIED = re.compile(
    r"\b(401|403) |AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|credential|169\.254\.|metadata\.google|"
    "computeMetadata",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(
    r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|incorrectly configured region"
)
"""What a store, or obstore, says of a request to another region than the bucket's."""
NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist", re.IGNORECASE)
UNREADABLE_KEY = re.compile(r"object with invalid path")
"""What obstore says of a folder that has an object whose key it cannot name, such as a//b or a/../b."""


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status with which the store answered; None where it did not answer."""
    match = re.search(r"status code: (\d{3})", str(error))
    return None if match is None else int(match[1])


def is_final(error: Exception) -> bool:
    """Whether another try would fail in the same way."""
    if isinstance(error, (FileNotFoundError, ValueError, TypeError, NotImplementedError)):
        return True
    if ELSEWHERE.search(str(error)) or UNREADABLE_KEY.search(str(error)):
        return True
    status = status_of(error)
    if status in (408, 409, 425, 429):
        return False
    return (status is not None and 300 <= status < 500) or status == 501 or "NotSupported" in type(error).__name__


class Failure(NamedTuple):
    """What went wrong.

    Args:
        code: an error number, never that of a damaged file: a store that cannot be reached says nothing about the
            content of an object.
        reason: the store's own words in a line, or those of the network. It has no query of an address: a query may be
            a credential.
        advice: what to do.
    """

    code: int
    reason: str
    advice: str


def failure(url: str, error: Exception) -> Failure:
    """Returns what went wrong in a request.

    Args:
        url: of the object or the folder.
    """
    scheme = split_url(url).scheme
    text = str(error)
    if NO_BUCKET.search(text):
        code, advice = errno.ENOTDIR, "make the bucket first, or name another one"
    elif UNREADABLE_KEY.search(text):
        code, advice = errno.EREMOTEIO, "remove that object, which another program has written, or use another folder"
    elif ELSEWHERE.search(text):
        code, advice = errno.EHOSTUNREACH, f"check {PLACES[scheme]}"
    elif DENIED.search(text):
        code, advice = errno.EACCES, f"give this user the rights, and check {CREDENTIALS[scheme]}"
    elif status_of(error) == 412:
        code, advice = errno.ESTALE, "another process has replaced it meanwhile; start the same command again"
    elif status_of(error) is None:
        code, advice = errno.EHOSTUNREACH, f"check {PLACES[scheme]}"
    else:
        code, advice = errno.EREMOTEIO, "the store refuses the request: see the log of the store"
    return Failure(code, _reason(text), advice)


def _reason(text: str) -> str:
    """Returns the store's own words in a line, or those of the network, without queries of addresses."""
    text, _, details = text.partition("\n\nDebug source")
    code, message = re.search(r"<Code>([^<]*)</Code>", text), re.search(r"<Message>([^<]*)</Message>", text)
    if code or message:
        return ": ".join(one[1].strip().split("\n")[0] for one in (code, message) if one)
    reason = " ".join(text.rsplit(" - ", 1)[-1].split())
    causes = re.findall(r'message: "([^"\\]+)"', details)
    return re.sub(r"\?\S+", "?…", f"{reason} ({causes[-1]})" if causes else reason)[:300]
