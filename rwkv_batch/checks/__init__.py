"""Checks of a machine: every op of every backend against its definition, and the demo model against known tokens."""

from __future__ import annotations

from .result import CheckResult
from .runner import run_checks
from .table import format_table

__all__ = ["CheckResult", "format_table", "run_checks"]
