"""Tokenizers of `tokenizer.json` files, such as the 20B_tokenizer.json of RWKV-4 "Pile" models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError, RowError
from ..user_files import parse_json, read_text, reason_of
from .tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class JsonTokenizer(Tokenizer):
    """A byte-level or SentencePiece-style tokenizer of the `tokenizers` package.

    No tokens are added before or after the text. A special token that is spelled out in a text gets its id, as the
    package `tokenizers` does. Special tokens have no bytes.

    Raises:
        ConfigurationError: the file cannot be read, or its tokens cannot be mapped to bytes.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._source = read_text(path)
            description: dict[str, Any] = parse_json(self._source)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: not a readable tokenizer.json: {reason_of(error)}") from error
        try:
            self._backend = Backend.from_str(self._source)
        except Exception as error:  # the package raises no narrower class
            raise ConfigurationError(f"{path}: not a tokenizer.json: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        token_to_bytes = _token_to_bytes(description, path)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        tokens = {token_id: token_to_bytes(token) for token, token_id in vocabulary.items()}
        for token_id, added in self._backend.get_added_tokens_decoder().items():
            tokens[token_id] = b"" if added.special else added.content.encode("utf-8")
        super().__init__(path.name, {i: token for i, token in tokens.items() if token}, max(tokens))

    def encode_many_bytes(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        texts = [self._text(one) for one in data]
        encodings = iter(
            self._backend.encode_batch([text for text in texts if isinstance(text, str)], add_special_tokens=False)
        )
        return [np.array(next(encodings).ids, np.int32) if isinstance(text, str) else text for text in texts]

    def _text(self, data: bytes) -> str | RowError:
        """The text of UTF-8 bytes, or the error of bytes that are not UTF-8."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"{self.name} encodes UTF-8 text only, and byte {error.start} is not UTF-8: {error.reason}"
            return RowError("invalid_text", message)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._source.encode("utf-8")).hexdigest()


def _token_to_bytes(description: dict[str, Any], path: Path) -> Callable[[str], bytes]:
    """The function from a token, as the file spells it, to its bytes; the file's decoder decides.

    Raises:
        ConfigurationError: the decoder is of another type than byte-level or SentencePiece-style.
    """
    decoder = description.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()
        return lambda token: b"".join(alphabet.get(character) or character.encode("utf-8") for character in token)
    marks = [step["replacement"] for step in steps if step.get("type") == "Metaspace"]
    replaced = [step["pattern"] for step in steps if step.get("type") == "Replace" and step["content"] == " "]
    marks += [pattern["String"] for pattern in replaced if "String" in pattern]
    if marks or "ByteFallback" in kinds:
        return lambda token: _sentencepiece_bytes(token, marks, "ByteFallback" in kinds)
    raise ConfigurationError(
        f"{path}: the decoder is {sorted(map(str, kinds))}; only byte-level BPE (ByteLevel) and SentencePiece-style "
        f"tokenizers (Metaspace, ByteFallback) map tokens to bytes. Use token ids instead (tokenizer: null)"
    )


def _sentencepiece_bytes(token: str, marks: list[str], has_byte_tokens: bool) -> bytes:
    """The bytes of a SentencePiece token.

    Args:
        marks: texts that stand for a space.
        has_byte_tokens: a token such as "<0x0A>" is that one byte.
    """
    byte = _BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
    if byte:
        return bytes.fromhex(byte[1])
    for mark in marks:
        token = token.replace(mark, " ")
    return token.encode("utf-8")


def _byte_level_alphabet() -> dict[str, bytes]:
    """GPT-2's alphabet, character → byte: printable Latin-1 stands for itself, U+0100 and on for the other bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    code_points = {**{byte: byte for byte in printable}, **{byte: 256 + i for i, byte in enumerate(others)}}
    return {chr(code_point): bytes([byte]) for byte, code_point in code_points.items()}
