"""vLLM's `StructuredOutputsParams`, and what it becomes: fields of `SamplingParams`."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import ConfigurationError

KINDS = ("json", "regex", "choice", "grammar", "json_object")
IGNORED = {"backend", "disable_fallback"}
"""Fields of older versions of vLLM that name a library."""


@dataclass
class StructuredOutputsParams:
    """What the text of a completion must be, with the names of vLLM. Exactly one field is given.

    `SamplingParams(structured_outputs=StructuredOutputsParams(...))` sets a field of `SamplingParams`: `json` is
    `json_schema`, `regex` and `grammar` have the same names, and a choice is a grammar.

    Args:
        json: a JSON schema: text, a mapping, or a class of pydantic.
        regex: a regular expression.
        choice: a list of texts, of which the completion is one.
        grammar: a grammar in the EBNF of GBNF, whose rule `root` derives the text.
        json_object: True: the text is a JSON object.

    Raises:
        ConfigurationError: none or several are given, or a field of vLLM that has no equal here.
    """

    json: Any = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None
    backend: str | None = None
    disable_fallback: bool = False

    def __post_init__(self) -> None:
        for name in [one.name for one in fields(self) if one.name not in {*KINDS, *IGNORED}]:
            if value := getattr(self, name):
                raise ConfigurationError(
                    f"got {value!r}, which has no equal here: leave it out", setting=f"structured_outputs.{name}"
                )
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigurationError(f"got {found}, expected one of {', '.join(KINDS)}", setting="structured_outputs")
        if self.choice is not None and not is_texts(self.choice):
            raise ConfigurationError(
                f"got {self.choice!r}, expected a list of at least one text", setting="structured_outputs.choice"
            )

    def fields_here(self) -> dict[str, Any]:
        """Returns the fields of `SamplingParams` that say the same."""
        if self.json_object:
            return {"json_schema": {"type": "object"}}
        if self.choice is not None:
            return {"grammar": grammar_of_choice(self.choice)}
        found = {"json_schema": self.json, "regex": self.regex, "grammar": self.grammar}
        return {name: value for name, value in found.items() if value is not None}


def constraint_fields(value: Any) -> dict[str, Any]:
    """Returns the fields of `SamplingParams` for `structured_outputs`: the class above, or a mapping with its fields.

    Raises:
        ConfigurationError: it is something else, or a field is wrong.
    """
    if isinstance(value, Mapping):
        known = {one.name for one in fields(StructuredOutputsParams)}
        if unknown := [str(name) for name in value if name not in known]:
            raise ConfigurationError(
                f"got {unknown[0]!r}, expected one of {', '.join(KINDS)}", setting="structured_outputs"
            )
        value = StructuredOutputsParams(**value)
    if not isinstance(value, StructuredOutputsParams):
        raise ConfigurationError(
            f"got {type(value).__name__}, expected StructuredOutputsParams(...)", setting="structured_outputs"
        )
    return value.fields_here()


def grammar_of_choice(texts: Sequence[str]) -> str:
    """A grammar in GBNF whose texts are these."""
    return "root ::= " + " | ".join(map(json_module.dumps, texts))


def is_texts(value: Any) -> bool:
    """Whether this is a list of at least one text."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
