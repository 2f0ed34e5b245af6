"""What a report counts over the rows of the parts, and which rows it shows. Memory does not grow with the parts."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..output.storage import Storage
from .choices import ChoiceSummary
from .lengths import Lengths
from .scores import RESULTS as SCORES
from .scores import ScoreSummary

LABELS = ("status", "error_code", "finish_reason")
LENGTHS = {"generate": ("prompt_tokens", "completion_tokens"), "score": ("num_tokens",)}
"""Task → the columns with numbers of tokens."""
ALL_LENGTHS = (*LENGTHS["generate"], *LENGTHS["score"])
FIRST = {"generate": "sample_index", "score": "logprob"}
"""Task → the first of the columns that a job adds. Columns of the input with the name of another one come before it."""
ERROR_ROWS = 3
"""Rows that are shown of each error code: the first ones."""
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Place(NamedTuple):
    """Where an output row is: its part, its number in the part, its input row, and which sample of that it is."""

    part: str
    offset: int
    row: int
    sample: int


class PartRows(NamedTuple):
    """What is counted of a part.

    Args:
        path: of the part.
        names: columns that the job adds: their own names → their names in the part.
        batches: all rows, with these columns and those of the input that are counted.
    """

    path: str
    names: dict[str, str]
    batches: list[pa.RecordBatch]


class Tally:
    """Counts over the rows of the parts that it has been given, and the places of rows to show.

    Args:
        task: of the job.
        scores: collects metrics; None for another task than score.
        choices: collects what is shown of rows with choices; None where there are none.
        samples: how many rows to choose. They depend on the numbers of the rows only, not on the order of the parts.

    Attributes:
        labels: column → value → output rows with it.
        rows: status → input rows with it. The samples of a row have the same one.
        lengths: column → the numbers of tokens in it.
        errors: error code → where its first rows are.
    """

    def __init__(
        self, task: str, scores: ScoreSummary | None = None, choices: ChoiceSummary | None = None, samples: int = 0
    ) -> None:
        self.task = task
        self.scores = scores
        self.choices = choices
        self.labels: dict[str, Counter[str]] = {name: Counter() for name in LABELS}
        self.rows: Counter[str] = Counter()
        self.lengths = {name: Lengths() for name in ALL_LENGTHS}
        self.errors: dict[str, list[Place]] = {}
        self._most_samples = samples
        self._samples: list[tuple[int, Place]] = []  # by their hashes

    @property
    def samples(self) -> list[Place]:
        """The chosen rows without an error, in the order of the rows."""
        return sorted((place for _, place in self._samples), key=lambda place: (place.row, place.sample))

    def read_part(self, storage: Storage, path: str, renamed: Mapping[str, str]) -> PartRows:
        """Reads what is counted of a part. Counts nothing: several threads may read parts at a time.

        Args:
            path: the part.
            renamed: column that the job adds → its name in the parts, where that is another one.
        """
        with storage.open(path) as file:
            parquet = pq.ParquetFile(file)
            present = parquet.schema_arrow.names
            names = added_columns(present, self.task, renamed)
            wanted = (*LABELS, *ALL_LENGTHS, "sample_index", *(SCORES if self.scores else ()))
            names = {name: names[name] for name in dict.fromkeys(wanted) if name in names}
            sources = [one.passed for one in (self.scores, self.choices) if one]
            passed = [name for source in sources for name in source if name in present]
            columns = [*dict.fromkeys([*names.values(), *passed])]
            return PartRows(path, names, list(parquet.iter_batches(columns=columns)))

    def add_part(self, part: PartRows, first_row: int) -> None:
        """Adds the rows of a part.

        Args:
            first_row: the number of its first row in the whole input.
        """
        offset, row = 0, first_row - 1
        for batch in part.batches:
            results = batch.select([*part.names.values()]).rename_columns([*part.names])
            if self.scores is not None:
                self.scores.add(results, batch)
            if self.choices is not None:
                self.choices.add(results, batch)
            self._count(results)
            rows = row + _rows_begun(results)
            self._choose(results, _Numbers(part.path, offset, rows))
            offset, row = offset + results.num_rows, int(rows[-1]) if len(rows) else row

    def _count(self, results: pa.RecordBatch) -> None:
        if "status" in results.schema.names:
            firsts = results["status"].filter(pa.array(_samples(results) == 0))
            self.rows.update({entry["values"]: entry["counts"] for entry in firsts.value_counts().to_pylist()})
        for name in set(LABELS).intersection(results.schema.names):
            counted = results[name].drop_null().value_counts().to_pylist()
            self.labels[name].update({entry["values"]: entry["counts"] for entry in counted})
        for name in set(ALL_LENGTHS).intersection(results.schema.names):
            column = results[name]
            if name == "prompt_tokens":  # the samples of a row share its prompt
                column = column.filter(pc.equal(results["sample_index"], 0))
            if pa.types.is_list(column.type):
                column = column.flatten()
            self.lengths[name].add(column.drop_null().to_numpy(zero_copy_only=False))

    def _choose(self, results: pa.RecordBatch, numbers: _Numbers) -> None:
        """Notes the first error rows of each code, and the rows to show."""
        if "error_code" in results.schema.names:
            codes = results["error_code"].dictionary_encode()
            indices = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            for index, code in enumerate(codes.dictionary.to_pylist()):
                known = self.errors.setdefault(code, [])
                for offset in np.flatnonzero(indices == index)[: ERROR_ROWS - len(known)].tolist():
                    known.append(numbers.place(results, offset))
        if self._most_samples:
            self._choose_samples(results, numbers)

    def _choose_samples(self, results: pa.RecordBatch, numbers: _Numbers) -> None:
        """Keeps the rows without an error whose hashes are the smallest of all rows so far."""
        is_ok = pc.equal(results["status"], "ok").fill_null(False).to_numpy(zero_copy_only=False)
        offsets = np.flatnonzero(is_ok)
        hashes = _hashes(numbers.rows[offsets], _samples(results)[offsets])
        for index in np.argsort(hashes)[: self._most_samples].tolist():
            own = int(hashes[index])
            if len(self._samples) == self._most_samples and own >= self._samples[-1][0]:
                break
            insort(self._samples, (own, numbers.place(results, int(offsets[index]))))
            del self._samples[self._most_samples :]


class _Numbers(NamedTuple):
    """The numbers of a batch's output rows: that of the first one in its part, and their input rows [n]."""

    part: str
    offset: int
    rows: Any

    def place(self, results: pa.RecordBatch, offset: int) -> Place:
        """Where the output row with this number in the batch is."""
        sample = int(_samples(results)[offset])
        return Place(self.part, self.offset + offset, int(self.rows[offset]), sample)


def added_columns(present: Sequence[str], task: str, renamed: Mapping[str, str]) -> dict[str, str]:
    """Returns the columns that the job adds: their own names → their names in the part.

    Args:
        present: the columns of the part.
        renamed: those with another name in parts.
    """
    own_names = {name: own for own, name in renamed.items()}
    first = FIRST[task]
    added = present[present.index(renamed.get(first, first)) :]
    return {own_names.get(name, name): name for name in added}


def _samples(results: pa.RecordBatch) -> Any:
    if "sample_index" not in results.schema.names:
        return np.zeros(results.num_rows, np.int64)
    return results["sample_index"].to_numpy(zero_copy_only=False)


def _rows_begun(results: pa.RecordBatch) -> Any:
    """How many input rows have begun in a batch up to each output row [n]: each begins with sample 0."""
    return np.cumsum(_samples(results) == 0)


def _hashes(rows: Any, samples: Any) -> Any:
    """Hashes [n] that scatter rows and samples evenly, by SplitMix64."""
    mixed = (rows.astype(np.uint64) << np.uint64(20)) + samples.astype(np.uint64) + _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[1]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[2]
    return mixed ^ (mixed >> np.uint64(31))
