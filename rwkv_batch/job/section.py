"""What all sections of a job file have in common: how a setting is declared, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


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
