"""Compiles constraints in other processes, in bounded time and memory, and remembers them."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import Any

from ..engine.permitted import NOTHING
from ..errors import MissingExtraError, RowError
from ..process_pool import CallFailed, ProcessPool
from .constraint import Bits, CompiledConstraint, SequenceConstraint, Vocabulary, Work, packed
from .constraint_grammar import TOO_DEEP, answer_compilations

TEXT_CHARACTERS = 1 << 20
"""The length of the longest constraint."""
CACHE_BYTES = 256 << 20
"""What all remembered constraints hold together, at most."""
NUM_PROCESSES = 2
MEMORY_BYTES = 4 << 30
"""The memory of each process."""
_ENTRY_BYTES = 20_000
"""Estimate of what a remembered constraint holds beside its text and its grammar."""
_GRAMMAR_FACTOR = 10
"""Estimate of what a compiled grammar holds, in multiples of its text."""


class RowConstraint:
    """The constraint of one row. Called, it begins the text of one sample, which needs the compiled constraint.

    Args:
        field: the sampling field: "json_schema", "regex" or "grammar".
        compiled: the future of the compiled constraint; its exception is a RowError.
        permitted: the tokens that the row's `allowed_token_ids` and `bad_token_ids` permit; None: they ban none.
    """

    def __init__(self, field: str, compiled: Future[CompiledConstraint], permitted: Bits | None = None) -> None:
        self.compiled = compiled
        self._field = field
        self._work = Work()
        self._permitted = None if permitted is None else packed(permitted)
        self._is_checked = permitted is None

    def __call__(self) -> SequenceConstraint:
        return self.compiled.result().begin(self._work, self._permitted)

    def error(self) -> RowError | None:
        """Why the row cannot be served, as far as that is known."""
        if self.compiled.done() and (error := self.compiled.exception()) is not None:
            return error if isinstance(error, RowError) else _too_large(self._field, str(error))
        if self._work.is_exceeded:
            return _too_large(self._field, "finding the allowed tokens of a step takes too much work; simplify it")
        if nothing := self._nothing():
            return RowError("bad_sampling", f"{self._field}: {NOTHING}: {nothing}")
        return None

    def _nothing(self) -> str | None:
        """Why no token could be sampled; None as long as one could."""
        if not self._is_checked and self.compiled.done():
            self._is_checked = True
            if not self().next_tokens().any():
                return "every token that the text may begin with is banned"
        if not self._work.is_stuck:
            return None
        why = "no token of the vocabulary can follow" if self._permitted is None else "every possible token is banned"
        return f"in a text that is not complete, {why}"


class ConstraintCompiler:
    """Compiles constraints for one vocabulary. Threads may share a compiler.

    Other processes compile. They start with the first constraint, and end when they have had nothing to do for a while.
    The compiled constraints, and the errors, are remembered by their texts.

    Args:
        token_bytes: bytes by id; None, or an id beyond the end, has no bytes and is never allowed.
        vocab_size: V.
        eos_token_id: the end of text; allowed where the text may end.
        timeout: seconds that compiling one constraint may take.
    """

    def __init__(
        self, token_bytes: Sequence[bytes | None], vocab_size: int, eos_token_id: int = 0, timeout: float = 10.0
    ) -> None:
        self._vocabulary = Vocabulary.of(token_bytes, vocab_size, eos_token_id)
        self._timeout = timeout
        self._lock = threading.RLock()
        self._known: OrderedDict[tuple[str, str], Future[CompiledConstraint]] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        self._num_bytes = 0
        function = f"{answer_compilations.__module__}:{answer_compilations.__name__}"
        self._pool = ProcessPool(function, self._vocabulary, NUM_PROCESSES, MEMORY_BYTES)

    def compile(
        self,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> SequenceConstraint:
        """The constraint of a text that is still empty, for one running sequence. Waits until it is compiled.

        Raises:
            RowError, MissingExtraError: as `start`; and RowError for what the future of `start` raises.
        """
        constraint = self.start(json_schema, regex, grammar)
        constraint.compiled.exception()
        if error := constraint.error():
            raise error
        return constraint()

    def start(
        self,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        *,
        permitted: Bits | None = None,
    ) -> RowConstraint:
        """Starts to compile the constraint of a row, unless it is known. Give exactly one argument.

        Args:
            json_schema: the text is a JSON value on one line, as `json.dumps` writes it, that satisfies the schema.
                Properties come in the schema's order. A property that the schema does not name is left out, unless the
                schema asks for such properties.
            regex: the whole text matches; `\\d`, `\\w` and `\\s` are ASCII.
            grammar: EBNF as in GBNF; the text derives from the rule `root`.
            permitted: the tokens that the row permits beside the constraint; None: all.

        Returns:
            The constraint. Its future raises RowError: code "bad_sampling" for an argument that is malformed, cannot be
            enforced, or matches no text; "constraint_too_large" for one that takes too much time or memory. The
            message names the field and the reason.

        Raises:
            RowError: the same, for what is known at once.
            MissingExtraError: the extra `structured` is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        fields = [field for field, value in given.items() if value is not None]
        if len(fields) != 1:
            found = " and ".join(fields) or "no constraint"
            raise RowError("bad_sampling", f"got {found}, expected one of {', '.join(given)}")
        (field,) = fields
        key = field, _text(field, given[field])
        with self._lock:
            compiled = self._known.get(key)
            if compiled is None:
                compiled = self._compiled(*key)
                self._remember(key, compiled, 0)
            else:
                self._known.move_to_end(key)
        return RowConstraint(field, compiled, permitted)

    @cached_property
    def _has_extra(self) -> bool:
        try:
            import llguidance  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("structured output", "llguidance", "structured") from error
        return True

    def _compiled(self, field: str, text: str) -> Future[CompiledConstraint]:
        """The future of the compiled constraint. It is complete when another process has compiled it."""
        self._has_extra  # noqa: B018 - raises MissingExtraError here, and not in another thread
        compiled: Future[CompiledConstraint] = Future()
        self._pool.submit((field, text), self._timeout).add_done_callback(partial(self._finish, compiled, field, text))
        return compiled

    def _finish(self, compiled: Future[CompiledConstraint], field: str, text: str, answered: Future[Any]) -> None:
        """Completes a future with the answer of a process."""
        try:
            grammar, reason, is_too_large = answered.result()
            if grammar is None:
                raise _too_large(field, reason) if is_too_large else RowError("bad_sampling", f"{field}: {reason}")
            result = CompiledConstraint(grammar, self._vocabulary)
        except CallFailed as error:
            limit = f"takes more than constraint_timeout ({self._timeout:g} s)"
            reason = f"compiling {limit if error.is_late else f'failed: {error}'}; simplify it"
            compiled.set_exception(_too_large(field, reason))
        except BaseException as error:
            compiled.set_exception(error)
        else:
            with self._lock:
                self._remember((field, text), compiled, _GRAMMAR_FACTOR * len(grammar))
            compiled.set_result(result)

    def _remember(self, key: tuple[str, str], compiled: Future[CompiledConstraint], num_bytes: int) -> None:
        """Puts a constraint into the cache, and drops the oldest ones while all together are too large."""
        self._known[key] = compiled
        size = _ENTRY_BYTES + len(key[1]) + num_bytes
        self._num_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        while len(self._known) > 1 and self._num_bytes > CACHE_BYTES:
            oldest, _ = self._known.popitem(last=False)
            self._num_bytes -= self._sizes.pop(oldest)


def _text(field: str, value: Any) -> str:
    """A constraint as text. Raises RowError where it has none, and where the text is too long."""
    try:
        text = json.dumps(value) if field == "json_schema" and not isinstance(value, str) else value
    except RecursionError as error:
        raise _too_large(field, TOO_DEEP) from error
    except (TypeError, ValueError) as error:
        raise RowError("bad_sampling", f"{field}: {error}") from error
    if not isinstance(text, str):
        raise RowError("bad_sampling", f"{field}: got {text!r}, expected a string")
    if len(text) > TEXT_CHARACTERS:
        raise _too_large(field, f"has {len(text)} characters, expected at most {TEXT_CHARACTERS}")
    return text


def _too_large(field: str, reason: str) -> RowError:
    return RowError("constraint_too_large", f"{field}: {reason}")
