"""A small vocabulary whose tokens merge over borders, and what its tests compare with."""

from __future__ import annotations

from typing import Any

from oracle import Oracle

MERGES = ["\n\n", "==", "foobar", "://", " yes", "ye", "é!"]
VOCAB = 257 + len(MERGES)


def encode(text: str) -> list[int]:
    """Encodes by the longest token at each place, found by trying all tokens."""
    data, ids = text.encode(), []
    merges = {token.encode(): i for i, token in enumerate(MERGES, 257)}
    while data:
        found = max((token for token in merges if data.startswith(token)), key=len, default=data[:1])
        ids.append(merges.get(found, data[0] + 1))
        data = data[len(found) :]
    return ids


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """Requests of the lm-evaluation-harness."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def greedy_text(reference: Oracle, context: list[int], count: int) -> bytes:
    """The bytes of the likeliest tokens after a context, one by one, by the `rwkv` package."""
    ids: list[int] = []
    while len(ids) < count:
        ids.append(int(reference.forward([*context, *ids], full_output=True)[0][-1].argmax()))
        if ids[-1] == 0:
            break
    pieces = [b"", *(bytes([byte]) for byte in range(256)), *(token.encode() for token in MERGES)]
    return b"".join(pieces[i] for i in ids)
