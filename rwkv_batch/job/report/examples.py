"""Single rows of the parts: those that a report shows, and those that the command `report --show` prints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from math import isfinite
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..folders import Folders
from ..output.commit import UNREADABLE
from ..output.storage import Storage
from .tally import Place, added_columns
from .wording import shortened

BATCH_ROWS = 64
TEXTS: tuple[str, ...] = ("prompt", "completion")
TEXT_CHARACTERS = 1000
"""The longest text that a report shows of a row."""
ERROR_CHARACTERS = 300
"""The longest sentence, and the longest prompt, that a report shows of an error row."""
ID_CHARACTERS = 80
_QUOTED = re.compile(r"""(?<!\w)(["'])((?:\\.|(?!\1).)*)(?:\1|$)""", re.DOTALL)
"""A text in quotes. The second quote may be missing, where a sentence has been cut."""


class Examples:
    """Reads rows of the parts for a report.

    Args:
        storage: of the output folder.
        job: the content of job.json.
        config: the job's settings, section by section.
        show_text: also read prompts, completions and choices, and leave error sentences as they are.
    """

    def __init__(
        self,
        storage: Storage,
        job: Mapping[str, Any],
        config: Mapping[str, Any],
        show_text: bool,
    ) -> None:
        self._storage = storage
        self._task = job["settings"]["task"]
        self._renamed = job.get("columns", {})
        self._config = config
        self._known = json.dumps([config, job["settings"]], ensure_ascii=False, default=str)
        self._show_text = show_text

    def errors(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """Describes error rows: number, id and sentence; with `show_text` also the prompt."""
        found: list[dict[str, Any]] = []
        for place, record in self._read(places):
            sentence = record.get("error", "")
            texts: dict[str, str] = {
                "error": shortened(sentence if self._show_text else self._quoting_nothing(sentence), ERROR_CHARACTERS)
            }
            if "prompt" in record:
                texts["prompt"] = shortened(record["prompt"], ERROR_CHARACTERS)
            found.append({"row": place.row, **({"id": record["id"]} if "id" in record else {}), **texts})
        return found

    def results(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """Describes rows with a result."""
        kept = ("id", "finish_reason", "completion_tokens", "best_choice", "correct", "logprob")
        found: list[dict[str, Any]] = []
        for place, record in self._read(places):
            shown = [name for name in TEXTS if name in record]
            texts = {name: shortened(record[name], TEXT_CHARACTERS) for name in shown}
            facts = {name: record[name] for name in kept if name in record and not isinstance(record[name], list)}
            found.append({"row": place.row, "sample": place.sample, **facts, **texts})
        return found

    def _read(self, places: Sequence[Place]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yields the rows at these places. Those of parts that can no longer be read are left out."""
        for part, group in groupby(sorted(places, key=lambda place: (place.part, place.offset)), lambda one: one.part):
            with suppress(*UNREADABLE), self._storage.open(part) as file:
                parquet = pq.ParquetFile(file)
                columns = self._columns(parquet.schema_arrow.names)
                for place in group:
                    yield place, _plain(_row(parquet, place.offset, columns))

    def _columns(self, present: Sequence[str]) -> dict[str, str]:
        """The columns to read: their names in the report → their names in the part."""
        added = added_columns(present, self._task, self._renamed)
        own = ["error", "finish_reason", "completion_tokens", "best_choice", "correct"]
        columns = {name: added[name] for name in own if name in added}
        roles = self._config.get("input", {}).get("columns", {})
        if (identity := roles.get("id", "id")) in present:
            columns["id"] = identity
        if self._show_text:
            columns |= {name: added[name] for name in ("completion", "logprob") if name in added}
            prompts = [self._renamed.get("prompt", "prompt")] if "prompt" in self._extra else []
            prompts += [roles.get(role, role) for role in ("prompt", "messages", "context", "text")]
            if known := [name for name in prompts if name in present]:
                columns["prompt"] = known[0]
        return columns

    @property
    def _extra(self) -> Sequence[str]:
        extra: Sequence[str] = self._config.get("output", {}).get("extra", [])
        return extra

    def _quoting_nothing(self, sentence: str) -> str:
        """Returns a sentence with dots for each text in quotes that the settings do not have: it may be a row's."""
        return _QUOTED.sub(lambda found: found[0] if found[2] in self._known else f"{found[1]}…{found[1]}", sentence)


def first_rows(
    storage: Storage, folders: Folders, count: int, status: str | None = None, renamed: Mapping[str, str] = {}
) -> Iterator[dict[str, Any]]:
    """Yields the first `count` rows of the published parts. Parts that are damaged are left out.

    Args:
        status: "ok" or "error": only such rows; None for all.
        renamed: column that the job adds → its name in the parts, where that is another one.
    """
    column = renamed.get("status", "status")
    for name in storage.list(folders.output) if count > 0 else ():
        with suppress(*UNREADABLE), storage.open(os.path.join(folders.output, name)) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                if status is not None and not _has(parquet, group, column, status):
                    continue
                for batch in parquet.iter_batches(min(count, BATCH_ROWS), row_groups=[group]):
                    if status is not None:
                        batch = batch.filter(pc.equal(batch[column], status))
                    for record in batch.slice(0, count).to_pylist():
                        yield record
                        count -= 1
                    if count <= 0:
                        return


def _has(parquet: pq.ParquetFile, group: int, column: str, value: str) -> bool:
    """Whether a row group has a row with this value; only its column is read."""
    found = parquet.read_row_group(group, columns=[column])[column]
    return bool(pc.any(pc.equal(found, value)).as_py())


def _row(parquet: pq.ParquetFile, offset: int, columns: Mapping[str, str]) -> dict[str, Any]:
    """Reads one row of a part, by its number in it."""
    for group in range(parquet.num_row_groups):
        num_rows = parquet.metadata.row_group(group).num_rows
        if offset < num_rows:
            break
        offset -= num_rows
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[*columns.values()]):
        if offset < batch.num_rows:
            return {name: batch[column][offset].as_py() for name, column in columns.items()}
        offset -= batch.num_rows
    return {}


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row as JSON has it, without nulls and infinite numbers; lists and mappings are texts."""
    found = {name: value for name, value in record.items() if value is not None and not _is_infinite(value)}
    for name in {"id", *TEXTS}.intersection(found):
        value = found[name]
        if not isinstance(value, str | int):
            found[name] = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(found.get("id"), str):
        found["id"] = shortened(found["id"], ID_CHARACTERS)
    return found


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)
