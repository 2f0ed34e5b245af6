"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np

from ..cpu_kernels.build import unavailable
from ..cpu_kernels.greedy_encode import GreedyTrie
from ..errors import RowError
from .vocabulary import ByteTrie, read_vocabulary, unmatched


class Tokenizer(ABC):
    """Converts text to token ids and back. Immutable: threads may share a tokenizer.

    Args:
        name: for reports: "world", "bytes" or a file's name.
        tokens: id → bytes, of all ids with bytes.
        max_token_id: the largest id that `encode` may return.
    """

    def __init__(self, name: str, tokens: Mapping[int, bytes], max_token_id: int) -> None:
        self.name = name
        self.max_token_id = max_token_id
        self._tokens = tokens

    @abstractmethod
    def encode_many_bytes(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        """Token ids of byte strings: [T] int32 for each, or the error of one that this tokenizer cannot express."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray | RowError]:
        """Token ids of texts: [T] int32 for each, or the error that `encode` would raise."""
        try:
            return self.encode_many_bytes([text.encode("utf-8") for text in texts])
        except UnicodeEncodeError as error:
            if len(texts) == 1:
                return [_lone_surrogate(error)]
            return [self.encode_many([text])[0] for text in texts]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of a byte string.

        Raises:
            RowError: this tokenizer cannot express `data`.
        """
        return _ids_or_raise(self.encode_many_bytes([data])[0])

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`.

        Raises:
            RowError: code "invalid_text" for a lone surrogate, "unencodable_text" where the vocabulary lacks a byte.
        """
        return _ids_or_raise(self.encode_many([text])[0])

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`. An id without bytes (0, undefined or out of range) is left out."""
        get = self._tokens.get
        return b"".join([get(token_id, b"") for token_id in ids])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """Bytes by id, from 0 to `max_token_id`; None for an id without bytes, which must never be sampled."""
        return [self._tokens.get(token_id) for token_id in range(self.max_token_id + 1)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that the ids of a text depend on."""
        parts = [b"%d %d %b" % (token_id, len(token), token) for token_id, token in sorted(self._tokens.items())]
        return hashlib.sha256(b"".join(parts)).hexdigest()


class BytesTokenizer(Tokenizer):
    """A tokenizer with an id for each byte: the byte's value plus 1. Id 0 is the end of text."""

    def __init__(self) -> None:
        super().__init__("bytes", {byte + 1: bytes([byte]) for byte in range(256)}, max_token_id=256)

    def encode_many_bytes(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        return [np.frombuffer(one, np.uint8).astype(np.int32) + 1 for one in data]


class GreedyTokenizer(Tokenizer):
    """A tokenizer that matches greedily the longest token of a vocabulary.

    Native code encodes on a machine with a compiler, Python on others. Their results are equal.

    Args:
        tokens: id → bytes.
        special_tokens: texts that become an id as a whole, wherever they stand.
        max_token_id: the largest id, with those that have no bytes; None where all have.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes],
        name: str,
        special_tokens: Mapping[str, int] | None = None,
        max_token_id: int | None = None,
    ) -> None:
        super().__init__(name, tokens, max(tokens) if max_token_id is None else max_token_id)
        self._special = {text.encode("utf-8"): token_id for text, token_id in (special_tokens or {}).items() if text}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile(b"(%b)" % b"|".join(map(re.escape, longest_first))) if longest_first else None

    def encode_many_bytes(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        if self._split is not None:
            return [self._encode_parts(self._split.split(one)) for one in data]
        return self._encode_plain(data)

    def _encode_parts(self, parts: Sequence[bytes]) -> np.ndarray | RowError:
        """Token ids of a text whose parts with odd numbers are special tokens."""
        encoded = self._encode_plain(parts[::2])
        if error := next((one for one in encoded if isinstance(one, RowError)), None):
            return error
        special = [np.array([self._special[part]], np.int32) for part in parts[1::2]]
        ids = [one for pair in zip_longest(encoded, special) for one in pair if isinstance(one, np.ndarray)]
        return np.concatenate(ids)

    def _encode_plain(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        trie = self._trie
        if isinstance(trie, ByteTrie):
            return [_encode_in_python(trie, one) for one in data]
        ids, offsets, positions = trie.encode(data)
        encoded: list[np.ndarray | RowError] = [ids[a:b] for a, b in pairwise(offsets.tolist())]
        for i in np.flatnonzero(positions >= 0).tolist():
            encoded[i] = unmatched(data[i], int(positions[i]))
        return encoded

    @cached_property
    def _trie(self) -> GreedyTrie | ByteTrie:
        return ByteTrie(self._tokens) if unavailable() else GreedyTrie(self._tokens)

    @cached_property
    def fingerprint(self) -> str:
        if not self._special:
            return super().fingerprint
        return hashlib.sha256(repr((super().fingerprint, sorted(self._special.items()))).encode()).hexdigest()


class RwkvTokenizer(GreedyTokenizer):
    """The tokenizer of a vocabulary file in RWKV's format.

    Raises:
        ConfigurationError: see `read_vocabulary`.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(read_vocabulary(path), name or path.name)


def _encode_in_python(trie: ByteTrie, data: bytes) -> np.ndarray | RowError:
    try:
        return np.array(trie.encode(data), np.int32)
    except RowError as error:
        return error


def _ids_or_raise(encoded: np.ndarray | RowError) -> list[int]:
    if isinstance(encoded, RowError):
        raise encoded
    return encoded.tolist()


def _lone_surrogate(error: UnicodeEncodeError) -> RowError:
    code_point = ord(error.object[error.start])
    message = f"the text has a lone surrogate, U+{code_point:04X}, at character {error.start}; UTF-8 cannot express it"
    return RowError("invalid_text", message)
