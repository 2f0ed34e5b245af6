"""What pydantic refused, in the words of this package's errors: where, what was given, what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .config import expected_of, is_section
from .messages import did_you_mean, shown, unknown_key
from .section import Section


def explain(
    error: ValidationError, settings: Mapping[str, Any], section: type[Section], meant: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yields (where, what) for each setting that pydantic refused.

    Args:
        settings: what was given.
        section: what the settings were to be.
        meant: unknown key → the setting that was meant.
    """
    seen = set()
    for problem in error.errors(include_url=False):
        keys, field, siblings = _locate(problem["loc"], section)
        where = ".".join(keys)
        if where in seen:
            continue
        seen.add(where)
        if problem["type"] in ("extra_forbidden", "invalid_key"):
            yield where, unknown_key(keys[-1], siblings, meant.get(where))
        elif problem["type"] == "missing":
            yield where, f"missing, expected {expected_of(field)}"
        else:
            value, expected = _value(settings, keys), expected_of(field)
            yield where, f"got {shown(value)}, expected {expected}{_guess(value, expected)}"


def _guess(value: Any, expected: str) -> str:
    """What may have been meant, where `expected` lists names: "auto, rwkv or bot"."""
    names = re.split(", | or ", expected)
    return did_you_mean(value, names) if isinstance(value, str) and all(" " not in name for name in names) else ""


def _locate(location: tuple[int | str, ...], section: Any) -> tuple[list[str], FieldInfo | None, list[str]]:
    """Follows pydantic's location to a setting. Returns its keys, its field, and the names in its section."""
    keys: list[str] = []
    field, siblings = None, list(section.model_fields)
    for key in location:
        siblings = list(section.model_fields)
        keys.append(str(key))
        field = section.model_fields.get(key)
        section = field.annotation if field is not None else None
        if not is_section(section):
            break
    return keys, field, siblings


def _value(settings: Any, keys: list[str]) -> Any:
    for key in keys:
        settings = settings[key]
    return settings
