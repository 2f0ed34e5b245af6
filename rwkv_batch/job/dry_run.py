"""The description of a job that --dry-run prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..rows import ErrorRow, ScoreRow
from .input.rows import RowKey
from .input.table import BATCH_ROWS
from .plan import Shard
from .prepare import Prepared

SHOWN_UNITS = 8


def describe(prepared: Prepared, shard: Shard) -> Iterator[str]:
    """Yields lines for a terminal: input, output, the shard's units, the model and the first prompt."""
    job, source, columns, plan = prepared.job, prepared.source, prepared.columns, prepared.plan
    yield f"task      {job.task}"
    yield f"input     {_counted(len(source.files), 'file')}, {_counted(source.num_rows, 'row')}"
    yield from (f"          {field.name}: {field.type}" for field in source.schema)
    yield f"prompts   from {'input.template' if columns.template else ', '.join(columns.roles.values())}"
    if columns.sampling or columns.sampling_struct:
        names = [*columns.sampling.values(), *([columns.sampling_struct] if columns.sampling_struct else [])]
        yield f"          sampled as the columns {', '.join(names)} say, where they are not null"
    yield f"output    {prepared.folders.output}: {_counted(plan.num_rows, 'row')} in {_counted(plan.num_units, 'part')}"
    yield from (f"          {field.name}: {field.type}" for field in prepared.form.schema(plan.unit(0)))
    if shard.count > 1:
        units = list(shard.units(plan))
        numbers = ", ".join(str(unit.index) for unit in units[:SHOWN_UNITS]) + ", …" * (len(units) > SHOWN_UNITS)
        rows = sum(unit.num_rows for unit in units)
        yield f"shard     {shard}: {_counted(rows, 'row')} in {_counted(len(units), 'part')}: {numbers or 'none'}"
    yield f"state     {prepared.folders.state}"
    yield f"settings  fingerprint {prepared.document['fingerprint'][:16]}"
    yield f"model     {job.model.path}"
    yield from (f"          {line}" for line in str(prepared.model.memory_plan).splitlines())
    yield from _backends(prepared)
    yield from _first_prompt(prepared)


def _counted(count: int, noun: str) -> str:
    """A number with its noun, such as "1 row" or "2 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _backends(prepared: Prepared) -> Iterator[str]:
    """Yields the backend of each op, with the reasons against the others."""
    for choice in prepared.model.describe()["backends"]:
        where = f" on {choice['on']}" if "on" in choice else ""
        refused = f" ({' · '.join(choice['not_used'])})" if choice["not_used"] else ""
        yield f"op        {choice['op']}: {choice['backend']}{where}{refused}"


def _first_prompt(prepared: Prepared) -> Iterator[str]:
    """Yields the first prompt that can be served, with its tokens, and the bad rows before it."""
    for batch in prepared.source.read(0, min(prepared.plan.num_rows, BATCH_ROWS), prepared.columns.read):
        keys = [RowKey(prepared.plan.unit(0), row) for row in range(batch.num_rows)]
        for row in prepared.parser.rows(batch, keys):
            if isinstance(row, ErrorRow):
                yield f"row {row.row}     error {row.error.code}: {row.error.message}"
                continue
            prompt = row.context if isinstance(row, ScoreRow) else row.prompt
            yield f"row {row.row}     {_shown(prompt)}"
            if isinstance(prompt, str):
                token_ids = list(prepared.model.tokenizer.encode(prompt))
                yield f"          {len(token_ids)} tokens: {token_ids}"
            continuations = row.continuations if isinstance(row, ScoreRow) else ()
            yield from (f"          continuation {_shown(item)}" for item in continuations)
            return


def _shown(prompt: Any) -> str:
    """A prompt as a Python literal: text, or a list of token ids."""
    return repr(prompt if isinstance(prompt, str) else list(map(int, prompt)))
