"""Models on the Hugging Face hub, by address: hf://owner/repo@revision or hf://owner/repo/file@revision."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ...errors import CheckpointError, ConfigurationError, MissingExtraError

SCHEME = "hf://"

_ADDRESS = re.compile(
    r"hf://(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)(?:/(?P<file>[^@/][^@]*?))?/?(?:@(?P<revision>[^@]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES_OF_A_FOLDER = ("*.safetensors", "*.json", "*.txt", "*.jinja")
_FILE = re.compile(r"\.(pth|pt|bin|safetensors|st|gguf)$", re.IGNORECASE)
"""The suffix of an address that names a file, not a folder of a repository."""

logger = logging.getLogger(__name__)


def download(address: str) -> Path:
    """Fetch a file, a repository or a folder of one into the hub's local cache, unless it is there; return its path.

    Of a repository or folder, the files of a model in Hugging Face layout are fetched. Logs a warning if the revision
    is not a full commit, because it may then name other files in a later run.

    Raises:
        ConfigurationError: `address` is malformed.
        MissingExtraError: the package `huggingface_hub` is not installed.
        CheckpointError: no such repository, file or revision, no access to it, or no connection.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigurationError(
            f"model: got {address!a}, expected hf://owner/repo/file, or hf://owner/repo for a repository in Hugging "
            "Face layout; then perhaps @revision"
        )
    revision = match["revision"] or "main"
    if not _COMMIT.fullmatch(revision):
        logger.warning("%s: revision %r can change; name a commit (40 hexadecimal digits) to pin it", address, revision)
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError as error:
        raise MissingExtraError("a model on the Hugging Face hub", "huggingface_hub", "hub") from error
    repository, inner = f"{match['owner']}/{match['repo']}", match["file"] or ""
    try:
        if _FILE.search(inner):
            return Path(hf_hub_download(repository, inner, revision=revision))
        patterns = [f"{inner}/{pattern}" if inner else pattern for pattern in _FILES_OF_A_FOLDER]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns)) / inner
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{address}: can't be fetched ({error}); check the address and the network, log in with `hf auth login` "
            "for a private repository, or name a file that you have downloaded"
        ) from error
