"""Tokenizers of `tokenizer.json` files, such as the 20B_tokenizer.json of RWKV-4 "Pile" models."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError, RowError
from ..user_files import parse_json, read_text, reason_of
from .tokenizer import GreedyTokenizer, Tokenizer
from .vocabulary import WORLD_VOCABULARY, read_vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_LONGEST_WORD = 200
"""Characters of the longest word that a WordPiece model may take at once. The package's time grows faster than the
square of a word's length."""

logger = logging.getLogger(__name__)


def open_tokenizer_json(path: Path, parse_special_tokens: bool = False) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Where the ids and bytes are those of RWKV's World vocabulary, this is the tokenizer "world". Where the file
    describes a greedy longest match over bytes, it is that, in a time that is linear in the text's length.

    Args:
        parse_special_tokens: a special token that is spelled out in a text becomes its id. Otherwise, it is text.

    Raises:
        ConfigurationError: the file cannot be read, or its tokens cannot be mapped to bytes.
    """
    try:
        source = read_text(path)
        description: Any = parse_json(source)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a readable tokenizer.json: {reason_of(error)}") from error
    model = description.get("model") if isinstance(description, dict) else None
    if not isinstance(model, dict):
        raise ConfigurationError(f"{path}: not a tokenizer.json: it describes no model")
    if model.get("type") == "RwkvTrie":
        try:
            return _trie_tokenizer(path, description, parse_special_tokens)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}: not a tokenizer.json: {error!r}"[:300]) from error
    if model.get("dropout"):
        logger.warning("%s: the dropout of its BPE model is left out: a text has one result", path)
        model["dropout"] = None
        source = json.dumps(description)
    tokenizer = JsonTokenizer(path, source, description, parse_special_tokens)
    specials = tokenizer.special_tokens if parse_special_tokens else {}
    if tokenizer.is_world:
        return GreedyTokenizer(read_vocabulary(WORLD_VOCABULARY), "world", specials)
    if model.get("type") != "WordPiece":
        return tokenizer
    if _is_greedy_over_bytes(description):
        return tokenizer.as_greedy(specials)
    if model.get("max_input_chars_per_word", 0) > _LONGEST_WORD:
        raise ConfigurationError(
            f"{path}: a WordPiece model that takes words of up to {model['max_input_chars_per_word']} characters, in a "
            f"time that grows faster than their square; expected at most {_LONGEST_WORD}. Name another tokenizer"
        )
    return tokenizer


class JsonTokenizer(Tokenizer):
    """A byte-level or SentencePiece-style tokenizer of the `tokenizers` package.

    No tokens are added before or after the text. Special tokens, and those that stand for no bytes, have no bytes.

    Args:
        path: of the file, for messages.
        source: its text.
        description: the text, parsed.
        parse_special_tokens: a special token that is spelled out in a text becomes its id. Otherwise, it is text.

    Raises:
        ConfigurationError: the package does not read the text, or its tokens cannot be mapped to bytes.
    """

    def __init__(self, path: Path, source: str, description: dict[str, Any], parse_special_tokens: bool) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            with _errors_of_the_package():
                self._backend = Backend.from_str(source)
                self._backend.no_truncation()
                self._backend.no_padding()
                self._backend.encode_special_tokens = not parse_special_tokens
                vocabulary = self._backend.get_vocab(with_added_tokens=True)
                added_tokens = self._backend.get_added_tokens_decoder()
        except _PackageError as error:
            raise ConfigurationError(f"{path}: not a tokenizer.json: {error}") from error
        token_to_bytes = _token_to_bytes(description, path)
        tokens = {token_id: token_to_bytes(token) for token, token_id in vocabulary.items()}
        for token_id, added in added_tokens.items():
            tokens[token_id] = b"" if added.special else added.content.encode("utf-8", "replace")
        if not any(tokens.values()):
            raise ConfigurationError(f"{path}: the vocabulary is empty; fetch the file again")
        self._source = f"{'special tokens are parsed' if parse_special_tokens else ''}{source}"
        self.special_tokens = {added.content: token_id for token_id, added in added_tokens.items() if added.special}
        super().__init__(path.name, {i: token for i, token in tokens.items() if token}, max(tokens))

    @property
    def is_world(self) -> bool:
        """Whether the vocabulary is RWKV's World."""
        return _is_world(self._tokens)

    def as_greedy(self, special_tokens: Mapping[str, int]) -> GreedyTokenizer:
        """The tokenizer that takes the longest of these tokens at each byte."""
        return GreedyTokenizer(self._tokens, self.name, special_tokens, self.max_token_id)

    def encode_many_bytes(self, data: Sequence[bytes]) -> list[np.ndarray | RowError]:
        texts = [self._text(one) for one in data]
        encoded = iter(self._encode([text for text in texts if isinstance(text, str)]))
        return [next(encoded) if isinstance(text, str) else text for text in texts]

    def _encode(self, texts: list[str]) -> list[np.ndarray | RowError]:
        """Token ids of each text, or the error of one at which the package fails."""
        try:
            with _errors_of_the_package():
                encodings = self._backend.encode_batch(texts, add_special_tokens=False)
                return [np.array(one.ids, np.int32) for one in encodings]
        except _PackageError as error:
            if len(texts) == 1:
                return [RowError("unencodable_text", f"{self.name} cannot encode the text: {error}")]
            return [self._encode([text])[0] for text in texts]

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


class _PackageError(Exception):
    """The package `tokenizers` failed. Its own errors have no common class, and its panics are no `Exception`."""


@contextmanager
def _errors_of_the_package() -> Iterator[None]:
    """Inside, whatever the package raises becomes a `_PackageError`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise _PackageError(str(error)[:300]) from error


def _is_world(tokens: Mapping[int, bytes]) -> bool:
    """Whether the ids with bytes, and the bytes, are those of RWKV's World vocabulary. Id 0 ends a text."""
    if not 65529 <= len(tokens) <= 65530:
        return False
    return {i: token for i, token in tokens.items() if i} == read_vocabulary(WORLD_VOCABULARY)


def _trie_tokenizer(path: Path, description: dict[str, Any], parse_special_tokens: bool) -> GreedyTokenizer:
    """The tokenizer of the model type `RwkvTrie`, which a fork of the package `tokenizers` by rwkv-rs has.

    It takes the longest token at each byte of the whole text. Id 0 ends a text, and has no bytes.

    Raises:
        ConfigurationError: the file lists no vocabulary, or asks for more than the longest token.
    """
    vocabulary = description["model"].get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(i) is int and 0 <= i < 2**31 for i in vocabulary.values()):
        raise ConfigurationError(
            f"{path}: a model of type RwkvTrie without a vocabulary: expected a mapping from tokens to ids; if it is "
            "that of RWKV's World models, name the tokenizer: world"
        )
    if not _takes_whole_texts(description, may_lack_step=True):
        raise ConfigurationError(
            f"{path}: a model of type RwkvTrie with a normalizer, a pre-tokenizer or added tokens that are not "
            "special; expected none of these. Name another tokenizer"
        )
    special_tokens = {token["content"]: token["id"] for token in description.get("added_tokens") or []}
    alphabet, no_bytes = _byte_level_alphabet(), {0, *special_tokens.values()}
    spelled = {i: _byte_level_bytes(token, alphabet) for token, i in vocabulary.items() if i not in no_bytes}
    tokens = {i: token for i, token in spelled.items() if token}
    if not tokens:
        raise ConfigurationError(f"{path}: the vocabulary is empty; fetch the file again")
    specials = {"<|endoftext|>": 0, **special_tokens} if parse_special_tokens else {}
    if _is_world(tokens):
        return GreedyTokenizer(read_vocabulary(WORLD_VOCABULARY), "world", specials)
    return GreedyTokenizer(tokens, path.name, specials, max(no_bytes.union(vocabulary.values())))


def _is_greedy_over_bytes(description: dict[str, Any]) -> bool:
    """Tells whether a WordPiece model takes the longest token at each byte of the whole text."""
    return description["model"].get("continuing_subword_prefix") == "" and _takes_whole_texts(description)


def _takes_whole_texts(description: dict[str, Any], may_lack_step: bool = False) -> bool:
    """Tells whether the model gets a text as it is, all of it, as bytes.

    Args:
        may_lack_step: the model takes bytes by itself, so that no step has to spell them.
    """
    steps = description.get("pre_tokenizer") or {}
    (step, *others) = steps.get("pretokenizers") or [steps]
    return (
        not description.get("normalizer")
        and (
            (may_lack_step and not step)
            or (step.get("type"), step.get("use_regex"), step.get("add_prefix_space")) == ("ByteLevel", False, False)
        )
        and not others
        and all(token.get("special") for token in description.get("added_tokens") or [])
    )


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
        return lambda token: _byte_level_bytes(token, alphabet)
    marks = [step["replacement"] for step in steps if step.get("type") == "Metaspace"]
    replaced = [step["pattern"] for step in steps if step.get("type") == "Replace" and step["content"] == " "]
    marks += [pattern["String"] for pattern in replaced if "String" in pattern]
    if marks or "ByteFallback" in kinds:
        return lambda token: _sentencepiece_bytes(token, marks, "ByteFallback" in kinds)
    raise ConfigurationError(
        f"{path}: the decoder is {sorted(map(str, kinds))}; only byte-level BPE (ByteLevel) and SentencePiece-style "
        f"tokenizers (Metaspace, ByteFallback) map tokens to bytes. Use token ids instead (tokenizer: null)"
    )


def _byte_level_bytes(token: str, alphabet: dict[str, bytes]) -> bytes:
    """The bytes of a byte-level token; none if it has a character that stands for no byte, as placeholders have."""
    found = [alphabet.get(character) for character in token]
    return b"" if None in found else b"".join(byte for byte in found if byte is not None)


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
