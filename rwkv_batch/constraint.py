"""Structured output: which tokens may come next so that the text matches a JSON schema, a regex or a grammar."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import MissingExtraError
from .schema_support import check_schema

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]

_CACHE_BYTES = 2**28
# xgrammar's alphabet has the surrogates, and sometimes overlong forms, which are not UTF-8.
_SECOND_BYTES = {0xE0: rb"[\x80-\x9f]", 0xED: rb"[\xa0-\xbf]", 0xF0: rb"[\x80-\x8f]"}
_NOT_UTF8 = re.compile(b"|".join(re.escape(bytes([lead])) + second for lead, second in _SECOND_BYTES.items()))
_CONTROL = re.compile(rb"[\x00-\x1f]")


class ConstraintCompiler:
    """Compiles constraints for one vocabulary, and remembers what it compiled (up to 256 MiB). Threads may share it.

    Args:
        token_bytes: bytes by id; None, or an id beyond the end, has no bytes and is never allowed.
        vocab_size: V.
        eos_token_id: the end of text; allowed where the text may end.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], vocab_size: int, eos_token_id: int = 0) -> None:
        self._tokens = [token or b"" for token in token_bytes[:vocab_size]]
        self._tokens += [b""] * (vocab_size - len(self._tokens))
        self._eos = eos_token_id
        self._lock = threading.Lock()
        self._backend: _Backend | None = None

    def compile(
        self,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Constraint:
        """A constraint at its beginning, for one running sequence; exactly one argument must be given.

        Args:
            json_schema: the text is a JSON value on one line, as `json.dumps` writes it, which satisfies the schema. What
                cannot be enforced is refused.
            regex: the whole text matches it.
            grammar: EBNF in GBNF's notation; the text is derived from the rule `root`.

        Raises:
            ValueError: malformed, unsupported, or nothing in this vocabulary matches; names the field and the reason.
            MissingExtraError: the extra `structured` is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        fields = [field for field, value in given.items() if value is not None]
        if len(fields) != 1:
            raise ValueError(f"got {' and '.join(fields) or 'no constraint'}, expected one of {', '.join(given)}")
        (field,) = fields
        try:
            source = _schema_source(given[field]) if field == "json_schema" else str(given[field])
            constraint = self._prepare().compile(field, source)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{field}: {_reason(error)}") from error
        if not constraint.can_continue:
            raise ValueError(f"{field}: no text of this vocabulary matches")
        return constraint

    def _prepare(self) -> _Backend:
        with self._lock:
            if self._backend is None:
                self._backend = _Backend(self._tokens, self._eos)
            return self._backend


class _Backend:
    """xgrammar's compiler, and the masks that hold for every constraint of a vocabulary."""

    def __init__(self, tokens: Sequence[bytes], eos_token_id: int) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise MissingExtraError("structured output", "xgrammar", "structured") from error
        info = xgrammar.TokenizerInfo(list(tokens), vocab_size=len(tokens), stop_token_ids=[eos_token_id])
        compiler = xgrammar.GrammarCompiler(info, cache_limit_bytes=_CACHE_BYTES)
        self._compilers = {"json_schema": compiler.compile_json_schema, "regex": compiler.compile_regex, "grammar": compiler.compile_grammar}
