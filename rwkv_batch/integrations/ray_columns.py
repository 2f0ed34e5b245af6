"""The columns of Ray Data's batches: those that are read, and those that are added, named as in a job's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..errors import ConfigurationError, RowError, did_you_mean, one_of
from ..outputs import RequestOutput, ScoreOutput

PROMPTS = ("prompt", "messages", "prompt_token_ids")
SCORED = ("context", "continuation")

Record = dict[str, Any]
"""One record of the result columns by name; what is not in it is null."""


def checked_roles(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Returns role → column.

    Args:
        columns: as the user gives it; None is a column `prompt`.

    Raises:
        ConfigurationError: these are neither one prompt, nor a context with its continuation.
    """
    roles = dict(columns or {"prompt": "prompt"})
    for role in roles:
        if role not in (*PROMPTS, *SCORED):
            raise ConfigurationError(
                f"got the role {role!r}{did_you_mean(role, (*PROMPTS, *SCORED))}, expected {one_of(PROMPTS)}, or "
                f"{' and '.join(SCORED)}",
                setting="columns",
            )
    if sorted(roles) != sorted(SCORED) and (len(roles) != 1 or not roles.keys() <= {*PROMPTS}):
        raise ConfigurationError(
            f"got {' and '.join(roles)}, expected one of {one_of(PROMPTS)}, or both of {' and '.join(SCORED)}",
            setting="columns",
        )
    return roles


def completion_schema(token_ids: bool, logprobs: bool) -> pa.Schema:
    """Returns the columns that are added to prompts: one record for each sample."""
    fields = [
        ("sample_index", pa.int32()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        *_STATUS,
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cumulative_logprob", pa.float64()),
    ]
    return pa.schema([*fields, *_of_tokens(token_ids, logprobs)])


def score_schema(token_ids: bool, logprobs: bool) -> pa.Schema:
    """Returns the columns that are added to contexts and continuations."""
    fields = [("logprob", pa.float64()), ("is_greedy", pa.bool_()), ("num_tokens", pa.int32())]
    return pa.schema([*fields, *_STATUS, *_of_tokens(token_ids, logprobs)])


_STATUS = [("status", pa.string()), ("error_code", pa.string()), ("error", pa.string())]


def _of_tokens(token_ids: bool, logprobs: bool) -> list[tuple[str, pa.DataType]]:
    wanted = [("token_ids", pa.list_(pa.int32()), token_ids), ("token_logprobs", pa.list_(pa.float32()), logprobs)]
    return [(name, kind) for name, kind, is_wanted in wanted if is_wanted]


def renamed(results: pa.Schema, names: Mapping[str, str]) -> pa.Schema:
    """Returns the result columns under the names that the user gives.

    Args:
        names: name of a result column → its name in the output. A column without an entry keeps its name.

    Raises:
        ConfigurationError: there is no such column, or two would have one name.
    """
    for name in names:
        if name not in results.names:
            raise ConfigurationError(
                f"got {name!r}{did_you_mean(name, results.names)}, expected names of {', '.join(results.names)}",
                setting="output_columns",
            )
    found = results.with_metadata(None)
    for index, field in enumerate(results):
        found = found.set(index, field.with_name(names.get(field.name, field.name)))
    if twice := [name for name, count in Counter(found.names).items() if count > 1]:
        raise ConfigurationError(f"got two columns named {twice[0]!r}, expected one", setting="output_columns")
    return found


def check_batch(batch: pa.Table, roles: Iterable[str], results: pa.Schema) -> None:
    """Checks the columns of a batch.

    Args:
        roles: columns that must be there.
        results: the columns that are added, under their names in the output.

    Raises:
        ConfigurationError: a column is missing, or has the name of a result.
    """
    for name in roles:
        if name not in batch.column_names:
            raise ConfigurationError(
                f"the batch has no column {name!r}{did_you_mean(name, batch.column_names)}; it has "
                f"{', '.join(batch.column_names)}",
                setting="columns",
            )
    if common := [name for name in batch.column_names if name in results.names]:
        raise ConfigurationError(
            f"the batch has columns with names of results: {', '.join(common)}. Rename the results', for example "
            f"output_columns={{{common[0]!r}: 'new_{common[0]}'}}, or drop the columns first",
            setting="output_columns",
        )


def cells(column: pa.ChunkedArray) -> list[Any]:
    """Returns the values of a column; for a cell whose text is not UTF-8 a RowError."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return RowError("invalid_text", f"expected text in UTF-8: {error}")


def completion_records(output: RequestOutput) -> list[Record]:
    """Returns the records of a prompt: one for each sample."""
    if output.error is not None:
        return error_records(output.error_code, output.error, True)
    return [
        {
            "sample_index": sample.index,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "stop_reason": None if sample.stop_reason is None else str(sample.stop_reason),
            "status": "ok",
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": len(sample.token_ids),
            "cumulative_logprob": sample.cumulative_logprob,
            "token_ids": sample.token_ids,
            "token_logprobs": sample.token_logprobs,
        }
        for sample in output.outputs
    ]


def score_records(outputs: Sequence[ScoreOutput]) -> list[Record]:
    """Returns the record of a context with one continuation."""
    (output,) = outputs
    if output.error is not None:
        return error_records(output.error_code, output.error, False)
    return [
        {
            "logprob": output.logprob,
            "is_greedy": output.is_greedy,
            "num_tokens": output.num_tokens,
            "status": "ok",
            "token_ids": output.token_ids,
            "token_logprobs": output.token_logprobs,
        }
    ]


def error_records(code: str | None, message: str, is_prompt: bool) -> list[Record]:
    """Returns the record of a row that cannot be served."""
    record = {"status": "error", "error_code": code, "error": message}
    return [record | {"sample_index": 0, "finish_reason": "error"} if is_prompt else record]


def result_arrays(records: Sequence[Record], results: pa.Schema) -> list[pa.Array]:
    """Returns an array for each column of `results`, whose names are those of the records."""
    return [pa.array([record.get(field.name) for record in records], field.type) for field in results]
