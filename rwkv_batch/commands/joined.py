"""The rows of two jobs, side by side: joined by their ids where these are unique, else by their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..errors import ConfigurationError
from .finished import Finished

NUMBERS = ("completion_tokens", "logprob", "is_greedy", "best_choice", "correct", "correct_norm", "correct_bytes")
"""Columns that are read as numbers; NaN stands for null."""
LABELS = ("status", "finish_reason")
"""Columns that are read as texts."""


@dataclass(frozen=True)
class Records:
    """The records of a job that are compared; what is long, a completion, as a hash.

    Args:
        rows: [n] number of the input row of each record.
        samples: [n] number of the sample.
        ids: the id of each input row; None where parts have no such column.
        values: column → array [n]; "completion" is a hash in 64 bits.
    """

    rows: Any
    samples: Any
    ids: list[Any] | None
    values: dict[str, Any]

    @property
    def has_unique_ids(self) -> bool:
        """Whether each input row has an id of its own."""
        return self.ids is not None and None not in self.ids and len(set(self.ids)) == len(self.ids)


class Joined(NamedTuple):
    """Records of two jobs in pairs.

    Args:
        by: what joins them, in words.
        a, b: index of each pair's record in either job.
        only_a, only_b: numbers of records without a partner.
    """

    by: str
    a: Any
    b: Any
    only_a: int
    only_b: int


def read_records(finished: Finished) -> Records:
    """Reads the records of a job."""
    sample, completion, name = finished.column("sample_index"), finished.column("completion"), finished.id_column()
    scalar = {
        own: found for own in (*NUMBERS, *LABELS) if (found := finished.column(own)) and _is_scalar(finished, found)
    }
    columns = [*dict.fromkeys(filter(None, [sample, completion, name, *scalar.values()]))]
    samples: list[Any] = []
    ids: list[Any] = []
    values: dict[str, list[Any]] = {own: [] for own in (*scalar, *(["completion"] if completion else []))}
    for batch in finished.batches(columns):
        numbers: Any = np.zeros(batch.num_rows, np.int64) if sample is None else np.asarray(batch[sample])
        samples.append(numbers)
        if name is not None:
            ids += [_hashable(value) for value in batch[name].filter(pa.array(numbers == 0)).to_pylist()]
        for own, column in scalar.items():
            values[own].append(
                _numbers(batch[column]) if own in NUMBERS else np.array(batch[column].to_pylist(), object)
            )
        if completion is not None:
            values["completion"].append(np.array([*map(_digest, batch[completion].to_pylist())], np.uint64))
    joined = np.concatenate(samples) if samples else np.zeros(0, np.int64)
    rows = np.cumsum(joined == 0) - 1
    return Records(
        rows,
        joined,
        ids if name is not None else None,
        {own: np.concatenate(found) if found else np.zeros(0) for own, found in values.items()},
    )


def join(a: Records, b: Records) -> Joined:
    """Pairs the records of two jobs: those of the same row and sample.

    Raises:
        ConfigurationError: the rows have no unique ids, and the jobs have different numbers of them.
    """
    rows_b = b.rows
    by = "row order"
    if a.has_unique_ids and b.has_unique_ids:
        assert a.ids is not None and b.ids is not None
        by = "id"
        place = {value: row for row, value in enumerate(a.ids)}
        to_a = np.array([place.get(value, -1) for value in b.ids], np.int64)
        rows_b = to_a[b.rows]
    elif (count_a := _num_rows(a)) != (count_b := _num_rows(b)):
        raise ConfigurationError(
            f"got {count_a:,} and {count_b:,} rows without unique ids, expected a column id in both, or as many rows"
        )
    width = 1 + int(max(a.samples.max(initial=0), b.samples.max(initial=0)))
    keys_a, keys_b = a.rows * width + a.samples, np.where(rows_b < 0, -1, rows_b * width + b.samples)
    _, found_a, found_b = np.intersect1d(keys_a, keys_b, assume_unique=False, return_indices=True)
    return Joined(by, found_a, found_b, len(keys_a) - len(found_a), len(keys_b) - len(found_b))


def texts_at(finished: Finished, own: str, records: Sequence[int]) -> list[Any]:
    """Returns the cells of a column that the job adds, of a few records."""
    column = finished.column(own)
    assert column is not None
    found: dict[int, Any] = {}
    wanted, start = sorted(set(records)), 0
    for batch in finished.batches([column]):
        here = [record for record in wanted if start <= record < start + batch.num_rows]
        found |= {record: batch[column][record - start].as_py() for record in here}
        start += batch.num_rows
        if not wanted or start > wanted[-1]:
            break
    return [found[record] for record in records]


def _is_scalar(finished: Finished, column: str) -> bool:
    return not pa.types.is_list(finished.schema.field(column).type)


def _num_rows(records: Records) -> int:
    return int(records.rows[-1]) + 1 if len(records.rows) else 0


def _numbers(column: pa.Array) -> Any:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _digest(text: str | None) -> int:
    return int.from_bytes(hashlib.blake2b((text or "").encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value
