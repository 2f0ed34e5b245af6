"""Clients of object stores, through obstore. Where a store is and who may use it comes from the environment's usual
variables, which obstore reads.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ..errors import MissingExtraError

CLIENT = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "60s", "timeout": "300s"}
"""Options of the HTTP client. HTTP without TLS is used where an endpoint's address says so, and nowhere else."""
RETRIES: dict[str, Any] = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}
"""Retries inside a request: of each piece of an object, and of the rest of a body whose connection broke."""


def require_obstore(purpose: str) -> Any:
    """Returns the module obstore.

    Args:
        purpose: what needs it, for the error.

    Raises:
        MissingExtraError: obstore is missing.
    """
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise MissingExtraError(purpose, "obstore", "object-store") from error
    return obstore


def open_store(url: str) -> Any:
    """Returns the client of a bucket, given its address. No request is made."""
    return require_obstore("an object store").store.from_url(url, client_options=CLIENT, retry_config=RETRIES)
