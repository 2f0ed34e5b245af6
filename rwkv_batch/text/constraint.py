"""Structured output: the tokens that may come next in a text that a JSON schema, a regex or a grammar constrains."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .schema_support import check_schema

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher, TokenizerInfo

    from .mask_batch import MaskBatch

Bits = NDArray[np.uint8]
"""[V], 1 where a token is allowed."""
Words = NDArray[np.int32]
"""Masks [n, W], W = ceil(V / 32): bit i % 32 of word i // 32 is set where token i is allowed."""

COMPILED_BYTES = 32 << 20
"""The size of the largest compiled constraint, serialized."""
SLOW_SECONDS = 0.02
"""Processor time of a step that counts as slow. A usual constraint takes a hundredth of it."""
TOO_DEEP = "is nested too deeply"
PROBE_STEPS = 16
PROBE_SECONDS = 0.25
"""Processor time that the first `PROBE_STEPS` steps of a text may take together."""
_BAD_SECOND_BYTES = {0xE0: range(0x80, 0xA0), 0xED: range(0xA0, 0xC0), 0xF0: range(0x80, 0x90)}
"""First byte of a character → second bytes that are not UTF-8 after it: surrogates (0xED) and overlong forms.

xgrammar allows surrogates, and in some places overlong forms.
"""
_NOT_UTF8 = re.compile(rb"\xe0[\x80-\x9f]|\xed[\xa0-\xbf]|\xf0[\x80-\x8f]")
_CONTROL = re.compile(rb"[\x00-\x1f]")
"""JSON on one line has no control characters. xgrammar allows them in strings of limited length."""


class StepTime:
    """The time that slow steps have left.

    Args:
        limit: seconds of processor time.
    """

    def __init__(self, limit: float) -> None:
        self._left = limit
        self.has_slow_steps = False

    def count(self, seconds: float) -> None:
        """Counts one step, if it was slow."""
        if seconds > SLOW_SECONDS:
            self._left -= seconds
            self.has_slow_steps = True

    @property
    def is_spent(self) -> bool:
        return self._left < 0


class SequenceConstraint:
    """The constraint of one running sequence, at its latest token. Once its step time is spent, its text ends.

    Args:
        is_json: the text is JSON on one line.

    Attributes:
        matcher: xgrammar's state of the text.
        is_finished: `accept` was given the end of text, or a token that was not allowed. No token but end of text may
            follow.
        last_byte: the last byte of the text; 0 for an empty text.
        permitted: [W] int32, the mask of the tokens that the request does not ban; None: it bans none.
    """

    __slots__ = (
        "is_finished",
        "is_json",
        "last_byte",
        "matcher",
        "on_dead_end",
        "permitted",
        "step_time",
        "vocabulary",
    )

    def __init__(self, matcher: GrammarMatcher, vocabulary: Vocabulary, is_json: bool, step_time: StepTime) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self.is_json = is_json
        self.step_time = step_time
        self.permitted: NDArray[np.int32] | None = None
        self.on_dead_end: Callable[[], None] | None = None
        self.is_finished = False
        self.last_byte = 0

    def restrict(self, permitted: NDArray[np.int32] | None, on_dead_end: Callable[[], None]) -> None:
        """Leaves out tokens that the request bans.

        Args:
            permitted: [W] int32, the mask of the tokens that it does not ban; None: it bans none.
            on_dead_end: called when no token can continue a text that is not complete.
        """
        self.permitted, self.on_dead_end = permitted, on_dead_end

    def end(self, is_complete: bool) -> None:
        """Takes in that no token can follow.

        Args:
            is_complete: the grammar allows the text to end here.
        """
        if self.is_open and not is_complete and self.on_dead_end is not None:
            self.on_dead_end()

    @property
    def batch(self) -> MaskBatch:
        """Serves this constraint together with the others of its vocabulary."""
        return self.vocabulary.batch

    @property
    def is_open(self) -> bool:
        """Whether a token other than end of text may follow."""
        return not (self.is_finished or self.step_time.is_spent)

    def accept(self, token_id: int) -> None:
        """Append a sampled token to the text."""
        if self.is_finished:
            return
        start = time.thread_time()
        is_accepted = self.matcher.accept_token(token_id)
        self.step_time.count(time.thread_time() - start)
        self.note(token_id, is_accepted)

    def note(self, token_id: int, is_accepted: bool) -> None:
        """Takes in that the matcher has been given a token."""
        self.is_finished = not is_accepted or token_id == self.vocabulary.eos_token_id
        if not self.is_finished:
            self.last_byte = self.vocabulary.tokens[token_id][-1]

    def match(self, words: Words) -> float:
        """Writes the tokens that the grammar allows, and returns the seconds of processor time that it took.

        Args:
            words: [1, W] int32, overwritten: the mask, of all tokens of the vocabulary.
        """
        start = time.thread_time()
        self.matcher.fill_next_token_bitmask(words)
        seconds = time.thread_time() - start
        self.step_time.count(seconds)
        return seconds

    def next_tokens(self) -> Bits:
        """The tokens that can continue the text, and end of text where the text may end."""
        words = np.zeros((1, self.vocabulary.num_words), np.int32)
        if self.is_open:
            self.match(words)
            narrow([self], words)
        return np.unpackbits(words.view(np.uint8), count=len(self.vocabulary.tokens), bitorder="little")


def narrow(constraints: Sequence[SequenceConstraint], masks: Words) -> None:
    """Removes tokens that would make a text invalid UTF-8, from JSON those with control characters, and banned ones.

    Args:
        constraints: n constraints of one vocabulary.
        masks: [n, W] int32, what their grammars allow.
    """
    vocabulary = constraints[0].vocabulary
    are_json = [constraint.is_json for constraint in constraints]
    if all(are_json) or not any(are_json):
        masks &= vocabulary.json_words if are_json[0] else vocabulary.text_words
    else:
        masks &= np.where(np.array(are_json)[:, None], vocabulary.json_words, vocabulary.text_words)
    for row, constraint in enumerate(constraints):
        if constraint.last_byte in _BAD_SECOND_BYTES:
            masks[row] &= vocabulary.words_after[constraint.last_byte]
        if constraint.permitted is not None:
            masks[row] &= constraint.permitted


@dataclass(frozen=True)
class CompiledConstraint:
    """A compiled constraint, which begins any number of texts.

    Args:
        is_json: the texts are JSON on one line.
    """

    grammar: CompiledGrammar
    vocabulary: Vocabulary
    is_json: bool

    def begin(self, step_time: StepTime) -> SequenceConstraint:
        """The constraint of a text that is still empty."""
        from xgrammar import GrammarMatcher

        return SequenceConstraint(GrammarMatcher(self.grammar), self.vocabulary, self.is_json, step_time)


class Refused(ValueError):
    """A constraint cannot be used.

    Args:
        is_too_large: it is well-formed, and takes too much time or memory.
    """

    def __init__(self, message: str, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


def answer_compilations(vocabulary: Vocabulary) -> Callable[[tuple[str, str]], tuple[str | None, str, bool]]:
    """What a process of `ProcessPool` calls: (field, text) → (the serialized grammar or None, the reason, too large).

    The field is "json_schema", "regex" or "grammar".
    """
    import xgrammar

    # A grammar returns to the parent, which has a cache of its own.
    compiler = xgrammar.GrammarCompiler(vocabulary.tokenizer_info(), cache_enabled=False)

    def answer(argument: tuple[str, str]) -> tuple[str | None, str, bool]:
        try:
            return _compile(compiler, vocabulary, *argument), "", False
        except Refused as error:
            return None, str(error), error.is_too_large
        except RecursionError:
            return None, TOO_DEEP, True
        except MemoryError:
            return None, "compiling takes too much memory", True
        except (TypeError, ValueError, RuntimeError) as error:
            return None, _reason(error), False

    return answer


def _compile(compiler: Any, vocabulary: Vocabulary, field: str, text: str) -> str:
    """The serialized grammar of a constraint. It raises errors of several types, without the field's name."""
    if field == "json_schema":
        schema = json.loads(text)
        check_schema(schema)
        grammar = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
    else:
        grammar = compiler.compile_regex(text) if field == "regex" else compiler.compile_grammar(text)
    compiled = CompiledConstraint(grammar, vocabulary, field == "json_schema")
    if not compiled.begin(StepTime(math.inf)).next_tokens().any():
        raise Refused("no text of this vocabulary matches")
    _probe(compiled)
    serialized: str = grammar.serialize_json()
    if len(serialized) > COMPILED_BYTES:
        size = f"{len(serialized) >> 20} MiB"
        raise Refused(f"the compiled constraint has {size}, at most {COMPILED_BYTES >> 20} MiB are served", True)
    return serialized


def _probe(compiled: CompiledConstraint) -> None:
    """Begins two texts, of the longest tokens and of any tokens. Raises Refused where a step of them is slow."""
    vocabulary, rng = compiled.vocabulary, np.random.default_rng(0)
    for takes_longest in (True, False):
        constraint, start = compiled.begin(StepTime(math.inf)), time.thread_time()
        for step in range(1, PROBE_STEPS + 1):
            bits = constraint.next_tokens()
            bits[vocabulary.eos_token_id] = 0
            ids = np.flatnonzero(bits)
            if not len(ids):
                break
            constraint.accept(int(ids[np.argmax(vocabulary.lengths[ids])] if takes_longest else rng.choice(ids)))
            seconds = time.thread_time() - start
            if seconds > PROBE_SECONDS:
                found = f"finding the allowed tokens of {step} steps takes {seconds:.1f} s"
                raise Refused(f"{found}, at most {PROBE_SECONDS} s are served; simplify it", True)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by id, b"" for an id without bytes, and the bit masks that all constraints share."""

    tokens: list[bytes]
    eos_token_id: int

    @classmethod
    def of(cls, token_bytes: Sequence[bytes | None], vocab_size: int, eos_token_id: int) -> Vocabulary:
        """The vocabulary with V = `vocab_size`; None, or an id beyond the end of `token_bytes`, has no bytes."""
        tokens = [token or b"" for token in token_bytes[:vocab_size]]
        return cls(tokens + [b""] * (vocab_size - len(tokens)), eos_token_id)

    def tokenizer_info(self) -> TokenizerInfo:
        """The vocabulary in xgrammar's form."""
        import xgrammar

        stops = [self.eos_token_id]
        return xgrammar.TokenizerInfo(self.tokens, vocab_size=len(self.tokens), stop_token_ids=stops)

    @cached_property
    def batch(self) -> MaskBatch:
        """Serves all constraints of this vocabulary together."""
        from .mask_batch import MaskBatch

        return MaskBatch(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.tokens, self.eos_token_id)  # nothing that is cached travels to another process

    @property
    def num_words(self) -> int:
        """W, the words of a mask."""
        return -(-len(self.tokens) // 32)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[V], the number of bytes of each token."""
        return np.array([len(token) for token in self.tokens])

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
    def text_words(self) -> NDArray[np.int32]:
        """[W], the mask `text_tokens`."""
        return packed(self.text_tokens)

    @cached_property
    def json_words(self) -> NDArray[np.int32]:
        """[W], the mask `json_tokens`."""
        return packed(self.json_tokens)

    @cached_property
    def words_after(self) -> dict[int, NDArray[np.int32]]:
        """First byte of `_BAD_SECOND_BYTES` → [W], the mask of the tokens that may follow a token that ends with it."""
        return {
            first: packed(np.array([not token or token[0] not in bad for token in self.tokens], dtype=np.uint8))
            for first, bad in _BAD_SECOND_BYTES.items()
        }


def packed(bits: Bits) -> NDArray[np.int32]:
    """[V] → [W], one row of a mask."""
    packed = np.packbits(bits, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<i4").astype(np.int32, copy=False)


def _reason(error: Exception) -> str:
    """The message of an xgrammar error, without its time stamp, source line and failed assertion."""
    return re.sub(r"^\[[\d:]+\] \S+: (Check failed: .*? is (true|false): )?", "", str(error)).strip()
