"""The section `report` of a job file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .section import Section, setting


class ReportSection(Section):
    """Settings of the report: what it shows of single rows."""

    show_text: bool = setting(
        False,
        "report.html and report.json also have texts of rows: prompts and completions of `samples` rows, and the "
        "prompts of the first error rows. With false, they have ids, row numbers, and the sentences of errors without "
        "what these quote.",
    )
    samples: Annotated[int, Field(ge=0, le=100)] = setting(
        10,
        "With `show_text`, so many rows with results are shown. They are chosen by their row numbers: always the same.",
        "an integer from 0 to 100",
    )
