"""What a part, or another Parquet file, holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigurationError
from ..job.output.parts import footer

MAGIC = b"PAR1"


def is_parquet(path: str) -> bool:
    """Whether a local file begins as Parquet files do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def inspect_part(path: str) -> dict[str, Any]:
    """Describes a Parquet file by its footer.

    Raises:
        ConfigurationError: the footer is damaged.
    """
    try:
        with pq.ParquetFile(path) as parquet:
            return {
                "kind": "part",
                "path": path,
                "records": parquet.metadata.num_rows,
                "row_groups": parquet.num_row_groups,
                "columns": {field.name: str(field.type) for field in parquet.schema_arrow},
                "footer": footer(parquet),
            }
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path}: its footer cannot be read: {error}") from error


def describe(found: dict[str, Any]) -> Iterator[str]:
    """Yields lines for a terminal."""
    yield f"part       {found['path']}"
    yield f"records    {found['records']:,} in {found['row_groups']:,} row groups"
    yield from (f"column     {name}: {kind}" for name, kind in found["columns"].items())
    yield from (f"footer     {key}: {value}" for key, value in found["footer"].items())
    if not found["footer"]:
        yield "footer     nothing of rwkv_batch: this is no part of a job"
