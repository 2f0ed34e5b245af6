"""The words that wrappers put in front of tensor names, such as `module.` and `rwkv7.`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import CheckpointError

_EMBEDDINGS = ("emb.weight", "embeddings.weight", "embed_tokens.weight")
"""The names of the embedding in all layouts, without a prefix."""


def without_prefix(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Stored name → name without the words that it shares with the prefix of the embedding.

    Wrappers put one prefix in front of all names, as in `_forward_module.emb.weight`. A Hugging Face folder puts it in
    front of all but the head: `rwkv7.emb.weight` beside `head.weight`. Names stay as they are where there is no
    embedding.

    Raises:
        CheckpointError: two tensors have the same name without it.
    """
    names = list(names)
    prefix = _prefix(names)
    short = {name: _without(prefix, name) for name in names}
    if len(set(short.values())) < len(short):
        seen: dict[str, str] = {}
        first, second = next((seen[one], name) for name, one in short.items() if seen.setdefault(one, name) != name)
        raise CheckpointError(
            f"{path}: {first!r} and {second!r} name the same tensor; expected one of them, take the other out"
        )
    return short


def _prefix(names: Iterable[str]) -> list[str]:
    """The words in front of the embedding; of several embeddings, that with the fewest. Layers are no prefix."""
    found = [
        name.split(".")[: -len(embedding.split("."))]
        for name in names
        for embedding in _EMBEDDINGS
        if name == embedding or name.endswith("." + embedding)
    ]
    return min((words for words in found if not any(map(str.isdigit, words))), key=len, default=[])


def _without(prefix: list[str], name: str) -> str:
    words = name.split(".")
    shared = 0
    while shared < min(len(prefix), len(words) - 1) and words[shared] == prefix[shared]:
        shared += 1
    return ".".join(words[shared:])
