"""What the scores of a job mean: the conventions by which they were made, from the settings that job.json records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .scores import Kind, ScoreSummary

_LENGTH = "of the choice, without one space at its beginning"


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """What each row of a score job scores.

    Args:
        settings: those that job.json records, of any version.
    """
    if "input.columns.choices" in settings or settings.get("score.choices") is not None:
        return "choices"
    made = [settings.get(name) for name in ("input.template", "score.continuation_template", "input.columns.context")]
    return "document" if made == [None] * 3 else "continuation"


def empty_summary(settings: Mapping[str, Any], group_by: str | None) -> ScoreSummary | None:
    """A summary of no rows for a score job; None for another task.

    Args:
        settings: those that job.json records, of any version.
        group_by: the column whose values divide the rows into groups.
    """
    if settings["task"] != "score":
        return None
    columns = {part: settings.get(f"input.columns.{part}") for part in ("continuation", "choices", "answer")}
    return ScoreSummary({part: name for part, name in columns.items() if name is not None}, kind_of(settings), group_by)


def conventions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The conventions on which the numbers of a score job depend, for its report.

    Args:
        settings: those that job.json records, of any version.
    """
    kind = kind_of(settings)
    found = {
        "add_bos_token": settings.get("score.add_bos_token", False),
        "prefix": settings.get("score.prefix"),
        "input.template": settings.get("input.template"),
        "encoding": "context and continuation, each by itself",
    }
    if kind == "document":
        return {**found, "encoding": "the document", "chunk_tokens": settings.get("score.chunk_tokens")}
    if kind == "continuation":
        return {**found, "continuation_template": settings.get("score.continuation_template")}
    answer = settings.get("score.answer", "auto")
    return {
        **found,
        "choices": settings.get("score.choices"),
        "choice_template": settings.get("score.choice_template"),
        "answer": ("index" if answer == "auto" else answer) if settings.get("input.columns.answer") else None,
        "accuracy_norm": f"by log-likelihood per character {_LENGTH}",
        "accuracy_bytes": f"by log-likelihood per byte {_LENGTH}",
    }


def shown_metric(metric: Mapping[str, float]) -> str:
    """A metric with its standard error, as text."""
    value, stderr = metric["value"], metric["stderr"]
    return f"{value:.4f} ± {stderr:.4f}" if value < 1e6 else f"{value:.6g} ± {stderr:.3g}"
