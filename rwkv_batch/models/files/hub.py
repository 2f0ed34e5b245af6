"""Model files on the Hugging Face hub, by address: hf://owner/repo/file@revision."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ...errors import CheckpointError, ConfigurationError, MissingExtraError

SCHEME = "hf://"

_ADDRESS = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def download(address: str) -> Path:
    """Fetch a file into the hub's local cache, unless it is there, and return its path.

    Logs a warning if the revision is not a full commit, because it may then name other files in a later run.

    Raises:
        ConfigurationError: `address` is malformed.
        MissingExtraError: the package `huggingface_hub` is not installed.
        CheckpointError: no such repository, file or revision, no access to it, or no connection.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigurationError(
            f"model: got {address!r}, expected hf://owner/repo/file or hf://owner/repo/file@revision"
        )
    revision = match["revision"] or "main"
    if not _COMMIT.fullmatch(revision):
        logger.warning("%s: revision %r can change; name a commit (40 hexadecimal digits) to pin it", address, revision)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingExtraError("a model on the Hugging Face hub", "huggingface_hub", "hub") from error
    try:
        return Path(hf_hub_download(f"{match['owner']}/{match['repo']}", match["file"], revision=revision))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{address}: can't be fetched: {error}") from error
