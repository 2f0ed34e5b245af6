"""What all sections of a job file have in common: how a setting is declared, and what is refused."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _expanded(path: str) -> str:
    """The path with the home folder in place of `~` or `~name` at its beginning. No path has a NUL character."""
    expanded = os.path.expanduser(path)
    if not expanded or expanded.startswith("~") or "\0" in expanded:
        raise ValueError
    return expanded


Count = Annotated[int, Field(ge=1)]
Path = Annotated[str, AfterValidator(_expanded)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def setting(default: Any, doc: str, expected: str | None = None) -> Any:
    """Declares a setting.

    Args:
        default: `...` where a job file must have the setting.
        doc: its meaning, in one or two sentences.
        expected: completes the sentence "got X, expected …"; None where the type says which names are right.
    """
    return Field(default, description=doc, json_schema_extra={"expected": expected} if expected else None)


class Section(BaseModel):
    """A section of a job file. Unknown keys and values of other types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
