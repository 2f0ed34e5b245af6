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
WHOLE = "non-partial response"
"""What obstore says where a store sends all of an object. Some do where the range that was asked for covers it."""


class ReplacedError(Exception):
    """An object was replaced while it was read."""


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


def get_range(store: Any, key: str, start: int, stop: int, e_tag: str | None = None) -> tuple[Any, bytes]:
    """Returns what the store says about an object, and bytes of it. Fewer come only from its end.

    Args:
        e_tag: of the version that is read; another one is refused, also by a store that ignores the condition.
    """
    obstore = require_obstore("an object store")
    options: dict[str, Any] = {"if_match": e_tag} if e_tag else {}
    try:
        response = obstore.get(store, key, options={"range": (start, stop), **options})
    except Exception as error:
        if WHOLE not in str(error):
            raise
        response = obstore.get(store, key, options=options)
        data = bytes(response.bytes())[start:stop]
    else:
        data = bytes(response.bytes())
    if e_tag and bare(response.meta["e_tag"]) != bare(e_tag):
        raise ReplacedError("the store has sent another version of the object (status code: 412)")
    return response.meta, data


def bare(e_tag: str | None) -> str:
    """An ETag without its quotes: some stores leave them out where they list objects."""
    return (e_tag or "").removeprefix("W/").strip('"')


def open_store(url: str) -> Any:
    """Returns the client of a bucket, given its address. No request is made."""
    return require_obstore("an object store").store.from_url(url, client_options=CLIENT, retry_config=RETRIES)
