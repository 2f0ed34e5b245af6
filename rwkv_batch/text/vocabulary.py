"""RWKV's vocabulary files, and the greedy longest match over bytes that turns text into their ids."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigurationError, RowError
from ..user_files import read_text, reason_of

WORLD_VOCABULARY = Path(__file__).parents[1] / "data_files" / "rwkv_vocab_v20230424.txt"
"""The vocabulary of RWKV's World and G1 models, by BlinkDL (github.com/BlinkDL/ChatRWKV), Apache License 2.0."""

_PLAIN_LINE = re.compile(r"""([1-9][0-9]{0,8}) (?:'([^'\\\0]+)'|"([^"\\\0]+)") ([1-9][0-9]{0,8})""")
"""A line whose literal has no escapes: its token is the text between the quotes. Nearly all lines are of this form."""


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """Read a vocabulary file. Its lines are `id literal length`: `300 ' A' 2`, or `224 b'\\xdf' 1` for other bytes.

    A literal is a Python string or bytes literal. It is parsed, not evaluated, so that a file cannot run code.

    Returns:
        id → bytes, in the order of the file.

    Raises:
        ConfigurationError: the file cannot be read, or a line is wrong; the message names file, line and reason.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a readable vocabulary file: {reason_of(error)}") from error
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token_id, token = _parse_line(line)
            if token_id in tokens:
                raise ValueError(f"id {token_id} is already taken by {tokens[token_id]!r}")
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from error
        tokens[token_id] = token
    if not tokens:
        raise ConfigurationError(f"{path}: the vocabulary is empty; expected lines such as: 300 ' A' 2")
    return tokens


def _parse_line(line: str) -> tuple[int, bytes]:
    """The id and the bytes of a line; ValueError says what is wrong with it."""
    plain = _PLAIN_LINE.fullmatch(line)
    if plain is not None:  # many times faster than the general case
        id_digits, single, double, length_digits = plain.groups()
        token = (single or double).encode("utf-8")
        if len(token) == int(length_digits):
            return int(id_digits), token
    id_field, _, rest = line.partition(" ")
    literal, _, length_field = rest.rpartition(" ")
    token_id, length = _integer("id", id_field), _integer("length", length_field)
    if token_id == 0:
        raise ValueError("id 0 is the end of text and has no bytes; ids of tokens start at 1")
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"{literal[:80]!r} is not a Python string or bytes literal")
    token = value.encode("utf-8") if isinstance(value, str) else value
    if not token:
        raise ValueError(f"id {token_id} is an empty token")
    if len(token) != length:
        raise ValueError(f"the length field says {length}, but {literal[:80]} has {len(token)} bytes")
    return token_id, token


def _integer(name: str, field: str) -> int:
    if not (field.isascii() and field.isdigit()):
        raise ValueError(f"the {name} field is {field[:80]!r}, expected a number; a line is: id literal length")
    return int(field)


def unmatched(data: bytes, position: int) -> RowError:
    """The error of a text in which no token of the vocabulary matches at a byte position."""
    message = f"no token of the vocabulary matches the text at byte {position}, which is 0x{data[position]:02X}"
    return RowError("unencodable_text", message)


_Node = tuple[dict[int, "_Node"], int, int]
"""A node of the trie: children by byte, then id and length of the longest token on the path to it (length 0: none)."""


class ByteTrie:
    """Greedy longest match over byte strings, in Python: the definition, and the fallback without a compiler.

    Immutable: threads may share a trie.

    Args:
        tokens: id → bytes.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._root: _Node = ({}, 0, 0)
        self._longest = max(map(len, tokens.values()), default=0)
        # Sorted, a token comes before its extensions: the longest token on the path to a node is known when the node is
        # made. The sort is stable: of several ids with the same bytes the last one wins, as in the `rwkv` package.
        for token_id, token in sorted(tokens.items(), key=lambda item: item[1]):
            node = self._root
            for byte in token[:-1]:
                child = node[0].get(byte)
                if child is None:
                    child = node[0][byte] = ({}, node[1], node[2])
                node = child
            node[0][token[-1]] = ({}, token_id, len(token))

    def encode(self, data: bytes) -> list[int]:
        """Token ids of `data`.

        Raises:
            RowError: code "unencodable_text", where no token matches; the message names the byte and its position.
        """
        root, longest = self._root, self._longest
        ids: list[int] = []
        position = 0
        while position < len(data):
            node = root
            for byte in data[position : position + longest]:
                child = node[0].get(byte)
                if child is None:
                    break
                node = child
            if not node[2]:
                raise unmatched(data, position)
            ids.append(node[1])
            position += node[2]
        return ids
