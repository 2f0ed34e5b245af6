"""What a job would do, told before it does anything."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import RowError
from .plan import Shard
from .prepare import Prepared
from .table import BATCH_ROWS

SHOWN_UNITS = 8


def describe(prepared: Prepared, shard: Shard) -> Iterator[str]:
    """Input, output, what the shard makes of it, model and first prompt, in lines for a terminal."""
    job, source, columns, plan = prepared.job, prepared.source, prepared.columns, prepared.plan
    yield f"task      {job.task}"
    yield f"input     {_counted(len(source.files), 'file')}, {_counted(source.num_rows, 'row')}"
    yield from (f"          {field.name}: {field.type}" for field in source.schema)
    yield f"prompts   from {'input.template' if columns.template else ', '.join(columns.parts.values())}"
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
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _backends(prepared: Prepared) -> Iterator[str]:
    """Who would serve each op."""
    for choice in prepared.model.describe()["backends"]:
        where = f" on {choice['on']}" if "on" in choice else ""
        refused = f" ({' · '.join(choice['not_used'])})" if choice["not_used"] else ""
        yield f"op        {choice['op']}: {choice['backend']}{where}{refused}"


def _first_prompt(prepared: Prepared) -> Iterator[str]:
    for batch in prepared.source.read(0, min(prepared.plan.num_rows, BATCH_ROWS), prepared.columns.read):
        for row, request in enumerate(prepared.maker.requests(batch)):
            if isinstance(request, RowError):
                yield f"row {row}     error {request.code}: {request.message}"
                continue
            yield f"row {row}     {request.prompt!r}"
            if isinstance(request.prompt, str):
                token_ids = prepared.model.tokenizer.encode(request.prompt)
                yield f"          {len(token_ids)} tokens: {token_ids}"
            yield from (f"          continuation {item!r}" for item in request.continuations)
            return
