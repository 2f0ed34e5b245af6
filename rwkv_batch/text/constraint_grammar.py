"""A constraint as a grammar in llguidance's notation, and the function of the processes that try it out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from .constraint import CompiledConstraint, Vocabulary, Work
from .gbnf import lark_of_gbnf
from .json_grammar import enforceable_schema
from .regex_syntax import rust_regex
from .schema_support import Refused

TOO_DEEP = "is nested too deeply"
_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Tokens are not forced where only one text can follow: every token that fits is allowed."""
_JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TOO_LARGE = ("fuel", "too complex", "grammar size", "too many", "too large", "too big", "limit", "max is")
"""In the errors of llguidance about `LIMITS`."""


def answer_compilations(vocabulary: Vocabulary) -> Callable[[tuple[str, str]], tuple[str | None, str, bool]]:
    """What a process of `ProcessPool` calls: (field, text) → (the grammar or None, the reason, too large).

    The field is "json_schema", "regex" or "grammar". The process compiles the grammar as the caller will: one that ends
    the process, or takes too much time or memory, is not compiled by the caller.
    """

    def answer(argument: tuple[str, str]) -> tuple[str | None, str, bool]:
        try:
            grammar = grammar_of(*argument)
            check(vocabulary, grammar)
        except Refused as error:
            return None, str(error), error.is_too_large
        except RecursionError:
            return None, TOO_DEEP, True
        except MemoryError:
            return None, "compiling takes too much memory", True
        except (TypeError, ValueError) as error:
            return None, str(error), False
        return grammar, "", False

    return answer


def grammar_of(field: str, text: str) -> str:
    """The grammar of a constraint, in llguidance's notation.

    Raises:
        Refused, ValueError, RecursionError: the constraint is malformed, or cannot be enforced.
    """
    if field == "json_schema":
        schema, has_open_keys = enforceable_schema(json.loads(text, parse_constant=_no_number))
        # llguidance takes a key with \u escapes for another name, so there are none beside names of the schema.
        escapes = (
            {"json_allowed_escapes": 'nrbtf\\"'} if has_open_keys else {"json_allow_general_unicode_escapes": True}
        )
        form = {**_JSON_FORM, **escapes}
        return f"{_OPTIONS}start: %json {json.dumps({**schema, 'x-guidance': form})}"
    if field == "regex":
        return f"{_OPTIONS}start: TEXT\nTEXT: /{rust_regex(text)}/"
    return _OPTIONS + lark_of_gbnf(text)


def _no_number(name: str) -> None:
    raise Refused(f"{name} is no number of JSON")


def check(vocabulary: Vocabulary, grammar: str) -> None:
    """Raises Refused where a grammar cannot be compiled, or where no text of the vocabulary matches it."""
    compiled = CompiledConstraint(grammar, vocabulary)
    matcher = compiled.matcher
    if not matcher.is_error():
        constraint = compiled.begin(Work())
        if constraint.next_tokens().any():
            return
        matcher = constraint.matcher
    reason = _reason(matcher.get_error())
    if reason.startswith("NoExtension") or not reason:
        raise Refused("no text of this vocabulary matches")
    if reason.startswith("panic"):
        raise Refused("has too many rules or alternatives to be compiled", True)
    if "recursion limit" in reason:
        raise Refused(TOO_DEEP, True)
    if "Unsatisfiable schema: " in reason:
        raise Refused(f"no text matches: {reason.rpartition('Unsatisfiable schema: ')[2]}")
    raise Refused(reason, any(word in reason.lower() for word in _TOO_LARGE))


def _reason(error: str) -> str:
    """The message of an error of llguidance in one line, without the grammar and the state of the matcher."""
    lines = error.partition("\n<state>")[0].splitlines()
    told = [line.strip() for line in lines if not re.match(r"\s*(\d+ \||\^*$)", line)]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: )+", "", " ".join(told)).strip()
