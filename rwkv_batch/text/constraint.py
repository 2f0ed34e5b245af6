"""Structured output: the tokens that may come next in a text that a JSON schema, a regex or a grammar constrains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .mask_batch import MaskBatch

Bits = NDArray[np.uint8]
"""[V], 1 where a token is allowed."""
Words = NDArray[np.int32]
"""[W] or [n, W], W = ceil(V / 32): bit i % 32 of word i // 32 is set where token i is allowed."""

LIMITS: dict[str, Any] = {
    "max_items_in_row": 10_000,
    "initial_lexer_fuel": 5_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 200_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
}
"""The most work that one constraint may take, as `llguidance.LLParserLimits` counts it. It does not depend on the time.

With the slowest constraints that were tried, a step took 10 ms of processor time, and a lexer 25 MiB.
"""
_WRONG_TOKEN = re.compile("doesn't satisfy the grammar|parser stopped|no extension", re.IGNORECASE)
"""In the error of a matcher that was given a token that is not allowed."""
_FULL_LEXER = "too many states"
"""In the error of a matcher whose lexer has no room. All texts of a constraint share a lexer, and fill it."""
_MOST_RENEWALS = 2
"""How often a step may begin anew: with a lexer that another text has renewed, and with one of its own."""


class Work:
    """What ends all texts of a row. The samples of a row share it.

    Attributes:
        is_exceeded: a step of a text has taken more work than `LIMITS`.
        is_stuck: no token can follow a text that is not complete.
    """

    def __init__(self) -> None:
        self.is_exceeded = False
        self.is_stuck = False


class SequenceConstraint:
    """The constraint of one running sequence, at its latest token. Once a step exceeds the limits, its text ends.

    Args:
        compiled: what the text began with.
        permitted: [W] int32, one row of a mask: the tokens that the request does not ban; None: it bans none.
    """

    __slots__ = ("_compiled", "_origin", "_token_ids", "is_finished", "matcher", "permitted", "vocabulary", "work")

    def __init__(self, compiled: CompiledConstraint, work: Work, permitted: Words | None = None) -> None:
        self._compiled = compiled
        self._origin = compiled.matcher
        self._token_ids: list[int] = []
        self.matcher = compiled.matcher.deep_copy()
        """The state of the text."""
        self.vocabulary = compiled.vocabulary
        self.work = work
        self.permitted = permitted
        self.is_finished = False
        """`accept` was given the end of text, or a token that was not allowed. No token but end of text may follow."""

    @property
    def batch(self) -> MaskBatch:
        """Serves this constraint together with the others of its vocabulary."""
        return self.vocabulary.batch

    def accept(self, token_id: int) -> None:
        """Append a sampled token to the text."""
        if not self.is_finished:
            self.note(token_id, self.matcher.consume_token(token_id))

    def note(self, token_id: int, is_accepted: bool) -> None:
        """Takes in that the matcher has been given a token."""
        for _ in range(_MOST_RENEWALS):
            if is_accepted or not self.renewed():
                break
            is_accepted = self.matcher.consume_token(token_id)
        self.is_finished = not is_accepted or token_id == self.vocabulary.eos_token_id
        if is_accepted:
            self._token_ids.append(token_id)
        elif not _WRONG_TOKEN.search(self.matcher.get_error()):
            self.work.is_exceeded = True

    def renewed(self) -> bool:
        """After an error of the matcher: gives the text a lexer that has room, and says whether the text can go on.

        All texts of a constraint share a lexer. With an empty one, no text ends because others have filled the lexer.
        """
        if _FULL_LEXER not in self.matcher.get_error():
            return False
        if self._origin is self._compiled.matcher:
            self._compiled.renew()
        self._origin = self._compiled.matcher
        self.matcher = self._origin.deep_copy()
        return bool(self.matcher.try_consume_tokens(self._token_ids) == len(self._token_ids))

    def mask(self) -> bytes | None:
        """The mask of the tokens that the grammar allows, one bit each; None where a step exceeds the limits."""
        mask = self.matcher.compute_bitmask()
        return self.mask_after_error() if self.matcher.is_error() else bytes(mask)

    def mask_after_error(self) -> bytes | None:
        """`mask`, where the matcher has failed to find it."""
        for _ in range(_MOST_RENEWALS):
            if not self.renewed():
                break
            mask = self.matcher.compute_bitmask()
            if not self.matcher.is_error():
                return bytes(mask)
        self.work.is_exceeded = True
        return None

    def next_tokens(self) -> Bits:
        """The tokens that can continue the text, and end of text where the text may end."""
        size = len(self.vocabulary.tokens)
        if self.is_finished:
            return np.zeros(size, np.uint8)
        mask = self.mask()
        if mask is None:
            return np.zeros(size, np.uint8)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=size, bitorder="little")
        if self.permitted is not None:
            bits &= np.unpackbits(self.permitted.view(np.uint8), count=size, bitorder="little")
        return bits


def packed(bits: Bits) -> Words:
    """Flags [V] as one row of a mask, [W] int32: token i in bit i % 32 of word i // 32."""
    found = np.packbits(bits, bitorder="little")
    return np.pad(found, (0, -len(found) % 4)).view("<i4").astype(np.int32, copy=False)


class CompiledConstraint:
    """A compiled constraint, which begins any number of texts.

    Args:
        grammar: in llguidance's notation.

    Attributes:
        matcher: the state of an empty text. Its `get_error` says what is wrong with the grammar.
    """

    def __init__(self, grammar: str, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._grammar = grammar
        self.renew()

    def renew(self) -> None:
        """Begins with an empty lexer."""
        self.matcher = self.vocabulary.compile(self._grammar)

    def begin(self, work: Work, permitted: Words | None = None) -> SequenceConstraint:
        """The constraint of a text that is still empty."""
        return SequenceConstraint(self, work, permitted)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by id, b"" for an id without bytes, and what all constraints of a vocabulary share."""

    tokens: list[bytes]
    eos_token_id: int

    @classmethod
    def of(cls, token_bytes: Sequence[bytes | None], vocab_size: int, eos_token_id: int) -> Vocabulary:
        """The vocabulary with V = `vocab_size`; None, or an id beyond the end of `token_bytes`, has no bytes."""
        tokens = [token or b"" for token in token_bytes[:vocab_size]]
        tokens += [b""] * (vocab_size - len(tokens))
        tokens[eos_token_id] = b""  # the end of text is no text
        return cls(tokens, eos_token_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.tokens, self.eos_token_id)  # nothing that is cached travels to another process

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary in llguidance's form."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Tokens(self)), n_vocab=len(self.tokens), eos_token=self.eos_token_id)

    @cached_property
    def batch(self) -> MaskBatch:
        """Serves all constraints of this vocabulary together."""
        from .mask_batch import MaskBatch

        return MaskBatch(self)

    def compile(self, grammar: str) -> LLMatcher:
        """The state of an empty text under a grammar in llguidance's notation. Its `get_error` says what is wrong."""
        from llguidance import LLMatcher, LLParserLimits

        return LLMatcher(self.tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS, verbose_errors=False))


class _Tokens:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer. Grammars have the option `no_forcing`, so no text is
    encoded."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_token_id
        self.tokens = vocabulary.tokens

    def __call__(self, text: bytes | str) -> list[int]:
        raise TypeError("text is not encoded here")
