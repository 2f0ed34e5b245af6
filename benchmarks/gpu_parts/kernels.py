"""The part `kernels`: single kernels in bytes/s beside the copy bandwidth, and operations/s beside the matrix peak."""

from __future__ import annotations

from . import rate_products, rate_recurrences, rate_rows
from .context import Context


def run(context: Context) -> list[str]:
    tables = [part.run(context) for part in (rate_recurrences, rate_products, rate_rows)]
    return [line for table in tables for line in (*table, "")]
