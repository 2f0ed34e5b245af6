"""What the output says about a row: its columns, fixed before the first row, and the records that fill them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..config import JobConfig
from ..errors import ConfigurationError, RowError
from ..outputs import RequestOutput, ScoreOutput
from .columns import Columns

Record = dict[str, Any]
"""One row of the output without the input's columns; a column it lacks is null."""

_STATUS = [("status", pa.string()), ("error_code", pa.string()), ("error", pa.string())]


def result_schema(job: JobConfig, columns: Columns) -> pa.Schema:
    """The columns that the job adds to the input's."""
    if job.task == "score":
        is_list = "choices" in columns.parts
        scores = [("logprob", pa.float64()), ("is_greedy", pa.bool_()), ("num_tokens", pa.int32())]
        if job.output.token_ids:
            scores.append(("token_ids", pa.list_(pa.int32())))
        if job.output.logprobs:
            scores.append(("token_logprobs", pa.list_(pa.float32())))
        fields = [(name, pa.list_(kind) if is_list else kind) for name, kind in scores] + _STATUS
        return pa.schema([*fields, ("best_choice", pa.int32())] if is_list else fields)
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
    if job.output.token_ids:
        fields.append(("token_ids", pa.list_(pa.int32())))
    if job.output.logprobs:
        fields.append(("token_logprobs", pa.list_(pa.float32())))
    return pa.schema(fields)


def output_schema(source: pa.Schema, columns: Columns, results: pa.Schema) -> pa.Schema:
    """The columns of a part: the input's that are passed on, then the results'.

    Raises:
        ConfigurationError: they have a name in common.
    """
    common = [name for name in columns.passed if name in results.names]
    if common:
        raise ConfigurationError(
            f"output.input_columns: the input has a column {common[0]!r}, a name that the output needs; "
            "rename it, or leave it out of output.input_columns"
        )
    return pa.schema([*(source.field(name) for name in columns.passed), *results])


def failed_row(task: str, error: RowError) -> list[Record]:
    """The one record of a row that was not served."""
    record = {"status": "error", "error_code": error.code, "error": error.message}
    return [record] if task == "score" else [{"sample_index": 0, "finish_reason": "error", **record}]


def completed_row(output: RequestOutput) -> list[Record]:
    """One record for each sample, or the one that says what went wrong."""
    prompt_tokens = len(output.prompt_token_ids)
    if output.error_code is not None:
        (record,) = failed_row("generate", RowError(output.error_code, output.error or output.error_code))
        return [{**record, "prompt_tokens": prompt_tokens}]
    return [
        {
            "sample_index": sample.index,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "stop_reason": None if sample.stop_reason is None else str(sample.stop_reason),
            "status": "ok",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(sample.token_ids),
            "cumulative_logprob": sample.cumulative_logprob,
            "token_ids": sample.token_ids,
            "token_logprobs": sample.token_logprobs,
        }
        for sample in sorted(output.outputs, key=lambda sample: sample.index)
    ]


def scored_row(scores: Sequence[ScoreOutput], is_list: bool) -> list[Record]:
    """The record of one context: of its continuation, or lists over its choices."""
    for score in scores:
        if score.error_code is not None:
            return failed_row("score", RowError(score.error_code, score.error or score.error_code))
    names = ("logprob", "is_greedy", "num_tokens", "token_ids", "token_logprobs")
    if not is_list:
        return [{"status": "ok", **{name: getattr(scores[0], name) for name in names}}]
    lists = {name: [getattr(score, name) for score in scores] for name in names}
    best = max(range(len(scores)), key=lambda index: scores[index].logprob)
    return [{"status": "ok", **lists, "best_choice": best}]
