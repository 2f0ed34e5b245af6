"""Structured output: the tokens that may come next in a text that a JSON schema, a regex or a grammar constrains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from .schema_support import check_schema

if TYPE_CHECKING:
    from torch import Tensor
    from xgrammar import GrammarCompiler, GrammarMatcher

Bits = NDArray[np.uint8]
"""[V], 1 where a token is allowed."""

_CACHE_BYTES = 2**28
_BAD_SECOND_BYTES = {0xE0: range(0x80, 0xA0), 0xED: range(0xA0, 0xC0), 0xF0: range(0x80, 0x90)}
"""First byte of a character → second bytes that are not UTF-8 after it: surrogates (0xED) and overlong forms.

xgrammar allows surrogates, and in some places overlong forms.
"""
_NOT_UTF8 = re.compile(rb"\xe0[\x80-\x9f]|\xed[\xa0-\xbf]|\xf0[\x80-\x8f]")
_CONTROL = re.compile(rb"[\x00-\x1f]")
"""JSON on one line has no control characters. xgrammar allows them in strings of limited length."""


class CompiledConstraint:
    """The constraint of one running sequence, at its latest token. Made by `ConstraintCompiler.compile`."""

    def __init__(self, matcher: GrammarMatcher, vocabulary: _Vocabulary, base: Bits) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._base = base
        self._bitmask = np.zeros((1, -(-len(base) // 32)), dtype=np.int32)
        self._last_byte = 0
        self.is_finished = False
        """`accept` was given the end of text, or a token that was not allowed. No token but end of text may follow."""

    def allowed(self, mask: Tensor) -> None:
        """Write which tokens may come next. Where no token can, end of text is allowed, so that one always is.

        Args:
            mask: [V] bool, overwritten: True = allowed.
        """
        import torch

        bits = self.next_tokens()
        if not bits.any():
            bits[self._vocabulary.eos_token_id] = 1
        mask.copy_(torch.from_numpy(bits.view(np.bool_)))

    def accept(self, token_id: int) -> None:
        """Append a sampled token to the text."""
        if self.is_finished:
            return
        is_accepted = self._matcher.accept_token(token_id)
        self.is_finished = not is_accepted or token_id == self._vocabulary.eos_token_id
        if not self.is_finished:
            self._last_byte = self._vocabulary.tokens[token_id][-1]

    def next_tokens(self) -> Bits:
        """The tokens that can continue the text, and end of text where the text may end."""
        if self.is_finished:
            return np.zeros_like(self._base)
        self._matcher.fill_next_token_bitmask(self._bitmask)
        bits = np.unpackbits(self._bitmask.view(np.uint8), count=len(self._base), bitorder="little")
        bits &= self._base
        if self._last_byte in _BAD_SECOND_BYTES:
            bits &= self._vocabulary.after_first_byte[self._last_byte]
        return bits


class ConstraintCompiler:
    """Compiles constraints for one vocabulary, with a cache of 256 MiB. Threads may share a compiler.

    xgrammar is imported, and the vocabulary prepared, when the first constraint is compiled.

    Args:
        token_bytes: bytes by id; None, or an id beyond the end, has no bytes and is never allowed.
        vocab_size: V.
        eos_token_id: the end of text; allowed where the text may end.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], vocab_size: int, eos_token_id: int = 0) -> None:
        tokens = [token or b"" for token in token_bytes[:vocab_size]]
        self._vocabulary = _Vocabulary(tokens + [b""] * (vocab_size - len(tokens)), eos_token_id)

    def compile(
        self,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> CompiledConstraint:
        """The constraint of a text that is still empty, for one running sequence. Give exactly one argument.

        Args:
            json_schema: the text is a JSON value on one line, as `json.dumps` writes it, that satisfies the schema.
                Properties come in the schema's order. A property that the schema does not name is left out, unless the
                schema asks for such properties.
            regex: the whole text matches; `\\d`, `\\w` and `\\s` are ASCII.
            grammar: EBNF as in GBNF; the text derives from the rule `root`.

        Raises:
            ValueError: the argument is malformed, cannot be enforced, or matches no text; the message names the field
                and the reason.
            MissingExtraError: the extra `structured` is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        fields = [field for field, value in given.items() if value is not None]
        if len(fields) != 1:
            raise ValueError(f"got {' and '.join(fields) or 'no constraint'}, expected one of {', '.join(given)}")
        field = fields[0]
        try:
            return self._constraint(field, given[field])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{field}: {_reason(error)}") from error

    def _constraint(self, field: str, value: Any) -> CompiledConstraint:
        """The constraint of one argument of `compile`. It raises errors of several types, without the field's name."""
        backend = self._backend
        from xgrammar import GrammarMatcher

        vocabulary = self._vocabulary
        if field == "json_schema":
            schema = json.loads(value) if isinstance(value, str) else value
            check_schema(schema)
            compiled = backend.compile_json_schema(json.dumps(schema), any_whitespace=False)
        elif not isinstance(value, str):
            raise TypeError(f"got {value!r}, expected a string")
        else:
            compiled = backend.compile_regex(value) if field == "regex" else backend.compile_grammar(value)
        base = vocabulary.json_tokens if field == "json_schema" else vocabulary.text_tokens
        constraint = CompiledConstraint(GrammarMatcher(compiled), vocabulary, base)
        if not constraint.next_tokens().any():
            raise ValueError("no text of this vocabulary matches")
        return constraint

    @cached_property
    def _backend(self) -> GrammarCompiler:
        try:
            import xgrammar
        except ImportError as error:
            raise MissingExtraError("structured output", "xgrammar", "structured") from error
        vocabulary = self._vocabulary
        stops = [vocabulary.eos_token_id]
        info = xgrammar.TokenizerInfo(vocabulary.tokens, vocab_size=len(vocabulary.tokens), stop_token_ids=stops)
        return xgrammar.GrammarCompiler(info, cache_limit_bytes=_CACHE_BYTES)


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens by id, b"" for an id without bytes, and the bit masks that all constraints share."""

    tokens: list[bytes]
    eos_token_id: int

    @cached_property
    def text_tokens(self) -> Bits:
        """Tokens without bytes that cannot be in UTF-8, and end of text."""
        bits = np.array([bool(token) and not _NOT_UTF8.search(token) for token in self.tokens], dtype=np.uint8)
        bits[self.eos_token_id] = 1
        return bits

    @cached_property
    def json_tokens(self) -> Bits:
        """`text_tokens` without control characters."""
        return self.text_tokens & np.array([not _CONTROL.search(token) for token in self.tokens], dtype=np.uint8)

    @cached_property
    def after_first_byte(self) -> dict[int, Bits]:
        """First byte of `_BAD_SECOND_BYTES` → the tokens that may follow a token that ends with it."""
        return {
            first: np.array([not token or token[0] not in bad for token in self.tokens], dtype=np.uint8)
            for first, bad in _BAD_SECOND_BYTES.items()
        }


def _reason(error: Exception) -> str:
    """The message of an xgrammar error, without its time stamp, source line and failed assertion."""
    return re.sub(r"^\[[\d:]+\] \S+: (Check failed: .*? is (true|false): )?", "", str(error)).strip()
